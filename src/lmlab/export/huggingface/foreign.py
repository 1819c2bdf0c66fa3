"""A model for transformers that the lab did not write, as far as it has the lab's parts.

Its config.json names sizes and options, from which the lab's are put together. Whether they say the
same is seen by going back: the architecture's own config and tensors, made of the lab's, must be
those of the folder. Its tokenizer must merge bytes; the lab then splits text at its own pre-tokens.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmlab.core import params, registry
from lmlab.core.errors import UserError
from lmlab.core.files import sha256, write_sums
from lmlab.core.params import Tree, Values
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import BYTES
from lmlab.data.tokenizers.bpe import BPE
from lmlab.export import anatomy
from lmlab.export.anatomy import Anatomy, Weights
from lmlab.export.architecture import Architecture
from lmlab.export.byte_level import spelled, unspelled
from lmlab.export.extras import needed
from lmlab.export.huggingface import own_record
from lmlab.export.huggingface.architectures import ACTIVATIONS, ARCHITECTURES, GATED, model_type
from lmlab.export.huggingface.verify import TOLERANCE, quiet
from lmlab.model.models import base as models
from lmlab.model.models.base import LanguageModel
from lmlab.model.record import MemoryBytes, RunSize, TrainingFacts

CORPUS = "pretrained"
"""The corpus of a run whose text is not known."""
TAKEN = {
    *("Apertus", "Arcee", "GPT2", "Llama", "Mistral", "Qwen3", "StableLm", "Starcoder2"),
}
"""The architectures whose config is read; the others have options that the lab has not."""
TOKENS = 256
"""Random ids that the model reads in both libraries."""
HARMLESS = {
    *("architectures", "attention_dropout", "attn_pdrop", "bos_token_id", "dtype", "embd_pdrop"),
    *("embedding_dropout", "eos_token_id", "hidden_dropout", "initializer_range", "pad_token_id"),
    *("resid_pdrop", "residual_dropout", "transformers_version", "use_cache", "torch_dtype"),
    *("max_position_embeddings", "_name_or_path", "name_or_path", "auto_map", "pretraining_tp"),
    *("max_window_layers", "output_router_logits", "router_aux_loss_coef", "task_specific_params"),
    *("intermediate_size", "n_ctx", "n_inner"),
}
"""Keys of config.json that change nothing of what a model computes, or that tensors show."""


@dataclass(frozen=True)
class Foreign:
    """A model from elsewhere, with the lab's parts and a tokenizer of the lab."""

    architecture: str
    model: LanguageModel
    tokenizer: BPE
    remarks: list[str]
    """What became of it on the way."""

    def write(self, into: Path) -> None:
        """Lay it out as `into/model` and `into/tokenizer`."""
        file = into / "tokenizer" / "tokenizer.json"
        file.parent.mkdir(parents=True)
        tokenizers.write("bpe", self.tokenizer, file)
        write_sums(file.parent)
        models.save(into / "model", self.model.choice, self.model, _facts(self.model, file))


def read(folder: Path, tensors: Mapping[str, Tensor], tree: Tree) -> Foreign:
    """A folder's model.

    Raises UserError, naming what, where the lab has no counterpart for something of it, and where
    its files are not what transformers write.
    """
    needed("(a start from a folder for transformers)", "tokenizers", "transformers")
    try:
        return _read(folder, tensors, tree)
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:  # of whatever kind the libraries raise over what they cannot read
        reason = " ".join(str(error).split())[:150]
        raise UserError(
            f"{folder}: config.json or tokenizer.json is not as transformers write it"
            f" ({type(error).__name__}: {reason}); take the folder anew"
        ) from None


def _read(folder: Path, tensors: Mapping[str, Tensor], tree: Tree) -> Foreign:
    if damaged := [name for name, value in tensors.items() if not value.isfinite().all()]:
        raise UserError(f"model.safetensors: {damaged[0]} holds numbers that are not finite")
    config = _json(folder / "config.json")
    architecture = _architecture(config)
    model = _built(config, architecture, tree)
    parts = anatomy.of(model)
    _check_config(folder, config, architecture, parts)
    weights = _weights(architecture, parts, model, tensors)
    model.load_state_dict(anatomy.whole(model, weights))
    _check_logits(folder, model.eval())
    tokenizer, ids, remarks = _tokenizer(folder)
    smaller = _with_rows(model, weights, ids, tokenizer.vocabulary_size)
    return Foreign(architecture.name, smaller, tokenizer, remarks)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); take the folder anew") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no settings; take the folder anew")
    return value


