"""A study as its params.yaml says: what all its runs share, and the arms that are compared.

A study is a folder with a params.yaml. Its section `study` says what all runs share; each block of
`arms` is one of the things compared. An arm may sweep some values first, with seeds of its own;
then it runs with the reported seeds at the best of them, so that every arm is judged at its own
best and no run is both chosen and reported.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from lmlab.core import params
from lmlab.core.errors import UserError
from lmlab.core.params import Params, Tree, Values, changed
from lmlab.data.start import FROM_SCRATCH

LEAST_SWEEP_SEEDS = 2
"""With fewer, the best of a sweep is chosen by luck."""
FIRST = "first."
"""Before the keys of params of a run that others go on from."""
Sweep = dict[str, list[Any]]
"""Values to try for each dotted key, all combinations; `key*` holds factors."""


class StudyParams(Params):
    """A study's params.yaml: the section `study`."""

    changes: Values
    """To the project's own params.yaml, in all runs."""
    flops: float = Field(ge=0)
    """FLOPs that each run may spend on training; 0: as many steps as `train.steps` says."""
    each: str
    """The key that an arm's name is a value of, such as train.learning_rule; may be empty."""
    sweep: Sweep
    """For arms that have none of their own."""
    sweep_seeds: list[int]
    """What each swept value is run with: LEAST_SWEEP_SEEDS or more, none of them in `seeds`."""
    seeds: list[int]
    """What an arm is run with at the best of its swept values. These runs are reported. With none,
    nothing is chosen: the sweep is what was asked for, as in a scaling law.
    """
    reference: str
    """The baseline: the arm whose cost is 1 and that verdicts are against; may be empty."""
    within: float = Field(default=0, ge=0)
    """Bits per byte above what a run ended with that others went on from, which still count as back
    at its level; 0: it is not asked when runs are.
    """
    processes: int = Field(ge=0)
    """Runs at a time; 0: one per core. Each should train on one thread."""


class ArmParams(Params):
    """A study's params.yaml: a block of `arms`, which may be empty."""

    changes: Values = {}
    first: Values | None = None
    """Changes to what all runs share in the run that this arm's go on from, with the same seed;
    without it they begin from scratch.
    """
    sweep: Sweep | None = None
    sweep_seeds: list[int] | None = None


@dataclass(frozen=True)
class Arm:
    """One of the things that a study compares."""

    name: str
    changes: Values
    """What it changes beside what all runs share."""
    first: Values | None
    """What the run changes that it goes on from; None: from scratch."""
    sweep: Sweep
    sweep_seeds: list[int]

    @property
    def grid(self) -> list[Values]:
        """Every combination of the swept values; a single empty one without a sweep."""
        combinations = itertools.product(*self.sweep.values())
        return [dict(zip(self.sweep, values, strict=True)) for values in combinations]

    @property
    def own_keys(self) -> set[str]:
        """The dotted keys in which it may differ from the other arms."""
        of_first = {f"{FIRST}{key}" for key in self.first or {}}
        return of_first | {key.removesuffix("*") for key in (*self.changes, *self.sweep)}


@dataclass(frozen=True)
class Study:
    """A study's folders and its params, whole or made quick."""

    folder: Path
    """Where its params.yaml is."""
    output: Path
    """Where its points, tables and charts are: the same folder, or `tried` in it when quick."""
    params: StudyParams
    arms: dict[str, ArmParams]

    @property
    def name(self) -> str:
        return self.folder.name

    def points(self, arm: str) -> Path:
        """The file of an arm's points."""
        return self.output / "points" / f"{arm}.json"

    def arm(self, name: str) -> Arm:
        """An arm by name. Any value of the key `each` is one, whether it has a block or not."""
        if name not in self.arms and not self.params.each:
            nearest = params.nearest(name, self.arms)
            raise UserError(f"{self.folder / 'params.yaml'}: arms has no {name!r}; {nearest}")
        block = self.arms.get(name, ArmParams())
        by_name = {self.params.each: name} if self.params.each else {}
        sweep = self.params.sweep if block.sweep is None else block.sweep
        seeds = self.params.sweep_seeds if block.sweep_seeds is None else block.sweep_seeds
        self._check_seeds(name, sweep, seeds)
        return Arm(name, {**by_name, **block.changes}, block.first, sweep, seeds)

    def tree(self, name: str) -> Tree:
        """The project's params.yaml with what all runs share and what the arm changes."""
        return changed(changed(from_scratch(), self.params.changes), self.arm(name).changes)

    def first_tree(self, name: str) -> Tree | None:
        """The same for the run that the arm's runs go on from; None where they begin from
        scratch.
        """
        first = self.arm(name).first
        if first is None:
            return None
        return changed(changed(from_scratch(), self.params.changes), first)

    def _check_seeds(self, name: str, sweep: Sweep, seeds: list[int]) -> None:
        """Raise UserError where what is reported would be what was chosen."""
        where = f"{self.folder / 'params.yaml'}: the arm {name}"
        chooses = bool(sweep and self.params.seeds)
        if chooses and len(set(seeds)) < LEAST_SWEEP_SEEDS:
            raise UserError(
                f"{where} sweeps with {len(set(seeds))} seed(s); give sweep_seeds at least"
                f" {LEAST_SWEEP_SEEDS}"
            )
        if chooses and (both := sorted(set(seeds).intersection(self.params.seeds))):
            raise UserError(
                f"{where} sweeps with seeds that are reported as well ({both[0]}); the best of a"
                " sweep was chosen for its luck too, so give sweep_seeds others than seeds"
            )


def from_scratch() -> Tree:
    """params.yaml without the run that it may go on from: each run of a study begins anew."""
    return changed(params.read(), FROM_SCRATCH)


def read(folder: Path, quick: bool = False) -> Study:
    """A study, or its quick form: what the section `quick` says replaces what `study` and `arms`
    say.

    Raises UserError.
    """
    file = folder / "params.yaml"
    tree = params.read(file)
    shared = dict(params.block(tree, "study"))
    blocks = {name: dict(params.block(tree, f"arms.{name}")) for name in params.block(tree, "arms")}
    if quick:
        for key, value in params.block(tree, "quick").items():
            if key != "arms":
                shared[key] = {**shared[key], **value} if key == "changes" else value
        for name in params.block(tree, "quick.arms"):
            if name not in blocks:
                nearest = params.nearest(name, blocks)
                raise UserError(f"{file}: quick.arms.{name} is no arm; {nearest}")
            blocks[name] |= params.block(tree, f"quick.arms.{name}")
    study = params.section({"study": shared}, "study", StudyParams)
    arms = {name: params.section({"arms": blocks}, f"arms.{name}", ArmParams) for name in blocks}
    return Study(folder, folder / "tried" if quick else folder, study, arms)


def resolved(tree: Tree, swept: Values) -> Values:
    """The values that swept keys come to, factors multiplied out."""
    keys = [key.removesuffix("*") for key in swept]
    after = changed(tree, swept)
    return {key: value_at(after, key) for key in keys}


def value_at(tree: Tree, dotted: str) -> Any:
    """The value of a dotted key."""
    block, _, key = dotted.rpartition(".")
    return params.block(tree, block)[key]
