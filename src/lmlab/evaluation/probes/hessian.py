"""How sharply the loss curves: the Hessian's eigenvalue of largest size, by power iteration (Yao et
al. 2020).

Gradient descent with a fixed step is stable below 2 / step, and training tends to move up to that
edge (Cohen et al. 2021). The Hessian is never formed: its product with a vector is the gradient of
the gradient's product with that vector.
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
    """`top_eigenvalue`, and `error`: the length of H v - value * v for the unit vector v it was
    found with.

    Some eigenvalue is within `error` of the one given (H is symmetric); more iterations make it
    smaller.
    """

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options

    def look(self, snapshot: Snapshot, batch: Batch) -> Iterator[Reading]:
        weights = list(snapshot.model.parameters())
        rng = torch.Generator().manual_seed(self.options.seed)
        vector = [torch.randn(weight.shape, generator=rng).to(weight) for weight in weights]
        with sdpa_kernel(SDPBackend.MATH):  # the other forms of attention have no second derivative
            loss = next_token_loss(snapshot.model(batch.tokens), batch.targets)
            gradient = torch.autograd.grad(
                loss, weights, create_graph=True, allow_unused=True, materialize_grads=True
            )
            for _ in range(self.options.iterations):
                vector = _times(1 / _inner(vector, vector) ** 0.5, vector)
                product = _product(gradient, weights, vector)
                value = _inner(vector, product)
                away = [
                    of_product - value * of_vector
                    for of_product, of_vector in zip(product, vector, strict=True)
                ]
                vector = product if any(part.any() for part in product) else vector
        yield Reading("top_eigenvalue", "all", value)
        yield Reading("error", "all", _inner(away, away) ** 0.5)


def _product(
    gradient: tuple[Tensor, ...], weights: Sequence[Tensor], vector: list[Tensor]
) -> list[Tensor]:
    """The Hessian times a vector. Where the gradient does not depend on the weights it has nothing
    to add.
    """
    curved = [pair for pair in zip(gradient, vector, strict=True) if pair[0].requires_grad]
    if not curved:
        return [torch.zeros_like(weight) for weight in weights]
    outputs, of_vector = zip(*curved, strict=True)
    found = torch.autograd.grad(
        outputs, weights, of_vector, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return list(found)


def _inner(one: list[Tensor], other: list[Tensor]) -> float:
    return sum(float((a.double() * b.double()).sum()) for a, b in zip(one, other, strict=True))


def _times(factor: float, vector: list[Tensor]) -> list[Tensor]:
    return [factor * part for part in vector]
