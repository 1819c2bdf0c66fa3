"""Muon (Jordan et al. 2024): steps that turn every direction of a matrix by about the same amount;
Adam for the rest.
"""

from collections import defaultdict
from math import sqrt
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.training.optimizers.base import (
    Groups,
    Optimizer,
    OptimizerOptions,
    adam_step,
    entrywise,
    epsilon_of,
    param_groups,
)
from lmlab.training.widths import Fans, kind_of, width_powers

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial that, applied five times, brings a singular value from 0.0015 up to 1 to
between .68 and 1.21.

Values are relative to the matrix's Frobenius norm. A smaller one becomes up to 485 (3.4445 to the
fifth) times as large.
"""
LONG = 2
"""From so many times as many columns as rows on, iterating on the Gram matrix takes fewer
operations.
"""
STEPS_BY_GRAM = 5
"""After so many steps the Gram matrix is taken anew."""


class Options(OptimizerOptions):
    """Options of the optimizer."""

    momentum: float = Field(ge=0, lt=1)
    nesterov: bool
    newton_schulz_steps: int = Field(ge=1)
    scale: Literal["by_shape", "as_adam"]
    adam_learning_rate: float = Field(gt=0)
    adam_beta1: float = Field(ge=0, lt=1)
    adam_beta2: float = Field(ge=0, lt=1)
    adam_epsilon: float = Field(gt=0)


class Muon(Optimizer):
    """Of the momentum of each matrix only the directions count: its singular values are set to
    about 1, but for the tiniest.

    A step has spectral norm near 1 before it is scaled. `by_shape` multiplies it by sqrt(max(1,
    rows / columns)), so that the output of a layer wider than its input moves as much per number.
    `as_adam` multiplies it by 0.2 sqrt(max(rows, columns)), which gives its entries the root mean
    square that Adam's have (Liu et al. 2025), so that Adam's learning rate and weight decay suit
    it. Convolutions count as matrices of one row for each output.

    The spectral norm of a step is to go with the width as sqrt(fan_out / fan_in). `by_shape` it
    does so by itself where the fan-out grows; `as_adam` the norm grows by the root of the width
    where either does.
    """

    def __init__(self, options: Options, groups: Groups) -> None:
        super().__init__(
            options, param_groups(groups, options, other_rate=options.adam_learning_rate)
        )
        self.options = options
        of_matrices = _as_adam_power if options.scale == "as_adam" else _by_shape_power
        self.width_powers = width_powers(
            lambda kind, fans: (of_matrices if kind == "matrices" else entrywise)(kind, fans)
        )

    def move(self, group: dict[str, Any], parameters: list[tuple[nn.Parameter, Tensor]]) -> None:
        if kind_of(group["name"]) == "matrices":
            self._move_matrices(group["lr"], parameters)
            return
        options = self.options
        epsilon = epsilon_of(group, options.adam_epsilon)
        adam_step(
            self.state, parameters, group["lr"], options.adam_beta1, options.adam_beta2, epsilon
        )

    def _move_matrices(self, rate: float, parameters: list[tuple[nn.Parameter, Tensor]]) -> None:
        of_shape: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
        for parameter, gradient in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            momentum = state["momentum"].lerp_(gradient, 1 - self.options.momentum)
            wanted = (
                gradient.lerp(momentum, self.options.momentum)
                if self.options.nesterov
                else momentum
            )
            matrix = wanted.flatten(1)
            of_shape[tuple(matrix.shape)].append((parameter, matrix))
        for (rows, columns), alike in of_shape.items():
            directions = orthogonalised(
                torch.stack([matrix for _, matrix in alike]), self.options.newton_schulz_steps
            )
            by_shape = self.options.scale == "by_shape"
            scale = sqrt(max(1, rows / columns)) if by_shape else 0.2 * sqrt(max(rows, columns))
            for (parameter, _), direction in zip(alike, directions, strict=True):
                parameter.sub_(direction.reshape(parameter.shape), alpha=rate * scale)


def _by_shape_power(kind: str, fans: Fans) -> float:
    """Of sqrt(fan_out / fan_in) beside sqrt(max(1, fan_out / fan_in))."""
    return min(0.0, (fans.fan_out - fans.fan_in) / 2)


def _as_adam_power(kind: str, fans: Fans) -> float:
    """Of sqrt(fan_out / fan_in) beside sqrt(max(fan_out, fan_in))."""
    return (fans.fan_out - fans.fan_in) / 2 - max(fans) / 2


def orthogonalised(matrices: Tensor, steps: int) -> Tensor:
    """Each matrix (N, rows, columns) with its singular values brought near 1 by Newton-Schulz
    iteration, vectors kept.

    In the precision given, but in bfloat16 on a GPU, where that is fast and precise enough.
    """
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT  # the smaller Gram matrix
    x = x.bfloat16() if x.is_cuda else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    if x.shape[2] < LONG * x.shape[1] or x.is_cuda:
        x = _iterated(x, steps)
    else:
        for done in range(0, steps, STEPS_BY_GRAM):
            x = _iterated_by_gram(x, min(STEPS_BY_GRAM, steps - done))
    return (x if wide else x.mT).to(matrices.dtype)


def _iterated(x: Tensor, steps: int) -> Tensor:
    """The matrices x (N, n, m) after so many steps of x <- p(x xᵀ) x, where p is the polynomial a +
    b g + c g².
    """
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _iterated_by_gram(x: Tensor, steps: int) -> Tensor:
    """The same, but every step is taken by the Gram matrix g alone: g <- p(g) g p(g), as p(g) and g
    commute.

    x comes in at the start and at the end, which for m = 4 n saves almost half of the operations.
    Squares of small singular values are lost sooner than those themselves: in single precision
    entries differ by up to 3e-4 after STEPS_BY_GRAM steps.
    """
    a, b, c = COEFFICIENTS
    gram = x @ x.mT
    whole: Tensor | None = None
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        whole = factor if whole is None else factor @ whole
        if step + 1 < steps:
            gram = factor @ gram @ factor
    assert whole is not None
    return whole @ x
