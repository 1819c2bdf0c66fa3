"""Distance from the best possible loss: bits per byte above the entropy of a synthetic corpus."""

from lmlab.core.params import Params
from lmlab.evaluation.measures.base import FROM_SCORES, DoesNotApply, Measure, Numbers, Trained
from lmlab.model.scoring import bits_per_byte


class Options(Params):
    """This measure has none."""


class EntropyGap(Measure):
    """Bits per byte of each split minus the exact entropy of the source.

    The text of a short split may by chance be slightly easier than the entropy of its source.
    """

    less_is_better = ("*",)
    across_tokenizers = ("*",)
    decided_by = FROM_SCORES

    def __init__(self, options: Options) -> None:
        super().__init__()

    def measure(self, trained: Trained) -> Numbers:
        entropy = trained.manifest.entropy_bits_per_byte
        if entropy is None:
            raise DoesNotApply("the exact entropy of this corpus is not known")
        gaps = {}
        for split, scored in trained.scores.items():
            size = trained.shards.count(split, "bytes")
            gaps[split] = bits_per_byte(scored.nats, size) - entropy
        return gaps
