"""A run that goes on from another: the same bytes as one that never stopped, and what it cost."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small
import test_training
import torch
from test_training import BASE, VARIATIONS, Corpus, Stopped, stop_at

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.core.files import read_json, whole_folder
from lmlab.core.params import changed, section
from lmlab.data.start import EarlierRun, Start, StartParams
from lmlab.model.models import base as models
from lmlab.model.record import ModelRecord, read_record
from lmlab.training import checkpoint, continuing
from lmlab.training import loop as training
from lmlab.training.cost import bytes_at, flops_at
from lmlab.training.results import RunFolders
from lmlab.training.step import TrainParams

corpus = test_training.corpus  # the fixture
GOES_ON = {"schedule": "constant", "warmup": 0}


def train(corpus: Corpus, folder: str, start: Start | None = None, **changes: Any) -> ModelRecord:
    tree = small.tree(**{**BASE, **GOES_ON, **changes})
    params = section(tree, "train", TrainParams)
    home = Path(folder)
    folders = RunFolders(home / "model", home / "training", home / "snapshots", home / "state")
    parts = registry.choices(tree, "train", params)
    training.train(params, parts, *corpus, folders, start)
    return read_record(home / "model")


def start_from(folder: str) -> Start:
    """The run in a folder, as the stage `start` would bring it."""
    saved = read_record(Path(folder, "model"))
    this = EarlierRun(
        commit="0" * 40,
        recipe="some:7:abcdef",
        weights_sha256=saved.weights_sha256,
        corpus="some",
        tokenizer_sha256=saved.tokenizer_sha256,
        learning_rule="some",
        optimizer="some",
        steps=saved.steps,
        tokens=saved.tokens,
        bytes=saved.bytes,
        flops=saved.flops,
        bits_per_byte=None,
    )
    home = Path(folder)
    return Start(home / "model", home / "tokenizer", home / "state", [*saved.earlier, this])


def state(folder: str) -> dict[str, Any]:
    found = checkpoint.read(Path(folder, "state", continuing.FILE))
    assert found is not None
    return found


def assert_same(one: Any, other: Any) -> None:
    """Two trees of the same tensors and values, to the last bit."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for ours, theirs in zip(one, other, strict=True):
            assert_same(ours, theirs)
    else:
        assert one == other


def logged(folder: str, key: str) -> list[tuple[int, float]]:
    rows = test_training.rows(
        {"training/log.jsonl": Path(folder, "training/log.jsonl").read_bytes()}
    )
    return [(row["step"], row[key]) for row in rows if key in row]


@pytest.mark.parametrize("variation", sorted({*VARIATIONS} - {"distillation"}))
def test_a_run_continued_three_times_is_the_run_that_did_not_stop(
    corpus: Corpus, variation: str
) -> None:
    changes = {**VARIATIONS[variation], "log_every": 1}
    whole = train(corpus, "whole", **{**changes, "steps": 7})
    train(corpus, "0", **{**changes, "steps": 2})
    for number, steps in enumerate((1, 3, 1), start=1):
        before = start_from(f"{number - 1}")
        last = train(corpus, f"{number}", before, **{**changes, "steps": steps})
    assert last.weights_sha256 == whole.weights_sha256
    assert_same(state("3"), state("whole"))
    assert (last.steps, last.tokens, last.bytes, last.flops) == (
        whole.steps,
        whole.tokens,
        whole.bytes,
        whole.flops,
    )
    assert [each.steps for each in last.earlier] == [2, 3, 6]
    pieces = [row for number in range(4) for row in logged(f"{number}", "train_nats")]
    assert pieces == logged("whole", "train_nats")
    assert (
        dict(logged("whole", "validation_bits_per_byte")).items()
        <= dict(
            row for number in range(4) for row in logged(f"{number}", "validation_bits_per_byte")
        ).items()
    )


