"""Blocks of two other models in turn (as Jamba mixes attention with state spaces: Lieber et al.
2024).

The first model lends its embedding and its head too, and both lend their lowest blocks. Each block
remembers what it does in its own model, and the whole sees as far as its blocks together.
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.core.registry import Choice, OneOf
from lmlab.model.layers.cache import Cache
from lmlab.model.models.base import LanguageModel, build


class Options(Params):
    """Options of the model."""

    layers: int = Field(ge=1)
    first: Annotated[str, OneOf("models")]
    second: Annotated[str, OneOf("models")]


class Hybrid(LanguageModel):
    """The first's embedding, then a block of the first, one of the second, one of the first, ...,
    then the first's head.
    """

    readout: nn.Linear

    def __init__(
        self, options: Options, vocabulary_size: int, context: int, first: Choice, second: Choice
    ) -> None:
        super().__init__()
        first_model, second_model = (
            build(first, vocabulary_size, context),
            build(second, vocabulary_size, context),
        )
        _check(first_model, "first", first, needed=(options.layers + 1) // 2)
        _check(second_model, "second", second, needed=options.layers // 2)
        self.vocabulary_size, self.context, self.width = vocabulary_size, context, first_model.width
        if second_model.width != self.width:
            raise UserError(
                f"params.yaml: models.hybrid: {first.name} is {self.width} wide and {second.name}"
                f" {second_model.width};"
                " give both the same width"
            )
        pair = (first_model.blocks, second_model.blocks)
        self.blocks = nn.ModuleList(pair[layer % 2][layer // 2] for layer in range(options.layers))
        first_model.blocks = (
            nn.ModuleList()
        )  # those in use are above; of the second nothing else is kept
        self.ends = first_model
        assert first_model.readout is not None
        # past nn.Module, which would hold its weights under a second name
        object.__setattr__(self, "readout", first_model.readout)

    def embed(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        return self.ends.embed(tokens_BT, cache)

    def head(self, x_BTD: Tensor) -> Tensor:
        return self.ends.head(x_BTD)


def _check(model: LanguageModel, key: str, choice: Choice, needed: int) -> None:
    if model.readout is None:
        raise UserError(
            f"params.yaml: models.hybrid.{key}: the blocks of {choice.name} end in logits, so"
            " they cannot be mixed with"
            " others; name another model"
        )
    if not model.plain_stream:
        raise UserError(
            f"params.yaml: models.hybrid.{key}: the blocks of {choice.name} hand on more than the"
            " model's width;"
            f" set models.{choice.name}.residual to plain"
        )
    if len(model.blocks) < needed:
        raise UserError(
            f"params.yaml: models.hybrid.layers asks for {needed} blocks of {choice.name}, which"
            f" has {len(model.blocks)};"
            f" give it more layers or lower models.hybrid.layers"
        )
