"""BLiMP: 67 sets of 1,000 English minimal pairs in twelve phenomena (Warstadt et al. 2020)."""

import json
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.evaluation.measures.base import Measure, Numbers, Trained, evenly
from lmlab.evaluation.pairs import accuracy, text_nats


class Options(Params):
    """Options of the measure."""

    folder: str
    pairs: int = Field(ge=0)


class Pair(NamedTuple):
    """A line of BLiMP's files."""

    phenomenon: str
    good: str
    bad: str


class Blimp(Measure):
    """How often the grammatical sentence of a pair has the lower cross-entropy.

    `accuracy` is by phenomenon (`linguistics_term`), `mean` the mean over phenomena; a random
    choice scores one half. `by_length_alone` is the score of counting tokens, the shorter being the
    better. Since the tokenizer decides how many tokens a sentence has, results compare within one.

    The files are read from `folder`; at most `pairs` pairs of each are used, 0 for all. DVC does
    not watch the folder: after a change of its files run `dvc repro --force evaluate`.
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
        pairs: dict[str, list[Pair]] = defaultdict(list)
        for path in sorted(self.folder.glob("*.jsonl")):
            for pair in self._read(path):
                pairs[pair.phenomenon].append(pair)
        by_model: dict[str, float] = {}
        by_length: dict[str, float] = {}
        for phenomenon in sorted(pairs):
            good = [pair.good for pair in pairs[phenomenon]]
            bad = [pair.bad for pair in pairs[phenomenon]]
            good_nats, good_tokens = text_nats(trained.model, trained.tokenizer, good)
            bad_nats, bad_tokens = text_nats(trained.model, trained.tokenizer, bad)
            by_model[phenomenon] = accuracy(good_nats, bad_nats)
            by_length[phenomenon] = accuracy(good_tokens, bad_tokens)
        return {
            "mean": sum(by_model.values()) / len(by_model),
            "by_length_alone": sum(by_length.values()) / len(by_length),
            "pairs": sum(map(len, pairs.values())),
            "accuracy": by_model,
        }

    def _read(self, path: Path) -> list[Pair]:
        """The pairs of a file, or `pairs` of them, evenly spaced.

        Raises UserError naming the file and the line that is not a pair.
        """
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        numbers = list(range(len(lines)))
        if 0 < self.pairs < len(lines):
            numbers = evenly(0, len(lines) - 1, self.pairs)
        pairs = []
        for number in numbers:
            try:
                pairs.append(_parsed(lines[number]))
            except (json.JSONDecodeError, KeyError, TypeError):
                raise UserError(
                    f"{path}, line {number + 1}: no object with sentence_good, sentence_bad and"
                    " linguistics_term"
                ) from None
        return pairs


def _parsed(line: str) -> Pair:
    fields = json.loads(line)
    return Pair(
        phenomenon=str(fields["linguistics_term"]),
        good=str(fields["sentence_good"]),
        bad=str(fields["sentence_bad"]),
    )
