"""What transformers compute of an exported model, and what the lab does."""

import dataclasses
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exported
import hostile
import numpy as np
import pytest
import small
import torch
from hypothesis import given, settings
from safetensors.torch import load_file, save_file
from small import PROJECT
from tokenizers import Tokenizer as Library
from typer.testing import CliRunner

from lmlab import cli
from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.core.files import write_sums
from lmlab.core.registry import Choice
from lmlab.data.start import EarlierRun
from lmlab.data.tokenizers import base as tokenizers
from lmlab.export import anatomy, architecture, extras
from lmlab.export.architecture import KEYS, Architecture
from lmlab.export.huggingface import architectures, foreign, own_record, tokenizer, verify, write
from lmlab.export.huggingface.architectures import ARCHITECTURES
from lmlab.export.run import Run
from lmlab.model.generation import sample_ids

MOST = 8
"""Combinations that are drawn of each architecture."""
STEPS = 200


def transformer(names: dict[str, str], **options: Any) -> Choice:
    """A transformer of parts, by the keys of `models.transformer`."""
    return registry.choose(small.tree(**names, **options), "models", "transformer")


def carried(each: Architecture) -> list[Choice]:
    """Some of the transformers that an architecture carries, drawn by small.DRAW."""
    caps = (0.0, 3.0) if each.soft_cap else (0.0,)
    axes = [each.carries[key] for key in KEYS]
    drawn = list(itertools.product(*axes, each.qk_norm, (False, True), caps, (1e-5, 1e-6)))
    random.Random(small.DRAW).shuffle(drawn)
    choices = []
    for *parts, qk_norm, tied, cap, epsilon in drawn[:MOST]:
        names = dict(zip(KEYS, parts, strict=True))
        if each.experts:
            names |= {"expert": names["feed_forward"], "feed_forward": "mixture_of_experts"}
        options = {"qk_norm": qk_norm, "tied": tied, "logit_soft_cap": cap, "active": 2}
        choice = transformer(names, **options)
        attention = choice.inner["attention"]
        if "epsilon" in attention.options.model_dump():
            other = attention.options.model_copy(update={"epsilon": epsilon})
            attention = Choice(attention.kind, attention.name, other, attention.inner)
        choices.append(small.with_inner(choice, attention=attention))
    return choices


CARRIED = [(each, choice) for each in ARCHITECTURES for choice in carried(each)]


def named(value: Any) -> str:
    return small.title(value) if isinstance(value, Choice) else getattr(value, "name", "")


