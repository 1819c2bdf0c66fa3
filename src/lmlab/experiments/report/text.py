"""Sections on what the model makes of text: held-out text, samples, and loss by what it is on."""

import math
import re
from collections.abc import Sequence

from pydantic import ValidationError

from lmlab.evaluation.heldout import HeldOut, Piece
from lmlab.experiments.compare.run import Run
from lmlab.experiments.report import charts
from lmlab.experiments.report.elements import (
    Chart,
    ColouredText,
    Element,
    Heading,
    Sample,
    Samples,
    Section,
)
from lmlab.experiments.report.shown import Shown

SAMPLE = re.compile(r"^## (.+?)\n+~~~~~~text\n(.*?)\n~~~~~~$", re.MULTILINE | re.DOTALL)
MOST_COLOURED = 4000
"""Characters of held-out text on the page, all variants together."""


def heldout_section(shown: Shown) -> Section | None:
    """The beginning of the validation text, coloured by each variant's cross-entropy."""
    records = {number: _heldout(run) for number, (_, run) in enumerate(shown.first_runs())}
    texts = {number: record.pieces for number, record in records.items() if record}
    if not any(texts.values()):
        return None
    most = MOST_COLOURED // len(texts)
    panels: dict[int, list[Element]] = {
        number: [ColouredText(_first(pieces, most))] for number, pieces in texts.items()
    }
    intro = (
        "The beginning of the validation text. The stronger the colour, the higher the"
        " cross-entropy in bits per character (a token's is spread over its characters). Point at a"
        " character, or walk with the arrow keys, for the tokens that were likeliest there."
    )
    return Section("Held-out text", intro, [shown.choice(panels)])


def _heldout(run: Run) -> HeldOut | None:
    content = run.open("results/heldout.json")
    try:
        record = HeldOut.model_validate_json(content) if content else None
    except ValidationError:
        return None
    return record if record and record.pieces else None


def _first(pieces: Sequence[Piece], most: int) -> Sequence[Piece]:
    """The first pieces, of so many characters together."""
    characters = 0
    for count, piece in enumerate(pieces):
        characters += len(piece.text)
        if characters > most:
            return pieces[:count]
    return pieces


def samples_section(shown: Shown) -> Section | None:
    """What the trained models write after each prompt, variants side by side."""
    texts = {label: _samples(run) for label, run in shown.first_runs()}
    prompts = list(dict.fromkeys(prompt for samples in texts.values() for prompt in samples))
    if not prompts:
        return None
    several = len(texts) > 1
    content: list[Element] = []
    for prompt in prompts:
        samples = [
            Sample(label, of_label[prompt], number) if several else Sample("", of_label[prompt])
            for number, (label, of_label) in enumerate(texts.items())
            if prompt in of_label
        ]
        content += [Heading(prompt.replace("`", "")), Samples(samples)]
    intro = "Written by the first run of each variant." if several else ""
    return Section("Samples", intro, content)


def _samples(run: Run) -> dict[str, str]:
    """The generated texts by prompt."""
    content = run.open("results/samples.md") or b""
    return dict(SAMPLE.findall(content.decode("utf-8", "replace")))


def calibration_section(shown: Shown) -> Section | None:
    """Accuracy against confidence."""
    table = shown.joined("calibration", "confidence", "accuracy", "predictions")
    if table is None:
        return None
    intro = (
        "How often the likeliest token was right, against its probability. A calibrated model lies"
        " on the dashed line. Larger points stand for more predictions."
    )
    return Section("Calibration", intro, [Chart(charts.reliability(table, shown.names))])


def position_section(shown: Shown) -> Section | None:
    """Cross-entropy by the position in the window."""
    table = shown.joined("loss_by_position", "position", "validation_nats")
    if table is None:
        return None
    kept = table[["variant", "run", "position", "validation_nats"]]
    axes = ("position in the window", "nats per token")
    description = "loss by position in the window"
    columns = ("position", "validation_nats")
    chart = Chart(charts.along(kept, shown.names, *columns, axes, description))
    intro = "What context is worth: cross-entropy by the number of tokens before."
    return Section("Loss by position", intro, [chart])


def class_section(shown: Shown) -> Section | None:
    """Bits per byte by class of character."""
    table = shown.joined("character_classes", "class", "nats_per_byte")
    if table is None:
        return None
    shares = ("nats_per_byte", "share_of_bytes", "share_of_nats")
    numbers = [key for key in shares if key in table]
    means = table.groupby(["class", "variant"], sort=False, as_index=False)[numbers].mean()
    means["bits"] = means["nats_per_byte"] / math.log(2)
    means["class"] = means["class"].str.replace("_", " ")
    intro = "A token's cross-entropy counts for the class of its first byte."
    chart = Chart(charts.classes(means, shown.names))
    return Section("Loss by class of character", intro, [chart])
