"""config.json of a model that the lab did not write, as the parts and options that the lab has.

What is put together is checked by going back: the architecture's own config, made of the lab's
parts, must say what the folder's does.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmlab.core import params, registry
from lmlab.core.errors import UserError
from lmlab.core.params import Tree, Values
from lmlab.export.anatomy import Anatomy
from lmlab.export.architecture import Architecture
from lmlab.export.huggingface.architectures import ARCHITECTURES, model_type
from lmlab.export.huggingface.configs import ACTIVATIONS, GATED
from lmlab.export.huggingface.verify import quiet
from lmlab.model.models import base as models
from lmlab.model.models.base import LanguageModel

TAKEN = {
    *("Apertus", "Arcee", "GPT2", "Llama", "Mistral", "Qwen3", "StableLm", "Starcoder2"),
}
"""The architectures whose config is read; the others have options that the lab has not."""
HARMLESS = {
    *("architectures", "attention_dropout", "attn_pdrop", "bos_token_id", "dtype", "embd_pdrop"),
    *("embedding_dropout", "eos_token_id", "hidden_dropout", "initializer_range", "pad_token_id"),
    *("resid_pdrop", "residual_dropout", "transformers_version", "use_cache", "torch_dtype"),
    *("max_position_embeddings", "_name_or_path", "name_or_path", "auto_map", "pretraining_tp"),
    *("max_window_layers", "output_router_logits", "router_aux_loss_coef", "task_specific_params"),
    *("intermediate_size", "n_ctx", "n_inner"),
}
"""Keys of config.json that change nothing of what a model computes, or that tensors show."""


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a config names. Raises UserError for one that is not in TAKEN."""
    kind = config.get("model_type")
    known = {model_type(each): each for each in ARCHITECTURES if each.name in TAKEN}
    if kind not in known:
        raise UserError(
            f"config.json: model_type: {kind} is none that the lab has all parts of; these are"
            f" {', '.join(sorted(known))}"
        )
    return known[kind]


def first_set(config: Mapping[str, Any], *keys: str, otherwise: Any = None) -> Any:
    """The first of some keys that is set."""
    return next((config[key] for key in keys if config.get(key) is not None), otherwise)


def built(config: Mapping[str, Any], architecture: Architecture, tree: Tree) -> LanguageModel:
    """A model of the lab with the sizes and options of a config."""
    own_context = tree["train"]["context"]
    longest = first_set(config, "max_position_embeddings", "n_positions", otherwise=own_context)
    is_learned = "learned" in architecture.carries["position"]
    values = _model_params(config, architecture) | _layer_params(config, architecture)
    choice = registry.choose(params.changed(tree, values), "models", "transformer")
    context = longest if is_learned else min(longest, own_context)
    return models.build(choice, config["vocab_size"], context)


def _model_params(config: Mapping[str, Any], architecture: Architecture) -> Values:
    """The params of the model itself: its size, and which parts it is built of."""
    carries = architecture.carries
    own = {
        "depth": first_set(config, "num_hidden_layers", "n_layer", otherwise=1),
        "width": _width(config),
        "embedding": "token",
        "position": "learned" if "learned" in carries["position"] else "rotary",
        "attention": _attention(config),
        "feed_forward": _feed_forward(config, architecture),
        "normalisation": carries["normalisation"][0],
        "placement": carries["placement"][0],
        "residual": "plain",
        "dropout": 0.0,
        "logit_soft_cap": config.get("final_logit_softcapping") or 0.0,
        "tied": _tied(config),
    }
    return {f"models.transformer.{key}": value for key, value in own.items()}