def test_a_continued_run_that_is_killed_writes_the_same_bytes(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(corpus, "first", dropout=0.3)
    start = start_from("first")
    whole = train(corpus, "whole", start, dropout=0.3)
    for step in (1, 2, 2):
        with monkeypatch.context() as patched:
            stop_at(patched, training, "take_step", step)
            with pytest.raises(Stopped):
                train(corpus, "stopped", start, dropout=0.3)
    assert train(corpus, "stopped", start, dropout=0.3) == whole
    assert logged("stopped", "validation_bits_per_byte") == logged(
        "whole", "validation_bits_per_byte"
    )
    assert logged("whole", "validation_bits_per_byte")[0][0] == 7  # at once


def test_another_run_finds_no_checkpoint_of_one_with_another_start(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seed in (("first", 0), ("second", 1)):
        train(corpus, name, seed=seed)
    with monkeypatch.context() as patched:
        stop_at(patched, training, "take_step", 4)
        with pytest.raises(Stopped):
            train(corpus, "stopped", start_from("first"))
    through = train(corpus, "stopped", start_from("second"))
    assert through == train(corpus, "other", start_from("second"))


def test_what_has_been_read_and_spent_is_counted_from_the_first_run_on(corpus: Corpus) -> None:
    first = train(corpus, "first")
    wider_batch = train(corpus, "second", start_from("first"), batch=8, steps=3)
    assert wider_batch.tokens == first.tokens + 3 * 8 * 8
    own = (wider_batch.tokens - first.tokens) / first.tokens
    assert wider_batch.flops == pytest.approx(first.flops * (1 + own), rel=1e-6)
    assert wider_batch.bytes == pytest.approx(first.bytes * (1 + own), rel=1e-3)
    assert flops_at(wider_batch, first.tokens) == first.flops
    assert flops_at(wider_batch, wider_batch.tokens) == wider_batch.flops
    assert bytes_at(wider_batch, first.tokens) == first.bytes
    assert bytes_at(wider_batch, wider_batch.tokens) == wider_batch.bytes
    read = state("second")["position"]["windows"]
    assert read == 7 * 4 + 3 * 8  # the text goes on at the same window with another batch


def test_another_rule_or_optimizer_begins_anew_and_says_so(
    corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    train(corpus, "first", learning_rule="feedback_alignment", optimizer="adamw")
    train(corpus, "second", start_from("first"), optimizer="lion", learning_rate=0.001)
    out = capsys.readouterr().out
    assert "the optimizer is lion where it was adamw, so its state begins anew" in out
    assert "the learning rule is another one, so its state begins anew" in out
    train(corpus, "third", start_from("second"), seed=3, optimizer="lion", learning_rate=0.001)
    out = capsys.readouterr().out
    assert "anew" not in out
    assert "another text, order or train.context: the text is read from its beginning" in out
    assert state("third")["position"]["windows"] == 7 * 4


OTHER_VALUES: dict[type, Callable[[Any], Any]] = {
    bool: lambda value: not value,
    int: lambda value: value + 1,
    float: lambda value: value * 0.5 or 0.25,
}


@pytest.mark.parametrize("name", registry.names("optimizers"))
def test_every_option_of_an_optimizer_may_change(corpus: Corpus, name: str) -> None:
    """Its state is taken over or begins anew; either way the run goes on."""
    base: dict[str, Any] = {"optimizer": name, "learning_rate": 0.001, "steps": 2}
    options = small.tree(**base)["optimizers"][name]
    changes: list[dict[str, Any]] = [
        {key: OTHER_VALUES[type(value)](value)}
        for key, value in options.items()
        if type(value) in OTHER_VALUES and key != "epsilon"  # which norms have as well
    ]
    assert changes
    if "largest_side" in options:  # from no side in a basis of its own to all
        base["largest_side"] = 1
        changes.append({"largest_side": 1024})
    train(corpus, "first", **base)
    for number, change in enumerate(changes):
        last = train(corpus, f"{number}", start_from("first"), **{**base, **change})
        assert (last.steps, last.status) == (4, "finished")


def test_the_learning_rate_is_the_new_run_s_and_the_moments_are_the_old_one_s(
    corpus: Corpus,
) -> None:
    train(corpus, "first", optimizer="adamw")
    train(corpus, "second", start_from("first"), optimizer="adamw", learning_rate=0.5, steps=1)
    (step, rate), *_ = logged("second", "learning_rate")
    assert (step, rate) == (8, 0.5)
    before, after = state("first")["optimizer"], state("second")["optimizer"]
    assert {float(each["step"]) for each in before.values()} == {7.0}
    assert {float(each["step"]) for each in after.values()} == {8.0}


@pytest.mark.parametrize("name", registry.names("optimizers"))
def test_an_optimizer_that_begins_anew_takes_the_steps_of_one_that_has_no_state(
    corpus: Corpus, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"optimizer": name, "validate_every": 0}
    train(corpus, "first", **changes)
    start = start_from("first")
    carried = train(corpus, "carried", start, **changes)
    capsys.readouterr()
    anew = train(corpus, "anew", replace(start, carries_optimizer_state=False), **changes)
    assert "the optimizer's state begins anew (start.optimizer_state)" in capsys.readouterr().out
    without = state("first")
    without["optimizer"] = {}
    with whole_folder(start.state) as partial:
        checkpoint.write(partial / continuing.FILE, without)
    assert anew.weights_sha256 == train(corpus, "without", start, **changes).weights_sha256
    assert anew.weights_sha256 != carried.weights_sha256
    assert carried.earlier == anew.earlier


@pytest.mark.parametrize(
    ("chosen", "migration", "carries"),
    [
        ("auto", "identity", True),
        ("auto", "spelled", False),
        ("carried", "spelled", True),
        ("anew", "identity", False),
    ],
)
def test_the_optimizer_s_state_is_carried_where_the_tokenizer_stays_or_where_asked(
    chosen: str, migration: str, carries: bool
) -> None:
    values = {"start.commit": "0" * 40, "start.migration": migration}
    tree = changed(small.tree(), {**values, "start.optimizer_state": chosen})
    assert section(tree, "start", StartParams).carries_optimizer_state is carries


def test_the_weights_taken_over_are_those_that_training_was_at(corpus: Corpus) -> None:
    """Not the averages that `schedule_free` recommends."""
    train(corpus, "first", optimizer="schedule_free", learning_rate=0.01)
    saved, _ = models.load(Path("first/model"), torch.device("cpu"))
    at_training = state("first")["model"]
    assert any(
        not torch.equal(at_training[name], value) for name, value in saved.state_dict().items()
    )
    train(corpus, "second", start_from("first"), optimizer="sgd", learning_rate=1e-30, steps=1)
    assert_same(state("second")["model"], at_training)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depth": 3}, r"models\.transformer\.depth: 3 \(the start's: 2\)"),
        ({"attention": "grouped_query"}, r"transformer\.attention: grouped_query \(the start's"),
        ({"model": "lstm"}, r"train\.model: lstm \(the start's: transformer\)"),
        ({"position": "learned", "context": 16}, "other parts"),
    ],
)
def test_a_start_with_other_parts_is_refused_naming_them(
    corpus: Corpus, changes: dict[str, Any], words: str
) -> None:
    train(corpus, "first")
    with pytest.raises(UserError, match=words) as error:
        train(corpus, "second", start_from("first"), **changes)
    assert "\n" not in str(error.value)


def test_a_context_that_the_shape_depends_on_cannot_change(corpus: Corpus) -> None:
    train(corpus, "first", position="learned")
    with pytest.raises(UserError, match=r"set train\.context back"):
        train(corpus, "second", start_from("first"), position="learned", context=4)
    train(corpus, "third")
    assert train(corpus, "fourth", start_from("third"), context=4).context == 4


def test_a_start_with_another_tokenizer_is_refused(
    corpus: Corpus, shards_of: Callable[..., Corpus]
) -> None:
    train(corpus, "first")
    other = shards_of(test_training.TEXT + "~", "12 times 12 is 144.\n")
    with pytest.raises(UserError, match="was trained with another tokenizer"):
        train(other, "second", start_from("first"))


def test_a_damaged_state_is_refused(corpus: Corpus) -> None:
    train(corpus, "first")
    file = Path("first/state", continuing.FILE)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="is damaged"):
        train(corpus, "second", start_from("first"))


def test_every_number_of_the_state_is_in_the_file_once(corpus: Corpus) -> None:
    train(corpus, "first", optimizer="adamw")
    record = read_json(Path("first/model/model.json"), "train")
    found = state("first")
    assert {name.partition(".")[0] for name in found["optimizer"]} == {"model"}
    count = sum(value.numel() for value in found["model"].values())
    assert count == record["parameters"]


# ---------------------------------------------------------------- when to stop, what to keep


LOSING = {"learning_rate": 3.0, "optimizer": "sgd", "validate_every": 1, "steps": 12}
"""A run whose validation loss soon rises."""


def test_patience_ends_a_run_after_so_many_validations_that_are_no_better(
    corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    train(corpus, "whole", **LOSING)
    losses = [nats for _, nats in logged("whole", "validation_nats")]
    best = losses.index(min(losses)) + 1
    assert best + 2 < 12, "the run is to lose"
    ended = train(corpus, "patient", patience=2, **LOSING)
    assert ended.steps == best + 2
    assert [nats for _, nats in logged("patient", "validation_nats")] == losses[: best + 2]
    said = f"no better validation since step {best}"
    assert logged("patient", "stopped") == [(best + 2, said)]
    assert f"stopped early at step {best + 2}: {said}" in capsys.readouterr().out
    assert train(corpus, "more_patient", patience=12, **LOSING).steps == 12


def test_the_best_weights_are_kept_with_all_that_belongs_to_them(corpus: Corpus) -> None:
    train(corpus, "whole", **LOSING)
    losses = [nats for _, nats in logged("whole", "validation_nats")]
    best = losses.index(min(losses)) + 1
    train(corpus, "until_best", **{**LOSING, "steps": best})
    kept = train(corpus, "kept", keep="best", patience=2, **LOSING)
    assert (kept.steps, kept.tokens) == (best + 2, (best + 2) * 32)  # all of it was spent
    for key in ("model", "rule", "optimizer"):
        assert_same(state("kept")[key], state("until_best")[key])
    assert logged("kept", "kept")[0][1].startswith(f"the weights of step {best},")
    last = train(corpus, "last", keep="best", **{**LOSING, "steps": best})
    assert last.weights_sha256 == read_record(Path("until_best/model")).weights_sha256
    assert logged("last", "kept") == []


@pytest.mark.parametrize("optimizer", ["adamw", "schedule_free"])
def test_a_killed_run_keeps_the_same_best(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    changes = {**LOSING, "optimizer": optimizer, "keep": "best", "patience": 3}
    whole = train(corpus, "whole", **changes)
    for step in (2, 2, 2):
        with monkeypatch.context() as patched:
            stop_at(patched, training, "take_step", step)
            with pytest.raises(Stopped):
                train(corpus, "stopped", **changes)
    assert train(corpus, "stopped", **changes) == whole
    log = Path("whole/training/log.jsonl").read_bytes()
    assert Path("stopped/training/log.jsonl").read_bytes() == log


def test_a_run_that_goes_on_may_end_with_what_it_began_with(corpus: Corpus) -> None:
    first = train(corpus, "first")
    second = train(corpus, "second", start_from("first"), keep="best", **LOSING)
    rows = logged("second", "validation_nats")
    assert min(rows, key=lambda row: row[1])[0] == 7
    assert second.weights_sha256 == first.weights_sha256


@pytest.mark.parametrize("changes", [{"patience": 1}, {"keep": "best"}])
def test_what_goes_by_validations_needs_some(changes: dict[str, Any]) -> None:
    tree = small.tree(**{**BASE, **changes, "validate_every": 0})
    with pytest.raises(UserError, match="goes by validations, so set validate_every above 0"):
        section(tree, "train", TrainParams)
