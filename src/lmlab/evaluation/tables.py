"""The tables that `evaluate` writes as CSV files: training curves, and the scores broken down."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lmlab.core.files import checked, whole_file
from lmlab.evaluation import blocks, character_classes
from lmlab.evaluation.measures.base import Trained
from lmlab.model.record import ModelRecord
from lmlab.model.scoring import Score
from lmlab.training.cost import bytes_at, flops_at

AMOUNTS = ("step", "tokens", "bytes", "flops")
"""What a run had had at a point of its curve, with all that it went on from."""
COLUMNS = {
    "training": (*AMOUNTS, "train_nats", "learning_rate", "gradient_norm"),
    "validation": (*AMOUNTS, "validation_nats", "validation_bits_per_byte"),
    "loss_by_position": ("position", "validation_nats"),
    "calibration": ("confidence", "accuracy", "predictions"),
    "character_classes": character_classes.COLUMNS,
    "validation_blocks": blocks.COLUMNS,
}
"""The least columns of each CSV file, whether or not a run has values for them: plots ask for them
by name.
"""
CURVES = {"training": "train_nats", "validation": "validation_nats"}
"""The tables made from the training log, each with the key that marks its lines there."""
MOST_CURVE_ROWS = 1000

Tables = dict[str, pd.DataFrame]


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a training log. Raises UserError if it is missing or damaged."""
    text = checked(path, made_by="train").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def curves(rows: list[dict[str, Any]], saved: ModelRecord) -> Tables:
    """The training log as the tables of CURVES, each thinned to at most MOST_CURVE_ROWS rows.

    Each row also has the bytes that its tokens stand for, and the FLOPs that backpropagation takes
    to train on them. A table is left out if the log has no line for it.
    """
    tables: Tables = {}
    for name, key in CURVES.items():
        lines = [row for row in rows if key in row]
        every = math.ceil(len(lines) / MOST_CURVE_ROWS)
        if lines:
            thinned = lines[::-1][::every][::-1]  # counted from the end: the last line is kept
            tables[name] = pd.DataFrame([_with_amounts(row, saved) for row in thinned])
    return tables


def _with_amounts(row: dict[str, Any], saved: ModelRecord) -> dict[str, Any]:
    """A line of the log with AMOUNTS first."""
    tokens = row["tokens"]
    amounts = {"bytes": round(bytes_at(saved, tokens)), "flops": flops_at(saved, tokens)}
    return {"step": row["step"], "tokens": tokens, **amounts, **row}


def of_scores(trained: Trained) -> Tables:
    """The validation scores by position in the window, confidence, character class and block."""
    scored = trained.scores["validation"]
    stream = trained.shards.stream("validation")
    token_bytes = trained.tokenizer.token_bytes
    return {
        "loss_by_position": loss_by_position(trained.scores),
        "calibration": calibration(scored),
        "character_classes": character_classes.table(scored, stream, token_bytes),
        "validation_blocks": blocks.table(scored, stream, token_bytes),
    }


def loss_by_position(scores: dict[str, Score]) -> pd.DataFrame:
    """Mean loss at each position of the window, from 1 on, in a column for each scored split."""
    columns: dict[str, pd.Series[float]] = {}
    for split, scored in scores.items():
        with np.errstate(invalid="ignore"):  # a position without any text has no mean
            columns[f"{split}_nats"] = pd.Series(
                scored.nats_by_position / scored.tokens_by_position
            )
    table = pd.DataFrame(columns)
    table.insert(0, "position", table.index + 1)
    return table.dropna()


def calibration(scored: Score) -> pd.DataFrame:
    """Mean confidence, accuracy and number of predictions for each bin of confidence in use."""
    used = scored.predictions > 0
    predictions = scored.predictions[used]
    columns = {
        "confidence": scored.confidence[used] / predictions,
        "accuracy": scored.correct[used] / predictions,
        "predictions": predictions,
    }
    return pd.DataFrame(columns)


def write(tables: Tables, folder: Path) -> list[str]:
    """Write a CSV file for each entry of COLUMNS and return the file names.

    A table that a run does not have is written without rows, a column that it does not have without
    values.
    """
    names = []
    for name, columns in COLUMNS.items():
        table = tables.get(name, pd.DataFrame(columns=list(columns)))
        missing = [column for column in columns if column not in table]
        table = table.assign(**dict.fromkeys(missing, math.nan))
        with whole_file(folder / f"{name}.csv") as partial:
            table.to_csv(partial, index=False, lineterminator="\n")
        names.append(f"{name}.csv")
    return names
