"""How fast each tokenizer is fitted and encodes, beside the packages `tokenizers` and `tiktoken`, on one text in one run.

    python benchmarks/tokenizing.py --megabytes 10 --vocabulary 4096

One thread each. `again` is a second pass over the same text, when words met before are remembered. All but `character` and
`byte` have as many ids as asked for; the packages cut text by GPT-2's rules, which are near ours, not the same.
"""

import os
import time
from collections.abc import Callable
from typing import Annotated

os.environ["RAYON_NUM_THREADS"] = "1"  # before the package is loaded, or it takes every core

import tiktoken
import typer
from tokenizers import Tokenizer as TheirTokenizer
from tokenizers import models, pre_tokenizers, trainers

from lmlab import params, parts
from lmlab.tokenizers import base as tokenizers
from lmlab.tokenizers.bpe import BPE

GPT2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def seconds(work: Callable[[], object]) -> float:
    """How long the work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def show(name: str, fitting: float | None, encode: Callable[[str], int], texts: list[str]) -> None:
    """Encode everything twice and print a line."""
    size = sum(len(text.encode("utf-8")) for text in texts)
    first, again = (seconds(lambda: [encode(text) for text in texts]) for _ in range(2))
    tokens = sum(map(encode, texts))
    fit = f"{fitting:8.2f}" if fitting is not None else " " * 8
    typer.echo(f"{name:22}{fit}{size / first / 1e6:10.1f}{size / again / 1e6:10.1f}{size / tokens:12.3f}")


def main(
    megabytes: Annotated[float, typer.Option(help="How much text.")] = 10.0,
    vocabulary: Annotated[int, typer.Option(help="How many ids, where that can be chosen.")] = 4096,
    corpus: Annotated[str, typer.Option(help="The corpus of params.yaml to take it from.")] = "state_of_the_union",
) -> None:
    """Print seconds to fit, megabytes encoded a second, and bytes per token."""
    tree = params.read()
    texts: list[str] = []
    for document in parts.choose(tree, "corpora", corpus).build().documents():
        texts.append("".join(document.pieces))
        if sum(map(len, texts)) >= megabytes * 1e6:
            break
    typer.echo(f"{'':22}{'fit, s':>8}{'MB/s':>10}{'again':>10}{'bytes/token':>12}")
    for name in parts.names("tokenizers"):
        options = parts.choose(tree, "tokenizers", name).options
        sized = options.model_copy(update={"vocabulary": vocabulary} if "vocabulary" in type(options).model_fields else {})
        made: list[tokenizers.Tokenizer] = []
        choice = parts.Choice("tokenizers", name, sized)
        fitting = seconds(lambda: made.append(tokenizers.fit(choice, texts)))  # noqa: B023
        show(name, fitting, lambda text: len(made[0].encode(text)), texts)  # noqa: B023
        if isinstance(made[0], BPE):
            ranks = {piece: place for place, piece in enumerate(made[0].token_bytes) if piece}
    engine = tiktoken.Encoding("gpt2-pattern", pat_str=GPT2, mergeable_ranks=ranks, special_tokens={})
    show("tiktoken, our merges", None, lambda text: len(engine.encode_ordinary(text)), texts)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    for title, model, trainer in (
        ("tokenizers, BPE", models.BPE(), trainers.BpeTrainer),
        ("tokenizers, Unigram", models.Unigram(), trainers.UnigramTrainer),
    ):
        theirs = TheirTokenizer(model)
        theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        teacher = trainer(vocab_size=vocabulary - 1, initial_alphabet=alphabet, show_progress=False)
        fitting = seconds(lambda: theirs.train_from_iterator(texts, teacher))  # noqa: B023
        show(title, fitting, lambda text: len(theirs.encode(text).ids), texts)  # noqa: B023


if __name__ == "__main__":
    typer.run(main)
