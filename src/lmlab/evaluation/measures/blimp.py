"""BLiMP: 67 sets of 1,000 English minimal pairs in twelve phenomena, from its files in a folder
(Warstadt et al. 2020).
"""

import json
from collections import defaultdict
from pathlib import Path

from pydantic import Field

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.evaluation.measures.base import Measure, Numbers, Trained, evenly
from lmlab.evaluation.pairs import accuracy, text_nats


class Options(Params):
    """Options of the measure."""

    folder: str
    pairs: int = Field(ge=0)


class Blimp(Measure):
    """How often the grammatical sentence of a pair is the likelier, by phenomenon
    (`linguistics_term`) and as their mean.

    `by_length_alone` is what counting tokens would get, the shorter being the better; chance is one
    half. Since how many tokens a sentence has is the tokenizer's doing, results compare within one.
    DVC does not watch the folder: after a change of its files run `dvc repro --force evaluate`.
    """

    more_is_better = ("mean", "accuracy.*")
    facts = ("by_length_alone", "pairs")

    def __init__(self, options: Options) -> None:
        self.folder, self.pairs = Path(options.folder), options.pairs
        if not options.folder or not any(self.folder.glob("*.jsonl")):
            raise UserError(
                f"params.yaml: measures.blimp.folder: {options.folder or 'nothing'!r} is no"
                " folder with BLiMP's .jsonl"
                " files; give the one that has them, or take blimp out of evaluate.measures"
            )

    def measure(self, trained: Trained) -> Numbers:
        good: dict[str, list[str]] = defaultdict(list)
        bad: dict[str, list[str]] = defaultdict(list)
        for path in sorted(self.folder.glob("*.jsonl")):
            for pair in self._read(path):
                good[pair["linguistics_term"]].append(pair["sentence_good"])
                bad[pair["linguistics_term"]].append(pair["sentence_bad"])
        found: dict[str, tuple[float, float]] = {}
        for phenomenon in sorted(good):
            both = [
                text_nats(trained.model, trained.tokenizer, side[phenomenon])
                for side in (good, bad)
            ]
            found[phenomenon] = accuracy(both[0][0], both[1][0]), accuracy(both[0][1], both[1][1])
        by_model, by_length = (
            {name: value[which] for name, value in found.items()} for which in (0, 1)
        )
        return {
            "mean": sum(by_model.values()) / len(by_model),
            "by_length_alone": sum(by_length.values()) / len(by_length),
            "pairs": sum(map(len, good.values())),
            "accuracy": by_model,
        }

    def _read(self, path: Path) -> list[dict[str, str]]:
        """A file's pairs, or `pairs` of them spread evenly. Raises UserError naming the file and
        line that is none.
        """
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        taken = (
            evenly(0, len(lines) - 1, self.pairs)
            if 0 < self.pairs < len(lines)
            else range(len(lines))
        )
        read = []
        for number in taken:
            try:
                pair = json.loads(lines[number])
                read.append(
                    {
                        key: str(pair[key])
                        for key in ("sentence_good", "sentence_bad", "linguistics_term")
                    }
                )
            except (json.JSONDecodeError, KeyError, TypeError):
                raise UserError(
                    f"{path}, line {number + 1}: no object with sentence_good, sentence_bad and"
                    " linguistics_term"
                ) from None
        return read
