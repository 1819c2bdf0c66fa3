"""A corpus's manifest in lines for the screen: what was lost, left out, repeated or shared between
splits.
"""

from collections.abc import Iterator

from lmlab.data.corpus_manifest import Cleaning, CorpusManifest, Documents
from lmlab.data.documents import SPLITS
from lmlab.data.overlap import HELD_OUT

FEW_CHARACTERS = 4
"""Different characters: text with no more is hardly text."""
MUCH_IN_TRAIN = 0.1
"""Share of a held-out split that train has verbatim, above which a loss on it measures how well it
is memorised.
"""


def lines(manifest: CorpusManifest) -> Iterator[str]:
    """A line for each finding; losses and what splits share are reported even where they are 0."""
    yield _cleaning(manifest.cleaning)
    if manifest.left_out:
        yield f"left out: {listed(manifest.left_out)}"
    for split in SPLITS:
        different = manifest.splits[split].different_characters
        if 0 < different <= FEW_CHARACTERS:
            yield (
                f"{split} has only {different} different character(s): there is next to nothing"
                " in it to learn, and a loss near 0 on it means nothing"
            )
    yield from _repeated(manifest.equal_documents.within)
    yield _shared(manifest)
    memorised = []
    for split in HELD_OUT:
        copied = manifest.verbatim.of(split)
        if copied.characters > MUCH_IN_TRAIN * copied.checked:
            memorised.append(split)
    if memorised:
        yield (
            f"much of {' and '.join(memorised)} is in train word for word: a loss there measures"
            " how well that is memorised"
        )


def listed(counts: dict[str, int]) -> str:
    """Counts by name on one line: `a: 1; b: 2`."""
    return "; ".join(f"{name}: {count:,}" for name, count in counts.items())


def count_and_share(count: int, whole: int) -> str:
    """A count, and its share of the whole in brackets."""
    return f"{count:,} ({share(count, whole)})"


def share(count: int, whole: int) -> str:
    """A share in per cent; rounded to 0 only where the count is 0, to 100 only where it is all."""
    if count in (0, whole):
        return "100 %" if count else "0 %"
    return f"{min(max(100 * count / whole, 0.01), 99.99):.2f} %"


def _cleaning(counts: Cleaning) -> str:
    dropped = count_and_share(counts.dropped, counts.characters)
    replaced = count_and_share(counts.replaced, counts.characters)
    line = (
        f"of {counts.characters:,} characters, cleaning dropped {dropped} and replaced {replaced}"
    )
    if counts.invisible:
        line += f"; {counts.invisible:,} accents and invisible characters went too"
    if counts.emptied_documents:
        line += f"; it left nothing but white space of {counts.emptied_documents:,} document(s)"
    return line


def _repeated(within: dict[str, Documents]) -> Iterator[str]:
    repeats = {split: within[split].documents for split in SPLITS}
    copies = [f"{count:,} in {split}" for split, count in repeats.items() if count]
    if copies:
        yield f"copies of an earlier document of the same split: {', '.join(copies)}"


def _shared(manifest: CorpusManifest) -> str:
    across = manifest.equal_documents.across
    shares = []
    for split in HELD_OUT:
        copied = manifest.verbatim.of(split)
        if not copied.checked:
            continue
        documents = across[f"{split} in train"].documents
        characters = share(copied.characters, copied.checked)
        if copied.checked < manifest.splits[split].characters:
            characters += f" (by a sample of {copied.checked:,})"
        shares.append(f"{documents:,} documents and {characters} of {split}")
    line = (
        f"also in train: {', '.join(shares)} (equal documents; characters in equal runs of"
        f" {manifest.verbatim.run_characters} or more)"
    )
    in_both = across["test in validation"].documents
    if in_both:
        line += f"; {in_both:,} documents of test are in validation"
    return line
