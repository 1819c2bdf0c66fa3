"""An ejected file is the run: it needs nothing of lmlab and prints the lab's losses bit for bit."""

import ast
import io
import re
import runpy
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import small
import test_training
from ruamel.yaml import YAML
from test_training import Corpus, rows, train
from typer.testing import CliRunner

from lmlab import cli
from lmlab.core import params, registry
from lmlab.core.errors import UserError
from lmlab.export.eject.comments import note_comments, unparsed
from lmlab.export.eject.eject import eject
from lmlab.export.eject.reads import reads_in
from lmlab.export.eject.tidy import drop_unread_attributes, in_use
from lmlab.training import step as stepping

corpus = test_training.corpus  # the fixture
STEPS = {"snapshots": 0, "sample_every": 0, "validate_every": 0, "steps": 3, "log_every": 2}
MODELS = small.variants("models")


def tree_of(**changes: Any) -> params.Tree:
    return small.tree(**{**test_training.BASE, **STEPS, **changes})


def ejected(corpus: Corpus, tree: params.Tree, out: Path) -> str:
    """The file's text."""
    shards, tokenizer = corpus
    eject(tree, shards, tokenizer, shards.folder.parent / "corpus", out)
    return out.read_text(encoding="utf-8")


def printed(out: Path) -> dict[str, str]:
    """The losses that the file prints: of training by step, and on validation."""
    with redirect_stdout(io.StringIO()) as stream:
        runpy.run_path(str(out), run_name="__main__")
    losses = {}
    for line in stream.getvalue().splitlines():
        name, loss = line.split(" ")
        losses[name] = loss
        if name == "validation":  # what follows is a sample
            break
    return losses


