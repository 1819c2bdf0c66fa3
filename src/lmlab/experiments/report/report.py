"""The report: one page, one file, that shows what runs came to and how they differ.

It loads nothing from anywhere. Runs that differ in nothing but seeds share a colour. Whatever a run
does not have (probes, a close-up, a table that older code did not write) is left out silently.
Scores on different texts are never ranked, nor is a mean taken over runs of which one diverged.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from altair.utils.schemapi import debug_mode

from lmlab.experiments.compare.run import Run
from lmlab.experiments.compare.verdicts import Verdict
from lmlab.experiments.openings import Opening
from lmlab.experiments.report import (
    architecture,
    charts,
    comparison,
    costs,
    inside,
    learning,
    text,
)
from lmlab.experiments.report.elements import Section
from lmlab.experiments.report.overview import overview
from lmlab.experiments.report.page import Page
from lmlab.experiments.report.shown import Shown
from lmlab.experiments.wording import quantity

SECTIONS = (
    comparison.params_section,
    architecture.model_section,
    architecture.rule_section,
    learning.loss_section,
    learning.training_samples_section,
    text.heldout_section,
    text.samples_section,
    text.calibration_section,
    text.position_section,
    text.class_section,
    inside.probes_section,
    inside.close_up_section,
    costs.tokenizer_section,
    costs.costs_section,
    costs.measures_section,
)
"""In their order on the page, below what is about all runs together."""


def write(
    runs: Sequence[Run],
    target: Path,
    verdicts: Sequence[Verdict] = (),
    notes: Sequence[str] = (),
    unfair: Mapping[str, Sequence[str]] | None = None,
    openings: Sequence[Opening] = (),
) -> None:
    """Write the page for these runs, the first of which is the baseline.

    `notes` are lines for it, `unfair` is what each variant does not have in common with the
    baseline, by the variant's name, and `openings` are the openings of test splits, of which those
    of these runs are shown.
    """
    shown = Shown.of(runs)
    with debug_mode(charts.CHECKED):
        compared = list(_compared(runs, shown, verdicts, unfair or {}, openings))
        of_variants = [section(shown) for section in SECTIONS]
    sections = [overview(runs, shown, notes), *compared, *of_variants]
    variants = quantity(len(shown.all_variants), "variant")
    title = f"Report: {shown.names[0] if len(shown.names) == 1 else variants}"
    legend = list(zip(shown.labels, shown.names, strict=True)) if len(shown.names) > 1 else []
    Page(title, legend, [section for section in sections if section]).write(target)


def _compared(
    runs: Sequence[Run],
    shown: Shown,
    verdicts: Sequence[Verdict],
    unfair: Mapping[str, Sequence[str]],
    openings: Sequence[Opening],
) -> Iterator[Section | None]:
    judged = comparison.verdicts_section(verdicts, shown)
    folded = comparison.unfair_element(unfair, shown)
    if folded and judged:
        yield replace(judged, content=[*judged.content, folded])
    elif folded:
        yield Section("", "", [folded])
    else:
        yield judged
    yield comparison.test_split_section(runs, openings)
