"""What a trained model knows of a text, for another one to learn from, whatever both tokenizers.

Two tokenizers cut a text in different places. A *chunk* is what lies between two neighbouring cuts
that both make: a whole number of tokens of each. By the chain rule a model gives it the exact
probability

    p(chunk | what comes before) = Π p(token | tokens before it)    over the tokens it consists of

which is comparable between any two models (Minixhofer et al. 2025, "Universal cross-tokenizer
distillation via approximate likelihood matching").
"""

import codecs
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmlab.data.start import Start
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import Tokenizer
from lmlab.model.models import base as models
from lmlab.model.models.base import LanguageModel
from lmlab.model.scoring import windows

NONE = -1
"""The number of no chunk."""
WINDOWS_AT_ONCE = 64
CONTINUES = range(0x80, 0xC0)
"""Bytes in the middle of a character of UTF-8."""


class Chunks(NamedTuple):
    """The chunks of a batch."""

    of_targets: Tensor
    """The number of the chunk that each target belongs to, NONE where there is none, (B, T)."""
    nats: Tensor
    """What the teacher gives to each, -log p(chunk | before), in double precision, (C,)."""


class Cuts(NamedTuple):
    """Where a run of tokens ends a piece of text, in bytes from the text's beginning.

    A BOS token counts as one byte of its own.
    """

    ids: NDArray[np.int64]
    ends: NDArray[np.int64]

    @property
    def begins(self) -> NDArray[np.int64]:
        """Where each token begins, which is where the one before it ends."""
        return np.concatenate(([0], self.ends[:-1]))