def assert_no_fault_is_found(code: str) -> None:
    """Nothing is imported, named or set in vain, no name is undefined, and imports are sorted."""
    ruff = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--quiet",
        "--select",
        "F,I,RUF059",
    ]
    done = subprocess.run([*ruff, "-"], input=code, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def check(corpus: Corpus, tree: params.Tree, tmp_path: Path, **changes: Any) -> None:
    """The file's losses are the log's, to the last bit, and it imports nothing of the lab."""
    try:
        logged = rows(train(corpus, "run", **{**STEPS, **changes}))
    except UserError:
        pytest.skip("the lab itself refuses this")
    code = ejected(corpus, tree, tmp_path / "ejected.py")
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    assert not any((node.module or "").startswith("lmlab") for node in imports)
    assert "import lmlab" not in code
    assert_options_are_read(code)
    assert_no_fault_is_found(code)
    expected = {str(row["step"]): repr(row["train_nats"]) for row in logged if "train_nats" in row}
    expected["validation"] = repr(logged[-1]["validation_nats"])
    assert printed(tmp_path / "ejected.py") == expected


@pytest.mark.parametrize("name", registry.names("learning_rules"))
def test_every_rule(name: str, corpus: Corpus, tmp_path: Path) -> None:
    check(corpus, tree_of(learning_rule=name), tmp_path, learning_rule=name)


@pytest.mark.parametrize("choice", MODELS, ids=small.title)
def test_every_model_and_layer(choice: registry.Choice, corpus: Corpus, tmp_path: Path) -> None:
    changes = {"model": choice.name}
    changes |= {key: inner.name for key, inner in choice.inner.items()}
    check(corpus, tree_of(**changes), tmp_path, **changes)


@pytest.mark.parametrize("name", registry.names("tokenizers"))
def test_every_tokenizer(
    name: str, shards_of: small.ShardsOf, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    made = shards_of(test_training.TEXT, "12 times 12 is 144 €.\n", tokenizer=name)
    check(made, tree_of(), tmp_path)
    namespace = runpy.run_path(str(tmp_path / "ejected.py"), run_name="ejected")
    shards, tokenizer = made
    for split in ("train", "validation"):
        assert namespace["stream"](split) == shards.stream(split).tolist()
    odd = "Naïve 世界  don't\t\n\n1234567 (x)…"
    assert namespace["encode"](odd) == tokenizer.encode(odd).tolist()


def test_many_documents_and_pools(
    shards_of: small.ShardsOf, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [f"{number} is not {number + 1}.\n" * 3 for number in range(60)]
    made = shards_of(texts, texts[:3])
    check(made, tree_of(steps=30), tmp_path, steps=30)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"intervention": "gradient_noise", "third_intervention": "gradient_noise"},
            "train.third_intervention: gradient_noise stands twice, here and in train.intervention",
        ),
        (
            {"intervention": "layer_rates"},
            "train.intervention: layer_rates cannot be ejected; set it to identity",
        ),
        ({"parametrisation": "maximal_update"}, "train.parametrisation: maximal_update cannot be"),
        (
            {"precision": "bfloat16"},
            "train.precision: bfloat16 cannot be ejected; set it to float32",
        ),
        (
            {"clip": 0.0, "step_in_backward": True},
            "train.step_in_backward: true cannot be ejected; set it to false",
        ),
        ({"compile": True}, "train.compile: true cannot be ejected; set it to false"),
        ({"device": "cuda"}, "train.device: cuda cannot be ejected; set it to cpu"),
        (
            {"keep": "best", "validate_every": 1},
            "train.keep: best cannot be ejected; set it to last",
        ),
        ({"patience": 2, "validate_every": 1}, "train.patience: 2 cannot be ejected; set it to 0"),
        (
            {"commit": "1" * 40},
            r"start\.commit cannot be ejected, .*run `lmlab start` without a name",
        ),
    ],
)
def test_what_cannot_be_ejected_is_named(
    changes: dict[str, Any], words: str, corpus: Corpus, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        ejected(corpus, tree_of(**changes), tmp_path / "ejected.py")
    assert not (tmp_path / "ejected.py").exists()


@pytest.mark.parametrize("helps", [False, True])
def test_precision_auto_is_what_it_comes_to(
    helps: bool, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stepping, "trains_faster_in_bfloat16", lambda device: helps)
    if helps:
        words = "train.precision: auto, here bfloat16, cannot be ejected; set it to float32"
        with pytest.raises(UserError, match=words):
            ejected(corpus, tree_of(precision="auto"), tmp_path / "ejected.py")
    else:
        check(corpus, tree_of(precision="auto"), tmp_path, precision="auto")


@pytest.mark.parametrize("name", ["a\"b'.py", "a\\b.py", "«BOS».py", "a.b.py", "a {b}\n.py"])
def test_any_name_will_do(name: str, corpus: Corpus, tmp_path: Path) -> None:
    ejected(corpus, tree_of(steps=1), tmp_path / name)
    assert set(printed(tmp_path / name)) == {"1", "validation"}


@pytest.mark.parametrize("name", ["a.json", "a", "a.py.txt", ".py"])
def test_a_file_of_another_kind_is_refused(name: str, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--out: .* does not end in \.py; "):
        ejected(corpus, tree_of(), tmp_path / name)
    assert not list(tmp_path.glob("a*"))


def test_comments_stay_with_the_lines_they_stand_at() -> None:
    code = """\
def f(x, gain):
    # before
    # a line
    y = x  # behind it
    if gain:  # of a branch
        # of one in it
        y = [
            y,
            # in a list
            gain,
        ]
    elif y:
        # after elif
        y += 1  # type: ignore[operator]
    else:  # lost: no statement begins here
        pass
    # at torch's compiler
    return y
    # at the end
"""
    tree = ast.parse(code)
    note_comments(tree, code)
    assert (
        unparsed(tree.body[0])
        == """\
def f(x, gain):
    # before a line
    y = x  # behind it
    if gain:  # of a branch
        # of one in it
        # in a list
        y = [y, gain]
    elif y:
        # after elif
        y += 1
    else:
        pass
    return y"""
    )


def test_the_comments_that_explain_are_in_the_file(corpus: Corpus, tmp_path: Path) -> None:
    code = ejected(corpus, tree_of(intervention="gradient_noise"), tmp_path / "ejected.py")
    for before, line in [
        ("it subtracts the mean of the gradient", "grad_x, "),
        ("in a tuple, because the model owns it", "self._position = (position,)"),
    ]:
        assert re.search(rf"# .*{re.escape(before)}[^\n]*\n( *#[^\n]*\n)* *{re.escape(line)}", code)


def options_of(tree: ast.Module) -> list[ast.keyword]:
    """All options that stand in the file."""
    classes = {"SimpleNamespace", *_classes_of_options(tree)}
    return [
        keyword
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in classes
        for keyword in call.keywords
    ]


def _classes_of_options(tree: ast.Module) -> set[str]:
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef) and "SimpleNamespace" in map(ast.unparse, node.bases)
    }


