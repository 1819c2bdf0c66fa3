"""Runs to take away: small models and tokenizers saved as the pipeline saves them."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import small
import torch

from lmlab.core import registry
from lmlab.core.files import sha256, write_sums
from lmlab.core.registry import Choice
from lmlab.data.tokenizers import base as tokenizers
from lmlab.export.run import Folders, Run
from lmlab.model.models import base as models

TEXT = "a bad cab, a dab of bad ace; " * 12
CONTEXT = 24


def tokenizer(name: str = "character", text: str = TEXT) -> tokenizers.Tokenizer:
    options = {"vocabulary_size": 270} if name in ("bpe", "unigram", "word") else {}
    return tokenizers.fit(registry.choose(small.tree(**options), "tokenizers", name), [text])


def run(
    folder: Path,
    choice: Choice,
    name: str = "character",
    context: int = CONTEXT,
    text: str = TEXT,
    seed: int = 0,
) -> Run:
    """A run with random weights, large enough that every part shows in the logits."""
    fitted = tokenizer(name, text)
    model = small.model(choice, seed, fitted.vocabulary_size, context).eval()
    torch.manual_seed(seed + 1)
    for key, parameter in model.named_parameters():
        is_gain = key.endswith(("gain", "norm.weight"))
        torch.nn.init.normal_(parameter, mean=1.0 if is_gain else 0.0, std=0.3)
    return saved(folder, model, fitted, name, text)


def saved(
    folder: Path, model: models.LanguageModel, fitted: Any, name: str, text: str = TEXT
) -> Run:
    """A model and a tokenizer as the stages leave them, with a corpus of one text."""
    file = folder / "tokenizer" / "tokenizer.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    tokenizers.write(name, fitted, file)
    facts = small.facts(tokenizer_sha256=sha256(file))
    models.save(folder / "model", model.choice, model, facts)
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for split in ("train", "validation"):
        pq.write_table(pa.table({"text": [text]}), corpus / f"{split}.parquet")
    write_sums(corpus)
    return Run.open("made_up", Folders(folder / "model", file, corpus))
