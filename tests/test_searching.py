"""Searches: what is found, what an interruption changes (nothing), what is refused."""

import json
import math
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides

from lmlab.core import params
from lmlab.core.errors import UserError
from lmlab.core.params import Tree, Values, changed
from lmlab.experiments import commands, git
from lmlab.experiments.search import searching, trials
from lmlab.experiments.search.searching import Search
from lmlab.experiments.search.trials import Outcome

RATE, DEPTH, RULE = (
    "optimizers.muon.learning_rate",
    "models.transformer.depth",
    "train.learning_rule",
)
RANGES = [f"{RATE}=log:0.0001..1.0", f"{DEPTH}=1..6", f"{RULE}=backprop,frozen"]
Fake = Callable[[str, Values], Outcome]


def read(tree: Tree, *ranges: str, name: str = "some", seed: int = 0, **other: Any) -> Search:
    asked = {"measure": "validation.bits_per_byte", "maximise": False, **other}
    return searching.read(name, list(ranges), seed=seed, tree=tree, **asked)


def bowl(name: str, values: Values) -> Outcome:
    """Smallest, 1, at a rate of 0.01, a depth of 4 and backprop."""
    away = (
        math.log10(values[RATE] / 0.01) ** 2
        + (values[DEPTH] - 4) ** 2 / 10
        + (values[RULE] != "backprop")
    )
    return Outcome(1 + away)


def search(
    wanted: Search, trials: int, folder: Path, fake: Fake = bowl, said: list[str] | None = None
) -> Any:
    return searching.run(
        wanted, trials, folder / "search.db", fake, (said if said is not None else []).append
    )


def test_it_comes_near_a_known_optimum_and_nearer_than_its_first_random_points(
    tree: Tree, tmp_path: Path
) -> None:
    wanted = read(tree, *RANGES)
    done = search(wanted, 60, tmp_path)
    best = searching.ranked(wanted, done)[0]
    assert best.outcome.value is not None
    assert best.outcome.value < 1.05
    assert best.values[RULE] == "backprop"
    assert best.values[DEPTH] in (3, 4, 5)
    assert 0.005 < best.values[RATE] < 0.02
    assert int(best.name.removeprefix("some-")) >= 10
    late = [trial.outcome.value or math.inf for trial in done[40:]]
    early = [trial.outcome.value or math.inf for trial in done[:10]]
    assert sum(late) / 20 < sum(early) / 10 - 0.5


def test_where_it_is_stopped_changes_nothing(tree: Tree, tmp_path: Path) -> None:
    """By Ctrl-C in a trial, by a full disk in one, between two, and by a kill that leaves one
    open.
    """
    wanted = read(tree, *RANGES)
    whole = search(wanted, 18, tmp_path / "whole")
    for after, stop in ((3, KeyboardInterrupt()), (12, UserError("disk"))):

        def stopped(
            name: str, values: Values, last: int = after, error: BaseException = stop
        ) -> Outcome:
            if name.endswith(f"{last:04d}"):
                raise error
            return bowl(name, values)

        with pytest.raises(type(stop)):
            search(wanted, 18, tmp_path / "parts", stopped)
    assert len(search(wanted, 15, tmp_path / "parts")) == 15
    study = searching.optuna.load_study(
        study_name="some", storage=f"sqlite:///{tmp_path / 'parts' / 'search.db'}"
    )
    study.ask(wanted.keys)  # what a kill leaves behind
    assert search(wanted, 18, tmp_path / "parts") == whole
    assert [trial.name for trial in whole] == [f"some-{number:04d}" for number in range(18)]


