"""`lmlab final`: what the test split costs a finished run, read once all else is decided, and
counted (see openings).

The run's own model, tokenizer, shards and evaluate params are used, from the workspace, Git and
DVC's cache. Before the split is opened, validation is scored again: where it costs something else
than the run's results say, the code here reads the model otherwise than the code that made it.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.core import params
from lmlab.core.errors import UserError
from lmlab.core.files import SUMS
from lmlab.data.shards import Shards, open_shards
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import Tokenizer
from lmlab.evaluation import evaluate as results
from lmlab.evaluation.evaluate import SCORED, ScoreParams
from lmlab.experiments import openings
from lmlab.experiments.compare import history as runs
from lmlab.experiments.compare.run import MEASURES, WORKSPACE, Run
from lmlab.experiments.openings import Opening, counted, ordinal
from lmlab.experiments.wording import quantity
from lmlab.model.device import use_device
from lmlab.model.models import base as models
from lmlab.model.models.base import LanguageModel
from lmlab.model.record import ModelRecord
from lmlab.model.scoring import bits_per_byte

TEST = "test"
SAME = 5e-4
"""Bits per byte that validation may cost more or less than the run's results say; processors differ
by less.
"""
MODEL, TOKENIZER, SHARDS = "data/model", "data/tokenizer", "data/shards"


@dataclass(frozen=True)
class Opened:
    """What was read, and where it is kept once it is."""

    opening: Opening
    bytes: int
    """Of the test split's text."""
    order: int
    """Of the Kneser-Ney n-gram."""
    remark: str
    """What has to be said about a loss that tells nothing of the model; empty where it may tell
    something.
    """
    commit: str = ""
    """Of results/final.csv."""


def final(name: str, root: Path = Path()) -> Opened:
    """Score the test split of the run that is called so, write it down in results/final.csv and
    commit that.

    Raises UserError, with nothing opened or counted, for a name that means no run or several, a run
    that diverged or whose files are not to be had, a text without a test split, and where Git could
    not commit.
    """
    openings.check_can_be_kept(root)
    before = openings.known(root)
    run = _the_run(name, root)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        try:
            opened = _read(run, runs.commit_of(name, root), before, folder)
        except UserError as error:
            said = str(error).replace(f"{folder}/", "").replace("params.yaml: ", "")
            raise UserError(said if said.startswith(run.name) else f"{run.name}: {said}") from None
    return replace(opened, commit=openings.keep(before, opened.opening, root))


def _the_run(name: str, root: Path) -> Run:
    found, _ = runs.gather([name], root)
    run = found[0]
    if run.arm:
        raise UserError(
            f"{name}: studies keep no weights; name an experiment, a branch, a commit or"
            f" {WORKSPACE}"
        )
    if len(found) > 1:
        raise UserError(f"{name} means {len(found)} runs, {run.name} and others; name one")
    if run.broke:
        raise UserError(f"{run.name} {run.broke}: there is no model to score")
    return run


def _read(run: Run, commit: str, before: list[Opening], folder: Path) -> Opened:
    """What the test split costs the run's model and the references."""
    options = _options(run)
    _fetch(run, folder)
    tokenizer = tokenizers.load(folder / TOKENIZER / "tokenizer.json")
    shards = open_shards(folder / SHARDS, folder / TOKENIZER / "tokenizer.json")
    model, saved = models.load(folder / MODEL, use_device(options.device, options.threads))
    results.check_model_fits(saved, shards)
    if not shards.count(TEST, "tokens"):
        raise UserError(f"its text has no {TEST} split; set download.test above 0 and train again")
    _check_is_the_run(run, options, model, saved, shards)

    size = shards.count(TEST, "bytes")
    scored = results.score_split(options, model, shards, TEST, "final")
    bits = bits_per_byte(scored.nats, size)
    of_references = results.references_of(options, shards, TEST, results.fitted_to(options, shards))
    test = text_sha256(shards, tokenizer, TEST)
    opened, different = counted(before, saved.weights_sha256, test)
    opening = Opening(
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        run=run.name,
        commit=commit[:10],
        weights_sha256=saved.weights_sha256,
        corpus=str(run.params.get("download.corpus", "")),
        test_sha256=test,
        bits_per_byte=bits,
        **of_references,
        source_entropy=run.measures.get("references.source_entropy"),
        opened=opened,
        runs=different,
    )
    return Opened(opening, size, options.ngram_order, results.remark(shards, TEST, bits))


