"""Runs read from Git, the workspace and studies, in a repository of a few small files; DVC itself
is in tests/pipeline.
"""

import hashlib
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lmlab import cli
from lmlab.core.errors import UserError
from lmlab.experiments.compare import comparing, dvc_cache, history, variants
from lmlab.experiments.compare.run import Run

PARAMS = """\
# a comment
train:
  optimizer: adamw   # how
  steps: 10
  seed: {seed}
  data_seed: 0
  log_every: 5
optimizers:
  adamw:
    learning_rate: {rate}
  lion:
    learning_rate: 1e-3
"""
LOCK = """\
schema: '2.0'
stages:
  train:
    cmd: python -m pipeline.train
    deps:
    - path: src/lmlab/training/loop.py
      hash: md5
      md5: {code}
      size: 1
    params:
      params.yaml:
        optimizers.adamw:
          learning_rate: {rate}
        train:
          optimizer: adamw
          steps: 10
          seed: {seed}
          data_seed: 0
          log_every: 5
    outs:
    - path: data/model
      hash: md5
      md5: {model}.dir
      size: 1
      nfiles: 1
  evaluate:
    cmd: python -m pipeline.evaluate
    deps:
    - path: data/model
      hash: md5
      md5: {evaluated}.dir
      size: 1
      nfiles: 1
    outs:
    - path: results/metrics.json
      hash: md5
      md5: {metrics}
      size: 1
"""