@pytest.mark.parametrize("at_a_time", [2, 5])
def test_some_at_a_time_try_the_same_points_whoever_ends_first(
    at_a_time: int, tree: Tree, tmp_path: Path
) -> None:
    wanted = read(tree, *RANGES, at_a_time=at_a_time)
    at_once: list[int] = []
    begun: set[str] = set()
    lock = threading.Lock()

    def later(longest: float) -> Fake:
        """Trials take times of their own, in an order that has nothing to do with theirs."""

        def run(name: str, values: Values) -> Outcome:
            with lock:
                begun.add(name)
                at_once.append(len(begun))
            time.sleep(longest * random.Random(name).random())
            with lock:
                begun.remove(name)
            return bowl(name, values)

        return run

    whole = search(wanted, 16, tmp_path / "whole", later(0.1))
    assert max(at_once) == at_a_time
    assert search(wanted, 16, tmp_path / "again", later(0.0)) == whole
    with pytest.raises(UserError, match="disk"):
        search(wanted, 16, tmp_path / "parts", broken_at(8))
    assert search(wanted, 11, tmp_path / "parts", later(0.02)) == whole[:11]
    assert search(wanted, 16, tmp_path / "parts", later(0.02)) == whole
    points = [tuple(trial.values.values()) for trial in whole]
    assert len(set(points)) == 16


def broken_at(number: int) -> Fake:
    def run(name: str, values: Values) -> Outcome:
        if name.endswith(f"{number:04d}"):
            raise UserError("disk")
        return bowl(name, values)

    return run


def test_a_trial_does_not_know_what_those_that_run_beside_it_give(
    tree: Tree, tmp_path: Path
) -> None:
    """With three at a time, the twentieth point is the same whatever the two before it give, and
    another if the one before those gives something else.
    """
    wanted = read(tree, *RANGES, at_a_time=3)

    def last(changed_trial: int) -> Values:
        def run(name: str, values: Values) -> Outcome:
            return Outcome(0.0) if name.endswith(f"{changed_trial:04d}") else bowl(name, values)

        point: Values = search(wanted, 20, tmp_path / str(changed_trial), run)[19].values
        return point

    assert last(17) == last(18) == last(99)
    assert last(16) != last(99)


@pytest.mark.parametrize("error", [UserError("disk"), KeyboardInterrupt()], ids=repr)
def test_where_it_ends_early_those_at_work_are_told(
    error: BaseException, tree: Tree, tmp_path: Path
) -> None:
    told = threading.Event()
    said: list[str] = []

    def run(name: str, values: Values) -> Outcome:
        if name.endswith("0000"):
            raise error
        assert told.wait(60)
        return bowl(name, values)

    def stop() -> str:
        told.set()
        return "they are told"

    wanted = read(tree, *RANGES, at_a_time=3)
    with pytest.raises(type(error)):
        searching.run(wanted, 9, tmp_path / "search.db", run, said.append, stop)
    assert said[-1] == "no more trials begin; they are told"
    assert len(said) == 4


def test_how_many_at_a_time_is_part_of_a_search(tree: Tree, tmp_path: Path) -> None:
    search(read(tree, *RANGES, at_a_time=2), 3, tmp_path)
    with pytest.raises(UserError, match="search with other at-a-time"):
        search(read(tree, *RANGES), 5, tmp_path)


def test_finished_trials_are_not_run_again(tree: Tree, tmp_path: Path) -> None:
    wanted = read(tree, *RANGES)
    search(wanted, 5, tmp_path)
    ran: list[str] = []
    search(wanted, 7, tmp_path, lambda name, values: (ran.append(name), bowl(name, values))[1])
    assert ran == ["some-0005", "some-0006"]
    assert len(search(wanted, 3, tmp_path, lambda name, values: pytest.fail("ran"))) == 7


def test_another_seed_tries_other_points(tree: Tree, tmp_path: Path) -> None:
    first = search(read(tree, *RANGES), 3, tmp_path / "0")
    other = search(read(tree, *RANGES, seed=1), 3, tmp_path / "1")
    assert all(a.values[RATE] != b.values[RATE] for a, b in zip(first, other, strict=True))
    assert len({trial.values[RATE] for trial in first}) == 3


