"""Every part of the project made small: its own params.yaml with a few numbers lowered, and ways to
combine parts.
"""

import functools
import os
import random
import shutil
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lmlab.core import params, registry
from lmlab.core.errors import UserError
from lmlab.core.registry import Choice
from lmlab.data.corpus_manifest import (
    Cleaning,
    Copied,
    CorpusManifest,
    Documents,
    EqualDocuments,
    Split,
    Verbatim,
)
from lmlab.data.documents import SPLITS
from lmlab.data.shards import Shards
from lmlab.data.tokenizers.base import Tokenizer
from lmlab.model.models import base as models
from lmlab.model.models.base import LanguageModel
from lmlab.model.record import ModelRecord, TrainingFacts
from lmlab.training.outline import without_storage

torch.set_num_threads(1)

PROJECT = Path(__file__).parent.parent
COMPILES = (
    shutil.which("g++") is not None and (Path(sysconfig.get_path("include")) / "Python.h").exists()
)
"""Whether this machine has what `train.compile` needs."""
needs_compiler = pytest.mark.skipif(
    not COMPILES, reason="no C++ compiler or no header files of Python"
)
ShardsOf = Callable[..., tuple[Shards, Tokenizer]]
VOCABULARY, CONTEXT = 11, 8
MISMATCHED = {("hybrid", "n_gram_table")}
"""A part and one that it cannot be built from, though it is of the kind that the part asks for."""
LOWERED = {"depth": 2, "layers": 2, "width": 16, "heads": 2, "warmup": 3}
LOWERED |= {
    "window": 5,
    "latent": 6,
    "position_width": 4,
    "buckets": 60,
    "row_width": 0,
    "longest": 4,
}
"""Sizes, set wherever a part has an option of that name. Nothing else may stand here: a new part
would be tested as something that it is not.
"""
PLAIN = {
    "models.transformer.embedding": "token",
    "train.optimizer": "adamw",
    "train.precision": "float32",
    "parametrisations.standard.power": 0.0,
}
"""Params that tests begin with, whatever the project's default is: identities are told best on the
plainest.
"""


DRAW = int(os.environ.get("LMLAB_DRAW", "16"))
"""What products too large to be run in full are drawn with; another number draws others."""


