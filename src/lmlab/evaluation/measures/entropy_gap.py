"""How far from the best there can be: bits per byte above the exact entropy of a synthetic
corpus.
"""

from lmlab.core.params import Params
from lmlab.evaluation.measures.base import SCORED, DoesNotApply, Measure, Numbers, Trained
from lmlab.model.scoring import bits_per_byte


class Options(Params):
    """This measure has none."""


class EntropyGap(Measure):
    """On each split. The entropy is that of the source; a short split's own text may by chance be a
    little cheaper.
    """

    less_is_better = ("*",)
    across_tokenizers = ("*",)
    decided_by = SCORED

    def __init__(self, options: Options) -> None:
        super().__init__()

    def measure(self, trained: Trained) -> Numbers:
        entropy = trained.manifest.entropy_bits_per_byte
        if entropy is None:
            raise DoesNotApply("the exact entropy of this corpus is not known")
        sizes = {split: trained.shards.count(split, "bytes") for split in trained.scores}
        return {
            split: bits_per_byte(scored.nats, sizes[split]) - entropy
            for split, scored in trained.scores.items()
        }
