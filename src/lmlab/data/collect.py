"""Turn a corpus into documents: cleaned, split into train, validation and test, with a manifest.

There are three passes, each with no more than a row group in memory: the first cleans the text and
measures the documents (`cleaned`), the second leaves out duplicates, if asked, and assigns the
others to the splits (`splitting`), the third looks for what the splits share (`overlap`).
Everything dropped, replaced, left out or repeated on the way is counted in the manifest and
printed. Work that is stopped keeps the text that it has cleaned.
"""

import hashlib
import json
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lmlab.core.errors import UserError, printable
from lmlab.core.files import sha256, whole_folder, write_json
from lmlab.core.params import Params
from lmlab.core.progress import ProgressBar
from lmlab.core.registry import OneOf
from lmlab.core.scratch import alone, scratch_folder
from lmlab.data import cleaned, cleaning, documents, duplicates, splitting
from lmlab.data.cleaned import CleanedText, Measured
from lmlab.data.cleaning import Cleaner
from lmlab.data.corpora.base import Corpus
from lmlab.data.corpus_manifest import FILE, Cleaning, CorpusManifest, Split, SplitSize
from lmlab.data.corpus_summary import count_and_share, lines, listed
from lmlab.data.duplicates import Duplicates, check_can_find, first_of_equal, first_of_near
from lmlab.data.overlap import overlap
from lmlab.data.splitting import Shares

EMPTY, EQUAL, NEAR = "empty documents", "equal documents", "nearly equal documents"
"""Reasons why a document is left out."""
MOST_HELD_OUT = 200_000_000
"""Bytes of a held-out split above which a warning is printed: each is some numbers in memory."""
LEAST_HELD_OUT = 1000
"""Bytes of a held-out split below which a warning is printed: a loss on fewer is 0.1 bits off."""


class DownloadParams(Params):
    """The section `download`."""

    corpus: Annotated[str, OneOf("corpora")]
    ascii: bool
    most_dropped: float = Field(ge=0, le=1)
    duplicates: Duplicates
    similarity: float = Field(gt=0, le=1)
    split: Literal["tail", "document"]
    validation: float = Field(gt=0, lt=1)
    test: float = Field(ge=0, lt=1)
    split_seed: int = Field(ge=0)

    @model_validator(mode="after")
    def _leaves_text_to_train_on(self) -> "DownloadParams":
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation ({self.validation}) and test ({self.test}) leave nothing to train on"
            )
        return self


def build(params: DownloadParams, corpus: Corpus, folder: Path) -> CorpusManifest:
    """Write each split's Parquet file and `manifest.json` into `folder`; return the manifest.

    Prints what became of the text. Raises UserError for an empty corpus, for one that cannot be
    split as requested, and where ASCII drops more than `params.most_dropped` of it.
    """
    cleaner = Cleaner(params.ascii)
    check_can_find(params.duplicates)
    scratch = _scratch(params, corpus)
    with alone(scratch, on_wait=_say_waiting), whole_folder(folder) as partial:
        key = params.split_seed.to_bytes(8, "big")
        text = cleaned.clean(corpus, cleaner, scratch, key, params.duplicates)
        measured = text.measured
        _check_dropped(cleaner, params)
        facts = corpus.facts()
        left_out: dict[str, int] = dict(facts.pop("left_out", {}))
        if measured.empty:
            left_out[EMPTY] = measured.empty
        kept, left_out_as = _kept(measured, params)
        left_out |= left_out_as
        measured = measured.without(~kept)
        characters = int(measured.characters.sum())
        if not characters:
            reasons = f"; left out: {listed(left_out)}" if left_out else ""
            raise UserError(
                f"the corpus {params.corpus} is empty: no text is left after cleaning;"
                f" {corpus.source}{reasons}"
            )
        whole, shares = _rows_of(text, kept), Shares(params.validation, params.test)
        if params.split == "tail":
            rows = splitting.by_tail(whole, characters, shares)
        else:
            rows = splitting.by_document(whole, measured, shares)
        sizes = splitting.write_splits(_with_progress(rows, characters), partial)
        if not sizes["train"].characters or not sizes["validation"].characters:
            raise UserError(
                f"the corpus {params.corpus} ({characters:,} characters) is too small to be split;"
                " give more text or a larger download.validation"
            )
        splits = {}
        for split, size in sizes.items():
            digest = sha256(partial / f"{split}.parquet")
            splits[split] = Split(**size.record(), sha256=digest)
        equal_documents, verbatim = overlap(
            partial, {split: size.characters for split, size in sizes.items()}
        )
        losses = cleaner.losses().record()
        manifest = CorpusManifest(
            corpus=params.corpus,
            source=corpus.source,
            licence=corpus.licence,
            facts=facts,
            left_out=left_out,
            split=params.split,
            splits=splits,
            equal_documents=equal_documents,
            verbatim=verbatim,
            ascii=params.ascii,
            cleaning=Cleaning(**losses, emptied_documents=measured.emptied),
            cleaned=cleaner.changes(),
        )
        write_json(partial / FILE, manifest.record())
        shutil.rmtree(scratch, ignore_errors=True)
    for line in lines(manifest):
        print(f"download: {line}", flush=True)
    for line in _warnings(params, sizes):
        print(f"warning: download: {line}", file=sys.stderr, flush=True)
    return manifest