def test_a_trial_that_breaks_down_is_never_the_best_and_is_kept_away_from(
    tree: Tree, tmp_path: Path
) -> None:
    wanted = read(tree, f"{RATE}=log:0.0001..1.0")

    def steep(name: str, values: Values) -> Outcome:
        return Outcome(None, "broke down") if values[RATE] > 0.01 else Outcome(-values[RATE])

    said: list[str] = []
    done = search(wanted, 50, tmp_path, steep, said)
    best = searching.ranked(wanted, done)
    assert all(trial.values[RATE] <= 0.01 for trial in best)
    assert best[0].outcome.value == min(
        trial.outcome.value for trial in best if trial.outcome.value is not None
    )
    broken = [trial.outcome.value is None for trial in done]
    assert sum(broken[:10]) > 1
    assert sum(broken[-20:]) / 20 < 0.5, "half of the range breaks down"
    assert any("broke down" in line for line in said)
    told = searching.lines(wanted, done, tree)
    assert f"dvc exp apply {best[0].name}" in "\n".join(told)
    assert told[0] == f"trials: 50, without a measure: {sum(broken)}"


def test_the_largest_is_looked_for_if_wished(tree: Tree, tmp_path: Path) -> None:
    wanted = read(tree, *RANGES, maximise=True)
    done = search(wanted, 10, tmp_path)
    values = [trial.outcome.value for trial in searching.ranked(wanted, done)]
    assert values == sorted((trial.outcome.value or 0 for trial in done), reverse=True)


def test_where_nothing_has_a_measure_it_says_why(tree: Tree, tmp_path: Path) -> None:
    wanted = read(tree, *RANGES)
    done = search(wanted, 2, tmp_path, lambda name, values: Outcome(None, "too deep"))
    assert searching.lines(wanted, done, tree) == [
        "trials: 2, without a measure: 2",
        "first: too deep",
    ]


def test_the_commands_at_the_end_confirm_with_seeds_that_were_not_searched(
    tree: Tree, tmp_path: Path
) -> None:
    wanted = read(tree, *RANGES)
    done = search(wanted, 2, tmp_path)
    told = "\n".join(
        searching.lines(
            wanted, done, {**tree, "train": {**tree["train"], "seed": 4, "data_seed": 0}}
        )
    )
    best = searching.ranked(wanted, done)[0]
    assert (
        f"-S {RATE}={best.values[RATE]!r} -S {DEPTH}={best.values[DEPTH]} -S"
        f" {RULE}={best.values[RULE]}" in told
    )
    assert "-S 'train.seed=range(5,10)' -S train.data_seed=-1" in told


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("optimizers.muon.learning_rat=0.1..1.0", "did you mean optimizers.muon.learning_rate?"),
        ("optimizer.muon.momentum=0.1..1.0", "did you mean optimizers.muon.momentum?"),
        ("nothing", "write KEY=RANGE"),
        (f"{RATE}=1.0..0.1", "1.0 is not below 0.1"),
        (f"{RATE}=log:0.0..0.1", "begins above 0"),
        (f"{RATE}=low..high", "in numbers"),
        (f"{RATE}=0.1..", "in numbers"),
        (f"{RATE}=0.1", "two different values"),
        (f"{RATE}=0.1,0.1", "two different values"),
        (f"{DEPTH}=1.5..3", "whole numbers"),
        (f"{DEPTH}=1..3/5", "no more than 2"),
        (f"{RULE}=1..3", "choices such as a,b"),
        (f"{RULE}=backprop,frozn", "did you mean frozen?"),
        ("train.steps=0..10", "train.steps should be greater than or equal to 1"),
        (f"{RATE}=fast,slow", "should be a valid number"),
        ("evaluate.prompts=a,b", "is a list"),
        ("train=1,2", "did you mean"),
    ],
)
def test_what_cannot_be_searched_is_refused(tree: Tree, typed: str, message: str) -> None:
    with pytest.raises(UserError, match="--key ") as refused:
        read(tree, typed)
    assert message in str(refused.value)


