"""Weights of each architecture, by their names in it and in its layout.

They are folded only where the result is the same but for rounding:

- QK-norm divides by sqrt(mean(x²) + e); with another e' in the architecture, queries and keys are
  multiplied by sqrt(e' / e) first.
- Squared ReLU is relu(gate) * up with gate = up, where there is a gate.
- Gemma multiplies embeddings by sqrt(D), so they are divided by it; and gains are kept less one.
"""

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor
from torch.nn.functional import pad

from lmlab.export.anatomy import Anatomy, Weights

LATENT_EPSILON = 1e-6
"""Of the norm of latents in transformers, whatever the config says."""
UNITS_AT_ONCE = 8
"""What the units of an expert have to be a multiple of."""
Layer = Callable[[Anatomy, Weights, str], Weights]
"""Gives some of the tensors of a block, whose name in the lab is given."""


def llama_names(norms: tuple[str, ...], *layers: Layer) -> Callable[[Anatomy, Weights], Weights]:
    """The tensors of an architecture with Llama's names. `norms` are a block's, in the order of
    `_norms`; each of `layers` gives some of a block's tensors.
    """

    def tensors(anatomy: Anatomy, weights: Weights) -> Weights:
        named = {"model.embed_tokens.weight": weights["embedding.tokens"]}
        named |= _norm("model.norm", weights, "final_norm")
        if not anatomy.tied:
            named["lm_head.weight"] = weights["readout"]
        for number in range(anatomy.depth):
            within: Weights = {}
            for layer in layers:
                within |= layer(anatomy, weights, f"blocks.{number}")
            for name, own in zip(norms, _norms(anatomy, f"blocks.{number}"), strict=True):
                within |= _norm(name, weights, own)
            named |= {f"model.layers.{number}.{name}": value for name, value in within.items()}
        return named

    return tensors


def _norms(anatomy: Anatomy, block: str) -> list[str]:
    """The names in the lab of a block's norms, in the order in which the stream meets them."""
    places = ("before", "behind") if anatomy.parts["placement"] == "sandwich" else ("norm",)
    return [
        f"{block}.{layer}_residual.placement.{place}"
        for layer in ("attention", "feed_forward")
        for place in places
    ]


def _norm(name: str, weights: Weights, own: str) -> Weights:
    """A norm's gain, and its bias where it has one."""
    named = {f"{name}.weight": weights[f"{own}.gain"]}
    if f"{own}.bias" in weights:
        named[f"{name}.bias"] = weights[f"{own}.bias"]
    return named


def attention(anatomy: Anatomy, weights: Weights, block: str) -> Weights:
    """Queries and keys are multiplied so that QK-norm has the epsilon of the other norms."""
    scale = 1.0
    if anatomy.qk_norm and anatomy.qk_epsilon != anatomy.norm_epsilon:
        scale = sqrt(anatomy.norm_epsilon / anatomy.qk_epsilon)
    return {
        "self_attn.q_proj.weight": _times(weights[f"{block}.attention.queries"], scale),
        "self_attn.k_proj.weight": _times(weights[f"{block}.attention.keys"], scale),
        "self_attn.v_proj.weight": weights[f"{block}.attention.values"],
        "self_attn.o_proj.weight": weights[f"{block}.attention.out"],
    }


def latent_attention(anatomy: Anatomy, weights: Weights, block: str) -> Weights:
    """Latents are multiplied so that their norm has the epsilon that transformers give it; each
    head's keys and values stand side by side.
    """
    down = weights[f"{block}.attention.down"]
    scale = sqrt(LATENT_EPSILON / anatomy.qk_epsilon)
    latents, positions = down[: anatomy.latent], down[anatomy.latent :]
    by_head = (anatomy.heads, anatomy.head_width, anatomy.latent)
    keys = weights[f"{block}.attention.keys"].view(by_head)
    values = weights[f"{block}.attention.values"].view(by_head)
    return {
        "self_attn.q_proj.weight": weights[f"{block}.attention.queries"],
        "self_attn.kv_a_proj_with_mqa.weight": torch.cat((_times(latents, scale), positions)),
        "self_attn.kv_a_layernorm.weight": torch.ones(anatomy.latent),
        "self_attn.kv_b_proj.weight": torch.cat((keys, values), dim=1).flatten(0, 1),
        "self_attn.o_proj.weight": weights[f"{block}.attention.out"],
    }


