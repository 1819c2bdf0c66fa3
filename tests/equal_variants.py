"""A simulation of `lmlab compare`: equal variants, and unequal ones, whose runs diverge, fail or
have no partner.

The repository is pretended (`laboratory`), the rest is as a person would meet it. What happens to a
run depends on how it went, which is the worst that can be: `python tests/equal_variants.py 200`
prints what is said of variants that are equal, and of one that is better, for each kind of trouble.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from laboratory import Laboratory, Pretended, bits
from numpy.typing import NDArray

from lmlab.experiments.compare import comparing, verdicts

BITS = "validation.bits_per_byte"
TARGET = "learning_curve.tokens_to.2.5"
SEEDS = 12
SPREAD = 0.1
"""Of the runs' bits per byte over seeds."""


@dataclass
class Drawn:
    """What there is to compare."""

    runs: list[Pretended] = field(default_factory=list)
    failed: list[Pretended] = field(default_factory=list)
    measure: str = ""
    """Empty: what is compared unless something else is asked for."""

    def add(self, side: str, seed: int, measures: dict[str, object], failed: bool = False) -> None:
        """A run of the baseline `a` or the variant `b`; no measures: it diverged."""
        changes = {"train.optimizer": "adamw" if side == "a" else "lion"}
        run = Pretended(f"{side}-{seed}", seed, changes, measures)
        (self.failed if failed else self.runs).append(run)


Values = NDArray[np.float64]
Trouble = Callable[[Values, Values, np.random.Generator], Drawn]


def untroubled(ours_N: Values, theirs_N: Values, rng: np.random.Generator) -> Drawn:
    """Every run ends."""
    drawn = Drawn()
    for seed, values in enumerate(zip(ours_N.tolist(), theirs_N.tolist())):
        for side, value in zip("ab", values):
            drawn.add(side, seed, bits(value))
    return drawn


def diverging(ours_N: Values, theirs_N: Values, rng: np.random.Generator) -> Drawn:
    """The worse a run of either side, the likelier it diverged."""
    drawn = Drawn()
    for seed, values in enumerate(zip(ours_N.tolist(), theirs_N.tolist())):
        for side, value in zip("ab", values):
            diverged = value > 2 + SPREAD * rng.uniform(0.5, 1.5)
            drawn.add(side, seed, {} if diverged else bits(value))
    return drawn


def diverging_alone(ours_N: Values, theirs_N: Values, rng: np.random.Generator) -> Drawn:
    """The variant's bad runs diverged, the baseline's did not: so it is worse, and must not win by
    its survivors.
    """
    drawn = Drawn()
    for seed, (ours, theirs) in enumerate(zip(ours_N.tolist(), theirs_N.tolist())):
        drawn.add("a", seed, bits(ours))
        drawn.add("b", seed, {} if theirs > 2 + SPREAD / 4 else bits(theirs))
    return drawn


def vanishing(ours_N: Values, theirs_N: Values, rng: np.random.Generator) -> Drawn:
    """The variant's bad runs failed, whose results nobody knows."""
    drawn = Drawn()
    for seed, (ours, theirs) in enumerate(zip(ours_N.tolist(), theirs_N.tolist())):
        drawn.add("a", seed, bits(ours))
        drawn.add("b", seed, bits(theirs), failed=theirs > 2 + SPREAD / 4)
    return drawn


def chosen(ours_N: Values, theirs_N: Values, rng: np.random.Generator) -> Drawn:
    """The variant was run with those seeds alone in which the baseline had done badly."""
    drawn = Drawn()
    for seed, (ours, theirs) in enumerate(zip(ours_N.tolist(), theirs_N.tolist())):
        drawn.add("a", seed, bits(ours))
        if ours > 2 - SPREAD / 8:
            drawn.add("b", seed, bits(theirs))
    return drawn


def unreached(ours_N: Values, theirs_N: Values, rng: np.random.Generator) -> Drawn:
    """Only good runs reached a target, and the better the sooner."""
    drawn = Drawn(measure=TARGET)
    for seed, values in enumerate(zip(ours_N.tolist(), theirs_N.tolist())):
        for side, value in zip("ab", values):
            reached = value < 2 + SPREAD / 4
            curve = (
                {"tokens_to": {"2.5": 1000 * value}}
                if reached
                else {"tokens_to_more_than": {"2.5": 9000}}
            )
            drawn.add(side, seed, bits(value, learning_curve=curve))
    return drawn


TROUBLES: dict[str, Trouble] = {
    trouble.__name__: trouble
    for trouble in (untroubled, diverging, diverging_alone, vanishing, chosen, unreached)
}


def words(trouble: str, seed: int, shift: float, folder: Path, seeds: int = SEEDS) -> str:
    """The verdict on a variant whose bits are lower by so many standard deviations over seeds."""
    rng = np.random.default_rng([seed, seeds])
    ours_N, theirs_N = 2 + SPREAD * rng.normal(size=(2, seeds))
    drawn = TROUBLES[trouble](ours_N, theirs_N - shift * SPREAD, rng)
    laboratory = Laboratory(folder)
    laboratory.experiments(drawn.runs)
    laboratory.unfinished(drawn.failed)
    measures = [drawn.measure] if drawn.measure else []
    found = comparing.compare(["a-*", "b-*"], "a-*", measures, verdicts.ALPHA, folder)
    return found.verdicts[0].words


def main(draws: int) -> None:
    """Print a line for each trouble: shares of the words for equal variants, and for a planted
    difference.
    """
    for trouble in TROUBLES:
        for shift, count in ((0.0, draws), (3.0, draws // 10)):
            started = time.perf_counter()
            told: dict[str, int] = {}
            for seed in range(count):
                with tempfile.TemporaryDirectory() as folder:
                    verdict = words(trouble, seed, shift, Path(folder))
                told[verdict] = told.get(verdict, 0) + 1
            shares = ", ".join(
                f"{verdict} {number / count:.3f}" for verdict, number in sorted(told.items())
            )
            print(
                f"{trouble}, shift {shift:g}, {count} draws, {time.perf_counter() - started:.0f}"
                f" s: {shares}",
                flush=True,
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
