"""`lmlab final`: the cross-entropy of a finished run on the test split, opened once all else is
decided, and counted (see openings).

The run's own model, tokenizer, shards and evaluate params are used, from the workspace, Git and
DVC's cache. Before the split is opened, validation is scored again. A score that differs from the
run's results shows that the code here does not compute what the code that made the model computed.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
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
from lmlab.experiments.compare import history
from lmlab.experiments.compare.run import MEASURES, WORKSPACE, Run
from lmlab.experiments.openings import Opening, counted
from lmlab.model.device import use_device
from lmlab.model.models import base as models
from lmlab.model.models.base import LanguageModel
from lmlab.model.scoring import bits_per_byte

TEST = "test"
SAME = 5e-4
"""Bits per byte by which validation may differ from the results; processors differ by less."""
MODEL, TOKENIZER, SHARDS = "data/model", "data/tokenizer", "data/shards"


@dataclass(frozen=True)
class Opened:
    """What was read, and the commit that counts it."""

    opening: Opening
    bytes: int
    """Of the test split's text."""
    order: int
    """Of the Kneser-Ney n-gram."""
    remark: str
    """What has to be said about a loss that says nothing about the model; empty for others."""
    commit: str = ""
    """Of results/final.csv."""


def final(name: str, root: Path = Path()) -> Opened:
    """Score the test split of the run of this name, record it in results/final.csv and commit that.

    Raises UserError, with nothing opened or counted, for a name that means no run or several, a run
    that diverged or whose files cannot be had, a text without a test split, and where Git could not
    commit.
    """
    openings.check_can_be_kept(root)
    before = openings.known(root)
    run = _find_run(name, root)
    commit = history.commit_of(name, root)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            opened = _open(run, commit, before, folder)
        except UserError as error:
            # files are those of the run, not of the temporary folder, and so are params
            message = str(error).replace(f"{folder}/", "").replace("params.yaml: ", "")
            raise UserError(f"{run.name}: {message}") from None
    return replace(opened, commit=openings.keep(before, opened.opening, root))


def _find_run(name: str, root: Path) -> Run:
    runs = history.read([name], root)
    run = runs[0]
    if run.arm:
        raise UserError(
            f"{name}: studies keep no weights; name an experiment, a branch, a commit or"
            f" {WORKSPACE}"
        )
    if len(runs) > 1:
        raise UserError(f"{name} means {len(runs)} runs, {run.name} and others; name one")
    if run.diverged:
        raise UserError(f"{run.name} {run.diverged}: there is no model to score")
    return run


def _open(run: Run, commit: str, before: list[Opening], folder: Path) -> Opened:
    """Score the test split by the run's model and by the references."""
    options = _options(run)
    _fetch(run, folder)
    tokenizer = tokenizers.load(folder / TOKENIZER / "tokenizer.json")
    shards = open_shards(folder / SHARDS, folder / TOKENIZER / "tokenizer.json")
    model, saved = models.load(folder / MODEL, use_device(options.device, options.threads))
    results.check_model_fits(saved, shards)
    if not shards.count(TEST, "tokens"):
        raise UserError(f"its text has no {TEST} split; set download.test above 0 and train again")
    weights = saved.weights_sha256
    _check_weights(run, weights)
    _check_code(run, options, model, shards)

    size = shards.count(TEST, "bytes")
    scored = results.score_split(options, model, shards, TEST, "final")
    bits = bits_per_byte(scored.nats, size)
    reference_text = results.reference_text(options, shards)
    references = results.references_of(options, shards, TEST, reference_text)
    test = text_sha256(shards, tokenizer, TEST)
    opened, different_runs = counted(before, weights, test)
    opening = Opening(
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        run=run.name,
        commit=commit[:10],
        weights_sha256=weights,
        corpus=str(run.params.get("download.corpus", "")),
        test_sha256=test,
        bits_per_byte=bits,
        **asdict(references),
        source_entropy=run.measures.get("references.source_entropy"),
        opened=opened,
        runs=different_runs,
    )
    return Opened(opening, size, options.ngram_order, results.remark(shards, TEST, bits))


def _options(run: Run) -> ScoreParams:
    keys = [key for key in ScoreParams.model_fields if f"evaluate.{key}" in run.params]
    block = {key: run.params[f"evaluate.{key}"] for key in keys}
    return params.section({"evaluate": block}, "evaluate", ScoreParams)


def _fetch(run: Run, folder: Path) -> None:
    """Copy the files that scoring needs into a folder, one at a time."""
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
    manifest = _read_json(run, f"{SHARDS}/manifest.json")
    for split in manifest.get("splits", {}).values():
        files[SHARDS] += [file["name"] for file in split["files"]]
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


def _read_json(run: Run, path: str) -> dict[str, Any]:
    """The content of a run's JSON file; empty where it cannot be had or is damaged.

    Whoever needs the file itself reports that.
    """
    content = run.open(path)
    try:
        value = json.loads(content) if content else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _check_weights(run: Run, weights: str) -> None:
    """Raise UserError where these are not the weights that the run's results are about."""
    recorded = _read_json(run, MEASURES).get("weights_sha256", weights)
    if recorded != weights:
        raise UserError(
            f"{MODEL} is not the model that {MEASURES} is about; run `dvc checkout` or `dvc repro`"
        )


def _check_code(run: Run, options: ScoreParams, model: LanguageModel, shards: Shards) -> None:
    """Raise UserError where the code here scores validation otherwise than the run's results."""
    recorded = run.measures.get(f"{SCORED}.bits_per_byte")
    if recorded is None:
        raise UserError(
            f"its results have no {SCORED}.bits_per_byte; run `dvc repro evaluate` there"
        )
    scored = results.score_split(options, model, shards, SCORED, "final")
    bits = bits_per_byte(scored.nats, shards.count(SCORED, "bytes"))
    if not abs(bits - recorded) <= SAME:
        raise UserError(
            f"the code here does not compute what its own code computed: {SCORED} scores"
            f" {bits:.4f} bits per byte here and {recorded:.4f} in its results; take the code it"
            f" was made with (`git checkout`), and run `lmlab final {WORKSPACE}` there"
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
    opening = opened.opening
    yield f"{opening.run} (commit {opening.commit}, weights {opening.weights_sha256[:10]})"
    yield f"test split of {opening.corpus}, {opened.bytes:,} bytes, in bits per byte:"
    rows = {
        "this model": opening.bits_per_byte,
        f"Kneser-Ney {opened.order}-gram": opening.kneser_ney,
        "unigram": opening.unigram,
        "uniform": opening.uniform,
        "entropy of the source": opening.source_entropy,
    }
    width = max(map(len, rows))
    for name, bits in rows.items():
        if bits is not None:
            yield f"  {name:<{width}}  {bits:.4f}"
    if opened.remark:
        yield f"  {opened.remark}"
    yield (
        f"test split of this text: {openings.times(opening)} (kept in {openings.FILE}, committed"
        f" as {opened.commit})"
    )
