"""Architectures of transformers that compute exactly what a transformer of the lab does.

Weights are folded only where the result is the same but for rounding:

- QK-norm divides by sqrt(mean(x²) + e); with another e' in the architecture, queries and keys are
  multiplied by sqrt(e' / e) first.
- Squared ReLU is relu(gate) * up with gate = up, where there is a gate.
- Without positions, rotary angles are divided by 1e30: every cosine is 1, and what a sine adds is
  below the last bit.
- Gemma multiplies embeddings by sqrt(D), so they are divided by it; and gains are kept less one.
"""

from collections.abc import Callable
from math import sqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lmlab.export.anatomy import Anatomy, Weights
from lmlab.export.architecture import Architecture, refusal

NO_ROTATION = 1e30
"""By which angles are divided where there are no positions."""
ACTIVATIONS = {"relu_squared": "relu2", "gelu": "gelu", "swiglu": "silu"}
"""What transformers call the function between the maps."""
GATED = {"relu_squared": "relu", "swiglu": "silu"}
"""The same in a layer with a gate."""
ROTARY = ("rotary", "no_position")
HEADS = ("multi_head", "grouped_query")
SEEING = (*HEADS, "sliding_window")
LATENT_EPSILON = 1e-6
"""Of the norm of latents in transformers, whatever the config says."""
UNITS_AT_ONCE = 8
"""What the units of an expert have to be a multiple of."""
Layer = Callable[[Anatomy, Weights, str], Weights]


def _carries(
    feed_forward: tuple[str, ...],
    normalisation: str = "rms_norm",
    position: tuple[str, ...] = ROTARY,
    attention: tuple[str, ...] = HEADS,
    placement: str = "pre",
) -> dict[str, tuple[str, ...]]:
    return {
        "embedding": ("token",),
        "position": position,
        "attention": attention,
        "feed_forward": feed_forward,
        "normalisation": (normalisation,),
        "placement": (placement,),
        "residual": ("plain",),
    }


# ------------------------------------------------------------------ config.json


def _sizes(anatomy: Anatomy) -> dict[str, Any]:
    """What nearly all architectures call the same."""
    return {
        "vocab_size": anatomy.vocabulary_size,
        "hidden_size": anatomy.width,
        "intermediate_size": anatomy.hidden,
        "num_hidden_layers": anatomy.depth,
        "num_attention_heads": anatomy.heads,
        "num_key_value_heads": anatomy.groups,
        "max_position_embeddings": anatomy.context,
        "tie_word_embeddings": anatomy.tied,
        "rope_parameters": _rope(anatomy),
    }


def _rope(anatomy: Anatomy) -> dict[str, Any]:
    """How queries and keys are rotated."""
    if anatomy.parts["position"] == "rotary":
        return {"rope_type": "default", "rope_theta": anatomy.rope_base}
    return {"rope_type": "linear", "factor": NO_ROTATION, "rope_theta": anatomy.rope_base}


def _activation(anatomy: Anatomy) -> str:
    return ACTIVATIONS[anatomy.parts["feed_forward"]]


def _gated_activation(anatomy: Anatomy) -> str:
    return GATED[anatomy.parts["feed_forward"]]


def _windows(anatomy: Anatomy) -> dict[str, Any]:
    """Which tokens each layer sees, for architectures that choose by layer."""
    kind = "full_attention" if anatomy.window is None else "sliding_attention"
    return {"layer_types": [kind] * anatomy.depth, "sliding_window": anatomy.window}


def _apertus(anatomy: Anatomy) -> dict[str, Any]:
    return {
        **_sizes(anatomy),
        "hidden_act": _activation(anatomy),
        "rms_norm_eps": anatomy.norm_epsilon,
    }


def _qwen3(anatomy: Anatomy) -> dict[str, Any]:
    return {
        **_sizes(anatomy),
        **_windows(anatomy),
        "head_dim": anatomy.head_width,
        "hidden_act": _gated_activation(anatomy),
        "rms_norm_eps": anatomy.norm_epsilon,
        "use_sliding_window": anatomy.window is not None,
    }


def _qwen3_moe(anatomy: Anatomy) -> dict[str, Any]:
    return {
        **_sizes(anatomy),
        "head_dim": anatomy.head_width,
        "hidden_act": _gated_activation(anatomy),
        "rms_norm_eps": anatomy.norm_epsilon,
        "use_sliding_window": anatomy.window is not None,
        "sliding_window": anatomy.window,
        "num_experts": anatomy.experts,
        "num_experts_per_tok": anatomy.active,
        "moe_intermediate_size": _padded(anatomy.hidden),
        "norm_topk_prob": False,
    }


def _llama(anatomy: Anatomy) -> dict[str, Any]:
    return {
        **_sizes(anatomy),
        "hidden_act": _gated_activation(anatomy),
        "rms_norm_eps": anatomy.norm_epsilon,
    }


