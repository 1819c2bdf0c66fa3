"""What a run leaves: the folders that it writes when it has ended, and what it took."""

import resource
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from lmlab.core.files import whole_folder
from lmlab.core.registry import Choice
from lmlab.data.shards import Shards
from lmlab.data.start import spent
from lmlab.model import processes
from lmlab.model.models import base as models
from lmlab.model.record import Divergence, RunSize, TrainingFacts
from lmlab.training import continuing, snapshots
from lmlab.training import cost as sizing
from lmlab.training.continuing import Position
from lmlab.training.optimizers.base import evaluation_weights
from lmlab.training.status import DIVERGED, FINISHED
from lmlab.training.step import Run

LOG = "log.jsonl"


@dataclass(frozen=True)
class RunFolders:
    """The folders that a run writes its results into."""

    model: Path
    """Weights and record (`models.save`)."""
    log: Path
    """The file LOG: one JSON object per line."""
    snapshots: Path | None = None
    """Without this folder no snapshots are taken."""
    state: Path | None = None
    """What a run that goes on from this one takes over beside the model; nothing without it."""

    def by_name(self) -> dict[str, Path]:
        """The configured folders by name."""
        folders = {"model": self.model, "training": self.log}
        if self.snapshots:
            folders["snapshots"] = self.snapshots
        if self.state:
            folders["state"] = self.state
        return folders


class SecondsAt(BaseModel):
    """Cumulative training seconds at each step whose training or validation loss is logged."""

    step: list[int]
    seconds: list[float]


class Timing(BaseModel):
    """Time and memory of a run, earlier starts included. Differs from run to run."""

    model_config = ConfigDict(frozen=True)

    training_seconds: float
    """In training steps alone."""
    validation_seconds: float
    tokens_per_second: float
    peak_bytes: int
    """Peak memory of the process; on a CUDA device, of the tensors there."""
    sent_bytes: int = 0
    """To other processes of the run, by the first of them since it was last started."""
    seconds_at: SecondsAt


@dataclass(frozen=True)
class Ended:
    """A run that has ended, before its results are published."""

    run: Run
    parts: Mapping[str, Choice]
    """That its params name."""
    shards: Shards
    pool_tokens: int
    scratch: Path
    """Where its log and its snapshots are."""
    size: RunSize
    """Without the optimizer's state."""
    snapshot_steps: Sequence[int]
    """Counted from 0; those that it did not reach, too."""
    diverged: Divergence | None

    def publish(self, folders: RunFolders) -> None:
        """Write model, snapshots, log and what it hands on into the run's folders."""
        with evaluation_weights(self.run.optimizer):
            models.save(folders.model, self.parts["model"], self.run.model, self._facts())
        if folders.snapshots:
            self._publish_snapshots(folders.snapshots)
        if folders.state:
            self._publish_state(folders.state)
        with whole_folder(folders.log) as partial:
            shutil.copyfile(self.scratch / LOG, partial / LOG)

    def _publish_state(self, folder: Path) -> None:
        run = self.run
        windows = run.windows_read + run.own_step * run.params.batch
        position = position_of(run, self.shards, windows)
        continuing.write(folder, run.model, run.rule, run.optimizer, self.parts, position)

    def _facts(self) -> TrainingFacts:
        """What the model's record says of its training."""
        run, params = self.run, self.run.params
        ending: dict[str, Any] = {"status": FINISHED}
        if self.diverged:
            ending = {"status": DIVERGED, "diverged": self.diverged}
        memory = self.size.bytes.model_copy(
            update={"optimizer": sizing.optimizer_bytes(run.optimizer)}
        )
        return TrainingFacts(
            **ending,
            tokenizer_sha256=self.shards.manifest.tokenizer_sha256,
            steps=run.step,
            seed=params.seed,
            data_seed=params.order_seed,
            pool_tokens=self.pool_tokens,
            precision=params.precision,
            tokens=run.tokens,
            bytes=self._bytes(),
            flops=self._flops(),
            earlier=run.earlier,
            size=self.size.model_copy(update={"bytes": memory}),
        )

    def _bytes(self) -> int:
        """Of the text that this run and those before it have trained on."""
        own = round(self.run.own_tokens * self.shards.bytes_per_token("train"))
        return spent(self.run.earlier).bytes + own

    def _flops(self) -> int:
        """That this run and those before it have spent."""
        forward = self.size.forward_flops_per_token or 0
        own = round(sizing.training_flops(forward, self.run.own_tokens))
        return spent(self.run.earlier).flops + own

    def _publish_snapshots(self, folder: Path) -> None:
        """Publish the snapshots, except that of the step at which the run diverged."""
        run = self.run
        steps = self.diverged.step - 1 if self.diverged else run.step
        taken = [step for step in self.snapshot_steps if step < steps]
        record = {
            "vocabulary_size": run.model.vocabulary_size,
            "context": run.model.context,
            "tokenizer_sha256": self.shards.manifest.tokenizer_sha256,
            "steps": run.step,
            "seed": run.params.seed,
            "parts": records(self.parts),
        }
        snapshots.publish(self.scratch, folder, taken, record)


def timing_of(run: Run, times: Sequence[tuple[float, float]]) -> Timing:
    """What a run took, as far as this process knows; `times` are steps and seconds."""
    return Timing(
        training_seconds=run.seconds,
        validation_seconds=run.validation_seconds,
        tokens_per_second=run.tokens / run.seconds if run.seconds else 0.0,
        peak_bytes=peak_bytes(run),
        sent_bytes=processes.sent_bytes(),
        seconds_at=SecondsAt(
            step=[int(step) for step, _ in times],
            seconds=[seconds for _, seconds in times],
        ),
    )


def position_of(run: Run, shards: Shards, windows: int) -> Position:
    """Where a run is that has read so many windows of these shards."""
    params = run.params
    return Position(
        shards=shards.fingerprint,
        context=params.context,
        seed=params.order_seed,
        pool_tokens=params.pool_tokens,
        windows=windows,
    )


def records(parts: Mapping[str, Choice]) -> dict[str, Any]:
    """Which parts they are, as plain values for JSON."""
    return {key: choice.record() for key, choice in parts.items()}


def peak_bytes(run: Run) -> int:
    """The most memory held so far, over all starts of the run.

    By tensors where they are on a CUDA device, otherwise by the whole process.
    """
    if run.device.type == "cuda":
        held = torch.cuda.max_memory_allocated(run.device)
    else:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        bytes_per_unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, elsewhere KiB
        held = usage.ru_maxrss * bytes_per_unit
    return max(run.peak_bytes, held)
