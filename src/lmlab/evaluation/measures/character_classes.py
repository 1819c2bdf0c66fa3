"""Cross-entropy in nats per byte by class of character: word starts, capitals, spaces and so on."""

from lmlab.core.params import Params
from lmlab.evaluation import character_classes
from lmlab.evaluation.measures.base import FROM_SCORES, Measure, Numbers, Trained


class Options(Params):
    """This measure has none."""


class CharacterClasses(Measure):
    """Nats per byte on validation for each class of character that occurs.

    results/character_classes.csv also has the shares of bytes and nats. A token of several
    characters counts in the class of its first byte, so a class does not compare across tokenizers.
    A lower number is not better: a model that predicts only spaces scores lowest on those.
    """

    decided_by = FROM_SCORES

    def __init__(self, options: Options) -> None:
        super().__init__()

    def measure(self, trained: Trained) -> Numbers:
        rows = character_classes.table(
            trained.scores["validation"],
            trained.shards.stream("validation"),
            trained.tokenizer.token_bytes,
        )
        nats_per_byte = rows.set_index("class")["nats_per_byte"].dropna()
        return {str(name): float(nats) for name, nats in nats_per_byte.items()}
