"""Losses by blocks of the text: all of it, once, and the same blocks whatever the tokens are."""

from collections.abc import Callable

import numpy as np
from test_scoring import HandMade
from torch import zeros

from lmlab.data.shards import Shards
from lmlab.data.tokenizers.base import Tokenizer
from lmlab.evaluation import blocks
from lmlab.model.scoring import score

ShardsOf = Callable[..., tuple[Shards, Tokenizer]]
TEXT = [
    f"The {animal} that we saw was {place} the old house."
    for animal in ("dog", "cat")
    for place in ("by", "under")
] * 60


def table_of(corpus: tuple[Shards, Tokenizer]) -> tuple[float, object]:
    """What a model that knows nothing pays for validation, and the table of it."""
    shards, tokenizer = corpus
    stream = shards.stream("validation")
    model = HandMade(
        lambda tokens: zeros(*tokens.shape, shards.vocabulary_size), shards.vocabulary_size, 16
    )
    scored = score(model, stream, shards.bos, 16, 8)
    return scored.nats, blocks.table(scored, stream, tokenizer.token_bytes)


def test_blocks_have_all_of_the_text_in_equal_parts_whatever_the_tokenizer(
    shards_of: ShardsOf,
) -> None:
    tables = []
    for tokenizer in ("byte", "bpe"):
        corpus = shards_of(TEXT, TEXT, tokenizer=tokenizer)
        nats, table = table_of(corpus)
        assert tuple(table.columns) == blocks.COLUMNS
        assert np.isclose(table["nats"].sum(), nats)
        assert table["bytes"].sum() == corpus[0].count("validation", "bytes")
        assert len(table) == blocks.BLOCKS
        tables.append(table)
    bytes_, longest = tables[0]["bytes"], 40
    assert bytes_.max() - bytes_.min() <= 1
    assert (abs(tables[1]["bytes"] - bytes_) <= longest).all()  # a token lies where it begins
    assert (abs(tables[1]["bytes"].cumsum() - bytes_.cumsum()) <= longest).all()


def test_a_short_text_has_fewer_blocks(shards_of: ShardsOf) -> None:
    _, table = table_of(shards_of(TEXT, "a" * 3 * blocks.LEAST_BYTES, tokenizer="byte"))
    assert table["bytes"].tolist() == [blocks.LEAST_BYTES] * 3
