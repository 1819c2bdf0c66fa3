"""The architectures of llama.cpp that compute what a transformer of the lab computes, and how its
weights are laid out in each.

A file names its architecture; llama.cpp holds the computation of each in its own code. Sizes and
constants are metadata under the architecture's name, and every matrix is a tensor of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import e, log, sqrt
from typing import Any

import torch

from lmlab.export.anatomy import Anatomy, Weights
from lmlab.export.architecture import Architecture

BLOCK_TENSORS = {
    "attention.queries": "attn_q",
    "attention.keys": "attn_k",
    "attention.values": "attn_v",
    "attention.out": "attn_output",
    "attention_residual.placement.norm": "attn_norm",
    "attention_residual.placement.before": "attn_norm",
    "attention_residual.placement.behind": "post_attention_norm",
    "feed_forward.router": "ffn_gate_inp",
    "feed_forward.gate": "ffn_gate",
    "feed_forward.up": "ffn_up",
    "feed_forward.out": "ffn_down",
    "feed_forward_residual.placement.norm": "ffn_norm",
    "feed_forward_residual.placement.before": "ffn_norm",
    "feed_forward_residual.placement.behind": "post_ffw_norm",
}
"""The names in llama.cpp of what a block holds, by those in the lab."""
MODEL_TENSORS = {
    "embedding.tokens": "token_embd",
    "readout": "output",
    "final_norm": "output_norm",
}
"""Likewise of what there is once."""
NO_ROTATION = 1e30
"""By what linear scaling divides positions so that the rotation is none: in float32 every angle
then has the cosine 1 and the sine 0.
"""
SOFTMAX = 1
"""llama.cpp's number for a router whose shares add up to 1."""

Layout = Callable[[Anatomy, Weights], Weights]


def _config(name: str, anatomy: Anatomy, epsilon: str) -> dict[str, Any]:
    """What all architectures are told, as metadata; `epsilon` is how this one calls the norms'."""
    sizes: dict[str, Any] = {
        "context_length": anatomy.context,
        "embedding_length": anatomy.width,
        "block_count": anatomy.depth,
        "feed_forward_length": anatomy.hidden,
        "attention.head_count": anatomy.heads,
        "attention.head_count_kv": anatomy.groups,
        "rope.dimension_count": anatomy.head_width,
        "rope.freq_base": float(anatomy.rope_base),
        "vocab_size": anatomy.vocabulary_size,
        epsilon: float(anatomy.norm_epsilon),
    }
    if anatomy.parts["position"] == "no_position":
        sizes |= {"rope.scaling.type": "linear", "rope.scaling.factor": NO_ROTATION}
    return {f"{name}.{key}": value for key, value in sizes.items()}


def _rms(name: str) -> Callable[[Anatomy], dict[str, Any]]:
    return partial(_config, name, epsilon="attention.layer_norm_rms_epsilon")


def _layer_norm(name: str) -> Callable[[Anatomy], dict[str, Any]]:
    return partial(_config, name, epsilon="attention.layer_norm_epsilon")


def _apertus(anatomy: Anatomy) -> dict[str, Any]:
    """The activation of Apertus, xIELU (Huang & Schlag 2025), with constants that make it
    max(x, 0)².

    For x > 0 it is a_p x² + b x, otherwise a_n (exp(min(x, epsilon)) - 1 - x) + b x, with a_p and
    a_n given before their softplus: that of log(e - 1) is 1, that of -100 is 0.
    """
    constants = {"alpha_p": log(e - 1), "alpha_n": -100.0, "beta": 0.0, "eps": -1e-6}
    xielu = {f"xielu.{key}": [value] * anatomy.depth for key, value in constants.items()}
    return _rms("apertus")(anatomy) | xielu


def _experts(name: str, anatomy: Anatomy) -> dict[str, Any]:
    """A mixture in every block, each token's shares as the router's softmax gives them."""
    experts = {
        "expert_count": anatomy.experts,
        "expert_used_count": anatomy.active,
        "expert_feed_forward_length": anatomy.hidden,
        "expert_shared_count": 1,
        "expert_weights_scale": 1.0,
        "expert_weights_norm": False,
        "expert_gating_func": SOFTMAX,
        "leading_dense_block_count": 0,
    }
    named = {f"{name}.{key}": value for key, value in experts.items()}
    return _rms(name)(anatomy) | named