# ------------------------------------------------------------------ the parts


def _architecture(config: Mapping[str, Any]) -> Architecture:
    kind = config.get("model_type")
    known = {model_type(each): each for each in ARCHITECTURES if each.name in TAKEN}
    if kind not in known:
        raise UserError(
            f"config.json: model_type: {kind} is none that the lab has all parts of; these are"
            f" {', '.join(sorted(known))}"
        )
    return known[kind]


def _first(config: Mapping[str, Any], *keys: str, otherwise: Any = None) -> Any:
    """The first of some keys that is set."""
    return next((config[key] for key in keys if config.get(key) is not None), otherwise)


def _built(config: Mapping[str, Any], architecture: Architecture, tree: Tree) -> LanguageModel:
    """A model of the lab with the sizes and options of a config."""
    own_context = tree["train"]["context"]
    longest = _first(config, "max_position_embeddings", "n_positions", otherwise=own_context)
    is_learned = "learned" in architecture.carries["position"]
    values = _model_params(config, architecture) | _layer_params(config, architecture)
    choice = registry.choose(params.changed(tree, values), "models", "transformer")
    context = longest if is_learned else min(longest, own_context)
    return models.build(choice, config["vocab_size"], context)


def _model_params(config: Mapping[str, Any], architecture: Architecture) -> Values:
    """The params of the model itself: its size, and which parts it is built of."""
    carries = architecture.carries
    own = {
        "depth": _first(config, "num_hidden_layers", "n_layer", otherwise=1),
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
    epsilon = _first(config, *keys, otherwise=1e-5)
    hidden = _first(config, "n_inner", "intermediate_size", otherwise=4 * _width(config))
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
    return int(_first(config, "hidden_size", "n_embd", otherwise=1))


def _heads(config: Mapping[str, Any]) -> int:
    return int(_first(config, "num_attention_heads", "n_head", otherwise=1))


def _groups(config: Mapping[str, Any]) -> int:
    return int(_first(config, "num_key_value_heads", otherwise=_heads(config)))


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


def _check_config(
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


# ------------------------------------------------------------------ the weights


def _weights(
    architecture: Architecture, parts: Anatomy, model: LanguageModel, tensors: Mapping[str, Tensor]
) -> Weights:
    """The lab's weights. Raises UserError, naming it, for a tensor that they cannot give."""
    shapes = anatomy.weights(model)
    expected = architecture.tensors(parts, shapes)
    for name, value in expected.items():
        if name not in tensors:
            raise UserError(f"model.safetensors lacks {name}; take the folder anew")
        if tensors[name].shape != value.shape:
            raise UserError(
                f"model.safetensors: {name} has the shape {tuple(tensors[name].shape)}, where the"
                f" config comes to {tuple(value.shape)}"
            )
    floats = {name: value.float() for name, value in tensors.items()}
    weights = own_record.taken_back(architecture, parts, shapes, floats)
    if missing := [name for name in shapes if name not in weights]:
        raise UserError(f"the lab cannot take back {missing[0]} from a {architecture.name}")
    given = architecture.tensors(parts, weights)
    for name, value in floats.items():
        if name not in given:
            if value.any() and not name.endswith(("inv_freq", "lm_head.weight", "attn.bias")):
                raise UserError(f"model.safetensors: {name} is something that the lab has not")
        elif not torch.equal(given[name], value):
            raise UserError(
                f"model.safetensors: {name} was learned, where the lab has a constant; that cannot"
                " be taken over"
            )
    return weights


@torch.no_grad()
def _check_logits(folder: Path, model: LanguageModel) -> None:
    """Raise UserError where both libraries do not compute the same."""
    from transformers import AutoModelForCausalLM

    with quiet():
        theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rng = torch.Generator().manual_seed(0)
    width = min(TOKENS, model.context)
    tokens_BT = torch.randint(model.vocabulary_size, (1, width), generator=rng)
    own_BTV, their_BTV = model(tokens_BT), theirs.eval()(tokens_BT).logits
    difference = float((own_BTV - their_BTV).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(own_BTV.abs().max())):
        raise UserError(
            f"{folder}: the lab's parts give other logits, by {difference:.2g}; this model has"
            " something that the lab has not"
        )


def _with_rows(
    model: LanguageModel, weights: Weights, ids: list[int], vocabulary_size: int
) -> LanguageModel:
    """The model over another vocabulary, whose tokens have the rows of these old ids."""
    smaller = models.build(model.choice, vocabulary_size, model.context)
    rows = dict(weights)
    for name in ("embedding.tokens", "readout"):
        rows[name] = weights[name][ids]
    smaller.load_state_dict(anatomy.whole(smaller, rows))
    return smaller.eval()


# ------------------------------------------------------------------ the tokenizer


def _tokenizer(folder: Path) -> tuple[BPE, list[int], list[str]]:
    """The tokenizer as one of the lab's, the old id of each of its tokens, and what to tell of it.

    Raises UserError for one that does not merge bytes.
    """
    content = _json(folder / "tokenizer.json")
    model = content.get("model", {})
    if content.get("normalizer"):
        kind = content["normalizer"].get("type")
        raise UserError(
            f"{folder / 'tokenizer.json'}: its normalizer ({kind}) changes the text before it is"
            " split, which the lab's tokenizers do not"
        )
    if model.get("type") != "BPE" or "ByteLevel" not in json.dumps(content.get("pre_tokenizer")):
        raise UserError(
            f"{folder / 'tokenizer.json'}: a {model.get('type')} tokenizer that does not merge"
            " bytes (ByteLevel) is none that the lab has"
        )
    vocabulary: dict[str, int] = dict(model["vocab"])
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    try:
        halves = [(unspelled(left), unspelled(right)) for left, right in pairs]
        names = [*(_name(piece, vocabulary) for piece in BYTES), *map("".join, pairs)]
        tokenizer = BPE(halves, bos=256 + len(halves))
        old = [vocabulary[name] for name in names]
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{folder / 'tokenizer.json'}: the lab has no such merges ({error})"
        ) from None
    bos = _bos(folder, content, vocabulary)
    left = len(vocabulary) - len(names)
    remarks = [
        "the lab splits text at its own pre-tokens, so some text comes to other tokens than there",
        *([f"tokens that no merge makes have no place here: {left:,}"] if left > 0 else []),
    ]
    return tokenizer, [*old, bos], remarks


def _name(piece: bytes, vocabulary: Mapping[str, int]) -> str:
    name = spelled(piece)
    if name not in vocabulary:
        raise KeyError(name)
    return name


def _bos(folder: Path, content: Mapping[str, Any], vocabulary: Mapping[str, int]) -> int:
    """The id of what stands before a text: BOS, or what ends one where there is no BOS."""
    file = folder / "config.json"
    config = _json(file)
    found = _first(config, "bos_token_id", "eos_token_id")
    found = found[0] if isinstance(found, list) else found
    if not isinstance(found, int) or not 0 <= found < config["vocab_size"]:
        raise UserError(f"{file} names no token that begins a text (bos_token_id); write one there")
    return found


def _facts(model: LanguageModel, tokenizer_file: Path) -> TrainingFacts:
    """What is known of the training of a model from elsewhere: nothing."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    size = RunSize(
        width=model.width,
        blocks=len(model.blocks),
        batch=0,
        groups={},
        parameters={},
        forward_flops_per_token=None,
        bytes=MemoryBytes(weights=weights, gradients=weights, activations=None),
    )
    return TrainingFacts(
        tokenizer_sha256=sha256(tokenizer_file),
        steps=0,
        seed=0,
        data_seed=0,
        pool_tokens=0,
        precision="float32",
        tokens=0,
        size=size,
    )
