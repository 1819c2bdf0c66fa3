"""A model for transformers that the lab did not write, as far as it has the lab's parts.

Its config.json names sizes and options, from which the lab's are put together (`foreign_config`).
The architecture's own tensors, made of the lab's, must be those of the folder. Its tokenizer must
merge bytes; the lab then splits text at its own pre-tokens.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.core.files import sha256, write_sums
from lmlab.core.params import Tree
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import BYTES
from lmlab.data.tokenizers.bpe import BPE
from lmlab.export import anatomy
from lmlab.export.anatomy import Anatomy, Weights
from lmlab.export.architecture import Architecture
from lmlab.export.byte_level import spelled, unspelled
from lmlab.export.extras import needed
from lmlab.export.huggingface import foreign_config, own_record
from lmlab.export.huggingface.verify import TOLERANCE, quiet
from lmlab.model.models import base as models
from lmlab.model.models.base import LanguageModel
from lmlab.model.record import MemoryBytes, RunSize, TrainingFacts

CORPUS = "pretrained"
"""The corpus of a run whose text is not known."""
TOKENS = 256
"""Random ids that the model reads in both libraries."""


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
    architecture = foreign_config.architecture_of(config)
    model = foreign_config.built(config, architecture, tree)
    parts = anatomy.of(model)
    foreign_config.check(folder, config, architecture, parts)
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
    found = foreign_config.first_set(config, "bos_token_id", "eos_token_id")
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
