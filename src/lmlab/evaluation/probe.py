"""The stage `probe`: every probe looks at every snapshot that training left; what they read becomes
one table.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.core.files import whole_folder, write_json
from lmlab.core.params import Names, Params, Tree
from lmlab.core.progress import ProgressBar
from lmlab.core.registry import Choice
from lmlab.data.shards import Shards
from lmlab.data.tokenizers.base import Tokenizer
from lmlab.evaluation.closeup import close_up
from lmlab.evaluation.probes.base import Batch, Probe, Snapshot
from lmlab.model.device import use_device
from lmlab.model.models import base as models
from lmlab.model.models.base import LanguageModel
from lmlab.training import snapshots
from lmlab.training.interventions import base as interventions
from lmlab.training.interventions.base import build_rule

COLUMNS = pa.schema(
    {
        "step": pa.int64(),
        "tokens": pa.int64(),
        "probe": pa.string(),
        "measure": pa.string(),
        "where": pa.string(),
        "value": pa.float64(),
    }
)


class ProbeParams(Params):
    """The section `probe`."""

    probes: Names
    windows: int = Field(ge=2)
    text: str
    device: Literal["cpu", "cuda", "mps"]
    threads: int = Field(ge=1, le=4096)


def chosen(tree: Tree, params: ProbeParams) -> dict[str, Choice]:
    """The probes that `probe.probes` lists, by name. Raises UserError with the nearest spelling of
    one that is not there.
    """
    return {name: registry.choose(tree, "probes", name, "probe.probes") for name in params.probes}


def look(
    params: ProbeParams,
    probes: dict[str, Choice],
    shards: Shards,
    tokenizer: Tokenizer,
    snapshot_folder: Path,
    folder: Path,
) -> dict[str, float]:
    """Let all probes look at all snapshots, write `probes.parquet` and return what was timed, a
    name and a number each.

    `about.json` has how the readings of each probe are read (its attribute `reading`), and
    `close_up.json` shows the last snapshot's model at work on `probe.text`; there is none without a
    text or a snapshot.
    """
    device = use_device(params.device, params.threads)
    record, states = snapshots.read(snapshot_folder)
    if record["tokenizer_sha256"] != shards.manifest["tokenizer_sha256"]:
        raise UserError(
            f"{snapshot_folder} was left by a run with another tokenizer; run `dvc repro train`"
        )
    if not record["snapshots"]:
        print(
            "probe: nothing to look at: train.snapshots is 0, or the run diverged before one was"
            " taken",
            flush=True,
        )
    batch = fixed_batch(shards, record["context"], params.windows, device)
    looking: dict[str, Probe] = {name: choice.build() for name, choice in probes.items()}
    rows: list[dict[str, Any]] = []
    timed: dict[str, float] = {}
    last: LanguageModel | None = None
    with ProgressBar("probe", len(record["snapshots"]) * len(looking), "looks") as bar:
        for snapshot in (restored(record, state, device) for state in states):
            for name, probe in looking.items():
                at = {"step": snapshot.step, "tokens": snapshot.tokens, "probe": name}
                for measure, where, value in probe.look(snapshot, batch):
                    if probe.timed:
                        timed[f"{name}.{measure}.{where}.step_{snapshot.step}"] = value
                    else:
                        rows.append({**at, "measure": measure, "where": where, "value": value})
                bar.advance(1, name)
            last = snapshot.model
    pictures = close_up(last, tokenizer, shards.bos, params.text) if params.text and last else {}
    about = {name: getattr(probe, "reading", "") for name, probe in looking.items()}
    with whole_folder(folder) as made:
        pq.write_table(pa.Table.from_pylist(rows, schema=COLUMNS), made / "probes.parquet")
        write_json(made / "about.json", about)
        if pictures:
            write_json(made / "close_up.json", pictures)
    return timed


def restored(record: dict[str, Any], state: dict[str, Any], device: torch.device) -> Snapshot:
    """A snapshot with its model and rule as they were, from what `snapshots.read` gives."""
    choices = dict(_recalled(record["parts"]))
    model = models.build(choices["model"], record["vocabulary_size"], record["context"])
    choices["parametrisation"].build().start(model)  # a rule may go by it
    rule = build_rule(choices, model)
    model.load_state_dict(state["model"])
    rule.load_state_dict(state["rule"])
    after = {name: state["after"][name].to(device) for name, _ in model.named_parameters()}
    name = choices["model"].name
    return Snapshot(
        state["step"], state["tokens"], model.to(device).eval(), after, rule.to(device), name
    )


def _recalled(recorded: dict[str, Any]) -> Iterator[tuple[str, Choice]]:
    """The parts that make model and rule."""
    yield "model", registry.recall("models", recorded["model"])
    yield "parametrisation", registry.recall("parametrisations", recorded["parametrisation"])
    yield "learning_rule", registry.recall("learning_rules", recorded["learning_rule"])
    for key in interventions.KEYS:
        yield key, registry.recall("interventions", recorded[key])


def fixed_batch(shards: Shards, context: int, windows: int, device: torch.device) -> Batch:
    """Windows of the validation split, the first at its start, the last at its end, the others
    evenly between.

    A split shorter than a context is one shorter window.
    """
    ids = torch.from_numpy(shards.stream("validation").astype(np.int64))
    length = min(context, len(ids) - 1)
    starts = np.unique(np.linspace(0, len(ids) - 1 - length, windows).astype(np.int64))
    rows = ids[torch.from_numpy(starts)[:, None] + torch.arange(length + 1)].to(device)
    return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