def read_by_both(run: Run, out: Path, custom: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the lab and of transformers for the same random ids."""
    with verify.quiet():
        _, model = verify.loaded(out, custom)
    tokens_BT = small.tokens(3, run.model.context, 5, run.model.vocabulary_size)
    with torch.no_grad():
        return run.model(tokens_BT), model(tokens_BT).logits


def differ(own: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, of the largest number where that is above 1."""
    return float((own - other).abs().max() / own.abs().max().clamp(min=1.0))


# ---------------------------------------------------------------- the model


@pytest.mark.parametrize(("each", "choice"), CARRIED, ids=named)
def test_an_architecture_computes_what_it_carries(
    each: Architecture, choice: Choice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = exported.run(tmp_path, choice)
    assert not each.lacks(anatomy.of(run.model))
    monkeypatch.setattr(architectures, "ARCHITECTURES", (each,))
    out = tmp_path / "out"
    (line,) = write.write(run, out)
    assert f"{each.name}," in line
    assert not (out / "modeling_lmlab.py").exists()
    own, other = read_by_both(run, out)
    assert own.abs().max() > 1.0
    assert differ(own, other) < 5e-6
    back = own_record.taken_back(
        each,
        anatomy.of(run.model),
        anatomy.weights(run.model),
        load_file(out / "model.safetensors"),
    )
    back |= own_record.read_folded(out / own_record.FOLDER)
    for name, value in anatomy.weights(run.model).items():
        assert torch.equal(back[name], value), name


@pytest.mark.parametrize("choice", small.variants("models"), ids=small.title)
def test_every_other_model_has_code_of_its_own(choice: Choice, tmp_path: Path) -> None:
    run = exported.run(tmp_path, choice)
    out = tmp_path / "out"
    lines = write.write(run, out)
    known = write.architecture_of(run)
    files = {path.name for path in out.glob("*.py")}
    assert files - {"spelling_lmlab.py"} == (set() if known else {"modeling_lmlab.py"})
    assert bool(known) == ("trust_remote_code" not in " ".join(lines))
    own, other = read_by_both(run, out, custom=not known)
    assert differ(own, other) < 5e-6
    if not known:
        assert torch.equal(own, other)
        code = (out / "modeling_lmlab.py").read_text()
        assert "import lmlab" not in code
        assert "from lmlab" not in code


def test_what_no_architecture_has_is_named() -> None:
    for key, part in [("residual", "hyper"), ("position", "alibi"), ("normalisation", "identity")]:
        choice = transformer({key: part})
        parts = anatomy.of(small.model(choice, 0, 11, 8))
        assert f"models.transformer.{key}: {part} has no counterpart" in (
            architectures.refusal_of(parts)
        )
    together = transformer({"normalisation": "layer_norm"}, qk_norm=True)
    why = architectures.refusal_of(anatomy.of(small.model(together, 0, 11, 8)))
    assert "no architecture of transformers has all its parts together" in why
    assert "qk_norm" in why or "layer_norm" in why


def test_code_of_its_own_reads_padding_behind_a_text_alone(tmp_path: Path) -> None:
    run = exported.run(tmp_path, registry.choose(small.tree(), "models", "lstm"))
    write.write(run, tmp_path / "out")
    with verify.quiet():
        auto, model = verify.loaded(tmp_path / "out", custom=True)
    texts = ["a bad cab", "dab"]
    padded = auto(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits_BTV = model(**padded).logits
        for row, text in enumerate(texts):
            alone = model(**auto(text, return_tensors="pt")).logits[0]
            assert torch.allclose(logits_BTV[row, : len(alone)], alone, atol=1e-6)
    before = auto(texts, return_tensors="pt", padding=True, padding_side="left")
    with pytest.raises(ValueError, match="no padding before a text"):
        model(**before)
    with pytest.raises(ValueError, match="no padding before a text"):
        model.generate(**padded, max_new_tokens=3)


def test_dropout_is_left_out(tmp_path: Path) -> None:
    run = exported.run(tmp_path, transformer({"residual": "value"}, dropout=0.5))
    write.write(run, tmp_path / "out")
    assert "dropout" not in (tmp_path / "out" / "modeling_lmlab.py").read_text().lower()


ALONE = """
import sys
sys.modules["lmlab"] = None  # not to be had
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, logging
logging.set_verbosity_error()
folder, prompt, count, trust = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "True"
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust)
ids = tokenizer(prompt, return_tensors="pt")
written = model.generate(**ids, max_new_tokens=count, do_sample=False, eos_token_id=None)
print(written[0].tolist())
"""


def generated_alone(out: Path, prompt: str, count: int, trust: bool, cache: Path) -> list[int]:
    """The ids that transformers generate in a process without lmlab."""
    command = [sys.executable, "-I", "-c", ALONE, str(out), prompt, str(count), str(trust)]
    environment = {**os.environ, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    ids: list[int] = json.loads(result.stdout.splitlines()[-1])
    return ids


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        (transformer({}), "character"),
        (transformer({"attention": "grouped_query", "feed_forward": "swiglu"}), "bpe"),
        (registry.choose(small.tree(), "models", "min_gru"), "byte"),
    ],
    ids=named,
)
def test_greedy_text_is_the_same_without_the_lab(choice: Choice, name: str, tmp_path: Path) -> None:
    """200 tokens, up to where the two likeliest differ by less than 1e-4."""
    run = exported.run(tmp_path, choice, name, context=STEPS + 16)
    out = tmp_path / "out"
    write.write(run, out)
    custom = write.architecture_of(run) is None
    prompt = "a bad cab"
    begun = [run.tokenizer.bos, *run.tokenizer.encode(prompt).tolist()]
    own = [*begun, *sample_ids(run.model, begun, STEPS, temperature=0, seed=0)]
    other = generated_alone(out, prompt, STEPS, custom, tmp_path / "cache")
    assert len(own) == len(other)
    with torch.no_grad():
        top = run.model(torch.tensor([own]))[0].topk(2).values
    close = (top[:, 0] - top[:, 1] < 1e-4).nonzero()[:, 0].tolist()
    until = min([at + 1 for at in close if at >= len(begun) - 1], default=len(own))
    assert until > len(begun) + 5
    assert own[:until] == other[:until]


# ---------------------------------------------------------------- the tokenizer

NAMES = registry.names("tokenizers")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Each tokenizer, fitted or grown, beside what the library and transformers make of it."""
    from transformers import AutoTokenizer

    known: dict[tuple[str, bool], Any] = {}

    def both(name: str, grown: bool) -> Any:
        if (name, grown) not in known:
            text = "".join([exported.TEXT, *hostile.words, *hostile.blanks, "don't 12345"] * 3)
            own = exported.tokenizer(name, text)
            if grown:
                own = own.grown(["zebra crossing, zebra crossing ☃☃ "] * 3, 5)
            folder = tmp_path_factory.mktemp("tokenizer")
            written = tokenizer.tokenizer_json(own)
            (folder / "tokenizer.json").write_text(json.dumps(written))
            config = tokenizer.tokenizer_config(own, 64)
            (folder / "tokenizer_config.json").write_text(json.dumps(config))
            (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
            library = Library.from_file(str(folder / "tokenizer.json"))
            known[name, grown] = own, library, AutoTokenizer.from_pretrained(folder)
        return known[name, grown]

    return both


@pytest.mark.parametrize("grown", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_ids_are_the_same(libraries: Callable[..., Any], name: str, grown: bool) -> None:
    own, library, auto = libraries(name, grown)
    assert auto.bos_token_id == auto.eos_token_id == own.bos
    assert len(auto) == own.vocabulary_size

    def check(text: str) -> None:
        text = verify.known_characters(own, text)
        ids = [own.bos, *own.encode(text).tolist()]
        assert library.encode(text).ids == ids
        assert auto(text)["input_ids"] == ids
        assert auto.decode(ids, skip_special_tokens=True) == own.decode(np.array(ids))

    settings(max_examples=100, deadline=None)(given(hostile.texts)(check))()
    for text in [*hostile.LONG.values(), "<|document|>", "<|unseen|> a"]:
        check(text[:50_000])


def test_an_unknown_character_is_one_unseen_token(libraries: Callable[..., Any]) -> None:
    own, library, _ = libraries("character", False)
    assert "Ж" not in own.characters
    ids = library.encode("aЖa").ids
    assert ids == [own.bos, *own.encode("a").tolist(), own.unseen, *own.encode("a").tolist()]


def test_code_beside_it_spells_unknown_characters(tmp_path: Path) -> None:
    run = exported.run(tmp_path, transformer({}))
    out = tmp_path / "out"
    write.write(run, out)
    module: dict[str, Any] = {"__name__": "spelling_lmlab"}
    exec((out / "spelling_lmlab.py").read_text(), module)
    with verify.quiet():
        auto = module["SpellingTokenizer"].from_pretrained(out)
    own = run.tokenizer

    def check(text: str) -> None:
        ids = [own.bos, *own.encode(text).tolist()]
        assert auto(text)["input_ids"] == ids
        assert auto.decode(ids, skip_special_tokens=True) == text

    settings(max_examples=100, deadline=None)(given(hostile.texts)(check))()
    for text in ["Ж", "<|document|>", "<|unseen|> a", "\U0010ffff"]:
        check(text)


# ---------------------------------------------------------------- what goes wrong


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return exported.run(tmp_path, transformer({}))


def test_twice_is_the_same(run: Run, tmp_path: Path) -> None:
    out, contents = tmp_path / "out", []
    for _ in range(2):
        write.write(run, out)
        files = sorted(path for path in out.rglob("*") if path.is_file())
        contents.append({str(path.relative_to(out)): path.read_bytes() for path in files})
    assert contents[0] == contents[1]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(contents[0])
    modes = {path.stat().st_mode for path in out.rglob("*") if path.is_file()}
    assert len(modes) == 1


def test_what_does_not_agree_is_not_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write.write(run, out)
    before = (out / "model.safetensors").read_bytes()
    real = anatomy.weights

    def wrong(model: Any) -> Any:
        weights = real(model)
        weights["final_norm.gain"][0] += 0.5
        return weights

    monkeypatch.setattr(anatomy, "weights", wrong)
    with pytest.raises(UserError, match="not written: the exported model's logits differ"):
        write.write(run, out)
    assert (out / "model.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".*partial"))


def test_a_tokenizer_that_does_not_agree_is_not_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tokenizer.names

    def wrong(own: tokenizers.Tokenizer) -> list[str]:
        names = real(own)
        names[0], names[1] = names[1], names[0]
        return names

    monkeypatch.setattr(tokenizer, "names", wrong)
    with pytest.raises(UserError, match="not written: the exported tokenizer gives other ids"):
        write.write(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match=r"holds what no export wrote \(letter\.txt\)"):
        write.write(run, out)
    assert (out / "letter.txt").read_text() == "dear"


def test_what_its_owner_puts_into_an_export_is_not_lost(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write.write(run, out)
    note = out / "node_modules" / "mine.txt"
    note.parent.mkdir()
    note.write_text("mine")
    with pytest.raises(UserError, match=r"node_modules/mine\.txt"):
        write.write(run, out)
    assert note.read_text() == "mine"
    note.unlink()
    note.parent.rmdir()
    write.write(run, out)


def test_a_link_to_a_folder_stays_one(run: Run, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "out")
    write.write(run, link)
    write.write(run, link)
    assert link.is_symlink()
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_damaged_corpus_is_one_line(run: Run, tmp_path: Path) -> None:
    assert run.folders.corpus is not None
    (run.folders.corpus / "validation.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"validation\.parquet is damaged"):
        write.write(run, tmp_path / "out")


def test_a_cache_of_one_token_has_code_of_its_own(tmp_path: Path) -> None:
    """transformers keep none of a window of 1, so what they generate would be another text."""
    run = exported.run(tmp_path, transformer({"attention": "sliding_window"}, window=1))
    lines = write.write(run, tmp_path / "out")
    assert "layers.attention.sliding_window.window: 1 has no counterpart" in " ".join(lines)
    wider = exported.run(tmp_path / "two", transformer({"attention": "sliding_window"}, window=2))
    assert write.architecture_of(wider)


def test_without_the_packages_one_line_says_what_to_install(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'lmlab\[export\]'"):
        write.write(run, tmp_path / "out")


def test_a_model_of_another_run_is_refused(run: Run, tmp_path: Path) -> None:
    file = run.folders.tokenizer_file
    tokenizers.write("byte", exported.tokenizer("byte"), file)
    with pytest.raises(UserError, match="trained with another tokenizer"):
        Run.open("made_up", run.folders)


def test_damaged_weights_are_refused(run: Run) -> None:
    file = run.folders.model / "weights.safetensors"
    weights = load_file(file)
    next(iter(weights.values())).add_(1.0)
    save_file(weights, file)
    with pytest.raises(UserError, match="damaged"):
        Run.open("made_up", run.folders)


def test_a_run_that_diverged_is_refused(run: Run) -> None:
    file = run.folders.model / "model.json"
    record = json.loads(file.read_text())
    record |= {"status": "diverged", "diverged": {"step": 3, "reason": "the loss is NaN"}}
    file.write_text(json.dumps(record))
    write_sums(run.folders.model)
    with pytest.raises(UserError, match="its training diverged"):
        Run.open("made_up", run.folders)


def test_a_card_says_what_began_elsewhere(run: Run, tmp_path: Path) -> None:
    write.write(run, tmp_path / "out")
    assert "trained from scratch" in (tmp_path / "out" / "README.md").read_text()
    earlier = EarlierRun(
        commit="0" * 40,
        recipe="pretrained:0:000000",
        weights_sha256="",
        corpus=foreign.CORPUS,
        tokenizer_sha256="",
        learning_rule="",
        optimizer="",
        steps=0,
        tokens=0,
        bytes=0,
        flops=0,
        bits_per_byte=None,
    )
    record = run.record.model_copy(update={"earlier": [earlier]})
    write.write(dataclasses.replace(run, record=record), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pretrained elsewhere" in card
    assert "from scratch" not in card


# ---------------------------------------------------------------- the command and its page


def test_the_command_writes_the_workspaces_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    shutil.copytree(tmp_path / "model", project / "data" / "model")
    shutil.copytree(tmp_path / "tokenizer", project / "data" / "tokenizer")
    for file in ("params.yaml", "dvc.yaml"):
        shutil.copyfile(PROJECT / file, project / file)
    monkeypatch.chdir(project)
    result = CliRunner().invoke(cli.app, ["export", "huggingface"])
    assert result.exit_code == 0, result.output
    assert "exports/huggingface: Apertus" in result.output
    card = (project / "exports" / "huggingface" / "README.md").read_text()
    assert f"{run.record.parameters:,} parameters" in card


def test_the_page_shows_the_table_that_the_code_reads() -> None:
    page = (PROJECT / "docs" / "export.md").read_text()
    assert architecture.table(ARCHITECTURES) in page