def assert_options_are_read(code: str) -> None:
    """Every option is read of `options`, or of `self` by a method of the options."""
    tree = ast.parse(code)
    owners = dict.fromkeys(tree.body, ("options", "self.options"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name in _classes_of_options(tree):
            owners[node] = ("options", "self")
    read = {
        part.attr
        for node, names in owners.items()
        for part in ast.walk(node)
        if isinstance(part, ast.Attribute) and ast.unparse(part.value) in names
    }
    assert {keyword.arg for keyword in options_of(tree)} <= read


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_option_does_something(optimizer: str, corpus: Corpus, tmp_path: Path) -> None:
    tree = tree_of(steps=5, optimizer=optimizer, final=0.1)
    code = ejected(corpus, tree, tmp_path / "ejected.py")
    losses = printed(tmp_path / "ejected.py")
    names = [str(keyword.arg) for keyword in options_of(ast.parse(code))]
    assert {"learning_rate", "depth", "width", "heads", "warmup"} <= set(names)
    for number, name in enumerate(names):
        changed = ast.parse(code)
        keyword = options_of(changed)[number]
        assert isinstance(keyword.value, ast.Constant)
        keyword.value.value *= 2 if isinstance(keyword.value.value, int) else 0.5
        if name.endswith("epsilon"):
            keyword.value.value *= 10_000
        (tmp_path / "ejected.py").write_text(ast.unparse(changed), encoding="utf-8")
        assert printed(tmp_path / "ejected.py") != losses, name


INTERVENTIONS = [name for name in registry.names("interventions") if name != "layer_rates"]


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_every_intervention(name: str, corpus: Corpus, tmp_path: Path) -> None:
    check(corpus, tree_of(intervention=name), tmp_path, intervention=name)


@pytest.mark.parametrize("name", [name for name in INTERVENTIONS if name != "gradient_noise"])
def test_every_intervention_below_another(name: str, corpus: Corpus, tmp_path: Path) -> None:
    changes = {"intervention": name, "third_intervention": "gradient_noise"}
    check(corpus, tree_of(**changes), tmp_path, **changes)


@pytest.mark.parametrize(
    ("code", "of_self", "of_others", "counted"),
    [
        ("self.calls = 0", set(), set(), set()),
        ("x = self.calls + rule.depth", {"calls"}, {"depth"}, set()),
        ("super().edit(x)", {"edit"}, set(), set()),
        ("self.calls += 1", set(), set(), {"calls"}),
        ("rule.calls += 1", set(), {"calls"}, set()),
        ("del self.calls", {"calls"}, set(), set()),
        ("del block.forward", set(), {"forward"}, set()),
        ("getattr(rule, 'depth', 0)", set(), {"depth"}, set()),
        ("vars(block).get('forward')", set(), {"get", "forward"}, set()),
        ("match x:\n    case Map(inputs=i): pass", set(), {"inputs"}, set()),
    ],
)
def test_what_is_read_of_what(
    code: str, of_self: set[str], of_others: set[str], counted: set[str]
) -> None:
    reads = reads_in([ast.parse(code)])
    assert (reads.of_self, reads.of_others, reads.counted) == (of_self, of_others, counted)


@pytest.mark.parametrize(
    ("before", "read", "after"),
    [
        ("self.calls = 0\n  self.calls += 1", set(), "pass"),
        ("self.calls = 0\n  self.calls += 1", {"calls"}, "self.calls = 0\n  self.calls += 1"),
        ("self.sum = x\n  self.sum += y", set(), "self.sum = x\n  self.sum += y"),  # x changes
        ("self.calls = 0\n  self.calls += f()", set(), "self.calls = 0\n  self.calls += f()"),
        ("self.a, self.b = x, y", {"b"}, "self.b = y"),
        ("if x:\n    self.a = 0", set(), "if x:\n    pass"),
    ],
)
def test_attributes_that_nobody_reads_are_not_set(before: str, read: set[str], after: str) -> None:
    cls = ast.parse(f"class A:\n def f(self, x, y):\n  {before}").body[0]
    assert isinstance(cls, ast.ClassDef)
    drop_unread_attributes(cls, read | in_use([cls], reads_in([cls]).counted))
    expected = ast.parse(f"class A:\n def f(self, x, y):\n  {after}")
    assert ast.unparse(cls) == ast.unparse(expected)


@pytest.mark.parametrize("name", registry.names("optimizers"))
def test_every_optimizer(name: str, corpus: Corpus, tmp_path: Path) -> None:
    changes = {"optimizer": name, "learning_rate": 0.001}
    check(corpus, tree_of(**changes), tmp_path, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"power": 0.5, "optimizer": "muon"},
        {"power": 0.5, "learning_rule": "synthetic_gradients", "decay": "independent"},
        {"schedule": "cosine"},
        {"schedule": "constant"},
        {"dropout": 0.3},
        {"tied": True},
        {"cautious": True},
        {"clip": 0.0},
        {"qk_norm": False},
        {"logit_soft_cap": 3.0},
        {"gradient_accumulation": 2},
        {"gradient_accumulation": 2, "dropout": 0.1, "learning_rule": "spsa"},
        {"learning_rule": "block_local", "third_intervention": "quantised_gradients"},
        {"embedding": "n_gram", "dropout": 0.3, "optimizer": "muon"},
    ],
    ids=str,
)
def test_other_choices(changes: dict[str, Any], corpus: Corpus, tmp_path: Path) -> None:
    check(corpus, tree_of(**changes), tmp_path, **changes)


