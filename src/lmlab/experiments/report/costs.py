"""Sections of numbers: the tokenizer, what the stages took, every measure."""

from lmlab.experiments.compare.run import Run
from lmlab.experiments.report.elements import Fold, Section, Table, without_empty_columns
from lmlab.experiments.report.numbers import rounded, words
from lmlab.experiments.report.shown import Shown, mean, read_json

STAGES = ("download", "tokenizer", "shard", "train", "evaluate", "probe")


def tokenizer_section(shown: Shown) -> Section | None:
    """The numbers of each variant's tokenizer."""
    reports = {
        label: read_json(run, "data/tokenizer/report.json") for label, run in shown.first_runs()
    }
    numbers = {label: _numbers(report) for label, report in reports.items() if report}
    if not numbers:
        return None
    keys = list(dict.fromkeys(key for report in numbers.values() for key in report))
    head = ["", *map(words, keys)]
    rows = [[label, *(report.get(key, "") for key in keys)] for label, report in numbers.items()]
    return Section("Tokenizer", "On the training text.", [Table(head, rows)])


def _numbers(report: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in report.items() if isinstance(value, int | float)}


def costs_section(shown: Shown) -> Section | None:
    """Time and memory of each variant's first run, where they are known."""
    head = ["", *(f"{stage}, s" for stage in STAGES), "tokens/s", "peak memory, MB"]
    rows = [[label, *map(rounded, _costs(run))] for label, run in shown.first_runs()]
    table = without_empty_columns(head, rows)
    if len(table.head) == 1:
        return None
    intro = "Of each variant's first run, measured once, whatever else the machine was doing."
    return Section("Costs", intro, [table])


def _costs(run: Run) -> list[object]:
    timing = {stage: read_json(run, f"data/timing/{stage}.json") or {} for stage in STAGES}
    train = timing["train"]
    memory = train["peak_bytes"] / 1e6 if "peak_bytes" in train else ""
    seconds = [timing[stage].get("seconds", "") for stage in STAGES]
    return [*seconds, train.get("tokens_per_second", ""), memory]


def measures_section(shown: Shown) -> Section | None:
    """Everything that was measured, folded away."""
    if not shown.variants:
        return None
    keys = dict.fromkeys(key for _, run in shown.runs() for key in run.measures)
    rows: list[list[object]] = []
    for key in keys:
        means = [mean(variant, key) for variant in shown.variants]
        rows.append([key, *("" if value is None else value for value in means)])
    table = Table(["", *shown.labels], rows)
    return Section("Every measure", "", [Fold("all measures; means over seeds", [table])])