def _layer_params(config: Mapping[str, Any], architecture: Architecture) -> Values:
    """The params of those parts."""
    keys = ("rms_norm_eps", "norm_epsilon", "layer_norm_eps", "layer_norm_epsilon")
    epsilon = first_set(config, *keys, otherwise=1e-5)
    hidden = first_set(config, "n_inner", "intermediate_size", otherwise=4 * _width(config))
    heads, groups, attention = _heads(config), _groups(config), _attention(config)
    of_attention = {"heads": heads, "qk_norm": True in architecture.qk_norm, "epsilon": epsilon}
    if attention == "grouped_query":
        of_attention["groups"] = groups
    if attention == "sliding_window":
        of_attention["window"] = _window(config)
    normalisation = architecture.carries["normalisation"][0]
    return {
        f"layers.normalisation.{normalisation}.epsilon": epsilon,
        f"layers.feed_forward.{_feed_forward(config, architecture)}.expansion": hidden
        / _width(config),
        "layers.position.rotary.base": _rope_base(config),
        **{f"layers.attention.{attention}.{key}": value for key, value in of_attention.items()},
    }


def _width(config: Mapping[str, Any]) -> int:
    return int(first_set(config, "hidden_size", "n_embd", otherwise=1))


def _heads(config: Mapping[str, Any]) -> int:
    return int(first_set(config, "num_attention_heads", "n_head", otherwise=1))


def _groups(config: Mapping[str, Any]) -> int:
    return int(first_set(config, "num_key_value_heads", otherwise=_heads(config)))


def _window(config: Mapping[str, Any]) -> int | None:
    """How many tokens each layer sees; None: all."""
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    longest = config.get("max_position_embeddings")
    if window is None or (longest is not None and window >= longest):
        return None
    return int(window)


def _attention(config: Mapping[str, Any]) -> str:
    """The attention of a config. Raises UserError for one that the lab has not."""
    groups = _groups(config)
    if _window(config) is None:
        return "multi_head" if groups == _heads(config) else "grouped_query"
    if groups != _heads(config):
        raise UserError(
            f"config.json: sliding_window: {_window(config)} with num_key_value_heads: {groups} is"
            " an attention that the lab has not"
        )
    return "sliding_window"


def _feed_forward(config: Mapping[str, Any], architecture: Architecture) -> str:
    """The layer with a config's activation."""
    key = next(
        (
            key
            for key in ("hidden_act", "hidden_activation", "activation_function")
            if key in config
        ),
        "hidden_act",
    )
    called = GATED if "swiglu" in architecture.carries["feed_forward"] else ACTIVATIONS
    named = {value: name for name, value in called.items()}
    activation = config.get(key, "silu" if called is GATED else "")
    if activation not in named:
        raise UserError(f"config.json: {key}: {activation} is a function that the lab has not")
    return named[activation]


def _tied(config: Mapping[str, Any]) -> bool:
    """Whether the output head is the embedding; where config.json leaves it out, as transformers
    take it.
    """
    from transformers import AutoConfig

    with quiet():
        default = AutoConfig.for_model(config["model_type"]).tie_word_embeddings
    return bool(config.get("tie_word_embeddings", default))


def _rope_base(config: Mapping[str, Any]) -> float:
    rope = config.get("rope_parameters") or {}
    return float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0)


def check(
    folder: Path, config: Mapping[str, Any], architecture: Architecture, parts: Anatomy
) -> None:
    """Raise UserError where a config says what the lab's parts do not."""
    from transformers import AutoConfig

    with quiet():
        theirs = AutoConfig.from_pretrained(folder).to_dict()
        ours = AutoConfig.for_model(config["model_type"], **architecture.config(parts)).to_dict()
    sees_all = _window(config) is None
    for key in sorted((theirs.keys() & ours.keys()) - HARMLESS):
        if key == "sliding_window" and sees_all:
            continue
        if not _says_the_same(theirs[key], ours[key]):
            raise UserError(
                f"config.json: {key}: {theirs[key]} is something that the lab has not; its parts"
                f" would come to {ours[key]}"
            )


def _says_the_same(theirs: Any, ours: Any) -> bool:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return all(_says_the_same(value, ours.get(key)) for key, value in theirs.items())
    return bool(theirs == ours) or (not theirs and not ours)
