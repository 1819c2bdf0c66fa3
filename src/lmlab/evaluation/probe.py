"""The stage `probe`: every probe looks at every snapshot that training left, for one table."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
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
from lmlab.model import processes
from lmlab.model.device import use_device
from lmlab.model.models import base as models
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
"""Of probes.parquet."""


class ProbeParams(Params):
    """The section `probe`."""

    probes: Names
    windows: int = Field(ge=2)
    text: str
    processes: int = Field(ge=1, le=4096)
    device: Literal["cpu", "cuda", "mps"]
    threads: int = Field(ge=1, le=4096)


@dataclass(frozen=True)
class Row:
    """A reading of a probe at a snapshot: a row of probes.parquet, with its columns."""

    step: int
    tokens: int
    probe: str
    measure: str
    where: str
    value: float


@dataclass(frozen=True)
class Readings:
    """What all probes read off all snapshots, in order."""

    rows: list[Row] = field(default_factory=list)
    timed: list[Row] = field(default_factory=list)
    """Readings of the probes whose numbers differ each time, kept out of the table."""

    def timings(self) -> dict[str, float]:
        """The timed readings by dotted name, as in the stage's timing file."""
        return {
            f"{row.probe}.{row.measure}.{row.where}.step_{row.step}": row.value
            for row in self.timed
        }


def chosen(tree: Tree, params: ProbeParams) -> dict[str, Choice]:
    """The probes listed in `probe.probes`, by name.

    Raises UserError with the nearest known name for one that does not exist.
    """
    return {name: registry.choose(tree, "probes", name, "probe.probes") for name in params.probes}


def look(
    params: ProbeParams,
    probes: dict[str, Choice],
    shards: Shards,
    tokenizer: Tokenizer,
    snapshot_folder: Path,
    folder: Path,
    further: Mapping[str, Callable[[Snapshot, Batch], Any]] = MappingProxyType({}),
) -> Readings:
    """Let all probes look at all snapshots; write probes.parquet and return the readings.

    about.json says how the numbers of each probe are read (its attribute `reading`), and
    close_up.json shows the last snapshot's model at work on `probe.text`; without a text or a
    snapshot there is none. `further` are JSON files by name, each made of the last snapshot.

    Raises UserError if the snapshots are of another tokenizer.
    """
    device = use_device(params.device, params.threads)
    record, states = snapshots.read(snapshot_folder)
    if record["tokenizer_sha256"] != shards.manifest.tokenizer_sha256:
        raise UserError(
            f"{snapshot_folder} was left by a run with another tokenizer; run `dvc repro train`"
        )
    count = len(record["snapshots"])
    if not count:
        print(
            "probe: nothing to look at: train.snapshots is 0, or the run diverged before one was"
            " taken",
            flush=True,
        )
    batch = fixed_batch(shards, record["context"], params.windows, device)
    built: dict[str, Probe] = {name: choice.build() for name, choice in probes.items()}
    rank, total = processes.share()
    own = list(built)[rank::total]
    looks: list[dict[str, list[Row]]] = []  # of the snapshots in order, by probe
    last: Snapshot | None = None
    with ProgressBar("probe", count * len(own), "looks") as bar, processes.alone():
        for state in states:
            last = restored(record, state, device)
            looks.append({})
            for name in own:
                looks[-1][name] = list(_rows(name, built[name], last, batch))
                bar.advance(1, name)
    looks_of_all = processes.every(looks)
    readings = Readings()
    for of_snapshot in zip(*looks_of_all, strict=True):
        rows_of = {name: rows for some in of_snapshot for name, rows in some.items()}
        for name, probe in built.items():
            (readings.timed if probe.timed else readings.rows).extend(rows_of[name])
    if not processes.is_first():
        return readings
    about = {name: probe.reading for name, probe in built.items()}
    with whole_folder(folder) as partial:
        table = pa.Table.from_pylist([asdict(row) for row in readings.rows], schema=COLUMNS)
        pq.write_table(table, partial / "probes.parquet")
        write_json(partial / "about.json", about)
        if params.text and last:
            shown = close_up(last.model, tokenizer, shards.bos, params.text)
            write_json(partial / "close_up.json", shown.as_json())
        if last:
            for file, made_of in further.items():
                write_json(partial / file, made_of(last, batch))
    return readings


def _rows(name: str, probe: Probe, snapshot: Snapshot, batch: Batch) -> Iterator[Row]:
    """The readings of one probe at one snapshot."""
    for measure, where, value in probe.look(snapshot, batch):
        yield Row(snapshot.step, snapshot.tokens, name, measure, where, value)


def restored(record: dict[str, Any], state: dict[str, Any], device: torch.device) -> Snapshot:
    """A snapshot with its model and rule as they were, from what `snapshots.read` returns."""
    choices = _recalled(record["parts"])
    model = models.build(choices["model"], record["vocabulary_size"], record["context"])
    choices["parametrisation"].build().scale_initialisation(model)  # a rule may depend on it
    rule = build_rule(choices, model)
    model.load_state_dict(state["model"])
    rule.load_state_dict(state["rule"])
    after = {name: state["after"][name].to(device) for name, _ in model.named_parameters()}
    return Snapshot(
        step=state["step"],
        tokens=state["tokens"],
        model=model.to(device).eval(),
        after=after,
        rule=rule.to(device),
        name=choices["model"].name,
    )


def _recalled(parts: dict[str, Any]) -> dict[str, Choice]:
    """The parts that model and rule are built from, by the key of `train` that names them."""
    kinds = {
        "model": "models",
        "parametrisation": "parametrisations",
        "learning_rule": "learning_rules",
        **dict.fromkeys(interventions.KEYS, "interventions"),
    }
    return {key: registry.recall(kind, parts[key]) for key, kind in kinds.items()}


def fixed_batch(shards: Shards, context: int, windows: int, device: torch.device) -> Batch:
    """Evenly spaced windows of the validation split, the first at its start, the last at its end.

    A split shorter than a context is one shorter window.
    """
    ids = torch.from_numpy(shards.stream("validation").astype(np.int64))
    length = min(context, len(ids) - 1)
    starts = np.unique(np.linspace(0, len(ids) - 1 - length, windows).astype(np.int64))
    rows = ids[torch.from_numpy(starts)[:, None] + torch.arange(length + 1)].to(device)
    return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
