"""config.json of each architecture: a transformer's sizes and constants under the names that it has
there. Functions are called as transformers call the architecture.
"""

from typing import Any

from lmlab.export.anatomy import Anatomy
from lmlab.export.huggingface.tensors import padded

NO_ROTATION = 1e30
"""By which angles are divided where there are no positions."""
ACTIVATIONS = {"relu_squared": "relu2", "gelu": "gelu", "swiglu": "silu"}
"""What transformers call the function between the maps."""
GATED = {"relu_squared": "relu", "swiglu": "silu"}
"""The same in a layer with a gate."""


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


def apertus(anatomy: Anatomy) -> dict[str, Any]:
    """Apertus; Arcee's is the same."""
    return {
        **_sizes(anatomy),
        "hidden_act": _activation(anatomy),
        "rms_norm_eps": anatomy.norm_epsilon,
    }


def qwen3(anatomy: Anatomy) -> dict[str, Any]:
    """Qwen3."""
    return {
        **_sizes(anatomy),
        **_windows(anatomy),
        "head_dim": anatomy.head_width,
        "hidden_act": _gated_activation(anatomy),
        "rms_norm_eps": anatomy.norm_epsilon,
        "use_sliding_window": anatomy.window is not None,
    }


def qwen3_moe(anatomy: Anatomy) -> dict[str, Any]:
    """Qwen3-MoE, whose shares are as the router's softmax gives them."""
    return {
        **_sizes(anatomy),
        "head_dim": anatomy.head_width,
        "hidden_act": _gated_activation(anatomy),
        "rms_norm_eps": anatomy.norm_epsilon,
        "use_sliding_window": anatomy.window is not None,
        "sliding_window": anatomy.window,
        "num_experts": anatomy.experts,
        "num_experts_per_tok": anatomy.active,
        "moe_intermediate_size": padded(anatomy.hidden),
        "norm_topk_prob": False,
    }


def llama(anatomy: Anatomy) -> dict[str, Any]:
    """Llama."""
    return {
        **_sizes(anatomy),
        "hidden_act": _gated_activation(anatomy),
        "rms_norm_eps": anatomy.norm_epsilon,
    }


def mistral(anatomy: Anatomy) -> dict[str, Any]:
    """Mistral."""
    return {
        **llama(anatomy),
        "sliding_window": anatomy.window,
        "head_dim": anatomy.head_width,
    }


def deepseek_v3(anatomy: Anatomy) -> dict[str, Any]:
    """DeepSeek V3 without mixtures of experts."""
    return {
        **llama(anatomy),
        "q_lora_rank": None,
        "kv_lora_rank": anatomy.latent,
        "qk_rope_head_dim": anatomy.position_width,
        "qk_nope_head_dim": anatomy.head_width,
        "v_head_dim": anatomy.head_width,
        "rope_interleave": False,
        "first_k_dense_replace": anatomy.depth,  # no layer is a mixture of experts
    }


def starcoder2(anatomy: Anatomy) -> dict[str, Any]:
    """Starcoder2."""
    return {
        **_sizes(anatomy),
        "hidden_act": _activation(anatomy),
        "norm_epsilon": anatomy.norm_epsilon,
        "sliding_window": anatomy.window,
        "use_bias": False,
    }


def stablelm(anatomy: Anatomy) -> dict[str, Any]:
    """StableLM."""
    return {
        **_sizes(anatomy),
        "rope_parameters": {**_rope(anatomy), "partial_rotary_factor": 1.0},
        "hidden_act": _gated_activation(anatomy),
        "layer_norm_eps": anatomy.norm_epsilon,
    }


def gemma2(anatomy: Anatomy) -> dict[str, Any]:
    """Gemma 2."""
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


def gemma3(anatomy: Anatomy) -> dict[str, Any]:
    """Gemma 3, which rotates by kind of layer."""
    rope = _rope(anatomy)
    by_layer = {"full_attention": rope, "sliding_attention": rope}
    return {**gemma2(anatomy), "rope_parameters": by_layer}


def gpt2(anatomy: Anatomy) -> dict[str, Any]:
    """GPT-2."""
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
