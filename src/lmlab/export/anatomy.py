"""A transformer as other tools count its parts: sizes, constants, and each matrix by itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.model.layers.attention.base import SoftmaxAttention
from lmlab.model.models.base import LanguageModel
from lmlab.model.models.transformer import Transformer

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Anatomy:
    """What a transformer consists of. Options that its parts do not have are at their neutral
    value: no window, no QK-norm.
    """

    parts: Mapping[str, str]
    """The name of each part by its key of `models.transformer`; `feed_forward` is the expert's in a
    mixture of experts.
    """
    vocabulary_size: int
    context: int
    depth: int
    width: int
    heads: int
    groups: int
    """Keys and values there are: as many as heads, unless these share them."""
    hidden: int
    """F, the units of a feed-forward layer, or of one expert."""
    window: int | None
    """How many tokens a layer's attention sees; None: all."""
    qk_norm: bool
    qk_epsilon: float
    norm_epsilon: float
    rope_base: float
    soft_cap: float
    """Of the logits; 0: none."""
    tied: bool
    experts: int
    """0: no mixture of experts."""
    active: int
    """Experts that a token goes through."""
    latent: int
    """Numbers from which keys and values are computed; 0: they are not."""
    position_width: int
    """Of those that carry the position beside a latent."""

    @property
    def head_width(self) -> int:
        return self.width // self.heads


def of(model: LanguageModel) -> Anatomy:
    """The anatomy of a transformer. Raises UserError, naming train.model, for another model."""
    if not isinstance(model, Transformer):
        raise UserError(f"train.model: {model.choice.name} is no transformer")
    choice = model.choice
    parts = {key: inner.name for key, inner in choice.inner.items()}
    feed_forward = choice.inner["feed_forward"]
    block: Any = model.blocks[0]
    attention, of_attention = block.attention, choice.inner["attention"].options.model_dump()
    experts = getattr(block.feed_forward, "experts", None)
    if experts is not None:
        parts["feed_forward"] = feed_forward.inner["expert"].name
    layer = block.feed_forward if experts is None else experts[0]
    of_norm = choice.inner["normalisation"].options.model_dump()
    is_windowed = isinstance(attention, SoftmaxAttention) and attention.lookback is not None
    heads = attention.heads
    return Anatomy(
        parts=parts,
        vocabulary_size=model.vocabulary_size,
        context=model.context,
        depth=len(model.blocks),
        width=model.width,
        heads=heads,
        groups=getattr(attention, "groups", heads),
        hidden=layer.out.in_features if layer.out is not None else 0,
        window=attention.receptive_field if is_windowed else None,
        qk_norm=bool(of_attention.get("qk_norm", False)),
        qk_epsilon=of_attention.get("epsilon", 0.0),
        norm_epsilon=of_norm.get("epsilon", 0.0),
        rope_base=choice.inner["position"].options.model_dump().get("base", 10_000.0),
        soft_cap=model.logit_soft_cap,
        tied=model.readout.weight is model.embedding.tokens.weight,
        experts=len(experts) if experts is not None else 0,
        active=block.feed_forward.active if experts is not None else 0,
        latent=of_attention.get("latent", 0),
        position_width=of_attention.get("position_width", 0),
    )


@torch.no_grad()
def weights(model: LanguageModel) -> Weights:
    """The model's weights by their names in it, with every map that gives several things at once
    taken apart: `blocks.0.attention.queries`, `.keys`, `.values`; `blocks.0.feed_forward.gate`,
    `.up`. All are copies; a tied output head stands there by itself.
    """
    apart: Weights = {}
    for name, value in model.state_dict().items():
        owner, _, last = name.removesuffix(".weight").rpartition(".")
        sections = getattr(model.get_submodule(owner), "sections", {}) if owner else {}
        if last in SECTIONS and last in sections:
            pieces = value.split(sections[last])
            names = [f"{owner}.{section}" for section in SECTIONS[last]]
            apart.update(zip(names, pieces, strict=True))
        else:
            apart[name.removesuffix(".weight")] = value
    return {name: value.detach().clone().contiguous() for name, value in apart.items()}


SECTIONS = {
    "queries_keys_values": ("queries", "keys", "values"),
    "keys_values": ("keys", "values"),
    "gate_up": ("gate", "up"),
}
"""What the maps of `sections` give, in turn."""


def whole(model: LanguageModel, apart: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `weights`: a state for the model's `load_state_dict`, in its order."""
    state = {}
    for name in model.state_dict():
        owner, _, last = name.removesuffix(".weight").rpartition(".")
        sections = getattr(model.get_submodule(owner), "sections", {}) if owner else {}
        if last in SECTIONS and last in sections:
            pieces = [apart[f"{owner}.{section}"] for section in SECTIONS[last]]
            state[name] = torch.cat(pieces)
        else:
            state[name] = apart[name.removesuffix(".weight")]
    return state