def test_names_and_repeated_keys_are_refused(tree: Tree) -> None:
    with pytest.raises(UserError, match="is given twice"):
        read(tree, RANGES[0], RANGES[0])
    for name in ("a/b", "", "0-1", "a b"):
        with pytest.raises(UserError, match="--name"):
            read(tree, *RANGES, name=name)


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        (f"{DEPTH}=2..8/4", {2, 6}),
        (f"{DEPTH}=log:1..4", {1, 2, 3, 4}),
        (f"{RATE}=0.1..0.35/0.1", {0.1, 0.2, 0.3}),
        ("optimizers.muon.cautious=true,false", {True, False}),
        (f"{RATE}=0.001,0.003", {0.001, 0.003}),
    ],
)
def test_a_range_gives_what_it_says(
    tree: Tree, tmp_path: Path, typed: str, values: set[Any]
) -> None:
    key = typed.partition("=")[0]
    found = {
        trial.values[key]
        for trial in search(read(tree, typed), 15, tmp_path, lambda name, at: Outcome(1.0))
    }
    assert {round(value, 9) for value in found} == values
    assert {type(value) for value in found} == {type(value) for value in values}


def test_what_began_as_another_search_is_refused(tree: Tree, tmp_path: Path) -> None:
    wanted = read(tree, *RANGES)
    search(wanted, 2, tmp_path)
    for changes, message in (
        ({"seed": 1}, "other seed"),
        ({"maximise": True}, "other maximise"),
        ({"measure": "test.accuracy"}, "other measure"),
    ):
        with pytest.raises(UserError, match=message):
            search(read(tree, *RANGES, **changes), 3, tmp_path)
    with pytest.raises(UserError, match="other keys"):
        search(read(tree, RANGES[0]), 3, tmp_path)
    longer = {**tree, "train": {**tree["train"], "steps": 9}}
    with pytest.raises(
        UserError, match=r"the rest of params.yaml is no longer what this search began with"
    ):
        search(read(longer, *RANGES), 3, tmp_path)
    deeper = params.changed(
        tree, {DEPTH: 9}
    )  # a searched key: its value in params.yaml does not matter
    assert len(search(read(deeper, *RANGES), 3, tmp_path)) == 3


def test_two_processes_are_not_at_the_same_search(tree: Tree, tmp_path: Path) -> None:
    wanted = read(tree, *RANGES)
    search(wanted, 1, tmp_path)
    study = searching.optuna.load_study(
        study_name="some", storage=f"sqlite:///{tmp_path / 'search.db'}"
    )
    parent = searching.psutil.Process().parent()
    assert parent is not None
    study.set_user_attr("process", [parent.pid, parent.create_time()])
    with pytest.raises(UserError, match=f"process {parent.pid} is at this search"):
        search(wanted, 2, tmp_path)
    study.set_user_attr("process", [parent.pid, 1.0])  # its number was another's before
    assert len(search(wanted, 2, tmp_path)) == 2


def test_a_damaged_storage_is_told_in_one_line(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "search.db").write_text("no database\n" * 100)
    with pytest.raises(UserError, match=r"search\.db is damaged; delete it"):
        search(read(tree, *RANGES), 1, tmp_path)


