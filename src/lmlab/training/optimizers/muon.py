"""Muon (Jordan et al. 2024): matrices move by their orthogonalised momentum, all else by Adam.

With the singular value decomposition of the momentum M = U S Vᵀ: p -= lr * scale * U Vᵀ.
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
"""Of the odd polynomial p(s) = a s + b s³ + c s⁵ of the Newton-Schulz iteration.

Five times applied, it brings a singular value between 0.0015 and 1, relative to the matrix's
Frobenius norm, to between 0.68 and 1.21. A smaller one becomes up to 485 (3.4445 to the fifth)
times as large.
"""
LONG = 2
"""The ratio of columns to rows from which iterating on the Gram matrix takes fewer FLOPs."""
STEPS_BY_GRAM = 5
"""After so many steps the Gram matrix is computed anew."""


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
    """Sets the singular values of each matrix's momentum to about 1, except for the tiniest.

    A step has spectral norm near 1 before it is scaled. `by_shape` multiplies it by
    sqrt(max(1, rows / columns)), so that the output of a layer wider than its input moves as much
    per number. `as_adam` multiplies it by 0.2 sqrt(max(rows, columns)), which gives its entries the
    root mean square that Adam's have (Liu et al. 2025), so that Adam's learning rate and weight
    decay suit it. Convolutions count as matrices with a row for each output.

    The spectral norm of a step is to go with the width as sqrt(fan_out / fan_in). With `by_shape`
    it does so by itself where the fan-out grows; with `as_adam` it grows by the root of the width
    where either of them grows.
    """

    def __init__(self, options: Options, groups: Groups) -> None:
        super().__init__(
            options, param_groups(groups, options, other_rate=options.adam_learning_rate)
        )
        self.options = options
        matrix_power = _as_adam_power if options.scale == "as_adam" else _by_shape_power

        def power(kind: str, fans: Fans) -> float:
            return matrix_power(fans) if kind == "matrices" else entrywise(kind, fans)

        self.width_powers = width_powers(power)

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
        """Move matrices, those of the same shape together."""
        by_shape: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
        for parameter, gradient in parameters:
            matrix = self._updated_momentum(parameter, gradient).flatten(1)
            by_shape[tuple(matrix.shape)].append((parameter, matrix))
        for (rows, columns), members in by_shape.items():
            matrices = torch.stack([matrix for _, matrix in members])
            directions = orthogonalised(matrices, self.options.newton_schulz_steps)
            step_size = rate * self._scale(rows, columns)
            for (parameter, _), direction in zip(members, directions, strict=True):
                parameter.sub_(direction.reshape(parameter.shape), alpha=step_size)

    def _updated_momentum(self, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        """The momentum after this gradient; in Nesterov's form, after having it a second time."""
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"].lerp_(gradient, 1 - self.options.momentum)
        if self.options.nesterov:
            return gradient.lerp(momentum, self.options.momentum)
        return momentum

    def _scale(self, rows: int, columns: int) -> float:
        if self.options.scale == "by_shape":
            return sqrt(max(1, rows / columns))
        return 0.2 * sqrt(max(rows, columns))


def _by_shape_power(fans: Fans) -> float:
    """The power of sqrt(fan_out / fan_in) / sqrt(max(1, fan_out / fan_in)) in the width."""
    return min(0.0, (fans.fan_out - fans.fan_in) / 2)


def _as_adam_power(fans: Fans) -> float:
    """The power of sqrt(fan_out / fan_in) / sqrt(max(fan_out, fan_in)) in the width."""
    return (fans.fan_out - fans.fan_in) / 2 - max(fans) / 2


def orthogonalised(matrices: Tensor, steps: int) -> Tensor:
    """Matrices (N, rows, columns) with singular values near 1 and the same singular vectors.

    By Newton-Schulz iteration, in bfloat16 on a GPU, where that is fast and precise enough, and
    otherwise in the precision of the matrices.
    """
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT  # of the two Gram matrices the smaller
    x = x.bfloat16() if x.is_cuda else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    if x.shape[2] < LONG * x.shape[1] or x.is_cuda:
        x = _iterated(x, steps)
    else:
        for done in range(0, steps, STEPS_BY_GRAM):
            x = _iterated_by_gram(x, min(STEPS_BY_GRAM, steps - done))
    return (x if wide else x.mT).to(matrices.dtype)


def _iterated(x: Tensor, steps: int) -> Tensor:
    """The matrices x (N, n, m) after so many steps x <- q(x xᵀ) x, with q(g) = a + b g + c g²."""
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _iterated_by_gram(x: Tensor, steps: int) -> Tensor:
    """The same on the Gram matrix g = x xᵀ alone: g <- q(g) g q(g), as q(g) and g commute.

    x itself is needed only at the start and at the end, which for m = 4 n saves almost half of the
    FLOPs. Small singular values are squared in g and so lost sooner: in single precision entries
    differ by up to 3e-4 after STEPS_BY_GRAM steps.
    """
    a, b, c = COEFFICIENTS
    gram = x @ x.mT
    product: Tensor | None = None
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        if step + 1 < steps:
            gram = factor @ gram @ factor
    assert product is not None
    return product @ x
