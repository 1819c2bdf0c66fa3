"""The references against texts whose cost is known."""

import math

import numpy as np
import pytest
import small

from lmlab.core import registry
from lmlab.data.tokenizers.byte import Byte
from lmlab.evaluation import references
from lmlab.model.scoring import bits_per_byte


def test_uniform_over_bytes_is_eight_bits_a_byte() -> None:
    text = "Ein schöner Tag für 5 €.\n" * 7
    tokenizer = Byte()
    stream = np.array([tokenizer.bos, *tokenizer.encode(text), tokenizer.bos, 65], dtype=np.uint16)
    assert bits_per_byte(
        references.uniform(stream, tokenizer.bos, tokenizer.vocabulary_size), len(text.encode()) + 1
    ) == pytest.approx(8, abs=1e-12)


def moved(ids: list[int], bos: int, last: int) -> np.ndarray:
    """The same stream where the BOS token, in `ids` the last one, has another id."""
    places = np.array([token for token in range(last + 1) if token != bos] + [bos], dtype=np.uint8)
    return places[ids]


@pytest.mark.parametrize("bos", [5, 2, 0])
def test_unigram_is_a_distribution_over_the_ids_of_text_wherever_the_document_token_stands(
    bos: int,
) -> None:
    train = moved([5, 0, 0, 1, 5, 0, 3], bos, 5)
    nats = [references.unigram(train, moved([5, token], bos, 5), bos, 6) for token in range(5)]
    assert sum(math.exp(-value) for value in nats) == pytest.approx(1)
    counts = np.array([3, 1, 0, 1, 0]) + 1
    assert nats == pytest.approx((-np.log(counts / counts.sum())).tolist())
    both = moved([5, 0, 5, 1], bos, 5)
    assert references.unigram(train, both, bos, 6) == pytest.approx(nats[0] + nats[1])
    assert references.uniform(both, bos, 6) == pytest.approx(2 * math.log(5))


@pytest.mark.parametrize("bos", [4, 1])
def test_an_ngram_sums_to_one_and_charges_nothing_for_document_tokens(bos: int) -> None:
    train = moved([4, 0, 1, 2, 0, 1, 4, 3, 0, 1, 2, 2, 0, 1, 3], bos, 4)
    ngram = references.NGram(train, bos, 5, 3)
    before = moved([4, 0], bos, 4)
    first = ngram.nats(before)
    assert ngram.nats(np.append(before, bos)) == pytest.approx(first)
    shares = [
        math.exp(first - ngram.nats(np.append(before, token))) for token in range(5) if token != bos
    ]
    of_document = math.exp(-ngram.model.nats(np.append(before, bos))[-1])
    assert sum(shares) + of_document == pytest.approx(1)


@pytest.fixture(scope="module")
def source() -> tuple[object, np.ndarray, np.ndarray, list[str]]:
    """A Markov source of order 2 with 120,000 letters to fit to and 60,000 to be scored."""
    changes = {"order": 2, "letters": 4, "concentration": 0.5, "documents": 60, "characters": 3000}
    corpus = registry.choose(small.tree(**changes), "corpora", "markov").build()
    texts = ["".join(pieces) for _, pieces in corpus.documents()]
    streams = [
        np.concatenate([[4, *(ord(c) - 97 for c in text)] for text in of])
        for of in (texts[:40], texts[40:])
    ]
    return corpus, streams[0], streams[1], texts[40:]


def test_counting_comes_down_to_the_entropy_of_a_markov_source_and_no_further(
    source: tuple,
) -> None:
    corpus, train, test, texts = source
    size = sum(map(len, texts))
    entropy = corpus.entropy()

    # what the test texts cost under the source itself: no model can do better but by luck
    own, states = 0.0, 4
    for text in texts:
        letters = [ord(letter) - 97 for letter in text]
        own -= math.log(corpus.start[letters[0] * states + letters[1]])
        for first, second, third in zip(letters, letters[1:], letters[2:], strict=False):
            own -= math.log(corpus.transitions[first * states + second][third])
    own_bits = bits_per_byte(own, size)
    assert own_bits == pytest.approx(entropy, rel=0.02)

    bits = bits_per_byte(references.NGram(train, 4, 5, 3).nats(test), size)
    assert own_bits < bits < 1.01 * own_bits
    shorter = bits_per_byte(references.NGram(train, 4, 5, 2).nats(test), size)
    unigram = bits_per_byte(references.unigram(train, test, 4, 5), size)
    assert (
        bits
        < shorter
        < unigram
        < bits_per_byte(references.uniform(test, 4, 5), size)
        == pytest.approx(2)
    )