def _mistral(anatomy: Anatomy) -> dict[str, Any]:
    return {
        **_llama(anatomy),
        "sliding_window": anatomy.window,
        "head_dim": anatomy.head_width,
    }


def _deepseek_v3(anatomy: Anatomy) -> dict[str, Any]:
    return {
        **_llama(anatomy),
        "q_lora_rank": None,
        "kv_lora_rank": anatomy.latent,
        "qk_rope_head_dim": anatomy.position_width,
        "qk_nope_head_dim": anatomy.head_width,
        "v_head_dim": anatomy.head_width,
        "rope_interleave": False,
        "first_k_dense_replace": anatomy.depth,  # no layer is a mixture of experts
    }


def _starcoder2(anatomy: Anatomy) -> dict[str, Any]:
    return {
        **_sizes(anatomy),
        "hidden_act": _activation(anatomy),
        "norm_epsilon": anatomy.norm_epsilon,
        "sliding_window": anatomy.window,
        "use_bias": False,
    }


def _stablelm(anatomy: Anatomy) -> dict[str, Any]:
    return {
        **_sizes(anatomy),
        "rope_parameters": {**_rope(anatomy), "partial_rotary_factor": 1.0},
        "hidden_act": _gated_activation(anatomy),
        "layer_norm_eps": anatomy.norm_epsilon,
    }


def _gemma2(anatomy: Anatomy) -> dict[str, Any]:
    return {
        **_sizes(anatomy),
        **_windows(anatomy),
        "sliding_window": anatomy.window
        or anatomy.context,  # asked for even where no layer has one
        "head_dim": anatomy.head_width,
        "hidden_activation": _gated_activation(anatomy),
        "rms_norm_eps": anatomy.norm_epsilon,
        "query_pre_attn_scalar": anatomy.head_width,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": anatomy.soft_cap or None,
        "tie_word_embeddings": False,
    }


def _gemma3(anatomy: Anatomy) -> dict[str, Any]:
    rope = _rope(anatomy)
    by_layer = {"full_attention": rope, "sliding_attention": rope}
    return {**_gemma2(anatomy), "rope_parameters": by_layer}


def _gpt2(anatomy: Anatomy) -> dict[str, Any]:
    return {
        "vocab_size": anatomy.vocabulary_size,
        "n_positions": anatomy.context,
        "n_embd": anatomy.width,
        "n_layer": anatomy.depth,
        "n_head": anatomy.heads,
        "n_inner": anatomy.hidden,
        "activation_function": _activation(anatomy),
        "layer_norm_epsilon": anatomy.norm_epsilon,
        "tie_word_embeddings": anatomy.tied,
    }


# ------------------------------------------------------------------ the weights


def _model(norms: tuple[str, ...], *layers: Layer) -> Callable[[Anatomy, Weights], Weights]:
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


def _attention(anatomy: Anatomy, weights: Weights, block: str) -> Weights:
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


def _latent_attention(anatomy: Anatomy, weights: Weights, block: str) -> Weights:
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


def _qk_gains(anatomy: Anatomy, weights: Weights, block: str) -> Weights:
    ones = torch.ones(anatomy.head_width)
    return {"self_attn.q_norm.weight": ones, "self_attn.k_norm.weight": ones.clone()}


def _plain(up: str, down: str) -> Layer:
    """Two maps with a function between."""

    def layer(anatomy: Anatomy, weights: Weights, block: str) -> Weights:
        return {
            f"mlp.{up}.weight": weights[f"{block}.feed_forward.up"],
            f"mlp.{down}.weight": weights[f"{block}.feed_forward.out"],
        }

    return layer


def _gated(anatomy: Anatomy, weights: Weights, block: str) -> Weights:
    return {f"mlp.{name}": value for name, value in _gate(weights, f"{block}.feed_forward").items()}


def _gate(weights: Weights, layer: str) -> Weights:
    """A layer with a gate: what multiplies `up`, or `up` itself where the lab has none."""
    up = weights[f"{layer}.up"]
    return {
        "gate_proj.weight": weights.get(f"{layer}.gate", up).clone(),
        "up_proj.weight": up,
        "down_proj.weight": weights[f"{layer}.out"],
    }


def _experts(anatomy: Anatomy, weights: Weights, block: str) -> Weights:
    """Experts of so many units that the fused kernels of transformers take them: units that are
    added have no weights.
    """
    named = {"mlp.gate.weight": weights[f"{block}.feed_forward.router"]}
    more = _padded(anatomy.hidden) - anatomy.hidden
    for number in range(anatomy.experts):
        for name, value in _gate(weights, f"{block}.feed_forward.experts.{number}").items():
            padding = (0, more) if name.startswith("down") else (0, 0, 0, more)
            named[f"mlp.experts.{number}.{name}"] = pad(value, padding)
    return named


