"""`lmlab`: lists every part, samples, and answers in one line where something is wrong."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small
from typer.testing import CliRunner

from lmlab import cli
from lmlab.core import errors, registry
from lmlab.core.files import sha256, write_sums
from lmlab.data.shards import Shards
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import Tokenizer
from lmlab.data.tokenizers.byte import Byte
from lmlab.experiments import catalogue, summary, timing
from lmlab.model import generation
from lmlab.model.models import base as models

run = CliRunner()


@pytest.fixture
def project(
    shards_of: Callable[..., tuple[Shards, Tokenizer]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder with a trained model and its tokenizer where the stages leave them."""
    shards, tokenizer = shards_of("When shall we three meet again?\n" * 20)
    monkeypatch.chdir(tmp_path)
    made = shards.folder.parent / "tokenizer"
    Path("data").mkdir()
    made.rename("data/tokenizer")
    choice = small.some_model()
    facts = small.facts(tokenizer_sha256=sha256(Path("data/tokenizer/tokenizer.json")))
    models.save(
        Path("data/model"),
        choice,
        small.model(choice, vocabulary_size=tokenizer.vocabulary_size),
        facts,
    )
    return tmp_path


def refusal(*arguments: str) -> str:
    result = run.invoke(cli.app, list(arguments))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_parts_lists_every_part_with_what_it_is() -> None:
    result = run.invoke(cli.app, ["parts"])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == registry.kinds()
    listed = [line.split()[0] for line in lines if line.startswith(" ")]
    assert listed == [name for kind in registry.kinds() for name in registry.names(kind)]
    assert all(len(line.split()) > 2 for line in lines if line.startswith(" "))


