"""Which runs a report shows, under which names, and what it reads of them."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pandas as pd

from lmlab.experiments.compare import variants as grouping
from lmlab.experiments.compare.labels import labels
from lmlab.experiments.compare.run import MEASURES, Run
from lmlab.experiments.compare.variants import Variant
from lmlab.experiments.report.elements import Choice, Element, Panel

MOST_VARIANTS = 8
"""Variants that are drawn: as many as there are colours that can be told apart."""
MOST_SEEDS = 5
"""Runs of each variant whose curves are drawn."""
MOST_POINTS = 200
"""Points of a training curve that are drawn: more cannot be seen."""
BITS = "validation.bits_per_byte"
KNESER_NEY = "references.validation.kneser_ney"


@dataclass(frozen=True)
class Shown:
    """The variants of a report; the first MOST_VARIANTS are drawn, each with a colour and a label.

    A variant's number, by which charts and panels know it, is its place among those drawn.
    """

    all_variants: list[Variant]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "Shown":
        """The variants of these runs, without the runs that have no results."""
        variants = []
        for variant in grouping.group(runs)[0]:
            with_results = [run for run in variant.runs if run.measures or run.diverged]
            if with_results:
                variants.append(replace(variant, runs=with_results))
        return cls(variants)

    @property
    def variants(self) -> list[Variant]:
        """Those that are drawn."""
        return self.all_variants[:MOST_VARIANTS]

    @property
    def names(self) -> list[str]:
        return [variant.name for variant in self.variants]

    @property
    def labels(self) -> list[str]:
        """Short names, for what has little room."""
        return [self.label[name] for name in self.names]

    @cached_property
    def label(self) -> dict[str, str]:
        """The label of each variant, drawn or not, by its name."""
        names = [variant.name for variant in self.all_variants]
        return dict(zip(names, labels(self.all_variants), strict=True))

    @cached_property
    def texts(self) -> dict[str, list[int]]:
        """The texts that variants were scored on, by name, each with the numbers of its variants.

        Variants that are not drawn are among them.
        """
        return _texts(self.all_variants)

    def runs(self) -> Iterator[tuple[int, Run]]:
        """The runs whose curves are drawn, with the number of their variant."""
        for number, variant in enumerate(self.variants):
            for run in variant.runs[:MOST_SEEDS]:
                yield number, run

    def first_runs(self) -> Iterator[tuple[str, Run]]:
        """Each drawn variant's label and first run, for what is shown of one run."""
        for label, variant in zip(self.labels, self.variants, strict=True):
            yield label, variant.runs[0]

    def joined(self, curve: str, *needed: str) -> pd.DataFrame | None:
        """One table of all drawn runs that have it with these columns; None where none has."""
        tables = []
        for number, run in self.runs():
            table = run.curves.get(curve)
            if table is not None and len(table) and {*needed} <= {*table}:
                tables.append(thinned(table).assign(variant=number, run=run.name))
        return pd.concat(tables, ignore_index=True) if tables else None

    def choice(self, content: dict[int, list[Element]]) -> Choice:
        """A panel for each of these variants, by number."""
        return Choice(
            [Panel(number, self.labels[number], elements) for number, elements in content.items()]
        )


def thinned(table: pd.DataFrame) -> pd.DataFrame:
    """At most about MOST_POINTS rows: all of the first, where most happens, and the last."""
    few = MOST_POINTS // 4
    every = -(-(len(table) - few) // (MOST_POINTS - few))
    if every <= 1:
        return table
    later = table[few:][::-1][::every][::-1]
    return pd.concat([table[:few], later])


def mean(variant: Variant, key: str) -> float | None:
    """A measure's mean over the variant's runs; None where one of them lacks it or diverged."""
    values = [run.measures.get(key, math.nan) for run in variant.runs]
    return sum(values) / len(values) if all(map(math.isfinite, values)) else None


def read_json(run: Run, path: str) -> Any:
    """What a run's JSON file holds; None where there is none, or it is damaged."""
    content = run.open(path)
    try:
        return json.loads(content) if content else None
    except ValueError:
        return None


def read_rows(run: Run, path: str) -> list[dict[str, Any]]:
    """The rows of a run's JSON Lines file; none where there is none, or it is damaged."""
    content = run.open(path) or b""
    try:
        return [json.loads(line) for line in content.splitlines()]
    except ValueError:
        return []


def described_text(run: Run) -> str:
    """The text that a run learned from, with its source and licence where they are known."""
    manifest = _manifest(run)
    name = corpus_name(run)
    recorded = manifest.get("splits", {}).get("validation", {}).get("sha256", "")
    if not manifest or recorded != _split_sha256(run):
        return name
    source = manifest.get("source", "source unknown")
    licence = manifest.get("licence", "no licence stated")
    return f"{name} ({source}; {licence})"


def corpus_name(run: Run) -> str:
    """What the corpus is called, by the run's results if they say so."""
    name = (
        _scored_text(run).get("corpus")
        or _manifest(run).get("corpus")
        or run.params.get("download.corpus", "a corpus")
    )
    return str(name).replace("_", " ")


def _manifest(run: Run) -> dict[str, Any]:
    return dict(read_json(run, "data/corpus/manifest.json") or {})


def _scored_text(run: Run) -> dict[str, str]:
    """What the run's results say they are of, empty in older ones.

    The data beside the results may be another run's by now.
    """
    return dict((read_json(run, MEASURES) or {}).get("text", {}))


def _split_sha256(run: Run) -> str:
    recorded = _scored_text(run).get("sha256")
    if recorded:
        return recorded
    return str(_manifest(run).get("splits", {}).get("validation", {}).get("sha256", ""))


def _texts(variants: Sequence[Variant]) -> dict[str, list[int]]:
    """The validation texts by the names of their corpora, each with the numbers of its variants.

    Texts are told apart by the hash of the split where every variant has one, otherwise by the
    params that made them and their size.
    """
    hashes = [_split_sha256(variant.runs[0]) for variant in variants]
    identities = hashes if all(hashes) else [_text_by_params(variant) for variant in variants]
    same_text: dict[str, list[int]] = {}
    for number, identity in enumerate(identities):
        same_text.setdefault(identity, []).append(number)
    texts: dict[str, list[int]] = {}
    for numbers in same_text.values():
        corpus = corpus_name(variants[numbers[0]].runs[0])
        before = sum(name.partition(" #")[0] == corpus for name in texts)
        texts[f"{corpus} #{before + 1}" if before else corpus] = numbers
    return texts


def _text_by_params(variant: Variant) -> str:
    prefixes = ("download.", "corpora.")
    params = {key: value for key, value in variant.params.items() if key.startswith(prefixes)}
    sizes = {run.measures.get("validation.bytes") for run in variant.runs} - {None}
    return repr((sorted(params.items()), sorted(sizes, key=str)))