class Lab:
    """A repository in which runs are pretended."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.git("init", "-q", "-b", "main")

    def git(self, *words: str) -> str:
        who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        return subprocess.run(
            ["git", *who, *words], cwd=self.root, capture_output=True, text=True, check=True
        ).stdout.strip()

    def write(self, bits: float = 2.0, seed: int = 0, rate: float = 0.004, **said: str) -> None:
        """The files of a finished run; `said` replaces what dvc.lock says of hashes."""
        (self.root / "results").mkdir(exist_ok=True)
        metrics = json.dumps({"validation": {"bits_per_byte": bits, "bytes": 100}, "parameters": 5})
        (self.root / "results/metrics.json").write_text(metrics)
        (self.root / "params.yaml").write_text(PARAMS.format(seed=seed, rate=rate))
        md5 = hashlib.md5(metrics.encode()).hexdigest()
        known = {
            "code": "c0",
            "model": "d0",
            "evaluated": "d0",
            "metrics": md5,
            "seed": str(seed),
            "rate": str(rate),
        }
        (self.root / "dvc.lock").write_text(LOCK.format(**known | said))

    def commit(self) -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "a run")
        return self.git("rev-parse", "HEAD")

    def experiment(self, name: str, **run: Any) -> None:
        """A finished experiment that began from HEAD, as DVC keeps it."""
        head = self.git("rev-parse", "HEAD")
        self.write(**run)
        made = self.commit()
        self.git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", made)
        self.git("reset", "-q", "--hard", head)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    lab = Lab(tmp_path)
    lab.write()
    lab.commit()
    return lab


def test_the_workspace_a_commit_a_branch_and_experiments_are_runs(lab: Lab) -> None:
    lab.git("branch", "other")
    lab.experiment("wide-0", rate=0.01, bits=1.5)
    lab.experiment("wide-1", rate=0.01, bits=1.6, seed=1)
    lab.experiment("narrow", rate=0.02)
    names = [
        run.name
        for run in history.read(["workspace", "HEAD", "other", "wide-*", "wide-0"], lab.root)
    ]
    assert names == ["workspace", "HEAD", "other", "wide-0", "wide-1"]
    one = history.read(["wide-1"], lab.root)[0]
    assert one.measures == {
        "validation.bits_per_byte": 1.6,
        "validation.bytes": 100,
        "parameters": 5,
    }
    assert (
        one.params["optimizers.adamw.learning_rate"],
        one.params["optimizers.lion.learning_rate"],
    ) == (0.01, 0.001)
    assert one.seeds == (1, 0)
    assert replace(one, params={"train.seed": 1, "train.data_seed": -1}).seeds == (1, 1)
    assert one.made_with == {"src/lmlab/training/loop.py": "c0"}
    assert one.open("params.yaml") == PARAMS.format(seed=1, rate=0.01).encode()
    assert one.open("nothing") is None


def test_no_names_are_head_and_what_began_there(lab: Lab) -> None:
    lab.experiment("before", rate=0.01)
    lab.write(rate=0.03)
    lab.commit()
    lab.experiment("after", rate=0.02)
    found, notes = history.gather([], lab.root)
    assert [run.name for run in found] == ["HEAD", "workspace", "after"]
    assert "1 experiment that began from other commits" in notes[0]


def test_of_two_experiments_with_one_name_that_of_head_is_meant(lab: Lab) -> None:
    lab.experiment("twice", rate=0.01)
    lab.write(rate=0.03)
    lab.commit()
    lab.experiment("twice", rate=0.02)
    assert [
        run.params["optimizers.adamw.learning_rate"] for run in history.read(["twice"], lab.root)
    ] == [0.02]


def test_what_queues_leave_behind_is_no_run(lab: Lab) -> None:
    head = lab.git("rev-parse", "HEAD")
    for ref in ("failed", "stash"):
        message = f"dvc-exp:{head}:{head}:{ref}-one"
        lab.git(
            "update-ref",
            "--create-reflog",
            "-m",
            f"commit: {message}",
            f"refs/exps/celery/{ref}",
            head,
        )
    found, notes = history.gather([], lab.root)
    assert [run.name for run in found] == ["HEAD", "workspace"]
    assert (
        "2 experiments queued, running or failed (`dvc queue status`), without results" in notes[0]
    )
    with pytest.raises(
        UserError, match="failed-one is queued, running or failed and has no results"
    ):
        history.read(["failed-one"], lab.root)


def test_params_edited_after_the_run_do_not_count(lab: Lab) -> None:
    lab.root.joinpath("params.yaml").write_text(PARAMS.format(seed=0, rate=0.5))
    found, notes = history.gather(["workspace"], lab.root)
    assert found[0].params["optimizers.adamw.learning_rate"] == 0.004
    assert "optimizers.adamw.learning_rate 0.004 (now 0.5)" in notes[0]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"metrics": "0" * 32}, "results/metrics.json is not the one that dvc.lock records"),
        ({"evaluated": "d1"}, "data/model has changed since the stage evaluate ran"),
    ],
)
def test_results_that_are_not_of_the_last_run_are_left_out(
    lab: Lab, said: dict[str, str], why: str
) -> None:
    lab.write(**said)
    with pytest.raises(UserError, match=why):
        history.read(["workspace"], lab.root)
    found, notes = history.gather([], lab.root)
    assert [run.name for run in found] == ["HEAD"]
    assert why in notes[0]


def test_what_has_no_results_says_so_and_what_is_unknown_names_the_nearest(lab: Lab) -> None:
    lab.experiment("wide-0", rate=0.01)
    with pytest.raises(UserError, match="did you mean wide-0"):
        history.read(["wid-0"], lab.root)
    lab.git("rm", "-q", "results/metrics.json")
    lab.commit()
    with pytest.raises(UserError, match=r"HEAD holds no run: it has no results/metrics\.json"):
        history.read(["HEAD"], lab.root)
    with pytest.raises(UserError, match="there are no finished runs"):
        history.read([], lab.root)


def test_a_published_study_gives_its_arms_at_their_best() -> None:
    project = Path(__file__).parents[1]
    found = history.read(["studies/optimizers"], project)
    assert found[0].arm == "studies/optimizers:adamw"  # its reference
    assert {
        run.params["optimizers.muon.learning_rate"] for run in found if run.arm.endswith(":muon")
    } != {None}
    seeds = [run.seeds for run in history.read(["studies/optimizers:lion"], project)]
    assert seeds == [(seed, seed) for seed in range(len(seeds))]
    with pytest.raises(UserError, match="no results of an arm 'lyon'; did you mean lion"):
        history.read(["studies/optimizers:lyon"], project)


def run(name: str = "x", code: str = "a", bits: float = 1.0, **values: Any) -> Run:
    """A run with a few params, of which some matter."""
    params = {
        "train.optimizer": "adamw",
        "train.seed": 0,
        "train.data_seed": 0,
        "train.log_every": 5,
        "evaluate.seed": 0,
        "optimizers.adamw.learning_rate": 0.1,
        "optimizers.lion.learning_rate": 0.2,
        "train.model": "transformer",
        "models.transformer.attention": "linear",
        "layers.attention.linear.heads": 2,
        "models.lstm.width": 3,
        "layers.attention.multi_head.heads": 4,
    }
    renamed = {key.replace("__", "."): value for key, value in values.items()}
    assert renamed.keys() <= params.keys()
    return Run(
        name,
        params | renamed,
        {"validation.bits_per_byte": bits, "tokens_seen": 1000},
        made_with={"a.py": code},
    )


def test_only_options_of_chosen_parts_matter() -> None:
    mattering = variants.mattering(run())
    assert "optimizers.adamw.learning_rate" in mattering
    assert "layers.attention.linear.heads" in mattering
    assert (
        not {
            "optimizers.lion.learning_rate",
            "models.lstm.width",
            "layers.attention.multi_head.heads",
        }
        & mattering.keys()
    )
    assert not {"train.log_every", "evaluate.seed"} & mattering.keys()


def test_runs_that_differ_in_seeds_or_in_nothing_that_matters_are_one_variant() -> None:
    same = [
        run("a"),
        run("b", train__seed=1),
        run("c", train__seed=2, train__log_every=1, optimizers__lion__learning_rate=9),
    ]
    found, notes = variants.group(
        [*same, run("d", train__seed=1, optimizers__adamw__learning_rate=0.3)]
    )
    assert [[one.name for one in variant.runs] for variant in found] == [["a", "b", "c"], ["d"]]
    assert [variant.name for variant in found] == ["learning_rate=0.1", "learning_rate=0.3"]
    assert notes == []


def test_a_seed_counts_once_and_that_is_said() -> None:
    found, notes = variants.group([run("a"), run("b"), run("c", bits=1.1)])
    assert [one.name for one in found[0].runs] == ["a"]
    assert notes[0] == "b has the params and seeds of a, and counts once"
    assert "c has the params, seeds and code of a, yet other results" in notes[1]


def test_other_code_is_another_variant_and_is_named() -> None:
    found, _ = variants.group([run("a"), run("b", code="b")])
    assert [variant.name for variant in found] == ["a", "b"]
    assert list(variants.unfair(*found)) == ["another version of the code: a.py"]


def test_other_text_is_said_whether_params_tell_of_it_or_not() -> None:
    ours, theirs = (
        Run(
            name,
            run().params | {"train.optimizer": name},
            {"tokens_seen": 1},
            made_with={"data/shards": shards},
        )
        for name, shards in (("adamw", "s0"), ("lion", "s1"))
    )
    (said,) = variants.unfair(*variants.group([ours, theirs])[0])
    assert "tokens learned from differ, though the params that made them do not" in said
    other = Run(
        "c",
        theirs.params | {"download.corpus": "bible"},
        theirs.measures,
        made_with=theirs.made_with,
    )
    base = Run(
        "d", ours.params | {"download.corpus": "markov"}, ours.measures, made_with=ours.made_with
    )
    (said,) = variants.unfair(*variants.group([base, other])[0])
    assert "another text, or another split of it (download.corpus)" in said


@pytest.mark.parametrize(
    ("measures", "said"),
    [
        ({"tokens_seen": 2000.0}, "tokens seen in training: 2,000 against the baseline's 1,000"),
        (
            {"training_bits": 16.0},
            "bits of the numbers multiplied in training: 16 against the baseline's 32",
        ),
        (
            {"stride": 64.0},
            "tokens between evaluation windows: 64 against 32; that alone changes what is measured",
        ),
        (
            {"window": 64.0},
            "tokens in an evaluation window: 64 against 32; that alone changes what is measured",
        ),
        ({"validation.bytes": 64.0}, "bytes of validation text: 64 against the baseline's 32"),
        (
            {"learning_curve.flops": 8e9},
            "FLOPs spent on training: 8,000,000,000 against the baseline's 6,000,000,000",
        ),
        (  # those of a run before it are among them, in the tokens that that one had
            {"learning_curve.bytes": 1500.0, "bytes_per_token": 2.5},
            "bytes of text seen in training: 1,500 against the baseline's 1,000",
        ),
    ],
)
def test_what_is_unfair_is_said(measures: dict[str, float], said: str) -> None:
    base = run("a")
    ours = Run(
        "a",
        base.params,
        {
            "tokens_seen": 1000,
            "training_bits": 32,
            "stride": 32,
            "window": 32,
            "validation.bytes": 32,
            "learning_curve.flops": 6e9,
            "learning_curve.bytes": 1000,
        },
    )
    theirs = Run("b", base.params | {"train.optimizer": "lion"}, ours.measures | measures)
    found, _ = variants.group([ours, theirs])
    assert list(variants.unfair(*found)) == [said]
    assert list(variants.unfair(found[0], found[0])) == []


def test_compare_prints_a_table_words_json_and_csv(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(8):
        if seed:
            lab.experiment(f"base-{seed}", bits=2 + seed / 100, seed=seed)
        lab.experiment(f"fast-{seed}", bits=1.9 + seed / 101, seed=seed, rate=0.01)
    monkeypatch.chdir(lab.root)

    def printed(*words: str) -> str:
        result = CliRunner().invoke(cli.app, ["compare", *words])
        assert result.exit_code == 0, result.output
        return result.stdout

    shown = printed()
    assert "Baseline: learning_rate=0.004 (8 runs: HEAD, base-1" in shown
    assert "optimizers.adamw.learning_rate: 0.004 -> 0.01" in shown
    assert "validation.bits_per_byte: better" in shown
    whole = json.loads(printed("--json"))
    (variant,) = whole["variants"]
    assert variant["differs"] == {"optimizers.adamw.learning_rate": [0.004, 0.01]}
    assert (variant["verdicts"][0]["words"], variant["verdicts"][0]["pairs"]) == ("better", 8)
    assert json.loads(printed("fast-*", "--json"))["baseline"]["runs"] == whole["baseline"]["runs"]
    turned = json.loads(printed("--baseline", "fast-3", "--json"))
    assert turned["variants"][0]["verdicts"][0]["words"] == "worse"
    header, row = printed("--csv").splitlines()
    assert dict(zip(header.split(","), row.split(",")))["words"] == "better"
    assert "too few seeds" in printed("fast-0", "base-1", "base-2")
    for words, said in (
        (["--measure", "validation.bits_per_bite"], "did you mean validation.bits_per_byte?"),
        (["--alpha", "5"], "--alpha should lie between 0 and 1"),
        (["HEAD", "workspace", "base-1"], "there is one variant only"),
        (["fasd-1"], "did you mean fast-1?"),
    ):
        result = CliRunner().invoke(cli.app, ["compare", *words])
        assert (said in result.stderr, result.exit_code) == (True, 2)
    assert comparing.MEASURES[0] == "validation.bits_per_byte"


@pytest.mark.parametrize("spoil", ["flip", "cut"])
def test_an_object_of_dvcs_cache_that_is_damaged_is_refused(
    spoil: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"what a stage wrote"
    md5 = hashlib.md5(content).hexdigest()
    listing = json.dumps([{"md5": md5, "relpath": "log.jsonl"}]).encode()
    folder = f"{hashlib.md5(listing).hexdigest()}.dir"
    for name, whole in ((md5, content), (folder, listing)):
        (tmp_path / name[:2]).mkdir(exist_ok=True)
        (tmp_path / name[:2] / name[2:]).write_bytes(whole)
    monkeypatch.setattr(dvc_cache, "cache_folder", lambda root: tmp_path)
    lock = (
        "stages:\n  train:\n    outs:\n    - path: data/training\n      hash: md5\n      md5:"
        f" {folder}\n"
    )
    opened = dvc_cache.read(Path(), lock.encode(), "data/training/log.jsonl")
    assert opened == content
    for name, whole in ((md5, content), (folder, listing)):
        at = tmp_path / name[:2] / name[2:]
        at.write_bytes(whole[:-1] if spoil == "cut" else whole.replace(b"a", b"b", 1))
        with pytest.raises(
            UserError, match=r"in DVC's cache is damaged; delete it and run `dvc pull`"
        ):
            dvc_cache.read(Path(), lock.encode(), "data/training/log.jsonl")
        at.write_bytes(whole)
    (tmp_path / md5[:2] / md5[2:]).unlink()
    assert dvc_cache.read(Path(), lock.encode(), "data/training/log.jsonl") is None