def drawn(*axes: Sequence[Any], rounds: int = 1) -> list[tuple[Any, ...]]:
    """Some of the product of the axes, every value of every axis among them at least `rounds`
    times, by the seed DRAW.
    """
    rng = random.Random(f"{DRAW} {rounds} {[len(axis) for axis in axes]}")
    longest = max(map(len, axes))
    found: dict[tuple[int, ...], None] = {}
    for _ in range(rounds):
        columns = []
        for axis in axes:
            places = [
                place
                for turn in range(-(-longest // len(axis)))
                for place in rng.sample(range(len(axis)), len(axis))
            ]
            columns.append(places[:longest])
        found |= dict.fromkeys(zip(*columns, strict=True))
    return [
        tuple(axis[place] for axis, place in zip(axes, places, strict=True))
        for places in sorted(found)
    ]


@functools.cache
def _as_it_is() -> params.Tree:
    return params.changed(params.read(PROJECT / "params.yaml"), PLAIN)


def tree(**changes: Any) -> dict[str, Any]:
    """The project's params, lowered, with some options set to other values wherever a part has an
    option of that name.
    """

    def lowered(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        return {
            key: wanted[key] if key in wanted and not isinstance(value, dict) else lowered(value)
            for key, value in node.items()
        }

    wanted = {**LOWERED, **changes}
    changed = {key: lowered(value) for key, value in _as_it_is().items()}
    changed["start"]["model"] = ""  # a hash: whoever changes `model` means train.model
    return changed


def variants(kind: str, **changes: Any) -> list[Choice]:
    """Every part of a kind as params.yaml has it, and with each of the parts it is built from
    swapped for each other one; where a model's part refuses another, that one is swapped as well.
    """
    lowered = tree(**changes)
    chosen = []
    for name in registry.names(kind):
        plain = registry.choose(lowered, kind, name)
        chosen.append(plain)
        for key, inner in plain.inner.items():
            for other in registry.names(inner.kind):
                if other not in (name, inner.name) and (name, other) not in MISMATCHED:
                    swapped = {key: registry.choose(lowered, inner.kind, other)}
                    chosen.append(fitting(with_inner(plain, **swapped), key, **changes))
    return chosen


def fitting(choice: Choice, key: str, **changes: Any) -> Choice:
    """The choice, or if it is a model that refuses the combination of its parts, the first that is
    accepted with one of them swapped, but not the one under `key`. If there is none, the choice.
    """
    lowered = tree(**changes)
    candidates = [choice]
    for other_key, inner in choice.inner.items():
        if other_key != key:
            candidates += [
                with_inner(choice, **{other_key: registry.choose(lowered, inner.kind, name)})
                for name in registry.names(inner.kind)
            ]
    return next((each for each in candidates if not is_refused(each)), choice)


def is_refused(choice: Choice) -> bool:
    """Whether it is a model that cannot be built of its parts."""
    if choice.kind != "models":
        return False
    try:
        with without_storage():
            models.build(choice, VOCABULARY, CONTEXT)
    except UserError:
        return True
    return False


def with_inner(choice: Choice, **inner: Choice) -> Choice:
    """The same part built from other parts."""
    names = {key: other.name for key, other in inner.items()}
    return Choice(
        choice.kind, choice.name, choice.options.model_copy(update=names), {**choice.inner, **inner}
    )


def facts(**changes: Any) -> TrainingFacts:
    """What a model's record says of its training, with some of it changed; `size` in part."""
    memory = {"weights": 1, "gradients": 1, "activations": 1, "optimizer": 2}
    size = {
        "width": 16,
        "blocks": 2,
        "batch": 2,
        "groups": {},
        "parameters": {},
        "forward_flops_per_token": 10,
        "bytes": memory,
    }
    values = {
        "status": "finished",
        "tokenizer_sha256": "",
        "steps": 1,
        "seed": 0,
        "data_seed": 0,
        "pool_tokens": 1000,
        "precision": "float32",
        "tokens": 99,
        **changes,
        "size": size | changes.get("size", {}),
    }
    return TrainingFacts.model_validate(values)


def record(**changes: Any) -> ModelRecord:
    """The record of a saved model, with some of it changed."""
    own = {
        "model": {},
        "vocabulary_size": VOCABULARY,
        "context": CONTEXT,
        "parameters": 1234,
        "weights_sha256": "",
    }
    own |= {key: value for key, value in changes.items() if key in own}
    trained = {key: value for key, value in changes.items() if key not in own}
    return ModelRecord.model_validate(own | facts(**trained).model_dump(exclude_unset=True))


def title(choice: Choice) -> str:
    """A name for a test's output: the part and those in it."""
    return "-".join([choice.name, *(title(inner) for inner in choice.inner.values())])


def model(
    choice: Choice, seed: int = 0, vocabulary_size: int = VOCABULARY, context: int = CONTEXT
) -> LanguageModel:
    """A model as training would begin with it."""
    torch.manual_seed(seed)
    return models.build(choice, vocabulary_size, context)


def rough(
    choice: Choice, seed: int = 0, vocabulary_size: int = VOCABULARY, context: int = CONTEXT
) -> LanguageModel:
    """A model in double precision with weights so large that every part of it shows in the
    logits.
    """
    made = model(choice, seed, vocabulary_size, context).double().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def some_model(**changes: Any) -> Choice:
    """The model that params.yaml names."""
    lowered = tree(**changes)
    return registry.choose(lowered, "models", lowered["train"]["model"])


def tokens(batch: int, time: int, seed: int = 0, vocabulary_size: int = VOCABULARY) -> torch.Tensor:
    """Random ids of shape (batch, time)."""
    return torch.randint(
        vocabulary_size, (batch, time), generator=torch.Generator().manual_seed(seed)
    )


def corpus_manifest(corpus: str = "made_up", **facts: Any) -> CorpusManifest:
    """The manifest of a corpus of three documents of 500 characters."""
    none = Documents(documents=0, characters=0)
    size = {"documents": 1, "characters": 500, "bytes": 500, "different_characters": 26}
    cleaning = {"characters": 1500, "replaced": 0, "invisible": 0, "dropped": 0}
    return CorpusManifest(
        corpus=corpus,
        source="made up",
        licence="none needed",
        facts=facts,
        left_out={},
        split="tail",
        splits={split: Split(**size, sha256="f00") for split in SPLITS},
        equal_documents=EqualDocuments(within=dict.fromkeys(SPLITS, none), across={}),
        verbatim=Verbatim(
            run_characters=64,
            validation=Copied(characters=0, checked=500),
            test=Copied(characters=0, checked=500),
        ),
        ascii=True,
        cleaning=Cleaning(**cleaning, emptied_documents=0),
        cleaned=[],
    )
