"""Which comparisons were looked at before, with other seeds: a test that promises 5 % promises it
for one look.

Every comparison made in a project is noted in .scratch/looks.jsonl, a line for each set of pairs:
what was compared with what, in which measure, and which seeds had both. The file belongs to this
folder alone and may be deleted; it prevents nothing.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lmlab.experiments.compare.variants import Variant

FILE = Path(".scratch/looks.jsonl")


@dataclass(frozen=True)
class Look:
    """A comparison of two variants in one measure, and the seeds of its pairs."""

    key: str
    """Of the baseline's and the variant's params and code, and the measure."""
    seeds: str


def look(baseline: Variant, variant: Variant, measure: str) -> Look:
    """This comparison as it is now."""
    text = "\n".join([_identity(baseline), _identity(variant), measure])
    key = hashlib.sha256(text.encode()).hexdigest()[:20]
    in_both = {run.seeds for run in baseline.runs} & {run.seeds for run in variant.runs}
    return Look(key, json.dumps(sorted(map(list, in_both), key=repr), default=str))


def _identity(variant: Variant) -> str:
    first = variant.runs[0]
    return repr((sorted(variant.params.items()), sorted(first.made_with.items()), first.arm))


def note(looks: Sequence[Look], root: Path = Path()) -> dict[str, int]:
    """Note these, and return how many times each was looked at before with other seeds.

    By key; those never looked at before are not among them.
    """
    before = set(_read(root / FILE))
    new = [each for each in dict.fromkeys(looks) if each not in before]
    if new:
        lines = [json.dumps({"key": each.key, "seeds": each.seeds}) + "\n" for each in new]
        with suppress(OSError):  # a folder that cannot be written to is no reason not to compare
            (root / FILE).parent.mkdir(exist_ok=True)
            with open(root / FILE, "a", encoding="utf-8") as file:
                file.writelines(lines)
    counts: dict[str, int] = {}
    for each in looks:
        with_other_seeds = [
            past for past in before if past.key == each.key and past.seeds != each.seeds
        ]
        if with_other_seeds:
            counts[each.key] = len(with_other_seeds)
    return counts


def _read(path: Path) -> Iterator[Look]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        with suppress(ValueError, LookupError, TypeError):
            record = json.loads(line)
            yield Look(str(record["key"]), str(record["seeds"]))