@pytest.mark.parametrize(
    "value", [1e-05, 0.013385298778232689, 12, True, 1e16, "swiglu", "texts/*.txt"], ids=repr
)
@pytest.mark.parametrize("form", [commands.literal, searching._written])
def test_a_searched_value_is_given_to_dvc_exactly(
    tmp_path: Path, form: Callable[[Any], str], value: Any
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("some:\n  key: 1\n")
    apply_overrides(path, [f"some.key={form(value)}"])
    found = params.read(path)["some"]["key"]
    assert found == value
    assert type(found) is type(value)


METRICS = {"validation": {"bits_per_byte": 2.5, "broken": math.nan}, "tokens_seen": 12, "name": "x"}


def test_a_measure_is_found_by_its_dotted_key() -> None:
    assert trials.measured(METRICS, "validation.bits_per_byte") == Outcome(2.5)
    assert trials.measured(METRICS, "tokens_seen") == Outcome(12.0)
    assert trials.measured(METRICS, "validation.broken").value is None
    for wrong in ("validation.bits_per_bite", "validation", "name"):
        with pytest.raises(UserError, match="no such number"):
            trials.measured(METRICS, wrong)


def test_a_run_that_diverged_has_no_measure_and_says_where() -> None:
    diverged = {
        "status": "diverged",
        "diverged": {"step": 12, "reason": "the loss is nan"},
        "tokens_seen": 12,
    }
    for measure in ("validation.bits_per_byte", "tokens_seen", "learning_curve.tokens_to.2.0"):
        assert trials.measured(diverged, measure) == Outcome(
            None, "diverged at step 12: the loss is nan"
        )


@pytest.fixture
def repository(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, Any, Any], None]:
    """A Git repository here, and a way to put an experiment into it: name, params.yaml, what
    measures.json holds.
    """
    monkeypatch.chdir(tmp_path)
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    git.output("init", "-q", "-b", "main")
    Path("params.yaml").write_text(json.dumps(tree))
    git.output("add", "params.yaml")
    git.output(*who, "commit", "-q", "-m", "first")

    def experiment(name: str, tree: Any, found: Any) -> None:
        head = git.output("rev-parse", "HEAD").strip()
        Path("results").mkdir(exist_ok=True)
        for path, value in (("params.yaml", tree), ("results/measures.json", found)):
            Path(path).write_text(json.dumps(value))
        git.output("add", "params.yaml", "results")
        git.output(*who, "commit", "-q", "-m", name)
        git.output("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", "HEAD")
        git.output("reset", "-q", "--hard", head)

    return experiment


def test_a_trial_is_judged_by_its_record_and_never_by_what_it_printed(
    tree: Tree,
    tmp_path: Path,
    repository: Callable[[str, Any, Any], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = {RATE: 0.5}
    wanted = Search("some", {}, "learning_curve.mean", False, 0, {})
    experiments = trials.Experiments(wanted.measure, tree, tmp_path / "logs")
    finished = {"status": "finished", "learning_curve": {"mean": 2.25}}
    diverged = {"status": "diverged", "diverged": {"step": 3, "reason": "the loss is inf"}}
    for name, found, outcome in (
        ("good", finished, Outcome(2.25)),
        ("bad", diverged, Outcome(None, "diverged at step 3: the loss is inf")),
    ):

        def ran(log: Path, words: tuple[str, ...], name: str = name, found: Any = found) -> int:
            log.write_text("training broke down; it diverged\n")  # words that mean nothing
            repository(name, changed(tree, values), found)
            return 0

        monkeypatch.setattr(trials, "_dvc", ran)
        assert experiments.run(name, values) == outcome

    def failed(log: Path, words: tuple[str, ...]) -> int:
        log.write_text("error: training broke down and diverged\n")
        return 255

    monkeypatch.setattr(trials, "_dvc", failed)
    with pytest.raises(
        UserError, match=r"lost did not finish \(dvc gave 255\): training broke down"
    ):
        experiments.run("lost", values)


def test_values_that_do_not_go_together_are_a_trial_without_a_measure(
    tree: Tree, tmp_path: Path
) -> None:
    """Each is possible alone, so the ranges are accepted; together they are refused before anything
    runs.
    """
    wanted = read(tree, "evaluate.stride=16..128", "train.context=16..128")
    experiments = trials.Experiments(wanted.measure, tree, tmp_path)
    outcome = experiments.run("some-0000", {"evaluate.stride": 100, "train.context": 50})
    assert outcome.value is None
    assert "larger than train.context" in outcome.reason