def test_the_command_writes_a_file_that_runs_elsewhere(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a folder of stages' outputs; the file runs where nothing of the lab is at hand."""
    shards, _ = corpus
    values = {f"train.{key}": value for key, value in {**STEPS, "batch": 4, "context": 8}.items()}
    tree = params.changed(
        params.read(small.PROJECT / "params.yaml"),
        values | {"train.threads": 1, "evaluate.stride": 4},
    )
    with (tmp_path / "params.yaml").open("w") as file:
        YAML().dump(dict(tree), file)
    done = CliRunner().invoke(cli.app, ["eject", "--data", str(shards.folder.parent)])
    assert done.exit_code == 0, done.output
    said = re.fullmatch(
        r"ejected\.py: (\d+) lines; it reads ejected\.json beside it: `python ejected\.py`\n",
        done.output,
    )
    assert said
    assert int(said[1]) <= 700  # as docs/tour.md says; each line fewer is one fewer to read
    data = (tmp_path / "ejected.json").read_bytes()
    refused = CliRunner().invoke(
        cli.app, ["eject", "--data", str(shards.folder.parent), "--out", "ejected.json"]
    )
    assert refused.exit_code == 2
    assert "does not end in .py" in refused.output
    assert (tmp_path / "ejected.json").read_bytes() == data
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("ejected.py", "ejected.json"):
        (tmp_path / name).rename(elsewhere / name)
    run = subprocess.run(
        [sys.executable, "ejected.py"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=True,
        env={"OMP_NUM_THREADS": "1"},
    )
    assert run.stdout.startswith("2 ")
    assert "\nvalidation " in run.stdout