def _scratch(params: DownloadParams, corpus: Corpus) -> Path:
    """Where the cleaned text is kept until it is split, by what decides it beside the text."""
    code = (__file__, cleaned.__file__, cleaning.__file__, duplicates.__file__, documents.__file__)
    decisive = [
        *(params.corpus, corpus.source, str(params.ascii), params.duplicates),
        *(str(params.split_seed), pa.__version__, unicodedata.unidata_version),
        *(sha256(Path(file)) for file in code),
    ]
    key = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:20]
    return scratch_folder(f"download-{key}")


def _say_waiting() -> None:
    print("download: another process is cleaning this text; waiting for it", flush=True)


def _warnings(params: DownloadParams, sizes: dict[str, SplitSize]) -> Iterator[str]:
    """A line for each held-out split that is wanted but nearly empty, or more than is worth it."""
    for split, share in (("validation", params.validation), ("test", params.test)):
        size = sizes[split].bytes
        if share and size < LEAST_HELD_OUT:
            problem = f"has only {size:,} bytes" if size else "is empty"
            yield (
                f"the {split} split {problem} (download.{split}: {share:g}); a loss on fewer than"
                f" {LEAST_HELD_OUT:,} is mostly chance: give more text or a larger share"
            )
        if size > MOST_HELD_OUT:
            yield (
                f"the {split} split has {size:,} bytes (download.{split}: {share:g}), all of which"
                " every evaluation reads and holds in memory; a smaller share is as telling"
            )


def _check_dropped(cleaner: Cleaner, params: DownloadParams) -> None:
    """Raise UserError where cleaning dropped more than params allow."""
    losses = cleaner.losses()
    if params.ascii and losses.dropped > params.most_dropped * losses.characters:
        dropped = count_and_share(losses.dropped, losses.characters)
        examples = " ".join(map(printable, cleaner.dropped()[:5]))
        raise UserError(
            f"params.yaml: download.ascii: true drops {dropped} of {losses.characters:,}"
            f" characters, which ASCII cannot spell (most often {examples}); set download.ascii:"
            " false to keep them all, or raise download.most_dropped"
            f" ({params.most_dropped}) if they may go"
        )


def _kept(measured: Measured, params: DownloadParams) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Which documents are no duplicates, and how many of the others there are, by reason."""
    kept = np.ones(len(measured.characters), np.bool_)
    if params.duplicates == "keep" or not len(kept):
        return kept, {}
    kept = first_of_equal(measured.identities)
    reasons = {EQUAL: len(kept) - int(kept.sum())}
    if params.duplicates == "near":
        before = int(kept.sum())
        kept = first_of_near(measured.signatures, params.similarity, kept)
        reasons[NEAR] = before - int(kept.sum())
    return kept, {reason: count for reason, count in reasons.items() if count}


def _rows_of(text: CleanedText, kept: NDArray[np.bool_]) -> Iterator[cleaned.Row]:
    """The rows of the documents that are kept, numbered without gaps."""
    numbers = np.cumsum(kept) - 1
    for document, part, name, piece in text.rows():
        if kept[document]:
            yield int(numbers[document]), part, name, piece


def _with_progress(rows: Iterable[splitting.Row], characters: int) -> Iterator[splitting.Row]:
    with ProgressBar("download: splitting", characters, "characters") as bar:
        for row in rows:
            yield row
            bar.advance(len(row[-1]))