def _renamed(anatomy: Anatomy, weights: Weights) -> Weights:
    """Weights under their names in llama.cpp; a tied output head is left out."""
    renamed = {_new_name(name): value for name, value in weights.items()}
    if anatomy.tied:
        del renamed["output.weight"]
    return renamed


def _new_name(name: str) -> str:
    """A weight's name in llama.cpp, such as `blk.0.attn_norm.bias`."""
    owner, _, last = name.rpartition(".")
    if last in ("gain", "bias"):
        kind = "bias" if last == "bias" else "weight"
    else:
        owner, kind = name, "weight"
    if not owner.startswith("blocks."):
        return f"{MODEL_TENSORS[owner]}.{kind}"
    _, number, part = owner.split(".", 2)
    return f"blk.{number}.{BLOCK_TENSORS[part]}.{kind}"


def _with_head(anatomy: Anatomy, weights: Weights, layout: Layout) -> Weights:
    """The layout with the output head in it, for an architecture that knows no tied one."""
    laid_out = layout(anatomy, weights)
    return laid_out | {"output.weight": weights["readout"]}


def _interleaved(anatomy: Anatomy, weights: Weights) -> Weights:
    """For an architecture that rotates the pairs (2 k, 2 k + 1) of a head, where the lab rotates
    (k, k + K / 2): the rows of queries and keys in that order.
    """
    laid_out = _renamed(anatomy, weights)
    for name, matrix in laid_out.items():
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            by_half = matrix.view(-1, 2, anatomy.head_width // 2, anatomy.width)
            laid_out[name] = by_half.transpose(1, 2).reshape(matrix.shape)
    return laid_out


def _with_qk_norm(anatomy: Anatomy, weights: Weights) -> Weights:
    """With gains of 1 for QK-norm, and queries and keys scaled to its epsilon.

    llama.cpp has one epsilon for all norms. Where QK-norm has another, q / sqrt(mean(q²) + e_qk)
    is s q / sqrt(mean((s q)²) + e) for s = sqrt(e / e_qk).
    """
    laid_out = _renamed(anatomy, weights)
    scale = sqrt(anatomy.norm_epsilon / anatomy.qk_epsilon)
    for number in range(anatomy.depth):
        for part in ("attn_q", "attn_k"):
            name = f"blk.{number}.{part}"
            laid_out[f"{name}.weight"] = laid_out[f"{name}.weight"] * scale
            laid_out[f"{name}_norm.weight"] = torch.ones(anatomy.head_width)
    return laid_out


def _glm4(anatomy: Anatomy, weights: Weights) -> Weights:
    """Gate and up of a feed-forward layer are one matrix there."""
    laid_out = _interleaved(anatomy, weights)
    for number in range(anatomy.depth):
        gate = laid_out.pop(f"blk.{number}.ffn_gate.weight")
        up = f"blk.{number}.ffn_up.weight"
        laid_out[up] = torch.cat((gate, laid_out[up]))
    return laid_out


def _plamo3(anatomy: Anatomy, weights: Weights) -> Weights:
    """Gate and up are one matrix, queries, keys and values another, and the names of the norms
    behind a layer end without `.weight`.
    """
    laid_out = _with_qk_norm(anatomy, weights)
    for number in range(anatomy.depth):
        block = f"blk.{number}"
        gate = laid_out.pop(f"{block}.ffn_gate.weight")
        laid_out[f"{block}.ffn_up.weight"] = torch.cat((gate, laid_out[f"{block}.ffn_up.weight"]))
        parts = [laid_out.pop(f"{block}.attn_{part}.weight") for part in "qkv"]
        laid_out[f"{block}.attn_qkv.weight"] = torch.cat(parts)
        for norm in ("post_attention_norm", "post_ffw_norm"):
            laid_out[f"{block}.{norm}"] = laid_out.pop(f"{block}.{norm}.weight")
    return laid_out


def _with_experts(anatomy: Anatomy, weights: Weights, layout: Layout) -> Weights:
    """The matrices of all experts in one tensor each, and a shared expert whose output is 0."""
    matrices = {"gate": "ffn_gate", "up": "ffn_up", "out": "ffn_down"}
    others = {name: value for name, value in weights.items() if ".experts." not in name}
    laid_out = _with_head(anatomy, others, layout)
    for number in range(anatomy.depth):
        for part, name in matrices.items():
            each = f"blocks.{number}.feed_forward.experts"
            of_experts = [weights[f"{each}.{i}.{part}"] for i in range(anatomy.experts)]
            laid_out[f"blk.{number}.{name}_exps.weight"] = torch.stack(of_experts)
            laid_out[f"blk.{number}.{name}_shexp.weight"] = torch.zeros_like(of_experts[0])
    return laid_out


def _carries(**others: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """What most architectures carry, with the parts in which one differs."""
    usual = {
        "embedding": ("token",),
        "position": ("rotary", "no_position"),
        "attention": ("multi_head", "grouped_query"),
        "normalisation": ("rms_norm",),
        "placement": ("pre",),
        "residual": ("plain",),
    }
    return usual | others


ARCHITECTURES = (
    Architecture(
        "apertus",
        _carries(feed_forward=("relu_squared",)),
        qk_norm=(True,),
        config=_apertus,
        tensors=partial(_with_head, layout=_with_qk_norm),
    ),
    Architecture(
        "arcee",
        _carries(feed_forward=("relu_squared",)),
        qk_norm=(False,),
        config=_rms("arcee"),
        tensors=_interleaved,
    ),
    Architecture(
        "llama",
        _carries(feed_forward=("swiglu",)),
        qk_norm=(False,),
        config=_rms("llama"),
        tensors=_interleaved,
    ),
    Architecture(
        "qwen3",
        _carries(feed_forward=("swiglu",)),
        qk_norm=(True,),
        config=_rms("qwen3"),
        tensors=_with_qk_norm,
    ),
    Architecture(
        "nemotron",
        _carries(feed_forward=("relu_squared",), normalisation=("layer_norm",)),
        qk_norm=(False,),
        config=_layer_norm("nemotron"),
        tensors=partial(_with_head, layout=_renamed),
    ),
    Architecture(
        "stablelm",
        _carries(feed_forward=("swiglu",), normalisation=("layer_norm",)),
        qk_norm=(False,),
        config=lambda anatomy: (
            _layer_norm("stablelm")(anatomy) | {"stablelm.use_parallel_residual": False}
        ),
        tensors=partial(_with_head, layout=_renamed),
    ),
    Architecture(
        "glm4",
        _carries(feed_forward=("swiglu",), placement=("sandwich",)),
        qk_norm=(False,),
        config=_rms("glm4"),
        tensors=_glm4,
    ),
    Architecture(
        "plamo3",
        _carries(feed_forward=("swiglu",), placement=("sandwich",)),
        qk_norm=(True,),
        config=lambda anatomy: (
            _rms("plamo3")(anatomy)
            | {f"plamo3.attention.{each}_length": anatomy.head_width for each in ("key", "value")}
        ),
        tensors=_plamo3,
    ),
    Architecture(
        "refact",
        _carries(feed_forward=("swiglu",), position=("alibi",)),
        qk_norm=(False,),
        config=_rms("refact"),
        tensors=partial(_with_head, layout=_renamed),
    ),
    Architecture(
        "deepseek",
        _carries(feed_forward=("swiglu",)),
        qk_norm=(False,),
        config=partial(_experts, "deepseek"),
        tensors=partial(_with_experts, layout=_interleaved),
        experts=True,
    ),
    Architecture(
        "dots1",
        _carries(feed_forward=("swiglu",), attention=("multi_head",)),
        qk_norm=(True,),
        config=partial(_experts, "dots1"),
        tensors=partial(_with_experts, layout=_with_qk_norm),
        experts=True,
    ),
)
"""The first that fits is written."""


def candidates(anatomy: Anatomy) -> Sequence[Architecture]:
    """The architectures that may be chosen: where the number of heads is no power of two,
    llama.cpp's ALiBi has other slopes than the lab's.
    """
    is_power = anatomy.heads & (anatomy.heads - 1) == 0
    return [each for each in ARCHITECTURES if is_power or "alibi" not in each.carries["position"]]
