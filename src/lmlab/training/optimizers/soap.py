"""SOAP (Vyas et al. 2024): Adam in the eigenbasis of Shampoo's preconditioner.

With Q_L and Q_R the eigenvectors of running means of G Gᵀ and Gᵀ G: p -= lr * Q_L A Q_Rᵀ, where A
is Adam's step for the gradient Q_Lᵀ G Q_R.
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
    """Decay of the covariances G Gᵀ and Gᵀ G."""
    refresh: int = Field(ge=1)
    """Steps between updates of the bases."""
    largest_side: int = Field(ge=0)
    """A longer side has no basis of its own."""


class SOAP(Optimizer):
    """Each side of a matrix has as its basis the eigenvectors of a covariance of its gradients.

    A side longer than `largest_side` keeps the standard basis. A matrix with two such sides,
    embeddings, readout and vectors are moved by plain Adam. A matrix's first gradient only sets its
    bases, as the authors do: in bases made of it alone it would be diagonal. Convolutions count as
    matrices with a row for each output.

    Learning rates go with the width as Adam's, which is right for steps along their input as far
    as such entries allow. While gradients have few directions compared to the width, steps are
    shorter: what the matrices' own steps change then falls with about the root of the width, and a
    rate between Adam's and Muon's would suit them.
    """

    width_powers = ENTRYWISE
    state_options = ("largest_side",)

    def __init__(self, options: Options, groups: Groups) -> None:
        super().__init__(options, param_groups(groups, options))
        self.options = options

    def move(self, group: dict[str, Any], parameters: list[tuple[nn.Parameter, Tensor]]) -> None:
        are_matrices = kind_of(group["name"]) == "matrices"
        epsilon = epsilon_of(group, self.options.epsilon)
        for parameter, gradient in parameters:
            state = self.state[parameter]
            matrix = gradient.flatten(1) if are_matrices else None
            if matrix is not None and min(matrix.shape) <= self.options.largest_side:
                direction = self._direction(state, matrix, epsilon).reshape(parameter.shape)
            else:
                direction = self._adam(state, gradient, epsilon)
            parameter.sub_(direction, alpha=group["lr"])

    def _adam(self, state: dict[str, Any], gradient: Tensor, epsilon: float) -> Tensor:
        return adam_direction(state, gradient, self.options.beta1, self.options.beta2, epsilon)

    def _direction(self, state: dict[str, Any], gradient: Tensor, epsilon: float) -> Tensor:
        """The step at learning rate -1, in the shape (rows, columns) of the gradient."""
        latest = [self._covariance(gradient), self._covariance(gradient.mT)]
        share = 1 - self.options.covariance_beta
        if not state:
            covariances = [None if new is None else share * new for new in latest]
            bases = [_eigenvectors(covariance) for covariance in covariances]
            state.update(adam={}, covariances=covariances, bases=bases)
            return torch.zeros_like(gradient)
        turned = _into(gradient, state["bases"])
        direction = _back(self._adam(state["adam"], turned, epsilon), state["bases"])
        for covariance, new in zip(state["covariances"], latest, strict=True):
            if covariance is not None:
                covariance.lerp_(new, share)
        if state["adam"]["step"] % self.options.refresh == 0:
            _refresh(state)
        return direction

    def _covariance(self, matrix: Tensor) -> Tensor | None:
        """Of the rows; None for a side that keeps the standard basis, as its basis is then."""
        return matrix @ matrix.mT if matrix.shape[0] <= self.options.largest_side else None


def _into(matrix: Tensor, bases: list[Tensor | None]) -> Tensor:
    """The matrix in the two bases: Q_Lᵀ G Q_R."""
    left, right = bases
    matrix = matrix if left is None else left.mT @ matrix
    return matrix if right is None else matrix @ right


def _back(matrix: Tensor, bases: list[Tensor | None]) -> Tensor:
    """The inverse of `_into`: Q_L A Q_Rᵀ."""
    return _into(matrix, [None if basis is None else basis.mT for basis in bases])


def _eigenvectors(covariance: Tensor | None) -> Tensor | None:
    """The eigenvectors as columns, that of the largest eigenvalue first.

    For some covariances of low rank the library fails or returns NaN in single precision; it is
    then called in double precision, as the authors do.
    """
    if covariance is None:
        return None
    try:
        vectors = torch.linalg.eigh(covariance).eigenvectors
    except RuntimeError:  # a LinAlgError
        vectors = torch.full_like(covariance, nan)
    if not vectors.isfinite().all() and covariance.isfinite().all():
        vectors = torch.linalg.eigh(covariance.double()).eigenvectors.to(covariance.dtype)
    # in the memory order that a checkpoint gives back, as sums depend on it
    return vectors.flip(1).contiguous()


def _refresh(state: dict[str, Any]) -> None:
    """Bring the bases closer to the eigenvectors by one power iteration and QR, in place.

    Adam's first moment is turned into the new bases. The second cannot be; it follows only the new
    order of the columns.
    """
    adam, bases = state["adam"], state["bases"]
    mean = _back(adam["mean"], bases)
    for side, covariance in enumerate(state["covariances"]):
        if covariance is None:
            continue
        stretched = covariance @ bases[side]
        eigenvalues = (bases[side] * stretched).sum(0)  # estimated
        order = eigenvalues.argsort(descending=True, stable=True)
        bases[side] = torch.linalg.qr(stretched[:, order]).Q.contiguous()
        adam["square"] = adam["square"].index_select(side, order)
    adam["mean"] = _into(mean, bases).contiguous()