def _padded(units: int) -> int:
    return -(-units // UNITS_AT_ONCE) * UNITS_AT_ONCE


def _gemma(*layers: Layer) -> Callable[[Anatomy, Weights], Weights]:
    """Llama's names, with gains less one and embeddings over sqrt(D)."""
    norms = (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    )

    def tensors(anatomy: Anatomy, weights: Weights) -> Weights:
        named = _model(norms, *layers)(anatomy, weights)
        named["lm_head.weight"] = weights["readout"]
        for name, value in named.items():
            if "norm.weight" in name:
                named[name] = value - 1.0
        embedding = named["model.embed_tokens.weight"]
        named["model.embed_tokens.weight"] = _times(embedding, 1.0 / sqrt(anatomy.width))
        return named

    return tensors


def _gpt2_tensors(anatomy: Anatomy, weights: Weights) -> Weights:
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


UNGATED = ("relu_squared", "gelu")
GATES = ("swiglu", "relu_squared")
LLAMAS = ("input_layernorm", "post_attention_layernorm")

ARCHITECTURES = (
    Architecture(
        "Apertus",
        _carries(UNGATED),
        qk_norm=(True,),
        config=_apertus,
        tensors=_model(
            ("attention_layernorm", "feedforward_layernorm"),
            _attention,
            _qk_gains,
            _plain("up_proj", "down_proj"),
        ),
    ),
    Architecture(
        "Arcee",
        _carries(UNGATED),
        qk_norm=(False,),
        config=_apertus,
        tensors=_model(LLAMAS, _attention, _plain("up_proj", "down_proj")),
    ),
    Architecture(
        "Llama",
        _carries(("swiglu",)),
        qk_norm=(False,),
        config=_llama,
        tensors=_model(LLAMAS, _attention, _gated),
    ),
    Architecture(
        "Qwen3",
        _carries(GATES, attention=SEEING),
        qk_norm=(True,),
        config=_qwen3,
        tensors=_model(LLAMAS, _attention, _qk_gains, _gated),
    ),
    Architecture(
        "Mistral",
        _carries(GATES, attention=SEEING),
        qk_norm=(False,),
        config=_mistral,
        tensors=_model(LLAMAS, _attention, _gated),
    ),
    Architecture(
        "GPT2",
        _carries(
            UNGATED, "layer_norm", position=("learned", "no_position"), attention=("multi_head",)
        ),
        qk_norm=(False,),
        config=_gpt2,
        tensors=_gpt2_tensors,
    ),
    Architecture(
        "Starcoder2",
        _carries(UNGATED, "layer_norm", attention=SEEING),
        qk_norm=(False,),
        config=_starcoder2,
        tensors=_model(LLAMAS, _attention, _plain("c_fc", "c_proj")),
    ),
    Architecture(
        "StableLm",
        _carries(GATES, "layer_norm"),
        qk_norm=(False,),
        config=_stablelm,
        tensors=_model(LLAMAS, _attention, _gated),
    ),
    Architecture(
        "Gemma2",
        _carries(GATES, attention=SEEING, placement="sandwich"),
        qk_norm=(False,),
        soft_cap=True,
        config=_gemma2,
        tensors=_gemma(_attention, _gated),
    ),
    Architecture(
        "Gemma3",
        _carries(GATES, attention=SEEING, placement="sandwich"),
        qk_norm=(True,),
        soft_cap=True,
        config=_gemma3,
        tensors=_gemma(_attention, _qk_gains, _gated),
    ),
    Architecture(
        "DeepseekV3",
        _carries(GATES, attention=("latent",)),
        qk_norm=(False,),
        config=_deepseek_v3,
        tensors=_model(LLAMAS, _latent_attention, _gated),
    ),
    Architecture(
        "Qwen3Moe",
        _carries(GATES, attention=SEEING),
        qk_norm=(True,),
        experts=True,
        config=_qwen3_moe,
        tensors=_model(LLAMAS, _attention, _qk_gains, _experts),
    ),
)
"""In the order in which they are tried."""
MODEL_TYPES = {
    "Gemma3": "gemma3_text",
    "StableLm": "stablelm",
    "Qwen3Moe": "qwen3_moe",
    "DeepseekV3": "deepseek_v3",
}
"""What config.json calls an architecture, where that is not its name in small letters."""


def model_type(architecture: Architecture) -> str:
    """The architecture's name in config.json."""
    return MODEL_TYPES.get(architecture.name, architecture.name.lower())


def class_name(architecture: Architecture) -> str:
    """The class of transformers that is built."""
    return "GPT2LMHeadModel" if architecture.name == "GPT2" else f"{architecture.name}ForCausalLM"


def refusal_of(anatomy: Anatomy) -> str:
    """Why none of them fits."""
    return refusal(anatomy, ARCHITECTURES, "transformers")
