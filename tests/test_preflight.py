"""The check before every stage: every part can be chosen, and DVC is told of every part that a part
names.
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small

from lmlab.core import params, registry
from lmlab.core.errors import UserError
from lmlab.core.params import Tree
from lmlab.experiments import preflight


def using(tree: Tree, dotted: str, value: str) -> dict[str, Any]:
    """params.yaml with one value replaced."""
    block, _, rest = dotted.partition(".")
    return {**tree, block: using(tree[block], rest, value) if rest else value}


CHOOSERS = {
    **{f"train.{key}": kind for key, kind in registry.marked(preflight.SECTIONS["train"])},
    **{
        f"models.transformer.{key}": kind
        for key, kind in registry.marked(registry.find("models", "transformer")[1])
    },
}


@pytest.mark.parametrize(
    ("key", "name"),
    [(key, name) for key, kind in CHOOSERS.items() for name in registry.names(kind)],
)
def test_every_part_may_be_chosen_and_dvc_is_told_of_those_it_names(
    key: str, name: str, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small.PROJECT)
    chosen = using(tree, key, name)
    if (key, name) == ("train.learning_rule", "distillation"):
        with pytest.raises(UserError, match="learns from the model that training goes on from"):
            preflight.check(chosen)
        preflight.check(chosen, has_start=True)
    else:
        preflight.check(chosen)


@pytest.mark.parametrize(
    "line",
    [
        "src/lmlab/model/layers/attention/${models.transformer.attention}.py",
        "models.${models.hybrid.second}",
    ],
)
def test_a_named_part_that_dvc_does_not_follow_is_refused_with_the_command_that_adds_it(
    line: str, tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    listed = (small.PROJECT / "dvc.yaml").read_text()
    assert f"- {line}\n" in listed
    Path("dvc.yaml").write_text(listed.replace(f"- {line}\n", ""))
    with pytest.raises(UserError) as refused:
        preflight.check(using(tree, "train.model", "hybrid"))
    assert "run `lmlab deps --write`" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_maximal_update_with_tied_weights_is_refused_before_anything_runs(tree: Tree) -> None:
    tied = {**tree["models"], "transformer": {**tree["models"]["transformer"], "tied": True}}
    with pytest.raises(UserError, match=r"train\.parametrisation: maximal_update needs"):
        preflight.check({**using(tree, "train.parametrisation", "maximal_update"), "models": tied})


@pytest.mark.parametrize(
    ("pieces", "batch", "fine"), [(16, 0, True), (17, 0, False), (32, 32, True), (32, 0, False)]
)
def test_more_pieces_than_a_batch_left_open_has_windows_are_refused_not_a_larger_batch(
    pieces: int, batch: int, fine: bool, tree: Tree
) -> None:
    asked = params.changed(tree, {"train.gradient_accumulation": pieces, "train.batch": batch})
    if fine:
        return preflight.check(asked)
    with pytest.raises(
        UserError,
        match=rf"train\.gradient_accumulation \({pieces}\) is more pieces .* windows \(16\)",
    ):
        preflight.check(asked)


def test_a_tokenizer_from_a_name_that_no_file_can_have_is_told_by_its_key(tree: Tree) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.from cannot name a file: File name too long"):
        preflight.check(using(tree, "tokenizer.from", "x" * 5000))


ODD = [0, -1, 3, 10**5, 10**9, 10**20, 0.5, 1e300, "x", None, True, [], {}]
BY_FIRST = {
    "models": "train.model",
    "learning_rules": "train.learning_rule",
    "interventions": "train.intervention",
}
BY_FIRST |= {
    "optimizers": "train.optimizer",
    "schedules": "train.schedule",
    "parametrisations": "train.parametrisation",
}


def leaves(node: Tree, at: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{at}{key}.")
        else:
            yield f"{at}{key}"


def choosing(dotted: str) -> dict[str, str]:
    """What has to be chosen for a key to matter."""
    first, second, *rest = dotted.split(".")
    if first == "layers":
        return {f"models.transformer.{second}": rest[0]}
    return {BY_FIRST[first]: second} if first in BY_FIRST else {}


def outcome(tree: Tree) -> str:
    try:
        preflight.check(tree)
    except UserError as refused:
        return str(refused)
    return "fine"


@pytest.mark.parametrize("seed", range(4))
def test_any_value_at_any_key_is_fine_or_refused_in_one_line(
    seed: int, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small.PROJECT)
    rng = random.Random(seed)
    keys = list(leaves(tree))
    for _ in range(15):
        key, value = rng.choice(keys), rng.choice(ODD)
        assert "\n" not in outcome(params.changed(tree, {**choosing(key), key: value})), (
            key,
            value,
        )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "class Options:\n    pass\n\n\nclass Swish:\n    pass\n",
            "such as OddOne; it holds Options, Swish",
        ),
        ("X = 1\n", "such as OddOne; it holds none"),
        ("class OddOne:\n    pass\n", "a class Options(Params) beside OddOne"),
        ("class OddOne:\n    def (\n", "odd_one.py, line 2: invalid syntax"),
    ],
)
def test_a_part_whose_module_is_not_one_is_told_in_one_line(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "odd_one.py"
    path.write_text(text)
    monkeypatch.setattr(registry, "kinds", lambda: ["schedules"])
    monkeypatch.setattr(registry, "names", lambda kind: ["odd_one"])
    monkeypatch.setattr(registry, "file", lambda kind, name: path)
    with pytest.raises(UserError, match=re.escape(words)):
        preflight._check_modules()


@pytest.mark.parametrize("kind", registry.kinds())
def test_a_part_that_is_not_of_its_kind_is_told_in_one_line(
    kind: str, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in registry.names(kind):
        preflight._check_base(registry.choose(tree, kind, name))
    choice = registry.choose(tree, kind, name)
    monkeypatch.setitem(choice.__dict__, "part", type("Stranger", (), {}))
    with pytest.raises(
        UserError, match=rf"{name}\.py: Stranger should derive from the class in base.py"
    ):
        preflight._check_base(choice)


def test_every_part_of_the_project_holds_what_the_registry_looks_for() -> None:
    preflight._check_modules()


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_several_processes_on_another_device_than_processors_are_refused(device: str) -> None:
    asked = params.changed(small.tree(), {"train.processes": 2, "train.device": device})
    with pytest.raises(UserError, match=rf"train\.processes is 2, .* train\.device \({device}\)"):
        preflight.check(asked)
