"""Interpolated Kneser-Ney n-gram model over token ids: the baseline that only counts."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

FALLBACK_DISCOUNTS = (0.0, 0.5, 1.0, 1.5)
"""For counts 0, 1, 2 and >= 3, where the estimate is undefined or not positive."""


class _Level(NamedTuple):
    """All k-grams of one length k.

    A k-gram's id is its row here, a context's id its row one level below.
    """

    keys: Integers
    """Shape (k-grams,), ascending: id of the first k-1 tokens * vocabulary size + last token."""
    discounted: Floats
    """Shape (k-grams,): (count - discount) / total count of the context."""
    backoff: Floats
    """Shape (contexts,): probability left to the shorter context; 1 if nothing followed this one.
    """


class KneserNey:
    """Interpolated Kneser-Ney model with modified discounts, fitted on one stream of token ids.

    With h a context of k-1 tokens, h' the same context without its oldest token and c the count of
    a k-gram, p(w | h) = (c(hw) - D(c(hw))) / sum_v c(hv) + backoff(h) p(w | h'), where backoff(h)
    is the share of the count that the discounts took away. The recursion ends in the uniform
    distribution over the vocabulary, so every token has a positive probability and each conditional
    distribution sums to one. A context that nothing followed in the training text gives p(w | h) =
    p(w | h').

    At the highest order c is the number of occurrences; below, it is the number of distinct tokens
    that precede the k-gram. The start of the training text counts as one such token (as a begin
    symbol does in other toolkits, though here it is never a context), so a k-gram seen only there
    has count 1, not 0.

    Each order has three discounts estimated from its numbers n_c of k-grams of count c: with Y = n1
    / (n1 + 2 n2), D(1) = 1 - 2 Y n2/n1, D(2) = 2 - 3 Y n3/n2 and D(3 or more) = 3 - 4 Y n4/n3. If
    one of them is undefined or not positive, the order uses 0.5, 1 and 1.5 (FALLBACK_DISCOUNTS).

    Args:
        tokens: training ids, shape (n,), n >= 1, any integer type, each in [0, vocabulary_size).
        vocabulary_size: number of distinct ids that can occur, >= 1.
        order: length of the longest n-gram in tokens, >= 1; order 1 uses no context.

    Raises:
        TypeError: tokens are not integers.
        ValueError: tokens are not 1-D, empty or out of range; vocabulary_size or order is below 1.

    Papers: Kneser & Ney, "Improved backing-off for m-gram language modeling", ICASSP 1995; Chen &
    Goodman, "An empirical study of smoothing techniques for language modeling", Computer Speech &
    Language 13, 1999.

    """

    def __init__(self, tokens: npt.NDArray[np.integer], vocabulary_size: int, order: int) -> None:
        if vocabulary_size < 1 or order < 1:
            raise ValueError(
                f"vocabulary_size and order must be at least 1, got {vocabulary_size} and {order}"
            )
        self.vocabulary_size = vocabulary_size
        text = _checked(tokens, vocabulary_size)
        if text.size == 0:
            raise ValueError("the training text is empty")

        level_keys: list[Integers] = []
        level_counts: list[Integers] = []
        ids = np.zeros(text.size + 1, dtype=np.int64)  # of the (k-1)-gram starting at each position
        for k in range(1, order + 1):
            last_tokens = text[k - 1 :]
            text_keys = ids[: last_tokens.size] * vocabulary_size + last_tokens
            keys, first_positions, next_ids = np.unique(
                text_keys, return_index=True, return_inverse=True
            )
            if k > 1:
                # each distinct k-gram extends to the left the (k-1)-gram that starts one token
                # later
                counts = np.bincount(ids[first_positions + 1], minlength=level_keys[-1].size)
                # so does the start of the text; a slice, because a short text may have no ids
                counts[ids[:1]] += 1
                level_counts.append(counts)
            level_keys.append(keys)
            ids = next_ids
        level_counts.append(np.bincount(ids, minlength=level_keys[-1].size))

        context_counts = [1] + [keys.size for keys in level_keys[:-1]]
        self._levels = [
            _fit_level(keys, counts, contexts, vocabulary_size)
            for keys, counts, contexts in zip(level_keys, level_counts, context_counts, strict=True)
        ]

    def nats(self, tokens: npt.NDArray[np.integer]) -> Floats:
        """Return -ln p of each token given the tokens before it in the array, at most order - 1.

        The first tokens have shorter contexts and are predicted by the lower orders.

        Args:
            tokens: ids, shape (m,), any integer type, each in [0, vocabulary_size); m may
                be 0.

        Returns:
            Nats, shape (m,), float64.

        Raises:
            TypeError: tokens are not integers.
            ValueError: tokens are not 1-D or lie out of range.

        """
        text = _checked(tokens, self.vocabulary_size)
        probability = np.full(text.size, 1.0 / self.vocabulary_size)
        # as in __init__, but -1 for a (k-1)-gram that is not in the training text
        ids = np.zeros(text.size + 1, dtype=np.int64)
        for k, level in enumerate(self._levels, start=1):
            if level.keys.size == 0:  # the training text is shorter than k
                break
            last_tokens = text[k - 1 :]
            contexts = ids[: last_tokens.size]
            # negative for context -1, so never among the keys
            text_keys = contexts * self.vocabulary_size + last_tokens
            rows = np.minimum(np.searchsorted(level.keys, text_keys), level.keys.size - 1)
            known = level.keys[rows] == text_keys
            backoff = np.where(contexts >= 0, level.backoff[contexts], 1.0)
            probability[k - 1 :] *= backoff
            probability[k - 1 :] += np.where(known, level.discounted[rows], 0.0)
            ids = np.where(known, rows, -1)
        nats: Floats = -np.log(probability)
        return nats


def _checked(tokens: npt.NDArray[np.integer], vocabulary_size: int) -> Integers:
    if not np.issubdtype(tokens.dtype, np.integer):
        raise TypeError(f"tokens must be integers, got {tokens.dtype}")
    if tokens.ndim != 1:
        raise ValueError(f"tokens must be 1-D, got shape {tokens.shape}")
    if tokens.size > 0 and (tokens.min() < 0 or tokens.max() >= vocabulary_size):
        raise ValueError(f"token ids must lie in [0, {vocabulary_size})")
    return tokens.astype(np.int64, copy=False)


def _fit_level(
    keys: Integers, counts: Integers, context_count: int, vocabulary_size: int
) -> _Level:
    """The probabilities of one level from the counts of its k-grams."""
    discounts = _discounts(counts)[np.minimum(counts, 3)]
    contexts = keys // vocabulary_size
    totals = np.bincount(contexts, weights=counts, minlength=context_count)
    removed = np.bincount(contexts, weights=discounts, minlength=context_count)
    # the last tokens of the training text may be a context that nothing follows
    backoff = np.divide(removed, totals, out=np.ones(context_count), where=totals > 0)
    return _Level(keys, (counts - discounts) / totals[contexts], backoff)


def _discounts(counts: Integers) -> Floats:
    """The discounts for counts 0, 1, 2 and >= 3, shape (4,), as the class describes."""
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == count)) for count in (1, 2, 3, 4))
    if min(n1, n2, n3) == 0:
        return np.array(FALLBACK_DISCOUNTS)
    y = n1 / (n1 + 2 * n2)
    estimated = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    # a discount of zero would leave unseen tokens no probability at all
    return estimated if estimated[1:].min() > 0 else np.array(FALLBACK_DISCOUNTS)
