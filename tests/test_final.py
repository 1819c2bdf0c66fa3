"""The sealed test split: what `lmlab final` reads, that it is counted and committed, what is
refused before it is opened.
"""

import csv
import hashlib
import json
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small
from typer.testing import CliRunner

from lmlab import cli
from lmlab.core import params
from lmlab.core.errors import UserError
from lmlab.core.files import write_json, write_sums
from lmlab.data.shards import Shards
from lmlab.data.tokenizers.base import Tokenizer
from lmlab.evaluation import evaluate as results
from lmlab.evaluation.evaluate import EvaluateParams
from lmlab.experiments import final, openings
from lmlab.experiments.compare import history
from lmlab.model.models import base as models
from lmlab.model.record import read_record
from lmlab.model.scoring import bits_per_byte, score

TEXT = "".join(f"{number} times {number} is {number * number}.\n" for number in range(60))
BASE = {
    "stride": 5,
    "ngram_order": 3,
    "prompts": [],
    "sample_tokens": 0,
    "threads": 1,
    "processes": 1,
    "measures": [],
    "context": 8,
}
STAGE = """\
  {name}:
    cmd: python -m pipeline.{name}
    deps:
{deps}    outs:
{outs}"""
ITEM = "    - path: {path}\n      hash: md5\n      md5: {md5}\n      size: 1\n"