def _options(run: Run) -> ScoreParams:
    keys = [key for key in ScoreParams.model_fields if f"evaluate.{key}" in run.params]
    return params.section(
        {"evaluate": {key: run.params[f"evaluate.{key}"] for key in keys}}, "evaluate", ScoreParams
    )


def _fetch(run: Run, folder: Path) -> None:
    """Copy what scoring takes from where the run has it, one file at a time."""
    for path in _needed(run):
        content = run.open(path)
        if content is None:
            raise UserError(
                f"{path} is neither in the workspace nor in DVC's cache; {_remedy(run.name)}"
            )
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def _needed(run: Run) -> Iterator[str]:
    files = {
        MODEL: ["model.json", models.WEIGHTS],
        TOKENIZER: ["tokenizer.json"],
        SHARDS: ["manifest.json"],
    }
    manifest = _json(run, f"{SHARDS}/manifest.json")
    files[SHARDS] += [
        file["name"] for split in manifest.get("splits", {}).values() for file in split["files"]
    ]
    for folder, names in files.items():
        yield from (f"{folder}/{name}" for name in names)
        if run.open(f"{folder}/{SUMS}") is not None:
            yield f"{folder}/{SUMS}"


def _remedy(name: str) -> str:
    if name == WORKSPACE:
        return "run `dvc checkout`, or `dvc repro` to make it again"
    return (
        f"fetch it with `dvc exp pull REMOTE {name}` or `dvc pull`, or make it again: `git"
        " checkout`, then `dvc repro`"
    )


def _json(run: Run, path: str) -> dict[str, Any]:
    """What a run's JSON file holds; empty where it is not to be had or is damaged, which is told
    when it is read.
    """
    content = run.open(path)
    try:
        value = json.loads(content) if content else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _check_is_the_run(
    run: Run, options: ScoreParams, model: LanguageModel, saved: ModelRecord, shards: Shards
) -> None:
    """Raise UserError where these are not the weights, or this is not the code, that the run's
    results tell of.
    """
    told = _json(run, MEASURES).get("weights_sha256", saved.weights_sha256)
    if told != saved.weights_sha256:
        raise UserError(
            f"{MODEL} is not the model that {MEASURES} tells of; run `dvc checkout` or `dvc repro`"
        )
    there = run.measures.get(f"{SCORED}.bits_per_byte")
    if there is None:
        raise UserError(
            f"its results have no {SCORED}.bits_per_byte; run `dvc repro evaluate` there"
        )
    scored = results.score_split(options, model, shards, SCORED, "final")
    here = bits_per_byte(scored.nats, shards.count(SCORED, "bytes"))
    if not abs(here - there) <= SAME:
        raise UserError(
            f"the code here reads its model otherwise: {SCORED} costs {here:.4f} bits per byte,"
            " where its results say"
            f" {there:.4f}; take the code it was made with (`git checkout`), and `lmlab final"
            f" {WORKSPACE}` there"
        )


def text_sha256(shards: Shards, tokenizer: Tokenizer, split: str) -> str:
    """The hash of a split's text, the same whatever the tokenizer."""
    stream = shards.stream(split)
    text = hashlib.sha256()
    for document in np.split(stream, np.flatnonzero(stream == shards.bos))[1:]:
        text.update(tokenizer.decode(document[1:]).encode("utf-8") + b"\0")
    return text.hexdigest()


def lines(opened: Opened) -> Iterator[str]:
    """What was read, for people."""
    one = opened.opening
    yield f"{one.run} (commit {one.commit}, weights {one.weights_sha256[:10]})"
    yield f"test split of {one.corpus}, {opened.bytes:,} bytes, in bits per byte:"
    rows = {
        "this model": one.bits_per_byte,
        f"Kneser-Ney {opened.order}-gram": one.kneser_ney,
        "unigram": one.unigram,
        "uniform": one.uniform,
        "entropy of the source": one.source_entropy,
    }
    width = max(map(len, rows))
    yield from (f"  {what:<{width}}  {bits:.4f}" for what, bits in rows.items() if bits is not None)
    if opened.remark:
        yield f"  {opened.remark}"
    times = f"opened for the {ordinal(one.opened)} time, for {quantity(one.runs, 'run')}"
    yield (
        f"test split of this text: {times} (kept in {openings.FILE}, committed as {opened.commit})"
    )
