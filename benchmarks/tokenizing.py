"""How fast each tokenizer is fitted and encodes, beside the packages `tokenizers`, `rustbpe` and
`tiktoken`, in one run.

    python benchmarks/tokenizing.py --megabytes 10 --vocabulary 4096

One thread each. `again` is a second pass over the same text, when words met before are remembered.
All but `character` and `byte` have as many ids as asked for; the packages cut text by GPT-2's
rules, which are near ours, not the same. Writes benchmarks/results/tokenizing.csv.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

os.environ["RAYON_NUM_THREADS"] = "1"  # before the packages are loaded, or they take every core

import pandas as pd
import rustbpe
import tiktoken
import typer
from common import RESULTS, seconds, show, write
from tokenizers import Tokenizer as TheirTokenizer
from tokenizers import models, pre_tokenizers, trainers

from lmlab.core import params, registry
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.bpe import BPE

GPT2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
Encode = Callable[[str], Sequence[int]]


def encoded(name: str, fitting: float | None, encode: Encode, texts: list[str]) -> dict[str, Any]:
    """A row: everything is encoded twice."""
    size = sum(len(text.encode("utf-8")) for text in texts)
    first, again = (seconds(lambda: [encode(text) for text in texts]) for _ in range(2))
    tokens = sum(len(encode(text)) for text in texts)
    speeds = {"megabytes_per_second": size / first / 1e6, "again": size / again / 1e6}
    return {"tokenizer": name, "fit_seconds": fitting, **speeds, "bytes_per_token": size / tokens}


def ours(
    name: str, vocabulary_size: int, texts: list[str]
) -> tuple[dict[str, Any], tokenizers.Tokenizer]:
    """A tokenizer of this project."""
    options = registry.choose(params.read(), "tokenizers", name).options
    sized = options.model_copy(
        update={"vocabulary_size": vocabulary_size}
        if "vocabulary_size" in type(options).model_fields
        else {}
    )
    start = time.perf_counter()
    made = tokenizers.fit(registry.Choice("tokenizers", name, sized), texts)
    return encoded(name, time.perf_counter() - start, made.encode, texts), made


def hugging_face(
    title: str, model: Any, trainer: Any, vocabulary_size: int, texts: list[str]
) -> dict[str, Any]:
    """One of the package `tokenizers`."""
    theirs = TheirTokenizer(model)
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    teacher = trainer(
        vocab_size=vocabulary_size - 1, initial_alphabet=alphabet, show_progress=False
    )
    fitting = seconds(lambda: theirs.train_from_iterator(texts, teacher))
    return encoded(title, fitting, lambda text: theirs.encode(text).ids, texts)


def rust(vocabulary_size: int, texts: list[str]) -> dict[str, Any]:
    """The package `rustbpe`."""
    theirs = rustbpe.Tokenizer()
    fitting = seconds(
        lambda: theirs.train_from_iterator(iter(texts), vocabulary_size - 1, pattern=GPT2)
    )
    return encoded("rustbpe", fitting, theirs.encode, texts)


def main(
    megabytes: Annotated[float, typer.Option(help="How much text.")] = 10.0,
    vocabulary_size: Annotated[
        int, typer.Option(help="How many ids, where that can be chosen.")
    ] = 4096,
    corpus: Annotated[
        str, typer.Option(help="The corpus of params.yaml to take it from.")
    ] = "state_of_the_union",
    out: Annotated[Path, typer.Option(help="Where to write the table.")] = RESULTS
    / "tokenizing.csv",
) -> None:
    """Print and write seconds to fit, megabytes encoded a second, and bytes per token."""
    texts: list[str] = []
    for document in registry.choose(params.read(), "corpora", corpus).build().documents():
        texts.append("".join(document.pieces))
        if sum(map(len, texts)) >= megabytes * 1e6:
            break
    rows = []
    for name in registry.names("tokenizers"):
        row, made = ours(name, vocabulary_size, texts)
        rows.append(row)
        if isinstance(made, BPE):
            ranks = {piece: place for place, piece in enumerate(made.token_bytes) if piece}
    engine = tiktoken.Encoding(
        "gpt2-pattern", pat_str=GPT2, mergeable_ranks=ranks, special_tokens={}
    )
    rows.append(encoded("tiktoken, our merges", None, engine.encode_ordinary, texts))
    rows.append(rust(vocabulary_size, texts))
    rows.append(
        hugging_face("tokenizers, BPE", models.BPE(), trainers.BpeTrainer, vocabulary_size, texts)
    )
    rows.append(
        hugging_face(
            "tokenizers, Unigram", models.Unigram(), trainers.UnigramTrainer, vocabulary_size, texts
        )
    )
    table = pd.DataFrame(rows).assign(
        megabytes=sum(len(text.encode()) for text in texts) / 1e6, vocabulary_size=vocabulary_size
    )
    write(table, out)
    show(table)


if __name__ == "__main__":
    typer.run(main)
