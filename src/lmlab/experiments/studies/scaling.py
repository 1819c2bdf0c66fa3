"""How the loss falls with size and text: L(N, D) = E + A / N^alpha + B / D^beta, fitted to many
small runs.

The form, and the fit to logs with a loss that forgives outliers, are approach 3 of Hoffmann et al.
(2022); Besiroglu et al. (2024) show how much depends on letting the search converge, and on
intervals. N counts a model's parameters, D the tokens it was trained on, L is in nats per token.
"""

from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize

from lmlab.core.errors import UserError

Array = NDArray[np.float64]

FLOPS = 6.0
"""For each parameter and token, forward and backward: the rule of thumb C = 6 N D (Kaplan et al.
2020).
"""
DELTA = 1e-3
"""Residuals of log L that are larger than this count by their size, not by its square (Huber
1964).
"""
CONFIDENCE = 0.95
FEWEST = 3
"""Different sizes, and different amounts of text, that a curve with a floor needs."""
UNKNOWNS = 5
BEGUN, ROUGH, FINISHED, MOST = 12, 40, 2, 2000
"""Of the starts as many are tried with as many steps; then as many of these go on for as many steps
at most.
"""
TOLERANCE = 1e-12
FLOORS, TERMS, EXPONENTS = (0.1, 0.4, 0.7, 0.9, 0.98), (0.03, 0.1, 0.3), (0.1, 0.2, 0.4, 0.8)
"""Starts: E as shares of the least loss, the other terms as shares of a typical one, alpha and
beta.
"""
COLUMNS = ("parameters", "tokens", "nats")


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta."""

    E: float
    """What is left of the loss with endless size and text: the entropy of the text, if the form
    holds that far.
    """
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: Any, tokens: Any) -> Array:
        """Nats per token at one or many sizes and amounts of text."""
        with np.errstate(divide="ignore"):  # an A, B or E of zero is a term that is not there
            return np.exp(
                _log_loss(
                    self._logs,
                    np.log(parameters, dtype=np.float64),
                    np.log(tokens, dtype=np.float64),
                )
            )

    @property
    def _logs(self) -> Array:
        return np.array([*np.log([self.E, self.A, self.B]), self.alpha, self.beta])

    @property
    def size_exponent(self) -> float:
        """With C FLOPs the best size grows as C to this power, the best amount of text as C to the
        rest of 1.
        """
        return self.beta / (self.alpha + self.beta)

    @property
    def without(self) -> list[str]:
        """What has no effect by this law: the size, the amount of text, both or neither."""
        has = {"size": self.A > 0 and self.alpha > 0, "text": self.B > 0 and self.beta > 0}
        return [what for what, there in has.items() if not there]

    def optimum(self, flops: float, each: float = FLOPS) -> tuple[float, float]:
        """(N, D) of the least loss where N D FLOPs `each` come to `flops`. Raises ValueError
        without a minimum.
        """
        if self.without:
            raise ValueError(
                "a term of the law is missing, so a model can never be too large or too small"
            )
        balance = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        parameters = balance * (flops / each) ** self.size_exponent
        return parameters, flops / each / parameters

    def optimum_counted(self, flops: float, each: Callable[[float], float]) -> tuple[float, float]:
        """The same where a parameter and a token cost other FLOPs at other sizes, `each(N)`: found
        by search.
        """
        begin = np.log(self.optimum(flops)[0])

        def cost(log_n: float) -> float:
            n = float(np.exp(log_n))
            return float(np.log(self.loss(n, flops / each(n) / n)))

        found = optimize.minimize_scalar(
            cost, bounds=(begin - 3, begin + 3), method="bounded", options={"xatol": 1e-9}
        )
        parameters = float(np.exp(found.x))
        return parameters, flops / each(parameters) / parameters


PUBLISHED = {
    "Hoffmann et al. 2022": Law(1.69, 406.4, 410.7, 0.34, 0.28),
    "Besiroglu et al. 2024": Law(1.8172, 482.01, 2085.43, 0.3478, 0.3658),
}
"""Of models from 70 million to 16 billion parameters, on web text in tokens of several
characters.
"""
KAPLAN = {"alpha": 0.076, "beta": 0.095, "size_exponent": 0.73}
"""Kaplan et al. 2020, without a floor E and without counting embeddings."""


def _log_loss(logs: Array, log_n: Array, log_d: Array) -> Array:
    """Log of the loss as log-sum-exp of its terms, with (log E, log A, log B, alpha, beta)."""
    e, a, b, alpha, beta = logs
    return np.logaddexp(np.logaddexp(a - alpha * log_n, b - beta * log_d), e)


class Problem:
    """Runs to fit the law to: sizes, amounts of text and losses, with how often each run counts.

    Inside, logs of N and D are taken from their means: what A and B come to at a typical run can be
    told from their exponents, and the search converges. The optimum is the same.
    """

    def __init__(
        self, parameters: Array, tokens: Array, nats: Array, counts: Array | None = None
    ) -> None:
        self.log_n, self.log_d, self.log_l = np.log(parameters), np.log(tokens), np.log(nats)
        self.middle_n, self.middle_d = self.log_n.mean(), self.log_d.mean()
        self.x_n, self.x_d = self.log_n - self.middle_n, self.log_d - self.middle_d
        self.counts = np.ones(len(nats)) if counts is None else counts

    def value(self, at: Array) -> tuple[float, Array]:
        """Sum of Huber losses of the residuals of log L, in units of DELTA squared, and its
        gradient.
        """
        e, a, b, alpha, beta = at
        of_size, of_text = a - alpha * self.x_n, b - beta * self.x_d
        log_loss = np.logaddexp(np.logaddexp(of_size, of_text), e)
        z = (log_loss - self.log_l) / DELTA
        clipped = np.clip(z, -1, 1)
        value = self.counts @ (clipped * (z - 0.5 * clipped))  # z^2 / 2 within 1, |z| - 1/2 beyond
        slope = self.counts * clipped / DELTA
        size_share, text_share = (
            slope * np.exp(of_size - log_loss),
            slope * np.exp(of_text - log_loss),
        )
        a_slope, b_slope = size_share.sum(), text_share.sum()
        gradient = [
            slope.sum() - a_slope - b_slope,
            a_slope,
            b_slope,
            -size_share @ self.x_n,
            -text_share @ self.x_d,
        ]
        return float(value), np.array(gradient)

    @property
    def _bounds(self) -> list[tuple[float, float]]:
        low, high = self.log_l.min(), self.log_l.max()
        return [
            (low - 20, high),
            (low - 20, high + 5),
            (low - 20, high + 5),
            (0.0, 5.0),
            (0.0, 5.0),
        ]

    def starts(self) -> Iterator[Array]:
        """Where the search begins: the floor, the two terms at a typical run and the two exponents,
        small and large.
        """
        low, typical = self.log_l.min(), self.log_l.mean()
        for e, a, b, alpha, beta in product(FLOORS, TERMS, TERMS, EXPONENTS, EXPONENTS):
            yield np.array([low + np.log(e), typical + np.log(a), typical + np.log(b), alpha, beta])

    def solve(self) -> Array:
        """The best end of L-BFGS: a little way from the best of many starts, then from the best of
        those to the end.
        """
        begun = sorted(self.starts(), key=lambda start: self.value(start)[0])[:BEGUN]
        some = sorted(
            (self._descend(start, ROUGH) for start in begun), key=lambda end: float(end.fun)
        )[:FINISHED]
        return np.asarray(
            min((self._finish(end) for end in some), key=lambda end: float(end.fun)).x
        )

    def solve_from(self, law: Law) -> Array:
        """The same from the law of much the same runs alone, and only as near as an interval
        needs.
        """
        return np.asarray(self._descend(self.near(law), MOST, near=1e-9).x)

    def _finish(self, end: Any) -> Any:
        """Begun again where it ended, with a fresh idea of the curvature, for as long as that gains
        anything.
        """
        while True:
            again = self._descend(end.x, MOST)
            if again.fun >= end.fun - TOLERANCE * max(1.0, end.fun):
                return again
            end = again

    def _descend(self, start: Array, steps: int, near: float = 1e-15) -> Any:
        options = {"ftol": near, "gtol": 1e-10, "maxiter": steps, "maxfun": 2 * steps, "maxcor": 20}
        return optimize.minimize(
            self.value, start, jac=True, method="L-BFGS-B", bounds=self._bounds, options=options
        )

    def law(self, at: Array) -> Law:
        """The law with logs of N and D as they are."""
        e, a, b, alpha, beta = map(float, at)
        logs = e, a + alpha * self.middle_n, b + beta * self.middle_d
        E, A, B = (float(np.exp(value)) for value in logs)
        return Law(E, A, B, alpha, beta)

    def near(self, law: Law) -> Array:
        """Where to begin from a law of much the same runs: the inverse of `law`, but where every
        term can still grow.
        """
        e, a, b, alpha, beta = law._logs
        at = np.array([e, a - alpha * self.middle_n, b - beta * self.middle_d, alpha, beta])
        low = self.log_l.min()
        return np.maximum(at, [low - 2, low - 4, low - 4, 0.05, 0.05])


def check(parameters: Array, tokens: Array, nats: Array) -> None:
    """Raise UserError where runs cannot tell the five unknowns of the law."""
    values = np.stack([parameters, tokens, nats])
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise UserError(
            "a scaling law needs sizes, tokens and losses that are positive numbers; leave the"
            " others out"
        )
    for some, what in ((parameters, "sizes"), (tokens, "amounts of tokens")):
        if (found := len(set(some))) < FEWEST:
            raise UserError(
                f"a scaling law needs at least {FEWEST} different {what}, not {found}; add arms"
                " or budgets"
            )
    cells = np.array(sorted(set(zip(parameters, tokens, strict=True))))
    if len(cells) <= UNKNOWNS:
        raise UserError(
            f"a scaling law has {UNKNOWNS} unknowns and needs more pairs of size and tokens than"
            f" {len(cells)}"
        )
    if abs(np.corrcoef(np.log(cells.T))[0, 1]) > 0.999:
        raise UserError(
            "size and tokens rise together in all runs, so their effects cannot be told apart;"
            " vary one alone"
        )
    if np.ptp(np.log(nats)) < 1e-9:
        raise UserError(
            "all losses are equal, so there is no scaling law to fit; train models that differ"
        )


def fit(runs: pd.DataFrame) -> Law:
    """The law that fits runs best: a row each, columns parameters, tokens and nats. Raises
    UserError, as `check`.
    """
    columns = _columns(runs)
    check(*columns)
    problem = Problem(*columns)
    return problem.law(problem.solve())


def _columns(runs: pd.DataFrame) -> tuple[Array, Array, Array]:
    parameters, tokens, nats = runs[list(COLUMNS)].to_numpy(dtype=np.float64).T
    return parameters, tokens, nats


@dataclass(frozen=True)
class Fitted:
    """A law, what it was fitted to, and the laws of resampled runs, which say how sure it is."""

    law: Law
    runs: pd.DataFrame
    replicates: list[Law]

    @cached_property
    def residuals(self) -> Array:
        """Log of each run's loss minus log of the law's."""
        return np.asarray(
            np.log(self.runs["nats"] / self.law.loss(self.runs["parameters"], self.runs["tokens"]))
        )

    def interval(self, of: Callable[[Law], float]) -> tuple[float, float]:
        """Percentile interval of anything that can be asked of a law that has both terms."""
        return _percentiles(np.array([of(law) for law in self.replicates if not law.without]))

    def check_has_an_optimum(self) -> None:
        """Raise UserError where the size or the amount of text has no effect that these runs can
        tell.

        That is where its term is missing from the law, or from so many of the resamples that an
        interval of the best size would have no end.
        """
        for what, more in (("size", "sizes"), ("text", "amounts of text")):
            lacking = sum(what in law.without for law in self.replicates)
            if what in self.law.without or lacking > len(self.replicates) * (1 - CONFIDENCE) / 2:
                raise UserError(
                    f"the {what} has no effect on the loss that these runs can tell ({lacking} of"
                    f" {len(self.replicates)}"
                    f" resamples have none), so there is no best size to fit; take {more} farther"
                    " apart, or more seeds"
                )

    @property
    def lacking(self) -> int:
        """Resamples in which a term of the law is missing; intervals are taken without them."""
        return sum(bool(law.without) for law in self.replicates)

    def predict(
        self, parameters: float, tokens: float, seed: int = 0
    ) -> tuple[float, float, float]:
        """Loss of one more run and the interval it should lie in: of the law, and of how far runs
        lie from theirs.
        """
        rng = np.random.default_rng([seed, 2])
        grown = (
            len(self.residuals) / (len(self.residuals) - UNKNOWNS)
        ) ** 0.5  # the fit has gone towards these runs
        scatter = np.exp(grown * rng.choice(self.residuals, size=(len(self.replicates), 20)))
        laws = np.array([law.loss(parameters, tokens) for law in self.replicates])
        return float(self.law.loss(parameters, tokens)), *_percentiles(
            (laws[:, None] * scatter).ravel()
        )


def _percentiles(values: Array) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def bootstrap(runs: pd.DataFrame, replicates: int, seed: int) -> Fitted:
    """The law with the laws of as many resamples: cells of one size and amount of text, and within
    each its seeds.

    Both are drawn with replacement, so intervals hold what another choice of sizes and budgets
    would have changed as well as what other seeds would. A resample that could not be fitted by
    itself is drawn again. Raises UserError, as `check`.
    """
    law, columns = fit(runs), _columns(runs)
    rng = np.random.default_rng([seed, 1])
    cells = list(runs.reset_index(drop=True).groupby(["parameters", "tokens"]).indices.values())
    laws: list[Law] = []
    while len(laws) < replicates:
        counts = np.zeros(len(runs))
        for cell in rng.integers(len(cells), size=len(cells)):
            rows = cells[cell]
            np.add.at(counts, rng.choice(rows, size=len(rows)), 1.0)
        try:
            check(*(values[counts > 0] for values in columns))
        except UserError:
            continue
        problem = Problem(*columns, counts)
        laws.append(problem.law(problem.solve_from(law)))
    return Fitted(law, runs.reset_index(drop=True), laws)


def left_out(runs: pd.DataFrame, law: Law) -> dict[str, Law]:
    """Laws without each size and without each amount of text in turn, where enough is left: what
    hangs on a single one.
    """
    laws: dict[str, Law] = {}
    for column in ("parameters", "tokens"):
        for value in sorted(runs[column].unique()):
            rest = _columns(runs[runs[column] != value])
            try:
                check(*rest)
            except UserError:
                continue
            problem = Problem(*rest)
            laws[f"{column} {value:,}"] = problem.law(problem.solve_from(law))
    return laws


def record(law: Law) -> dict[str, float]:
    """A law as plain values for JSON."""
    return dict(zip(("E", "A", "B", "alpha", "beta"), map(float, astuple(law)), strict=True))