def test_a_broken_part_is_listed_as_such(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for file, text in (
        ("base.py", ""),
        ("good.py", '"""Fine.\n\nMore."""'),
        ("bad.py", "def"),
        ("bare.py", ""),
    ):
        (tmp_path / "model" / "models").mkdir(exist_ok=True, parents=True)
        (tmp_path / "model" / "models" / file).write_text(text)
    (tmp_path / "model" / "hollow").mkdir()
    (tmp_path / "model" / "hollow" / "base.py").touch()
    monkeypatch.setattr(registry, "_PACKAGE", tmp_path)
    listed = catalogue.parts()["models"]
    assert listed["good"] == "Fine."
    assert "broken: line 1" in listed["bad"]
    assert "no docstring" in listed["bare"]
    assert run.invoke(cli.app, ["parts"]).exit_code == 0


def test_sample_goes_on_from_the_prompt(project: Path) -> None:
    words = ["sample", "When ", "--tokens", "40", "--temperature", "0.7", "--seed", "3"]
    first = run.invoke(cli.app, words)
    assert first.exit_code == 0, first.output
    assert first.output.startswith("When ")
    assert first.output.endswith("\n")
    assert run.invoke(cli.app, words).output == first.output
    assert run.invoke(cli.app, [*words[:-1], "4"]).output != first.output
    greedy = [
        run.invoke(cli.app, ["sample", "--temperature", "0", "--seed", seed]).output
        for seed in "12"
    ]
    assert greedy[0] == greedy[1]


def test_several_samples_are_those_of_the_seeds_that_they_name(project: Path) -> None:
    words = ["sample", "When ", "--tokens", "20", "--top-p", "0.9", "--until", "e"]
    both = run.invoke(cli.app, [*words, "--samples", "2", "--seed", "6"]).output
    six, seven = (run.invoke(cli.app, [*words, "--seed", seed]).output for seed in "67")
    assert both == f"--- seed 6\n{six}\n--- seed 7\n{seven}"
    assert "e" not in six.removeprefix("When ")
    narrow = ["sample", "When ", "--tokens", "20", "--top-k", "1"]
    greedy = run.invoke(cli.app, ["sample", "When ", "--tokens", "20", "--temperature", "0"])
    assert run.invoke(cli.app, narrow).output == greedy.output


def test_a_conversation_is_read_as_one_text(project: Path) -> None:
    words = ["sample", "--talk", "--tokens", "8", "--seed", "2", "Who? "]
    result = run.invoke(cli.app, words, input="I.\nYou.\n")
    assert result.exit_code == 0, result.output
    first, second = result.output.splitlines()
    alone = ["sample", "--tokens", "8", "--until", "\\n"]
    said = f"Who? I.\n{first}\nYou.\n"
    answers = [
        run.invoke(cli.app, [*alone, "--seed", seed, text]).output.removeprefix(text)
        for seed, text in (("2", "Who? I.\n"), ("3", said))
    ]
    assert [f"{first}\n", f"{second}\n"] == answers
    assert "leave --samples out" in refusal("sample", "--talk", "--samples", "2")


def test_sample_takes_a_prompt_that_is_no_text(project: Path) -> None:
    # bytes that are not UTF-8 reach Python as half surrogates, which no terminal can print
    result = run.invoke(cli.app, ["sample", "a\udcff", "--tokens", "3"])
    assert result.exit_code == 0, result.output


def test_sample_says_in_one_line_what_is_missing_or_does_not_fit(project: Path) -> None:
    assert "tokenizer.json is missing" in refusal("sample", "--tokenizer", "elsewhere")
    assert "model.json is missing; run `dvc repro train`" in refusal(
        "sample", "--model", "elsewhere"
    )
    tokenizer = Path("data/tokenizer/tokenizer.json")
    tokenizer.write_text(tokenizer.read_text() + "\n")
    assert "was trained with another tokenizer" in refusal("sample")
    tokenizer.write_text("{")
    assert "is damaged" in refusal("sample")


def test_sample_has_nothing_from_a_run_that_diverged(project: Path) -> None:
    record = Path("data/model/model.json")
    saved = json.loads(record.read_text())
    diverged = {"status": "diverged", "diverged": {"step": 1200, "reason": "the loss is nan"}}
    record.write_text(json.dumps({**saved, **diverged}))
    write_sums(record.parent)
    said = refusal("sample", "When")
    assert (
        "data/model has nothing to say: its training diverged at step 1,200: the loss is nan; try"
        " a lower" in said
    )


def grow(*words: str, tokens: str = "5") -> list[str]:
    return ["grow", *words, "--tokens", tokens, "--out", "new/grown.json"]


@pytest.mark.parametrize("name", ["character", "bpe", "word", "unigram"])
def test_grow_adds_tokens_and_says_what_they_bring(
    name: str,
    shards_of: Callable[..., tuple[Shards, Tokenizer]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shards, old = shards_of("When shall we three meet again?\n" * 20, tokenizer=name)
    monkeypatch.chdir(tmp_path)
    old_file = shards.folder.parent / "tokenizer" / "tokenizer.json"
    before = old_file.read_bytes()
    Path("a.txt").write_text("Größe zählt. " * 20, encoding="utf-8")
    Path("b.txt").write_bytes("Süße Größe\r\n".encode() * 20)
    result = run.invoke(cli.app, grow(str(old_file), "a.txt", "b.txt"))
    assert result.exit_code == 0, result.output
    grown = tokenizers.load(Path("new/grown.json"))
    assert type(grown) is type(old)
    assert grown.token_bytes[: old.vocabulary_size] == old.token_bytes
    assert 0 < grown.vocabulary_size - old.vocabulary_size <= 5
    new = ["Größe zählt. " * 20, "Süße Größe\r\n" * 20]
    assert (
        f"vocabulary {old.vocabulary_size} + {grown.vocabulary_size - old.vocabulary_size} ="
        f" {grown.vocabulary_size}\n" in result.output
    )
    size = sum(len(text.encode()) for text in new)
    shares = [size / sum(len(made.encode(text)) for text in new) for made in (old, grown)]
    assert f"{shares[0]:.3f} before, {shares[1]:.3f} now" in result.output
    assert shares[1] > shares[0]
    assert old_file.read_bytes() == before


def test_grow_says_in_one_line_what_is_wrong_and_writes_nothing(project: Path) -> None:
    old = "data/tokenizer/tokenizer.json"
    Path("a.txt").write_text("Größe", encoding="utf-8")
    Path("latin.txt").write_bytes("Größe".encode("latin-1"))
    Path("known.txt").write_text("When again")
    Path("empty.txt").touch()
    byte = Path("byte.json")
    tokenizers.write("byte", Byte(), byte)
    assert "TOKENIZER: there is no file none.json" in refusal(*grow("none.json", "a.txt"))
    assert "a.txt is no tokenizer, or damaged" in refusal(*grow("a.txt", "a.txt"))
    assert "TEXTS: no file matches 'none.txt'" in refusal(*grow(old, "a.txt", "none.txt"))
    assert "TEXTS: no file matches 'data'" in refusal(*grow(old, "data"))  # a folder without texts
    assert "latin.txt is not UTF-8" in refusal(*grow(old, "latin.txt"))
    assert "nothing to add" in refusal(*grow(old, "known.txt", "empty.txt"))
    assert "nothing new that a byte tokenizer could" in refusal(*grow(str(byte), "a.txt"))
    assert "name another file" in refusal("grow", old, "a.txt", "--tokens", "5", "--out", old)
    assert not Path("new").exists()
    result = run.invoke(cli.app, grow(old, "a.txt", tokens="0"))
    assert result.exit_code == 2
    assert "--tokens" in result.output


@pytest.mark.parametrize(
    "wrong",
    [["--tokens", "0"], ["--temperature", "-1"], ["--temperature", "nan"], ["--seed", "-1"]],
)
def test_sample_refuses_numbers_that_make_no_sense(project: Path, wrong: list[str]) -> None:
    result = run.invoke(cli.app, ["sample", *wrong])
    assert result.exit_code == 2
    assert wrong[0] in result.output
    assert "Traceback" not in result.output


def test_ctrl_c_while_sampling_is_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generation, "sample_text", interrupted)
    result = run.invoke(cli.app, ["sample"])
    assert result.exit_code == 130
    assert result.stderr.startswith("interrupted")


def test_check_says_yes_or_names_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "params.yaml").read_text()
    monkeypatch.chdir(tmp_path)
    for number, key in enumerate(("name", "email")):  # Git knows who this is, on any machine
        monkeypatch.setenv(f"GIT_CONFIG_KEY_{number}", f"user.{key}")
        monkeypatch.setenv(f"GIT_CONFIG_VALUE_{number}", "test")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "2")
    (tmp_path / "params.yaml").write_text(text)
    good = run.invoke(cli.app, ["check"])
    assert (good.exit_code, good.output) == (0, "params.yaml is fine\n")
    (tmp_path / "params.yaml").write_text(text.replace("  steps:", "  stepz:"))
    assert "train.stepz is not a known key; did you mean steps?" in refusal("check")


