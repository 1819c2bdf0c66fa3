"""Sharpness of the loss: the largest Hessian eigenvalue by power iteration (Yao et al. 2020).

v ← H v / ‖H v‖ gives the eigenvalue vᵀ H v of largest size, which may be negative. Gradient descent
with step size η is stable below 2/η, and training tends to move up to that edge (Cohen et al.
2021). The Hessian H is never formed: its product with a vector is the gradient of the gradient's
product with that vector.
"""

from collections.abc import Iterator, Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lmlab.core.params import Params
from lmlab.evaluation.probes.base import Batch, Probe, Reading, Snapshot
from lmlab.model.models.base import next_token_loss


class Options(Params):
    """Options of the probe."""

    iterations: int = Field(ge=1, le=100_000)
    seed: int = Field(ge=0)


class Hessian(Probe):
    """`top_eigenvalue` λ, and `error` = ‖H v - λ v‖ for the unit vector v it was computed with.

    Since H is symmetric, some eigenvalue is within `error` of λ. More iterations make it smaller.
    """

    reading = (
        "Sharpness of the loss: the Hessian's eigenvalue of largest size, known to within the"
        " error; about 100 in size, of either sign, is usual at the start, and 1 to 100 later."
        " Gradient descent with step size s is stable below 2/s."
    )

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options

    def look(self, snapshot: Snapshot, batch: Batch) -> Iterator[Reading]:
        weights = list(snapshot.model.parameters())
        rng = torch.Generator().manual_seed(self.options.seed)
        vector = [torch.randn(weight.shape, generator=rng).to(weight) for weight in weights]
        with sdpa_kernel(SDPBackend.MATH):  # other attention kernels have no second derivative
            loss = next_token_loss(snapshot.model(batch.tokens), batch.targets)
            gradient = torch.autograd.grad(
                loss, weights, create_graph=True, allow_unused=True, materialize_grads=True
            )
            for _ in range(self.options.iterations):
                vector = _scaled(1 / _inner(vector, vector) ** 0.5, vector)
                product = _product(gradient, weights, vector)
                value = _inner(vector, product)
                residual = [h - value * v for h, v in zip(product, vector, strict=True)]
                if any(part.any() for part in product):
                    vector = product
        yield Reading("top_eigenvalue", "all", value)
        yield Reading("error", "all", _inner(residual, residual) ** 0.5)


def _product(
    gradient: tuple[Tensor, ...], weights: Sequence[Tensor], vector: list[Tensor]
) -> list[Tensor]:
    """The Hessian times a vector.

    Parts of the gradient that do not depend on the weights add nothing to it.
    """
    pairs = zip(gradient, vector, strict=True)
    curved = [(part, along) for part, along in pairs if part.requires_grad]
    if not curved:
        return [torch.zeros_like(weight) for weight in weights]
    outputs, grad_outputs = zip(*curved, strict=True)
    product = torch.autograd.grad(
        outputs, weights, grad_outputs, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return list(product)


def _inner(x: list[Tensor], y: list[Tensor]) -> float:
    return sum(float((a.double() * b.double()).sum()) for a, b in zip(x, y, strict=True))


def _scaled(factor: float, vector: list[Tensor]) -> list[Tensor]:
    return [factor * part for part in vector]
