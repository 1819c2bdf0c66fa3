"""Studies: many small runs that differ in a few params, each a point that leaves one small JSON, all collected in a table.

A study is a folder with a params.yaml: `changes` to the project's own params that all its points share, and `operations`,
the floating-point operations each point may spend on training (0: as many steps as `train.steps` says). A point goes through
tokenizer, shards, training and evaluation in a folder of its own that does not stay.
"""

import json
import tempfile
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import Field
from ruamel.yaml import YAML

from lmlab import documents, params, parts, preflight, sharding, training
from lmlab.device import use_device
from lmlab.errors import UserError
from lmlab.evaluation.scoring import bits_per_byte, score
from lmlab.files import read_json, whole_file, write_json
from lmlab.models import base as models
from lmlab.params import Params, Tree
from lmlab.sharding import ShardParams
from lmlab.shards import open_shards
from lmlab.sizing import forward_operations
from lmlab.tokenizers import base as tokenizers
from lmlab.tokenizers.base import TokenizerParams
from lmlab.training import TrainParams

BACKWARD = 2
"""A backward pass costs about twice a forward pass: a product of matrices has two gradients, each a product of that size."""


class StudyParams(Params):
    """A study's params.yaml: the section `study`."""

    changes: dict[str, Any]
    operations: float = Field(ge=0)


def read(folder: Path) -> StudyParams:
    """A study's own params. Raises UserError when there are none."""
    return params.section(params.read(folder / "params.yaml"), "study", StudyParams)


def parsed(changes: Iterable[str]) -> dict[str, Any]:
    """`key=value` as on a command line, the value read as in params.yaml; `key*=factor` keeps its star in the key."""
    pairs = [change.partition("=") for change in changes]
    if wrong := [key for key, equals, _ in pairs if not equals]:
        raise UserError(f"{wrong[0]!r} is no change; write key=value")
    return {key: YAML(typ="safe", pure=True).load(value) for key, _, value in pairs}


def _value(tree: Tree, dotted: str) -> Any:
    block, _, key = dotted.removesuffix("*").rpartition(".")
    return params.block(tree, block)[key]


def changed(tree: Tree, changes: Mapping[str, Any]) -> Tree:
    """params.yaml with some values replaced, by dotted keys; `key*` multiplies. Raises UserError for a key it lacks."""
    copy = deepcopy(dict(tree))
    for dotted, value in changes.items():
        block, _, key = dotted.removesuffix("*").rpartition(".")
        at = params.block(copy, block)
        if key not in at or not isinstance(at, dict):
            raise UserError(f"params.yaml has no {block}.{key}; {params.nearest(key, at)}")
        at[key] = at[key] * value if dotted.endswith("*") else value
    return copy


def run_point(tree: Tree, operations: float, corpus: Path) -> dict[str, Any]:
    """Everything from the tokenizer to the evaluation with these params; what it measured, as plain values for JSON."""
    preflight.check(tree)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        chosen = parts.choices(tree, "tokenizer", params.section(tree, "tokenizer", TokenizerParams))["name"]
        tokenizer = tokenizers.fit(chosen, (text for _, _, text in documents.read_parts(corpus / "train.parquet")))
        tokenizers.save(chosen, tokenizer, folder / "tokenizer" / "tokenizer.json")
        sharding.build(params.section(tree, "shard", ShardParams), corpus, folder / "tokenizer", folder / "shards")
        shards = open_shards(folder / "shards", folder / "tokenizer" / "tokenizer.json")

        train = params.section(tree, "train", TrainParams)
        choices = parts.choices(tree, "train", train)
        if operations:
            train = _within(train, choices, shards.vocabulary, operations)
        timing = training.train(train, choices, shards, tokenizer, folder / "model", folder / "log")
        model, saved = models.load(folder / "model", use_device(train.device, train.threads))
        measures = {}
        for split in ("validation", "test"):
            if shards.count(split, "tokens"):
                scored = score(model, shards.stream(split), shards.document, model.context, model.context)
                bits = bits_per_byte(scored.nats, shards.count(split, "bytes"))
                measures[split] = {"bits_per_byte": bits, "nats_per_token": scored.nats_per_token}
        rows = [json.loads(line) for line in (folder / "log" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        spent = (1 + BACKWARD) * saved["size"]["forward_operations_per_token"] * saved["tokens"]
        return {
            **measures,
            "vocabulary": shards.vocabulary,
            "bytes_per_token": shards.count("validation", "bytes") / shards.count("validation", "tokens"),
            "parameters": saved["parameters"],
            "steps": saved["steps"],
            "tokens": saved["tokens"],
            "operations": spent,
            **timing,
            "curve": [[row["step"], row["validation_nats"]] for row in rows if "validation_nats" in row],
        }


def _within(train: TrainParams, choices: dict[str, parts.Choice], vocabulary: int, operations: float) -> TrainParams:
    """The same with as many steps as the operations pay for."""
    sized, run = training.begin(train, choices, vocabulary, torch.device("cpu"))
    a_step = (1 + BACKWARD) * forward_operations(run.model) * sized.batch * sized.context
    return train.model_copy(update={"steps": max(1, round(operations / a_step))})


def write_point(folder: Path, name: str, changes: dict[str, Any], corpus: Path) -> Path:
    """Run one point of the study in `folder` and write `points/<name>.json`: what it changed to what, what it measured.

    Where it breaks down, that is what was found: `broke` says how, and there are no measures.
    """
    study = read(folder)
    tree = changed(changed(params.read(), study.changes), changes)
    try:
        found = run_point(tree, study.operations, corpus)
    except UserError as error:
        if "broke down" not in str(error):
            raise
        found = {"broke": str(error).split(";")[0]}
    target = folder / "points" / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    write_json(target, {"changes": {key.removesuffix("*"): _value(tree, key) for key in changes}, **found})
    return target


def collect(folder: Path) -> pd.DataFrame:
    """All points of a study in one table, a row each in the order of their names, written to `results.csv` as well."""
    rows = []
    for path in sorted((folder / "points").glob("*.json")):
        point = read_json(path, made_by="point")
        of_splits = {
            f"{split}_{key}": value for split in ("validation", "test") for key, value in point.get(split, {}).items()
        }
        plain = {key: value for key, value in point.items() if not isinstance(value, dict | list)}
        rows.append({"point": path.stem, **point["changes"], **of_splits, **plain})
    if not rows:
        raise UserError(f"{folder / 'points'} holds no points; run `dvc repro {folder}/dvc.yaml`")
    table = pd.DataFrame(rows)
    with whole_file(folder / "results.csv") as partial:
        table.to_csv(partial, index=False, lineterminator="\n")
    return table
