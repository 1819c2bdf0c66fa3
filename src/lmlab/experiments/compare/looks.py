"""Which comparisons were looked at before, with other seeds: a test that promises 5 % promises it
for one look.

Every comparison made in a project is noted in .scratch/looks.jsonl, a line for each set of pairs:
what was compared with what, in which measure, and which seeds had both. The file is of this folder
alone and may be deleted; it stops nobody.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    sides = [
        repr((sorted(one.params.items()), sorted(one.runs[0].made_with.items()), one.runs[0].arm))
        for one in (baseline, variant)
    ]
    key = hashlib.sha256("\n".join([*sides, measure]).encode()).hexdigest()[:20]
    ours, theirs = ({run.seeds for run in one.runs} for one in (baseline, variant))
    return Look(key, json.dumps(sorted(map(list, ours & theirs), key=repr), default=str))


def note(looks: Sequence[Look], root: Path = Path()) -> dict[str, int]:
    """Note these, and tell by key how many times each was looked at before with other seeds; those
    never are left out.
    """
    before = set(_read(root / FILE))
    earlier = {
        one.key: sum(past.key == one.key and past.seeds != one.seeds for past in before)
        for one in looks
    }
    if fresh := [one for one in dict.fromkeys(looks) if one not in before]:
        with suppress(OSError):  # a folder that cannot be written to is no reason not to compare
            (root / FILE).parent.mkdir(exist_ok=True)
            with open(root / FILE, "a", encoding="utf-8") as file:
                file.writelines(
                    json.dumps({"key": one.key, "seeds": one.seeds}) + "\n" for one in fresh
                )
    return {key: count for key, count in earlier.items() if count}


def _read(path: Path) -> Iterable[Look]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        with suppress(ValueError, LookupError, TypeError):
            record: Any = json.loads(line)
            yield Look(str(record["key"]), str(record["seeds"]))