class Lab:
    """A repository with a finished run in it, made of few bytes; what DVC would have done is done
    by hand.
    """

    def __init__(self, root: Path, corpus: tuple[Shards, Tokenizer]) -> None:
        self.root, self.corpus = root, corpus
        self.cache = root / ".dvc" / "cache" / "files" / "md5"
        self.cache.mkdir(parents=True)
        (root / ".dvc" / "config").write_text("")
        (root / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
        (root / ".gitignore").write_text("/data/\n")
        self.git("init", "-q", "-b", "main")
        self.git("config", "user.name", "test")
        self.git("config", "user.email", "test@example.org")

    def git(self, *words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=self.root, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def write(self, seed: int = 0, saved: dict[str, Any] | None = None, **changes: Any) -> None:
        """A run with the weights of this seed, in the workspace and in DVC's cache."""
        shards = self.corpus[0]
        tree = small.tree(**{**BASE, **changes})
        (self.root / "params.yaml").write_text(json.dumps(tree, indent=1))
        data = self.root / "data"
        shutil.rmtree(data, ignore_errors=True)
        for name in ("tokenizer", "shards"):
            shutil.copytree(shards.folder.parent / name, data / name)
        model = small.model(
            small.some_model(**changes), seed=seed, vocabulary_size=shards.vocabulary_size
        )
        tokenizer = {"tokenizer_sha256": shards.manifest.tokenizer_sha256}
        facts = small.facts(**{**tokenizer, **(saved or {})})
        models.save(data / "model", small.some_model(**changes), model, facts)
        write_json(data / "corpus" / "manifest.json", small.corpus_manifest().record())
        log = data / "training" / "log.jsonl"
        log.parent.mkdir()
        log.write_text(json.dumps({"step": 1, "tokens": 4, "train_nats": 3.0}) + "\n")
        for folder in ("corpus", "training"):
            write_sums(data / folder)
        values = params.section(tree, "evaluate", EvaluateParams)
        results.evaluate(
            values,
            {},
            model.eval(),
            read_record(data / "model"),
            *self.corpus,
            data / "corpus",
            log,
            self.root / "results",
        )
        self.lock()

    def lock(self) -> None:
        outs = {
            f"data/{name}": self.keep(self.root / "data" / name)
            for name in ("tokenizer", "shards", "model")
        }
        written = {
            f"results/{path.name}": hashlib.md5(path.read_bytes()).hexdigest()
            for path in (self.root / "results").glob("*.json")
        }
        made = STAGE.format(name="train", deps="", outs=items(outs)).replace("    deps:\n", "")
        judged = STAGE.format(name="evaluate", deps=items(outs), outs=items(written))
        (self.root / "dvc.lock").write_text(f"schema: '2.0'\nstages:\n{made}{judged}")

    def keep(self, folder: Path) -> str:
        """Put a folder into the cache as DVC does, and return its hash."""
        entries = []
        for path in sorted(folder.iterdir()):
            entries.append({"md5": self.put(path.read_bytes()), "relpath": path.name})
        return self.put(json.dumps(entries).encode(), ".dir")

    def put(self, content: bytes, ending: str = "") -> str:
        md5 = hashlib.md5(content).hexdigest() + ending
        (self.cache / md5[:2]).mkdir(exist_ok=True)
        (self.cache / md5[:2] / md5[2:]).write_bytes(content)
        return md5

    def commit(self) -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "a run")
        return self.git("rev-parse", "HEAD")

    def experiment(self, name: str, **run: Any) -> None:
        """A finished experiment that began from HEAD, whose files are in the cache alone; the
        workspace stays HEAD's.
        """
        head, data = self.git("rev-parse", "HEAD"), self.root / "data"
        shutil.copytree(data, self.root / ".dvc" / "tmp" / "data")
        self.write(**run)
        made = self.commit()
        self.git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", made)
        self.git("reset", "-q", "--hard", head)
        shutil.rmtree(data)
        shutil.move(self.root / ".dvc" / "tmp" / "data", data)

    def rows(self) -> list[dict[str, str]]:
        with open(self.root / openings.FILE, newline="") as file:
            return list(csv.DictReader(file))

    def final(self, name: str = "workspace") -> openings.Opening:
        return final.final(name, self.root).opening


def items(paths: dict[str, str]) -> str:
    return "".join(ITEM.format(path=path, md5=md5) for path, md5 in paths.items())


@pytest.fixture
def lab(
    shards_of: Callable[..., tuple[Shards, Tokenizer]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Lab:
    for name in ("DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "dvc"))
    for name in (
        "GIT_AUTHOR_NAME",
        "GIT_AUTHOR_EMAIL",
        "GIT_COMMITTER_NAME",
        "GIT_COMMITTER_EMAIL",
        "EMAIL",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    root = tmp_path / "lab"
    root.mkdir()
    lab = Lab(root, shards_of(TEXT, "7 times 8 is 56.\n", ["12 times 12 is 144.\n", "and 3."]))
    lab.write()
    lab.commit()
    monkeypatch.chdir(root)
    return lab


def expected(lab: Lab, seed: int) -> float:
    """The test split's cost, by another way."""
    shards, _ = lab.corpus
    model = small.model(small.some_model(), seed=seed, vocabulary_size=shards.vocabulary_size)
    scored = score(model, shards.stream("test"), shards.bos, 8, 5)
    return bits_per_byte(scored.nats, len("12 times 12 is 144.\nand 3."))


# --------------------------------------------------------------------------------------------------
# what is read and kept


def test_the_test_split_costs_what_the_runs_own_model_says_beside_references(lab: Lab) -> None:
    opening = lab.final()
    assert opening.bits_per_byte == pytest.approx(expected(lab, 0))
    shards, _ = lab.corpus
    uniform = (
        math.log2(shards.vocabulary_size - 1)
        * shards.count("test", "tokens")
        / shards.count("test", "bytes")
    )
    assert opening.uniform == pytest.approx(uniform)
    assert opening.kneser_ney < opening.unigram
    assert (opening.opened, opening.runs, opening.source_entropy) == (1, 1, None)
    assert opening.commit == lab.git("rev-parse", "HEAD~1")[:10]  # what the workspace began from
    (row,) = lab.rows()
    assert float(row["bits_per_byte"]) == opening.bits_per_byte
    assert (
        row["weights_sha256"]
        == json.loads(Path("data/model/model.json").read_text())["weights_sha256"]
    )


def test_an_experiment_is_read_from_the_cache_with_its_own_options(lab: Lab) -> None:
    lab.experiment("other", seed=3)
    lab.experiment("narrow", seed=3, stride=1)
    shutil.rmtree("data")
    other, narrow = lab.final("other"), lab.final("narrow")
    assert other.bits_per_byte == pytest.approx(expected(lab, 3))
    assert narrow.bits_per_byte != other.bits_per_byte  # more text before each token
    assert narrow.weights_sha256 == other.weights_sha256
    assert lab.final("HEAD").bits_per_byte == pytest.approx(expected(lab, 0))
    assert [row["run"] for row in lab.rows()] == ["other", "narrow", "HEAD"]
    assert [(row["opened"], row["runs"]) for row in lab.rows()] == [
        ("1", "1"),
        ("2", "1"),
        ("3", "2"),
    ]


def test_opening_it_again_for_the_same_weights_counts_and_gives_the_same_numbers(lab: Lab) -> None:
    first, second = lab.final(), lab.final()
    assert (second.opened, second.runs) == (2, 1)
    same = ("bits_per_byte", "kneser_ney", "unigram", "uniform", "weights_sha256", "test_sha256")
    assert [getattr(first, key) for key in same] == [getattr(second, key) for key in same]


def test_only_the_count_is_committed_whatever_else_is_staged_or_changed(lab: Lab) -> None:
    Path("staged.txt").write_text("staged")
    lab.git("add", "staged.txt")
    Path(".gitignore").write_text("/data/\n# edited\n")
    lab.final()
    assert lab.git("show", "--name-only", "--format=", "HEAD") == openings.FILE
    assert (
        lab.git("log", "-1", "--format=%s")
        == "Test split opened for the 1st time, for 1 run: workspace"
    )
    status = lab.git("status", "--short").splitlines()
    assert [line.split() for line in status] == [["M", ".gitignore"], ["A", "staged.txt"]]


def test_rows_that_were_taken_away_come_back_and_count(lab: Lab) -> None:
    """By a reset, another branch, a checkout of the file, or an edit: what Git has seen is
    counted.
    """
    before = lab.git("rev-parse", "HEAD")
    lab.final()
    lab.git("reset", "-q", "--hard", before)
    assert not Path(openings.FILE).exists()
    assert lab.final().opened == 2
    lab.git("checkout", "-q", "-b", "aside", before)
    assert lab.final().opened == 3
    text = Path(openings.FILE).read_text().splitlines()
    Path(openings.FILE).write_text("\n".join(text[:2]) + "\n")
    assert lab.final().opened == 4
    assert [row["opened"] for row in lab.rows()] == ["1", "2", "3", "4"]


def test_another_text_has_a_count_of_its_own_and_another_tokenizer_has_not(
    lab: Lab, shards_of: Callable[..., tuple[Shards, Tokenizer]]
) -> None:
    first = lab.final()
    lab.corpus = shards_of(
        TEXT, "7 times 8 is 56.\n", ["12 times 12 is 144.\n", "and 3."], tokenizer="byte"
    )
    lab.write()
    lab.commit()
    bytewise = lab.final()
    assert bytewise.test_sha256 == first.test_sha256
    assert (bytewise.opened, bytewise.runs) == (2, 2)
    lab.corpus = shards_of(
        TEXT, "7 times 8 is 56.\n", ["12 times 12 is 144.\nand 3."]
    )  # in one document
    lab.write()
    lab.commit()
    assert lab.final().opened == 1


def test_experiments_that_began_from_head_are_still_its_own_after_a_count(lab: Lab) -> None:
    lab.experiment("other", seed=3)
    lab.final("other")
    assert [run.name for run in history.gather([], lab.root)[0]] == ["HEAD", "workspace", "other"]
    lab.experiment("later", seed=4)
    assert {run.name for run in history.gather([], lab.root)[0]} == {
        "HEAD",
        "workspace",
        "later",
        "other",
    }
    assert {run.name for run in history.siblings("HEAD", lab.root)} == {"HEAD", "later", "other"}


def test_the_command_says_what_it_read_and_how_often_that_was_done(lab: Lab) -> None:
    lab.experiment("other", seed=3)
    runner = CliRunner()
    assert (
        "opened for the 1st time, for 1 run (" in runner.invoke(cli.app, ["final", "other"]).output
    )
    said = runner.invoke(cli.app, ["final", "workspace"])
    assert said.exit_code == 0, said.output
    assert f"this model {expected(lab, 0):.4f}" in " ".join(said.output.split())
    assert "Kneser-Ney 3-gram" in said.output
    assert (
        "test split of this text: opened for the 2nd time, for 2 runs (kept in results/final.csv"
        in said.output
    )


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (1, "1st"),
        (2, "2nd"),
        (3, "3rd"),
        (4, "4th"),
        (11, "11th"),
        (12, "12th"),
        (21, "21st"),
        (112, "112th"),
    ],
)
def test_ordinals(number: int, said: str) -> None:
    assert openings.ordinal(number) == said


# --------------------------------------------------------------------------------------------------
# what is refused


def refused(lab: Lab, name: str, *said: str) -> None:
    """One line with exit code 2; nothing is opened, counted or changed."""
    before = lab.git("status", "--short"), lab.git("log", "--format=%H")
    done = CliRunner().invoke(cli.app, ["final", name])
    assert done.exit_code == 2, done.output
    assert done.stderr.count("\n") == 1
    for piece in said:
        assert piece in done.stderr
    assert str(lab.root.parent / "tmp") not in done.stderr
    assert "bits per byte:" not in done.stdout
    assert (lab.git("status", "--short"), lab.git("log", "--format=%H")) == before


def test_names_that_mean_no_run_or_several_are_refused(lab: Lab) -> None:
    lab.experiment("wide-1", seed=1)
    lab.experiment("wide-2", seed=2)
    refused(lab, "wide-*", "wide-* means 2 runs", "name one")
    refused(lab, "wide-3", "nothing is called 'wide-3'", "did you mean wide-2?")


def test_a_study_has_no_weights_to_score(lab: Lab) -> None:
    shutil.copytree(small.PROJECT / "studies" / "optimizers", "studies/optimizers")
    Path("params.yaml").write_text((small.PROJECT / "params.yaml").read_text())
    lab.git("add", "-A")
    lab.git("commit", "-qm", "a study")
    for name in ("studies/optimizers", "studies/optimizers:soap"):
        refused(lab, name, f"{name}: studies keep no weights; name an experiment")


def test_a_run_that_diverged_has_no_model_to_score(lab: Lab) -> None:
    where = {"step": 12, "reason": "the loss is nan"}
    lab.experiment("broken", saved={"status": "diverged", "diverged": where})
    refused(lab, "broken", "broken diverged at step 12: the loss is nan", "no model to score")


def test_a_text_without_a_test_split_is_refused(
    lab: Lab, shards_of: Callable[..., tuple[Shards, Tokenizer]]
) -> None:
    lab.corpus = shards_of(TEXT, "7 times 8 is 56.\n", ())
    lab.write()
    lab.commit()
    refused(lab, "workspace", "workspace: its text has no test split", "download.test")


def test_what_is_not_to_be_had_is_named_with_the_command_that_helps(lab: Lab) -> None:
    lab.experiment("gone", seed=3)
    shutil.rmtree(lab.cache)
    refused(
        lab,
        "gone",
        "gone: data/model/model.json is neither in the workspace nor in DVC's cache",
        "dvc exp pull",
        "dvc repro",
    )
    shutil.rmtree("data/model")
    refused(lab, "workspace", "workspace: data/model/model.json is neither", "dvc checkout")


def test_damaged_files_and_weights_of_another_run_are_refused(lab: Lab) -> None:
    weights = Path("data/model/weights.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(lab, "workspace", "workspace: data/model/weights.safetensors is damaged")
    weights.write_bytes(whole)
    other = small.model(small.some_model(), seed=9, vocabulary_size=lab.corpus[0].vocabulary_size)
    facts = small.facts(tokenizer_sha256=lab.corpus[0].manifest.tokenizer_sha256)
    models.save(Path("data/model"), small.some_model(), other, facts)
    refused(lab, "workspace", "data/model is not the model that results/measures.json is about")


def test_code_that_reads_the_model_otherwise_is_refused_before_the_split_is_opened(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = results.score_split, []

    def otherwise(*words: Any) -> Any:
        asked.append(words[3])
        scored = real(*words)
        scored.nats *= 1.01
        return scored

    monkeypatch.setattr(results, "score_split", otherwise)
    refused(
        lab,
        "workspace",
        "the code here does not compute what its own code computed",
        "git checkout",
    )
    assert asked == ["validation"]


def test_without_a_git_identity_nothing_is_opened(lab: Lab) -> None:
    lab.git("config", "--unset", "user.name")
    lab.git("config", "--unset", "user.email")
    lab.git("config", "user.useConfigOnly", "true")
    refused(lab, "workspace", "Git does not know who you are", "git config user.name")


def test_in_the_middle_of_a_merge_or_another_operation_nothing_is_opened(lab: Lab) -> None:
    for name, what in (
        ("MERGE_HEAD", "a merge"),
        ("CHERRY_PICK_HEAD", "a cherry-pick"),
        ("REVERT_HEAD", "a revert"),
    ):
        path = lab.root / ".git" / name
        path.write_text(lab.git("rev-parse", "HEAD") + "\n")
        refused(lab, "workspace", f"{what} is under way", "git status")
        path.unlink()
    (lab.root / ".git" / "rebase-merge").mkdir()
    refused(lab, "workspace", "a rebase is under way")


def test_without_a_branch_or_a_commit_nothing_is_opened(lab: Lab, tmp_path: Path) -> None:
    lab.git("checkout", "-q", "--detach")
    refused(lab, "workspace", "HEAD is on no branch", "git switch")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="is in no Git repository"):
        openings.check_can_be_kept(empty)
    subprocess.run(["git", "init", "-q"], cwd=empty, check=True)
    with pytest.raises(UserError, match="has no commit yet"):
        openings.check_can_be_kept(empty)


def test_where_git_refuses_the_commit_nothing_is_shown_and_the_file_is_as_it_was(lab: Lab) -> None:
    hook = lab.root / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho not today >&2\nexit 1\n")
    hook.chmod(0o755)
    refused(lab, "workspace", "could not be committed, so what was read is not shown", "not today")
    assert not Path(openings.FILE).exists()
    hook.unlink()
    lab.final()
    kept = Path(openings.FILE).read_bytes()
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    refused(lab, "workspace", "could not be committed")
    assert Path(openings.FILE).read_bytes() == kept


def test_a_damaged_file_is_refused_by_its_line(lab: Lab) -> None:
    lab.final()
    text = Path(openings.FILE).read_text()
    for wrong, said in (
        (text.replace("date,run", "when,run"), "line 1 should be"),
        (text + "2026,a\n", "line 3 is damaged"),
    ):
        Path(openings.FILE).write_text(wrong)
        refused(lab, "workspace", openings.FILE, said, "git checkout results/final.csv")
    Path(openings.FILE).write_text(text)
    assert openings.known(lab.root)[0].bits_per_byte == pytest.approx(expected(lab, 0))
