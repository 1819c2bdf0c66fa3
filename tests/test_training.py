"""A run ends in the same bytes however often it is stopped, and is recorded as diverged when it
does.
"""

import json
import math
import multiprocessing
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.core.params import section
from lmlab.data.shards import Shards
from lmlab.data.start import Start
from lmlab.data.tokenizers.base import Tokenizer
from lmlab.model import device
from lmlab.model.layers.attention.base import Attention
from lmlab.model.models import base as models
from lmlab.model.scoring import bits_per_byte, score
from lmlab.training import checkpoint, monitor, snapshots
from lmlab.training import loop as training
from lmlab.training import step as stepping
from lmlab.training.learning_rules.backprop import Backprop
from lmlab.training.results import RunFolders
from lmlab.training.step import Diverged, TrainParams

TEXT = "".join(f"{number} times {number} is {number * number}.\n" for number in range(120))
OUTPUTS = ("model/weights.safetensors", "model/model.json", "training/log.jsonl")
FOLDERS = ("model", "training", "snapshots")
BASE = {
    "steps": 7,
    "batch": 4,
    "context": 8,
    "threads": 1,
    "log_every": 2,
    "validate_every": 3,
    "sample_every": 4,
    "snapshots": 3,
    "checkpoint_seconds": 0.0,
    "learning_rate": 0.01,
}
VARIATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"dropout": 0.3},
    "gradient_accumulation": {"gradient_accumulation": 2, "dropout": 0.1},
    "tied": {"tied": True},
    "tables of n-grams": {
        "embedding": "n_gram",
        "row_width": 4,
        "dropout": 0.3,
        "optimizer": "muon",
    },
    "bfloat16": {"precision": "bfloat16"},
    "no clipping": {"clip": 0.0, "log_every": 5},
    "steps in the backward pass": {"clip": 0.0, "step_in_backward": True},
    "interventions": {
        "intervention": "delayed_gradients",
        "second_intervention": "gradient_noise",
        "third_intervention": "layer_rates",
    },
    **{name: {"learning_rule": name} for name in registry.names("learning_rules")},
    **{name: {"optimizer": name, "learning_rate": 0.001} for name in registry.names("optimizers")},
}

Corpus = tuple[Shards, Tokenizer]


class Stopped(BaseException):
    """A run's sudden end."""


