"""SOAP (Vyas et al. 2024): Adam in the basis of each matrix's main directions of gradient, those of
Shampoo.
"""

from math import nan
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.training.optimizers.base import (
    ENTRYWISE,
    Groups,
    Optimizer,
    OptimizerOptions,
    adam_direction,
    epsilon_of,
    param_groups,
)
from lmlab.training.widths import kind_of


class Options(OptimizerOptions):
    """Options of the optimizer."""

    beta1: float = Field(ge=0, lt=1)
    beta2: float = Field(ge=0, lt=1)
    epsilon: float = Field(gt=0)
    covariance_beta: float = Field(ge=0, lt=1)
    refresh: int = Field(ge=1)
    largest_side: int = Field(ge=0)


class SOAP(Optimizer):
    """Each side of a matrix has a covariance of its gradients, G G' or G' G, and that one's
    eigenvectors as its basis.

    A side longer than `largest_side` keeps the basis it has; a matrix with two such sides,
    embeddings, readout and vectors are moved by plain Adam. A matrix's first gradient only sets its
    bases (as the authors do: in the basis made of it alone it would be diagonal). Convolutions
    count as matrices of one row for each output.

    With the width its rates go as Adam's, which is right for steps as long as such entries can make
    them. While gradients have few directions beside the width, steps are less: what the matrices'
    own steps change then falls with about the root of the width, and a rate between Adam's and
    Muon's would suit them.
    """

    width_powers = ENTRYWISE

    def __init__(self, options: Options, groups: Groups) -> None:
        super().__init__(options, param_groups(groups, options))
        self.options = options

    def move(self, group: dict[str, Any], parameters: list[tuple[nn.Parameter, Tensor]]) -> None:
        for parameter, gradient in parameters:
            state, epsilon = self.state[parameter], epsilon_of(group, self.options.epsilon)
            if (
                kind_of(group["name"]) == "matrices"
                and min(gradient.flatten(1).shape) <= self.options.largest_side
            ):
                direction = self._direction(state, gradient.flatten(1), epsilon).reshape(
                    parameter.shape
                )
            else:
                direction = self._adam(state, gradient, epsilon)
            parameter.sub_(direction, alpha=group["lr"])

    def _adam(self, state: dict[str, Any], gradient: Tensor, epsilon: float) -> Tensor:
        return adam_direction(state, gradient, self.options.beta1, self.options.beta2, epsilon)

    def _direction(self, state: dict[str, Any], gradient: Tensor, epsilon: float) -> Tensor:
        """The step at learning rate -1, (rows, columns) as the gradient. Bases and covariances are
        None for long sides.
        """
        new = [self._covariance(gradient), self._covariance(gradient.mT)]
        share = 1 - self.options.covariance_beta
        if not state:
            covariances = [None if covariance is None else share * covariance for covariance in new]
            state.update(
                adam={},
                covariances=covariances,
                bases=[_eigenvectors(covariance) for covariance in covariances],
            )
            return torch.zeros_like(gradient)
        direction = _back(
            self._adam(state["adam"], _into(gradient, state["bases"]), epsilon), state["bases"]
        )
        for covariance, latest in zip(state["covariances"], new, strict=True):
            if covariance is not None:
                covariance.lerp_(latest, share)
        if state["adam"]["step"] % self.options.refresh == 0:
            _refresh(state)
        return direction

    def _covariance(self, matrix: Tensor) -> Tensor | None:
        return matrix @ matrix.mT if matrix.shape[0] <= self.options.largest_side else None


def _into(matrix: Tensor, bases: list[Tensor | None]) -> Tensor:
    left, right = bases
    matrix = matrix if left is None else left.mT @ matrix
    return matrix if right is None else matrix @ right


def _back(matrix: Tensor, bases: list[Tensor | None]) -> Tensor:
    return _into(matrix, [None if basis is None else basis.mT for basis in bases])


def _eigenvectors(covariance: Tensor | None) -> Tensor | None:
    """As columns, the largest eigenvalue's first.

    In single precision the library finds none of some covariances of low rank, and says so or
    returns NaN; those are found in double precision (as the authors do).
    """
    if covariance is None:
        return None
    try:
        vectors = torch.linalg.eigh(covariance).eigenvectors
    except RuntimeError:  # a LinAlgError
        vectors = torch.full_like(covariance, nan)
    if not vectors.isfinite().all() and covariance.isfinite().all():
        vectors = torch.linalg.eigh(covariance.double()).eigenvectors.to(covariance.dtype)
    return vectors.flip(
        1
    ).contiguous()  # in the order that a checkpoint gives back: sums depend on it


def _refresh(state: dict[str, Any]) -> None:
    """Bring the bases nearer to the eigenvectors by one power iteration and QR, in place, and
    Adam's means with them.

    The mean of the gradient is turned into the new basis. The mean of squares cannot be; it goes
    along with the order.
    """
    adam, bases = state["adam"], state["bases"]
    mean = _back(adam["mean"], bases)
    for side, covariance in enumerate(state["covariances"]):
        if covariance is None:
            continue
        stretched = covariance @ bases[side]
        order = (
            (bases[side] * stretched).sum(0).argsort(descending=True, stable=True)
        )  # by estimated eigenvalue
        bases[side] = torch.linalg.qr(stretched[:, order]).Q.contiguous()
        adam["square"] = adam["square"].index_select(side, order)
    adam["mean"] = _into(mean, bases).contiguous()
