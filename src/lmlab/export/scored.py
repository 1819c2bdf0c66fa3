"""What an export is compared by: windows of text that the model was not trained on."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmlab.export.run import Run
from lmlab.model.scoring import bits_per_byte

MOST_TOKENS = 20_000
"""Of validation text that both read, so that an export ends within a minute."""
RANDOM_TOKENS = 2_000
"""Ids that are drawn where there is no text."""
AT_ONCE = 16
"""Windows in a batch."""


@dataclass(frozen=True)
class Scored:
    """Windows of text, without overlap, each of which begins where the last one ended."""

    inputs: Tensor
    """Ids of N windows, shape (N, T)."""
    targets: Tensor
    """The id after each."""
    is_text: bool
    """Whether it is validation text; random ids otherwise."""
    bytes: int
    """That the targets spell, in UTF-8; BOS spells none."""
    bos: int

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Inputs and targets, AT_ONCE windows at a time."""
        starts = range(0, len(self.inputs), AT_ONCE)
        pairs = [(self.inputs[at : at + AT_ONCE], self.targets[at : at + AT_ONCE]) for at in starts]
        return pairs

    def nats(self, logits_BTV: Tensor, targets_BT: Tensor) -> float:
        """The summed cross-entropy of some windows; BOS is read and not scored."""
        log_BTV = logits_BTV.double().log_softmax(-1)
        nats_BT = -log_BTV.gather(-1, targets_BT[..., None])[..., 0]
        return float(nats_BT[targets_BT != self.bos].sum())

    def bits_per_byte(self, nats: float) -> float:
        """Of all windows together."""
        return bits_per_byte(nats, self.bytes)

    @property
    def tokens(self) -> int:
        return int((self.targets != self.bos).sum())


def scored(run: Run, most: int = MOST_TOKENS) -> Scored:
    """The beginning of a run's validation split in windows of the model's context, the last of
    which is dropped unless it is whole; random ids where there is no text.
    """
    context = run.model.context
    ids: list[int] = []
    for text in run.text("validation"):
        ids += [run.tokenizer.bos, *run.tokenizer.encode(text).tolist()]
        if len(ids) > most:
            break
    is_text = len(ids) > 1
    if not is_text:
        rng = np.random.default_rng(0)
        ids = rng.integers(run.tokenizer.vocabulary_size, size=RANDOM_TOKENS).tolist()
    width = min(context, len(ids) - 1)
    windows = max(1, min(most, len(ids) - 1) // width)
    stream = torch.tensor(ids[: windows * width + 1])
    targets_NT = stream[1:].view(windows, width)
    spelled = sum(len(run.tokenizer.token_bytes[token]) for token in stream[1:].tolist())
    return Scored(stream[:-1].view(windows, width), targets_NT, is_text, spelled, run.tokenizer.bos)