def test_summary_names_the_stage_that_has_not_run(project: Path) -> None:
    assert "run `dvc repro download`" in refusal("summary")


def outputs_of_a_run(folder: Path, found: Any) -> None:
    """What the stages leave, with `found` in measures.json."""
    outputs = {
        "data/corpus/manifest.json": small.corpus_manifest("grammar").record(),
        "data/model/model.json": small.record(
            model={"name": "mill"}, parameters=7, context=8, tokens=9000, steps=3
        ).model_dump(exclude_unset=True),
        "results/measures.json": {"window": 8, "stride": 4, **found},
        **{f"data/timing/{stage}.json": {"seconds": 2.0} for stage in timing.STAGES},
        "data/timing/train.json": {
            "seconds": 2.0,
            "tokens_per_second": 5000.0,
            "training_seconds": 1.8,
        },
    }
    for name, value in outputs.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    (folder / "results/samples.md").write_text(
        "# Samples\n\n~~~~~~text\n[bold]So it goes\n~~~~~~\n"
    )


def test_summary_says_loudly_that_a_run_diverged_and_what_to_try(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs_of_a_run(
        tmp_path, {"status": "diverged", "diverged": {"step": 12, "reason": "the loss is nan"}}
    )
    summary.show(tmp_path)
    shown = capsys.readouterr().out
    assert "THIS RUN DIVERGED at step 12: the loss is nan" in shown
    assert "try a lower optimizers.*.learning_rate, more warm-up" in shown
    assert "mill, 7 parameters" in shown
    assert "bits/byte" not in shown
    assert "So it goes" not in shown
    assert "lmlab sample" not in shown


def test_summary_of_a_run_that_costs_nothing_divides_by_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {
        "validation": {"bits_per_byte": 0.0, "nats_per_token": 0.0},
        "references": {
            "validation": {"uniform": 8.0, "unigram": 4.0, "kneser_ney": 3.0},
            "kneser_ney_order": 5,
        },
    }
    outputs_of_a_run(tmp_path, found)
    summary.show(tmp_path)
    assert "0.0000" in capsys.readouterr().out


def test_summary_shows_what_came_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measures = {"bits_per_byte": 2.0, "nats_per_token": 1.5}
    nats = {"uniform": 8.0, "unigram": 4.0, "kneser_ney": 3.0}
    references = {"validation": nats, "kneser_ney_order": 5, "source_entropy": 1.9}
    outputs_of_a_run(
        tmp_path, {"status": "finished", "validation": measures, "references": references}
    )
    summary.show(tmp_path)
    shown = capsys.readouterr().out
    for said in (
        "grammar (1,500 bytes",
        "mill, 7 parameters",
        "Kneser-Ney 5-gram",
        "5,000 tokens/s",
        "[bold]So it goes",
        "1.9000",
    ):
        assert said in shown
    assert "2.2500" in shown  # the n-gram's nats per token: 3.0 bits per byte at 1.5 / 2.0


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, lmlab.cli; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )
    assert "lmlab" in loaded
    assert not loaded & {"torch", "numpy", "pandas", "pyarrow", "pydantic", "safetensors", "dvc"}


def test_what_is_not_the_users_fault_keeps_its_traceback() -> None:
    assert errors.explain(ValueError("a bug")) is None
    assert errors.explain(OSError(28, "No space left on device")) is not None


def test_size_shows_what_params_yaml_comes_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_text((small.PROJECT / name).read_text())
    result = run.invoke(cli.app, ["size", "--vocabulary-size", "66"])
    assert result.exit_code == 0, result.output
    assert "width 128, 4 blocks, batches of 16 windows" in result.output
    assert "804,480 parameters" in result.output
    assert "is missing; run `dvc repro tokenizer`" in refusal("size")
    (tmp_path / "params.yaml").write_text(
        (small.PROJECT / "params.yaml").read_text().replace("depth: 4", "depth: 0")
    )
    assert "models.transformer.depth should be greater than or equal to 1" in refusal(
        "size", "--vocabulary-size", "66"
    )
