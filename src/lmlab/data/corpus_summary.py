"""What became of a corpus on its way into the splits, in lines for the screen: lost, left out,
repeated, shared.
"""

from collections.abc import Iterator
from typing import Any

from lmlab.data.documents import SPLITS
from lmlab.data.overlap import HELD_OUT

FEW_CHARACTERS = 4
"""Different ones: text that has no more is hardly text."""
MUCH_IN_TRAIN = 0.1
"""Share of a held-out split that stands in train too, above which a loss there is no measure of
what was learned.
"""


def lines(manifest: dict[str, Any]) -> Iterator[str]:
    """A line for each thing that a corpus's manifest says; what was lost and what splits share is
    told even if it is 0.
    """
    yield _cleaning(manifest["cleaning"])
    if left_out := manifest["left_out"]:
        yield f"left out: {listed(left_out)}"
    for split in SPLITS:
        different = manifest["splits"][split]["different_characters"]
        if 0 < different <= FEW_CHARACTERS:
            yield (
                f"{split} has only {different} different character(s): there is next to nothing"
                " in it to learn, and a loss"
                " near 0 on it means nothing"
            )
    yield from _repeated(manifest["equal_documents"]["within"])
    yield _shared(manifest)
    verbatim = manifest["verbatim"]
    remembered = [
        split
        for split in HELD_OUT
        if verbatim[split]["characters"] > MUCH_IN_TRAIN * verbatim[split]["checked"]
    ]
    if remembered:
        yield (
            f"much of {' and '.join(remembered)} stands in train word for word: a loss there"
            " says how well that is known"
        )


def listed(counts: dict[str, int]) -> str:
    """What was counted, each with its count."""
    return "; ".join(f"{what}: {count:,}" for what, count in counts.items())


def count_and_share(count: int, whole: int) -> str:
    """A count and in brackets its share of the whole."""
    return f"{count:,} ({share(count, whole)})"


def share(count: int, whole: int) -> str:
    """In per cent; 0 only where there is none, 100 only where it is all."""
    if count in (0, whole):
        return "100 %" if count else "0 %"
    return f"{min(max(100 * count / whole, 0.01), 99.99):.2f} %"


def _cleaning(counts: dict[str, int]) -> str:
    characters = counts["characters"]
    dropped, replaced = (
        count_and_share(counts[fate], characters) for fate in ("dropped", "replaced")
    )
    line = f"of {characters:,} characters, cleaning dropped {dropped} and replaced {replaced}"
    if counts["invisible"]:
        line += f"; {counts['invisible']:,} accents and invisible characters went too"
    if counts["emptied_documents"]:
        line += f"; it left nothing but white space of {counts['emptied_documents']:,} document(s)"
    return line


def _repeated(within: dict[str, dict[str, int]]) -> Iterator[str]:
    copies = [
        f"{within[split]['documents']:,} in {split}"
        for split in SPLITS
        if within[split]["documents"]
    ]
    if copies:
        yield f"copies of an earlier document of the same split: {', '.join(copies)}"


def _shared(manifest: dict[str, Any]) -> str:
    across, verbatim = manifest["equal_documents"]["across"], manifest["verbatim"]
    facts = []
    for split in HELD_OUT:
        checked = verbatim[split]["checked"]
        if checked:
            documents = across[f"{split} in train"]["documents"]
            sample = (
                f" (by a sample of {checked:,})"
                if checked < manifest["splits"][split]["characters"]
                else ""
            )
            characters = share(verbatim[split]["characters"], checked)
            facts.append(f"{documents:,} documents and {characters}{sample} of {split}")
    in_both = across["test in validation"]["documents"]
    both = f"; {in_both:,} documents of test are in validation" if in_both else ""
    run = verbatim["run_characters"]
    return (
        f"also in train: {', '.join(facts)} (equal documents; characters in equal runs of"
        f" {run} or more){both}"
    )