@pytest.fixture
def corpus(
    shards_of: Callable[..., Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Corpus:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr(monitor, "SAMPLE_TOKENS", 4)
    return shards_of(TEXT, "12 times 12 is 144.\n7 times 8 is 56.\n")


def train(corpus: Corpus, folder: str, **changes: Any) -> dict[str, bytes]:
    """Run the stage's library call and return the bytes it wrote."""
    tree = small.tree(**{**BASE, **changes})
    params = section(tree, "train", TrainParams)
    home = Path(folder)
    folders = RunFolders(*(home / name for name in FOLDERS), state=home / "state")
    timing = training.train(params, registry.choices(tree, "train", params), *corpus, folders)
    assert timing.tokens_per_second > 0
    return {
        str(path.relative_to(home)): path.read_bytes()
        for path in sorted(home.rglob("*"))
        if path.is_file()
    }


def rows(written: dict[str, bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written["training/log.jsonl"].splitlines()]


def stop_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """Let a function end the run at its call number `call`."""
    real, calls = getattr(owner, name), iter(range(1, 1000))

    def stops(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise Stopped
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, stops)


def train_until(
    step: int, corpus: Corpus, folder: str, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> None:
    """A run that ends suddenly as it begins a step, the first being 1."""
    with monkeypatch.context() as patched:
        stop_at(patched, training, "take_step", step)
        with pytest.raises(Stopped):
            train(corpus, folder, **changes)


ENDS: list[tuple[Any, str, int]] = [
    (training, "take_step", 3),
    (snapshots, "write", 1),
    (checkpoint, "save", 2),
    (monitor, "score", 1),
    (models, "save", 1),
    (snapshots, "publish", 1),
    (checkpoint, "discard", 1),
]
"""Where a run is stopped: in the middle, and while it writes what it leaves."""


@pytest.mark.parametrize(("variation", "end"), small.drawn(list(VARIATIONS), ENDS))
def test_stopped_in_the_middle_or_at_its_end_it_writes_the_same_bytes(
    corpus: Corpus, variation: str, end: tuple[Any, str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = VARIATIONS[variation]
    whole = train(corpus, "whole", **changes)
    with monkeypatch.context() as patched:
        stop_at(patched, *end)
        with pytest.raises(Stopped):
            train(corpus, "stopped", **changes)
    assert any(Path(".scratch").iterdir())
    assert train(corpus, "stopped", **changes) == whole
    assert not any(Path(".scratch").iterdir())


def test_stopped_at_every_step_in_turn_it_writes_the_same_bytes(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(corpus, "whole", dropout=0.3)
    for step in range(1, 8):
        train_until(
            min(step, 2), corpus, "stopped", monkeypatch, dropout=0.3
        )  # goes on, and stops after one step more
    assert train(corpus, "stopped", dropout=0.3) == whole


def test_a_run_goes_on_where_it_was_stopped(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_until(5, corpus, "stopped", monkeypatch)
    taken: list[int] = []
    real = training.take_step
    monkeypatch.setattr(
        training,
        "take_step",
        lambda run, *rest: (taken.append(run.step), real(run, *rest))[1],
    )
    train(corpus, "stopped")
    assert taken == [4, 5, 6]
    assert "resuming from step 4" in capsys.readouterr().out


def test_a_checkpoint_is_written_only_as_often_as_wished(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[Path] = []
    monkeypatch.setattr(checkpoint, "save", lambda folder, state: saved.append(folder))
    train(corpus, "often")
    assert len(saved) == BASE["steps"] - 1  # type: ignore[operator]  # none after the last step
    saved.clear()
    train(corpus, "seldom", checkpoint_seconds=1000.0)
    assert not saved


def test_the_order_of_the_text_follows_the_seed_unless_it_has_its_own(corpus: Corpus) -> None:
    weights = OUTPUTS[0]
    follows, same, other = (
        train(corpus, str(data_seed), seed=3, data_seed=data_seed)[weights]
        for data_seed in (-1, 3, 4)
    )
    assert follows == same
    assert follows != other


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"data_seed": 1},
        {"learning_rate": 0.02},
        {"heads": 1},
        {"gradient_accumulation": 2},
    ],
)
def test_another_choice_gives_another_run_and_takes_up_no_checkpoint(
    corpus: Corpus, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = train(corpus, "alone", **change)
    train_until(5, corpus, "other", monkeypatch)
    assert len(list(Path(".scratch").iterdir())) == 1
    assert train(corpus, "after", **change) == alone
    assert len(list(Path(".scratch").iterdir())) == 1  # the other run's is still there for it
    weights = OUTPUTS[0]
    same_by_design = "gradient_accumulation" in change  # but for rounding
    assert train(corpus, "other")[weights] != alone[weights] or same_by_design


def test_other_shards_take_up_no_checkpoint(
    corpus: Corpus, shards_of: Callable[..., Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    train_until(5, corpus, "other", monkeypatch)
    monkeypatch.setattr(
        training,
        "take_step",
        lambda run, *rest: pytest.fail("resumed") if run.step else _stop(),
    )
    with pytest.raises(Stopped):
        train(shards_of(TEXT, "12 times 12 is 145.\n"), "run")


def _stop() -> None:
    raise Stopped


@pytest.mark.parametrize(
    "spoil", [lambda data: data[:-3], lambda data: b"", lambda data: bytes(200)]
)
def test_a_spoilt_checkpoint_is_passed_over(
    corpus: Corpus, spoil: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(corpus, "whole")
    train_until(4, corpus, "spoilt", monkeypatch)
    (kept,) = Path(".scratch").glob(f"*/{checkpoint.FILE}")
    kept.write_bytes(spoil(kept.read_bytes()))
    assert train(corpus, "spoilt") == whole


# ---------------------------------------------------------------- what is written


def test_seconds_are_told_for_every_step_of_the_log_and_go_on_over_a_restart(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = small.tree(**BASE)
    params = section(tree, "train", TrainParams)
    train_until(6, corpus, "stopped", monkeypatch)
    folders = RunFolders(*(Path("stopped") / name for name in FOLDERS))
    timing = training.train(params, registry.choices(tree, "train", params), *corpus, folders)
    assert timing.seconds_at.step == [2, 3, 4, 6, 7]
    seconds = timing.seconds_at.seconds
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    assert seconds[-1] == timing.training_seconds
    assert 50e6 < timing.peak_bytes < 50e9  # of a process that has loaded torch
    values = timing.model_dump()
    assert json.loads(json.dumps(values)) == values


def test_training_starts_from_given_weights(corpus: Corpus) -> None:
    tree = small.tree(**{**BASE, "steps": 1, "learning_rate": 1e-12})
    params = section(tree, "train", TrainParams)
    chosen = registry.choices(tree, "train", params)
    train(corpus, "first")
    first, second = Path("first/model"), Path("second/model")
    trained = Start(first, Path("no tokenizer"), Path("first/state"), made_by="train")
    for start in (trained, None):
        training.train(params, chosen, *corpus, RunFolders(second, Path("second/log")), start)
        one, other = (
            models.load(folder, torch.device("cpu"))[0].state_dict() for folder in (first, second)
        )
        assert all(torch.allclose(value, other[key], atol=1e-6) for key, value in one.items()) == (
            start is not None
        )


def test_the_log_has_the_lines_that_were_asked_for(corpus: Corpus) -> None:
    log = rows(train(corpus, "run"))
    steps = {
        key: [row["step"] for row in log if key in row]
        for key in ("train_nats", "validation_bits_per_byte", "sample")
    }
    assert steps == {
        "train_nats": [2, 4, 6, 7],
        "validation_bits_per_byte": [3, 6, 7],
        "sample": [4, 7],
    }
    assert {row["tokens"] / row["step"] for row in log} == {4 * 8}
    known = {
        "step",
        "tokens",
        "train_nats",
        "learning_rate",
        "gradient_norm",
        "validation_nats",
        "validation_bits_per_byte",
        "sample",
    }
    assert set().union(*log) == known  # and no times: those would differ from run to run


def test_nothing_asked_for_is_the_last_line_of_each_and_no_samples(corpus: Corpus) -> None:
    log = rows(train(corpus, "run", validate_every=0, sample_every=0, log_every=100))
    assert [sorted(row)[-1] for row in log] == ["train_nats", "validation_nats"]
    assert [row["step"] for row in log] == [7, 7]


def test_the_log_says_what_happened(corpus: Corpus) -> None:
    written = train(corpus, "run", warmup=3, schedule="linear", final=0.0, log_every=1)
    lines = {row["step"]: row for row in rows(written) if "train_nats" in row}
    rates = [lines[step]["learning_rate"] / 0.01 for step in range(1, 8)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25])
    model, saved = models.load(Path("run/model"), torch.device("cpu"))
    shards, _ = corpus
    scored = score(model, shards.stream("validation"), shards.bos, 8, 8)
    last = rows(written)[-2]
    assert last["validation_nats"] == scored.nats_per_token
    assert last["validation_bits_per_byte"] == bits_per_byte(
        scored.nats, shards.count("validation", "bytes")
    )
    assert (saved.steps, saved.tokens, saved.seed) == (7, 7 * 32, 0)
    assert saved.tokenizer_sha256 == shards.manifest.tokenizer_sha256
    # the mean of two lines is the line of two
    coarse = [row["train_nats"] for row in rows(train(corpus, "coarse")) if "train_nats" in row]
    assert coarse[0] == pytest.approx((lines[1]["train_nats"] + lines[2]["train_nats"]) / 2)


@pytest.mark.parametrize(("bits", "remarked"), [(0.0, True), (0.00004, True), (0.01, False)])
def test_a_validation_loss_of_zero_is_called_what_it_is(
    corpus: Corpus,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bits: float,
    remarked: bool,
) -> None:
    monkeypatch.setattr(monitor, "bits_per_byte", lambda nats, size: bits)
    train(corpus, "run", steps=1)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "bits/byte" in line]
    assert ("bits/byte: a loss of 0, since" in line) == remarked


def test_it_begins_with_a_line_for_each_group_of_parameters(
    corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    train(
        corpus,
        "run",
        optimizer="muon",
        learning_rate=0.02,
        adam_learning_rate=0.003,
        weight_decay=0.25,
    )
    lines = capsys.readouterr().out.splitlines()
    size = corpus[0].vocabulary_size * 16
    assert (
        f"train: group embeddings: 1 tensor, {size} parameters, learning rate 0.003, weight decay 0"
        in lines
    )
    (matrices,) = (line for line in lines if line.startswith("train: group matrices: "))
    assert matrices.endswith(" learning rate 0.02, weight decay 0.25")


def test_the_rate_in_the_log_is_that_of_the_matrices(corpus: Corpus) -> None:
    changes = {
        "optimizer": "muon",
        "learning_rate": 0.02,
        "adam_learning_rate": 0.003,
        "schedule": "constant",
        "warmup": 0,
    }
    log = rows(train(corpus, "run", **changes))
    assert {row["learning_rate"] for row in log if "train_nats" in row} == {0.02}


def test_an_average_is_what_is_validated_and_saved_and_looking_at_it_disturbs_nothing(
    corpus: Corpus,
) -> None:
    changes = {"optimizer": "schedule_free", "schedule": "constant"}
    often = train(corpus, "often", **changes, validate_every=1, sample_every=1)
    seldom = train(corpus, "seldom", **changes, validate_every=0, sample_every=0)
    assert often[OUTPUTS[0]] == seldom[OUTPUTS[0]]
    model, _ = models.load(Path("often/model"), torch.device("cpu"))
    scored = score(model, corpus[0].stream("validation"), corpus[0].bos, 8, 8)
    assert rows(seldom)[-1]["validation_nats"] == scored.nats_per_token


def test_it_learns(corpus: Corpus) -> None:
    log = rows(
        train(corpus, "run", steps=80, batch=16, validate_every=40, sample_every=0, warmup=10)
    )
    nats = [row["validation_nats"] for row in log if "validation_nats" in row]
    assert nats[0] > nats[-1]
    assert nats[-1] < 2.0  # from ln 21 = 3.0


def test_accumulated_pieces_take_the_same_step_as_the_whole_batch(corpus: Corpus) -> None:
    one, four = (
        rows(train(corpus, f"run{pieces}", gradient_accumulation=pieces, log_every=1))
        for pieces in (1, 4)
    )
    for whole, pieces in zip(one, four, strict=True):
        for key in ("train_nats", "gradient_norm", "validation_nats"):
            assert whole.get(key, 0.0) == pytest.approx(pieces.get(key, 0.0), rel=1e-4)


def test_a_gradient_is_cut_to_its_largest_norm(corpus: Corpus) -> None:
    norms: list[float] = []

    def measured(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        gradients = [
            p.grad
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))

    def logged(folder: str, clip: float) -> list[float]:
        norms.clear()
        written = train(corpus, folder, clip=clip, log_every=1)
        return [row["gradient_norm"] for row in rows(written) if "gradient_norm" in row]

    handle = register_optimizer_step_pre_hook(measured)
    try:
        free = logged("free", 0.0)
        assert norms == pytest.approx(free, rel=1e-4)
        cut = logged("cut", 0.1)
        assert cut[0] == free[0] > 0.1  # what is logged is the norm before
        assert norms == pytest.approx([min(0.1, norm) for norm in cut], rel=1e-4)
    finally:
        handle.remove()


# ---------------------------------------------------------------- what can go wrong


def refusal(corpus: Corpus, **changes: Any) -> str:
    with pytest.raises(UserError) as refused:
        train(corpus, "broken", **changes)
    message = str(refused.value)
    assert "\n" not in message
    assert not Path("broken/model").exists()
    return message


@pytest.mark.parametrize(
    ("bad", "where", "changes"),
    small.drawn(
        [float("nan"), float("inf"), float("-inf")],
        ["loss", "gradient"],
        [{}, {"clip": 0.0}, {"clip": 0.0, "step_in_backward": True}, {"gradient_accumulation": 2}],
        rounds=3,
    ),
)
def test_a_run_that_diverges_ends_there_with_a_record_and_the_weights_it_had_before(
    corpus: Corpus,
    bad: float,
    where: str,
    changes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    healthy = train(corpus, "healthy", steps=4, schedule="constant", snapshots=0, **changes)
    real = Backprop.assign_gradients

    def diverges(self: Backprop, model: Any, *batch: Any) -> torch.Tensor:
        loss = real(self, model, *batch)
        if calls() == 4 * changes.get("gradient_accumulation", 1) + 1:
            if where == "loss":
                return loss * bad
            next(p for p in model.parameters() if p.grad is not None).grad.view(-1)[0] = bad
        return loss

    calls = iter(range(1, 100)).__next__
    with monkeypatch.context() as patched:
        patched.setattr(Backprop, "assign_gradients", diverges)
        if "step_in_backward" in changes and where == "gradient":
            return  # there each gradient is gone before the rule could be made to spoil it
        capsys.readouterr()
        written = train(corpus, "diverged", schedule="constant", **changes)
    saved = json.loads(written["model/model.json"])
    assert (saved["status"], saved["diverged"]["step"], saved["steps"]) == ("diverged", 5, 4)
    assert str(bad).removeprefix("-") in saved["diverged"]["reason"]
    (told,) = [line for line in capsys.readouterr().out.splitlines() if "DIVERGED" in line]
    assert "DIVERGED at step 5" in told
    assert "learning_rate" in told
    if "step_in_backward" not in changes:
        assert written["model/weights.safetensors"] == healthy["model/weights.safetensors"]
    log = rows(written)
    assert [row["step"] for row in log if "train_nats" in row] == [2, 4]
    assert all(
        math.isfinite(value) for row in log for value in row.values() if isinstance(value, float)
    )
    assert json.loads(written["snapshots/run.json"])["snapshots"] == [
        "step-00000000.safetensors",
        "step-00000003.safetensors",
    ]
    assert not any(Path(".scratch").iterdir())


def test_the_losses_since_the_last_line_of_the_log_are_told_when_a_run_diverges(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = rows(train(corpus, "alone", log_every=1, schedule="constant"))
    losses = {row["step"]: row["train_nats"] for row in alone if "train_nats" in row}
    real = training.take_step

    def diverges(run: Any, *rest: Any) -> Any:
        if run.step == 5:
            raise Diverged("the loss is nan")
        return real(run, *rest)

    monkeypatch.setattr(training, "take_step", diverges)
    log = [
        row
        for row in rows(train(corpus, "diverged", log_every=3, schedule="constant"))
        if "train_nats" in row
    ]
    assert [row["step"] for row in log] == [3, 5]
    assert log[1]["train_nats"] == pytest.approx((losses[4] + losses[5]) / 2)


@pytest.mark.parametrize(
    ("changes", "step", "reason"),
    [
        ({"validate_every": 1}, 1, "logits are NaN"),
        ({"validate_every": 0, "sample_every": 1}, 1, "logits are NaN"),
        ({"validate_every": 0, "sample_every": 0}, 2, "the loss is nan"),
        # the last step's own loss was still fine, but what it made of the weights is not
        ({"validate_every": 0, "sample_every": 0, "steps": 1}, 1, "logits are NaN"),
    ],
)
def test_a_learning_rate_that_is_far_too_high_diverges(
    corpus: Corpus, changes: Any, step: int, reason: str
) -> None:
    written = train(corpus, "high", learning_rate=1e38, warmup=0, **changes)
    saved = json.loads(written["model/model.json"])
    assert saved["status"] == "diverged"
    assert saved["diverged"]["step"] == step
    assert reason in saved["diverged"]["reason"]
    record = json.loads(written["snapshots/run.json"])
    assert len(record["snapshots"]) == (step > 1)  # none of a step that led to no numbers


def test_a_run_that_ended_well_says_so(corpus: Corpus) -> None:
    saved = json.loads(train(corpus, "run")["model/model.json"])
    assert saved["status"] == "finished"
    assert "diverged" not in saved


# ---------------------------------------------------------------- the same run twice at once


def in_another_process(corpus: Corpus, folder: str, **changes: Any) -> multiprocessing.Process:
    """The same run, begun in a process of its own."""
    process = multiprocessing.get_context("fork").Process(
        target=train, args=(corpus, folder), kwargs=changes
    )
    process.start()
    return process


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


@pytest.mark.parametrize("killed", [False, True])
def test_of_two_processes_at_one_run_the_second_takes_over_what_the_first_has_made(
    corpus: Corpus, killed: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = {"steps": 150, "validate_every": 0, "checkpoint_seconds": 0.05, "sample_every": 0}
    expected = train(corpus, "alone", **changes)
    first = in_another_process(corpus, "first", **changes)
    until(lambda: list(Path(".scratch").glob(f"*/{checkpoint.FILE}")))
    others = [in_another_process(corpus, name, **changes) for name in ("second", "third")]
    until(lambda: len(list(Path(".scratch").glob("*/waiting-*"))) == 2)
    if killed:
        first.kill()
    for process in (first, *others):
        process.join(60)
    assert [process.exitcode for process in (first, *others)] == [-9 if killed else 0, 0, 0]
    for name in ("second", "third") if killed else ("first", "second", "third"):
        found = {
            str(path.relative_to(name)): path.read_bytes()
            for path in sorted(Path(name).rglob("*"))
            if path.is_file()
        }
        assert found == expected, name
    said = capfd.readouterr().out
    assert said.count("another process is already executing this run") == 2
    assert (
        said.count("tokens of text") == 2 + killed
    )  # once alone, and once more: nothing that was done is done again
    assert not any(Path(".scratch").iterdir())


def test_text_shorter_than_a_context_is_refused(corpus: Corpus) -> None:
    assert "fewer than one context" in refusal(corpus, context=100_000)


def test_params_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"train: batch \(4\) should be a multiple of gradient_accumulation \(3\)"
    ):
        section(small.tree(**{**BASE, "gradient_accumulation": 3}), "train", TrainParams)


def test_a_device_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UserError, match=r"'cuda' is not available; set train\.device"):
        device.use_device("cuda", 1)


def test_the_device_is_set_to_repeat_itself() -> None:
    assert device.use_device("cpu", 1) == torch.device("cpu")
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("able", ["avx512_bf16", "amx_bf16", "bf16", ""])
def test_bfloat16_that_the_processor_does_not_know_is_called_slow(
    able: str, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"architecture": "some", "avx2": True, able: True}
    )
    for precision, told in (("bfloat16", not able), ("float32", False)):
        train(corpus, precision, precision=precision)
        assert ("set train.precision to float32" in capsys.readouterr().out) == told


@pytest.mark.parametrize(
    ("able", "rule", "settled"),
    [
        (
            {"cpu_name": "Intel(R) Xeon(R)", "amx_bf16": True, "avx512_bf16": True},
            "backprop",
            "bfloat16",
        ),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True}, "feedback_alignment", "bfloat16"),
        (
            {"cpu_name": "AMD EPYC", "avx512_bf16": True},
            "spsa",
            "float32",
        ),  # it needs digits that bfloat16 does not have
        (
            {"cpu_name": "Intel(R) Xeon(R)", "avx512_bf16": True},
            "backprop",
            "float32",
        ),  # measured: slower
        ({"bf16": True}, "backprop", "float32"),  # an Arm's: never measured
        ({"avx2": True}, "backprop", "float32"),
    ],
)
def test_a_precision_left_open_is_the_one_in_which_the_processor_and_the_rule_do_well(
    able: dict[str, Any],
    rule: str,
    settled: str,
    corpus: Corpus,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    open_ = train(corpus, "open", precision="auto", learning_rule=rule)
    assert f"matrix products in {settled}" in capsys.readouterr().out
    given = train(corpus, "given", precision=settled, learning_rule=rule)
    assert open_ == given
    assert json.loads(open_["model/model.json"])["precision"] == settled


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only the GNU C library can be asked for it"
)
def test_memory_that_a_tensor_left_is_not_asked_of_the_system_again() -> None:
    pages = """
import resource, torch
from lmlab.model.device import use_device
use_device("cpu", 1)
for turn in range(20):
    if turn == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    asked = int(
        subprocess.run(
            [sys.executable, "-c", pages], capture_output=True, text=True, check=True
        ).stdout
    )
    assert asked < 10_000  # 10 times 32 MB are 81,920 pages


# ---------------------------------------------------------------- what is left to the model's width


@pytest.mark.parametrize(
    ("width", "gradient_accumulation", "batch"),
    [(16, 1, 2), (128, 1, 16), (128, 3, 15), (512, 4, 64), (8, 2, 2)],
)
def test_a_batch_left_open_is_in_proportion_to_the_width(
    width: int, gradient_accumulation: int, batch: int
) -> None:
    open_ = section(
        small.tree(**{**BASE, "batch": 0, "gradient_accumulation": gradient_accumulation}),
        "train",
        TrainParams,
    )
    assert open_.settled(width, bfloat16_helps=False).batch == batch
    given = section(
        small.tree(**{**BASE, "batch": 12, "gradient_accumulation": gradient_accumulation}),
        "train",
        TrainParams,
    )
    assert given.settled(width, bfloat16_helps=False).batch == 12


def test_depth_alone_sets_the_size_and_every_derived_value_can_be_set_by_hand() -> None:
    def begun(**changes: Any) -> dict[str, Any]:
        derived = {"width": 0, "heads": 0, "batch": 0, "power": 0.5, "learning_rate": 0.004}
        tree = small.tree(**{**BASE, **derived, "gradient_accumulation": 1, **changes})
        params = section(tree, "train", TrainParams)
        choices = registry.choices(tree, "train", params)
        run = stepping.begin(params, choices, 11, torch.device("cpu"))
        rates = {group["initial_lr"] for group in run.optimizer.param_groups}
        heads = {module.heads for module in run.model.modules() if isinstance(module, Attention)}
        return {
            "width": run.model.width,
            "blocks": len(run.model.blocks),
            "batch": run.params.batch,
            "heads": heads,
            "rate": rates,
        }

    assert begun(depth=4) == {"width": 128, "blocks": 4, "batch": 16, "heads": {2}, "rate": {0.004}}
    assert begun(depth=16) == {
        "width": 512,
        "blocks": 16,
        "batch": 64,
        "heads": {8},
        "rate": {0.002},
    }
    by_hand = begun(depth=3, width=48, heads=4, batch=5, power=0.0)
    assert by_hand == {"width": 48, "blocks": 3, "batch": 5, "heads": {4}, "rate": {0.004}}


def test_a_saved_model_tells_its_size(corpus: Corpus) -> None:
    saved = json.loads(train(corpus, "run", batch=0)["model/model.json"])
    size = saved["size"]
    assert (size["width"], size["blocks"], size["batch"]) == (16, 2, 2)
    assert saved["tokens"] == 7 * 2 * 8
    assert sum(size["parameters"].values()) == saved["parameters"]
    assert size["bytes"]["optimizer"] >= 2 * size["bytes"]["weights"]  # the two means of AdamW


@pytest.mark.parametrize("optimizer", registry.names("optimizers"))
@pytest.mark.parametrize("tied", [False, True])
def test_steps_in_the_backward_pass_end_in_the_same_bytes(
    corpus: Corpus, optimizer: str, tied: bool
) -> None:
    changes = {
        "clip": 0.0,
        "optimizer": optimizer,
        "learning_rate": 0.001,
        "tied": tied,
        "dropout": 0.1,
    }
    assert train(corpus, "early", step_in_backward=True, **changes) == train(
        corpus, "late", **changes
    )


def test_steps_in_the_backward_pass_never_hold_all_gradients(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []

    def count(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        held.append(
            sum(p.grad is not None for group in optimizer.param_groups for p in group["params"])
        )

    handle = register_optimizer_step_pre_hook(count)
    try:
        train(corpus, "early", clip=0.0, step_in_backward=True)
        assert set(held) == {1}
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "changes",
    [
        {"clip": 1.0},
        {"clip": 0.0, "gradient_accumulation": 2},
        {"clip": 0.0, "second_intervention": "gradient_noise"},
    ],
)
def test_steps_in_the_backward_pass_refuse_what_needs_the_whole_gradient(
    corpus: Corpus, changes: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match="step_in_backward"):
        train(corpus, "refused", step_in_backward=True, **changes)
