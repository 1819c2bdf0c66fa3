"""Blocks of two other models in turn (Lieber et al. 2024, "Jamba": attention and state spaces).

Both lend their lowest blocks, the first model its embedding and its head too. Each block keeps in
its cache what it keeps in its own model, and the lookbacks of all blocks add up.
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
    """The first model's embedding, blocks of the first and second in turn, the first's head."""

    def __init__(
        self, options: Options, vocabulary_size: int, context: int, first: Choice, second: Choice
    ) -> None:
        super().__init__()
        first_model = build(first, vocabulary_size, context)
        second_model = build(second, vocabulary_size, context)
        _check(first_model, "first", first, needed=(options.layers + 1) // 2)
        _check(second_model, "second", second, needed=options.layers // 2)
        self.vocabulary_size, self.context, self.width = vocabulary_size, context, first_model.width
        if second_model.width != self.width:
            raise UserError(
                f"params.yaml: models.hybrid: {first.name} is {self.width} wide and {second.name}"
                f" {second_model.width}; give both the same width"
            )
        self.embedding_lookback = first_model.embedding_lookback
        self.blocks = nn.ModuleList()
        for layer in range(options.layers):
            source = first_model if layer % 2 == 0 else second_model
            self.blocks.append(source.blocks[layer // 2])
        # the blocks in use are above, and of the second model nothing else is kept
        first_model.blocks = nn.ModuleList()
        self.ends = first_model

    @property
    def readout(self) -> nn.Linear | None:  # type: ignore[override]
        """The first model's output head; as an attribute it would be saved under a second name."""
        return self.ends.readout

    def embed(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        return self.ends.embed(tokens_BT, cache)

    def head(self, x_BTD: Tensor) -> Tensor:
        return self.ends.head(x_BTD)


def _check(model: LanguageModel, key: str, choice: Choice, needed: int) -> None:
    """Raises UserError where the model's blocks cannot stand between those of another."""
    if model.readout is None:
        raise UserError(
            f"params.yaml: models.hybrid.{key}: the blocks of {choice.name} end in logits, so"
            " they cannot be mixed with others; name another model"
        )
    if not model.plain_stream:
        raise UserError(
            f"params.yaml: models.hybrid.{key}: the blocks of {choice.name} hand on more than the"
            f" model's width; set models.{choice.name}.residual to plain"
        )
    if len(model.blocks) < needed:
        raise UserError(
            f"params.yaml: models.hybrid.layers asks for {needed} blocks of {choice.name}, which"
            f" has {len(model.blocks)}; give it more layers or lower models.hybrid.layers"
        )