class Teacher:
    """A trained model and its tokenizer, beside the tokenizer of the model that learns."""

    def __init__(self, model: LanguageModel, own: Tokenizer, learner: Tokenizer) -> None:
        """The model is in evaluation mode and stays as it is."""
        self.model, self.own, self.learner = model, own, learner
        self._sizes = np.array([len(piece) for piece in learner.token_bytes])
        self._own_sizes = np.array([len(piece) for piece in own.token_bytes])

    @classmethod
    def of(cls, start: Start, learner: Tokenizer, device: torch.device) -> "Teacher":
        """The model of a start. Raises UserError where a file is missing or damaged."""
        model, _ = models.load(start.model, device, start.made_by)
        return cls(model, tokenizers.load(start.tokenizer_file, start.made_by), learner)

    def chunks(self, tokens_BT: Tensor, targets_BT: Tensor) -> Chunks:
        """The chunks of a batch, given in the ids of the model that learns.

        The first token of a window is read and not predicted, so the first chunk begins behind it.
        Text that the teacher's tokenizer does not spell back byte by byte belongs to no chunk.
        """
        rows_BS = torch.cat((tokens_BT[:, :1], targets_BT), dim=1).cpu().numpy()
        of_target_BT = np.full(targets_BT.shape, NONE)
        seen: list[Cuts] = []
        numbered: list[NDArray[np.int64]] = []
        count = 0
        for row_S, of_target_T in zip(rows_BS, of_target_BT, strict=True):
            for text, first in self._texts(row_S):
                read = self._read(text.ids)
                if read is None:
                    continue
                cuts = np.intersect1d(text.ends, read.ends)
                own = _chunk_of(read, cuts, count)
                of_text = _chunk_of(text, cuts, count)
                of_target_T[first : first + len(text.ids) - 1] = of_text[1:]
                seen.append(read)
                numbered.append(own[1:])
                count += max(0, len(cuts) - 1)
        nats_C = torch.zeros(count, dtype=torch.float64)
        if seen:
            nats_N = self._nats([read.ids for read in seen])
            chunk_N = torch.from_numpy(np.concatenate(numbered))
            is_in_one = chunk_N != NONE
            nats_C.index_add_(0, chunk_N[is_in_one], nats_N[is_in_one])
        device = tokens_BT.device
        return Chunks(torch.from_numpy(of_target_BT).to(device), nats_C.to(device))

    def _texts(self, row_S: NDArray[np.int64]) -> Iterator[tuple[Cuts, int]]:
        """The stretches of a window that a tokenizer can read, each with the number of the target
        that follows its first token.

        One ends where a token has no bytes of its own, such as one that says how the next is read.
        """
        sizes = np.where(row_S == self.learner.bos, 1, self._sizes[row_S])
        breaks = np.flatnonzero(sizes == 0)
        begin = 0
        for end in [*breaks.tolist(), len(row_S)]:
            if end - begin > 1:
                yield Cuts(row_S[begin:end], sizes[begin:end].cumsum()), begin
            begin = end + 1

    def _read(self, ids: Sequence[int] | NDArray[np.int64]) -> Cuts | None:
        """A text of the learner's ids in the teacher's; None where these are other bytes."""
        found: list[int] = []
        sizes: list[int] = []
        begin = 0
        pieces = list(self._pieces(ids))
        for number, piece in enumerate(pieces):
            if piece is None:
                found.append(self.own.bos)
                sizes.append(1)
                continue
            head, text, tail = _whole_characters(piece)
            own = self.own.encode(text).tolist()
            spelled = b"".join(self.own.token_bytes[id_] for id_ in own)
            own_sizes = self._own_sizes[own].tolist()
            is_cut_inside = (head and number > 0) or (tail and number < len(pieces) - 1)
            if is_cut_inside or spelled != text.encode() or 0 in own_sizes:
                return None
            begin += len(head)
            found += own
            sizes += own_sizes
        ends = begin + np.array(sizes, dtype=np.int64).cumsum()
        return Cuts(np.array(found, dtype=np.int64), ends) if found else None

    def _pieces(self, ids: Sequence[int] | NDArray[np.int64]) -> Iterator[bytes | None]:
        """The bytes between BOS tokens, each of which is None."""
        held = b""
        for id_ in ids:
            if id_ != self.learner.bos:
                held += self.learner.token_bytes[int(id_)]
                continue
            if held:
                yield held
            held = b""
            yield None
        if held:
            yield held

    @torch.no_grad()
    def _nats(self, streams: Sequence[NDArray[np.int64]]) -> Tensor:
        """The teacher's nats of each id but the first, of stream after stream.

        A stream longer than the teacher's context is read in windows that overlap by half.
        """
        context = self.model.context
        places = [
            (number, window.start, window.first_unscored)
            for number, ids in enumerate(streams)
            for window in windows(len(ids) - 1, context, max(1, context // 2))
            if len(ids) > 1
        ]
        nats = [torch.zeros(max(0, len(ids) - 1), dtype=torch.float64) for ids in streams]
        device = next(self.model.parameters()).device
        for first in range(0, len(places), WINDOWS_AT_ONCE):
            batch = places[first : first + WINDOWS_AT_ONCE]
            rows = [streams[number][start : start + context + 1] for number, start, _ in batch]
            width = max(len(row) for row in rows)
            ids_BS = np.stack([np.pad(row, (0, width - len(row))) for row in rows])
            tokens_BS = torch.from_numpy(ids_BS).to(device)
            # what pads a row comes after all that counts in it, and no model looks ahead
            log_BTV = self.model(tokens_BS[:, :-1]).double().log_softmax(-1)
            nats_BT = -log_BTV.gather(-1, tokens_BS[:, 1:, None])[..., 0].cpu()
            for (number, start, unscored), row, nats_T in zip(batch, rows, nats_BT, strict=True):
                until = start + len(row) - 1
                nats[number][unscored:until] = nats_T[unscored - start : until - start]
        return torch.cat(nats)


def _chunk_of(text: Cuts, cuts: NDArray[np.int64], first: int) -> NDArray[np.int64]:
    """The number of each token's chunk, counted from `first`; NONE before the first cut and behind
    the last.
    """
    if not len(cuts):
        return np.full(len(text.ids), NONE)
    number = np.searchsorted(cuts, text.begins, side="right") - 1
    inside = (number >= 0) & (text.ends <= cuts[-1])
    return np.where(inside, first + number, NONE)


def _whole_characters(piece: bytes) -> tuple[bytes, str, bytes]:
    """Bytes without a character cut off at their beginning or end, and what was cut off."""
    begin = 0
    while begin < len(piece) and piece[begin] in CONTINUES:
        begin += 1
    decoder = codecs.getincrementaldecoder("utf-8")(errors="strict")
    try:
        text = decoder.decode(piece[begin:])
    except UnicodeDecodeError:
        return piece, "", b""
    rest, _ = decoder.getstate()
    return piece[:begin], text, rest
