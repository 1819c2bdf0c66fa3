"""What each class of character costs in nats per byte: word starts, letters within words, capitals,
spaces, and so on.
"""

from lmlab.core.params import Params
from lmlab.evaluation import character_classes
from lmlab.evaluation.measures.base import SCORED, Measure, Numbers, Trained


class Options(Params):
    """This measure has none."""


class CharacterClasses(Measure):
    """On validation, for each class that occurs; results/character_classes.csv has the shares of
    bytes and nats as well.

    A token of several characters is charged to the class of its first byte, so tokenizers do not
    compare class by class. No class is better the less it costs: a model that expects nothing but
    spaces pays least for those.
    """

    decided_by = SCORED

    def __init__(self, options: Options) -> None:
        super().__init__()

    def measure(self, trained: Trained) -> Numbers:
        stream = trained.shards.stream("validation")
        rows = character_classes.table(
            trained.scores["validation"], stream, trained.tokenizer.token_bytes
        )
        costs = rows.set_index("class")["nats_per_byte"].dropna()
        return {str(name): float(cost) for name, cost in costs.items()}