def _times(value: Tensor, scale: float) -> Tensor:
    """The product, rounded once."""
    return value if scale == 1.0 else (value.double() * scale).to(value.dtype)


def qk_gains(anatomy: Anatomy, weights: Weights, block: str) -> Weights:
    """The gains of QK-norm, which the lab's has not: ones."""
    ones = torch.ones(anatomy.head_width)
    return {"self_attn.q_norm.weight": ones, "self_attn.k_norm.weight": ones.clone()}


def plain(up: str, down: str) -> Layer:
    """Two maps with a function between."""

    def layer(anatomy: Anatomy, weights: Weights, block: str) -> Weights:
        return {
            f"mlp.{up}.weight": weights[f"{block}.feed_forward.up"],
            f"mlp.{down}.weight": weights[f"{block}.feed_forward.out"],
        }

    return layer


def gated(anatomy: Anatomy, weights: Weights, block: str) -> Weights:
    """A layer with a gate."""
    return {f"mlp.{name}": value for name, value in _gate(weights, f"{block}.feed_forward").items()}


def _gate(weights: Weights, layer: str) -> Weights:
    """A layer with a gate: what multiplies `up`, or `up` itself where the lab has none."""
    up = weights[f"{layer}.up"]
    return {
        "gate_proj.weight": weights.get(f"{layer}.gate", up).clone(),
        "up_proj.weight": up,
        "down_proj.weight": weights[f"{layer}.out"],
    }


def experts(anatomy: Anatomy, weights: Weights, block: str) -> Weights:
    """Experts of so many units that the fused kernels of transformers take them: units that are
    added have no weights.
    """
    named = {"mlp.gate.weight": weights[f"{block}.feed_forward.router"]}
    more = padded(anatomy.hidden) - anatomy.hidden
    for number in range(anatomy.experts):
        for name, value in _gate(weights, f"{block}.feed_forward.experts.{number}").items():
            padding = (0, more) if name.startswith("down") else (0, 0, 0, more)
            named[f"mlp.experts.{number}.{name}"] = pad(value, padding)
    return named


def padded(units: int) -> int:
    """Units of an expert, raised to a multiple of UNITS_AT_ONCE."""
    return -(-units // UNITS_AT_ONCE) * UNITS_AT_ONCE


def gemma_names(*layers: Layer) -> Callable[[Anatomy, Weights], Weights]:
    """Llama's names, with gains less one and embeddings over sqrt(D)."""
    norms = (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    )

    def tensors(anatomy: Anatomy, weights: Weights) -> Weights:
        named = llama_names(norms, *layers)(anatomy, weights)
        named["lm_head.weight"] = weights["readout"]
        for name, value in named.items():
            if "norm.weight" in name:
                named[name] = value - 1.0
        embedding = named["model.embed_tokens.weight"]
        named["model.embed_tokens.weight"] = _times(embedding, 1.0 / sqrt(anatomy.width))
        return named

    return tensors


def gpt2(anatomy: Anatomy, weights: Weights) -> Weights:
    """Maps are transposed and have biases, which are zero."""
    named = {
        "transformer.wte.weight": weights["embedding.tokens"],
        "transformer.wpe.weight": _positions(anatomy, weights),
        **_norm("transformer.ln_f", weights, "final_norm"),
    }
    if not anatomy.tied:
        named["lm_head.weight"] = weights["readout"]
    for number in range(anatomy.depth):
        block, into = f"blocks.{number}", f"transformer.h.{number}"
        attention = [weights[f"{block}.attention.{name}"] for name in ("queries", "keys", "values")]
        maps = {
            "attn.c_attn": torch.cat(attention),
            "attn.c_proj": weights[f"{block}.attention.out"],
            "mlp.c_fc": weights[f"{block}.feed_forward.up"],
            "mlp.c_proj": weights[f"{block}.feed_forward.out"],
        }
        for name, value in maps.items():
            named[f"{into}.{name}.weight"] = value.T.contiguous()
            named[f"{into}.{name}.bias"] = torch.zeros(value.shape[0])
        for name, own in zip(("ln_1", "ln_2"), _norms(anatomy, block), strict=True):
            named |= _norm(f"{into}.{name}", weights, own)
    return named


def _positions(anatomy: Anatomy, weights: Weights) -> Tensor:
    """A vector for each place in the window; zeros where there are no positions."""
    zeros = torch.zeros(anatomy.context, anatomy.width)
    return weights.get("position.table", zeros)
