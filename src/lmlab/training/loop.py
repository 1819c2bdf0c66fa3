"""The training loop: step after step, with a log, snapshots and checkpoints.

`train` executes a run from start to finish with a `Trainer`: `build` it, `resume` from the last
checkpoint if there is one, `loop` over the steps that remain, `publish` the results.

The results of a run depend on its params, code and shards alone. It may be killed at any moment:
started again, it resumes from its last checkpoint and writes the same bytes as a run that was never
stopped. Times differ from run to run, so they are returned and not logged.

A run diverges when its loss, gradient or logits become NaN or infinite. That is a result like any
other: the run ends there, and its record has the status `diverged`.
"""

import sys
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from lmlab.core.errors import UserError
from lmlab.core.progress import ProgressBar
from lmlab.core.registry import Choice
from lmlab.core.scratch import scratch_folder
from lmlab.data.batches import Batches
from lmlab.data.shards import Shards
from lmlab.data.start import Start
from lmlab.data.tokenizers.base import Tokenizer
from lmlab.model import meeting, processes
from lmlab.model.compiling import compiler_errors
from lmlab.model.device import has_bfloat16, use_device
from lmlab.model.record import Divergence, RunSize, read_record
from lmlab.training import alike, checkpoint, continuing, results, snapshots
from lmlab.training import cost as sizing
from lmlab.training.checkpoint import Lines
from lmlab.training.monitor import Monitor
from lmlab.training.results import LOG, Ended, RunFolders, Timing
from lmlab.training.schedules.base import Schedule
from lmlab.training.status import ADVICE
from lmlab.training.step import Diverged, Run, StepResult, TrainParams, begin, take_step

BEST = "best.safetensors"
"""In the scratch folder: what was learned at the lowest validation loss."""


def train(
    params: TrainParams,
    parts: dict[str, Choice],
    shards: Shards,
    tokenizer: Tokenizer,
    folders: RunFolders,
    start: Start | None = None,
) -> Timing:
    """Train a model and write it, its log and its snapshots into the folders.

    `parts` are the parts that the params name. With `start` training goes on from there. The run
    takes `params.processes` processes, of which the first writes. Where another run is the same,
    this one waits and then takes over its results, or its last checkpoint if it was killed.
    """
    backend = "gloo" if params.device != "cuda" else "cpu:gloo,cuda:nccl"
    everything = (params, parts, shards, tokenizer, folders, start)
    return meeting.run("train.processes", params.processes, backend, _train, *everything)


def _train(
    params: TrainParams,
    parts: dict[str, Choice],
    shards: Shards,
    tokenizer: Tokenizer,
    folders: RunFolders,
    start: Start | None,
) -> Timing:
    """`train`, on each of its processes."""
    trainer = Trainer.build(params, parts, shards, tokenizer, folders, start)
    if not processes.is_first():
        trainer.follow()
        return trainer.timing()
    scratch, outputs = trainer.scratch, folders.by_name()
    with checkpoint.exclusive(scratch, on_wait=_say_waiting):
        earlier = checkpoint.take_over(scratch, outputs)
        if earlier is not None:
            processes.from_first(None)
            timing = Timing.model_validate(earlier)
        else:
            trainer.announce()
            trainer.resume()
            trainer.loop()
            timing = trainer.publish()
        if checkpoint.awaited(scratch):
            checkpoint.hand_on(scratch, outputs, timing.model_dump())
        else:
            checkpoint.discard(scratch)
    return timing


class Trainer:
    """One run: `build` it, then call `announce`, `resume`, `loop` and `publish`, in this order."""

    def __init__(
        self,
        run: Run,
        parts: dict[str, Choice],
        shards: Shards,
        tokenizer: Tokenizer,
        folders: RunFolders,
        scratch: Path,
    ) -> None:
        params = run.params
        self.run, self.parts, self.shards = run, parts, shards
        self.folders, self.scratch = folders, scratch
        self.batches = Batches(
            shards,
            params.batch,
            params.context,
            params.order_seed,
            params.pool_tokens,
            run.windows_read,
        )
        self.schedule: Schedule = parts["schedule"].build(params.steps)
        writes_snapshots = folders.snapshots and processes.is_first()
        snapshot_count = params.snapshots if writes_snapshots else 0
        own_steps = snapshots.positions(params.steps, snapshot_count)
        self.snapshot_steps = [run.first_step + step for step in own_steps]
        writes = processes.is_first()
        self.log = Lines(scratch / LOG if writes else None)
        self.times = Lines(scratch / "times.jsonl" if writes else None)
        self.monitor = Monitor(run, shards, tokenizer, self.log, self.times)
        self.current_step = 0
        """The step being taken, counted from 1."""
        self.diverged: Divergence | None = None
        self.is_new = False
        """Whether the run has begun in this process, from no checkpoint."""

    @classmethod
    def build(
        cls,
        params: TrainParams,
        parts: dict[str, Choice],
        shards: Shards,
        tokenizer: Tokenizer,
        folders: RunFolders,
        start: Start | None = None,
    ) -> "Trainer":
        """A run before its first step, from the seed or from where `start` ended.

        Its scratch folder is named by everything that decides the results, so that only the very
        same run finds a checkpoint there, on however many processes. Raises UserError where
        processes of the run differ in anything that decides.
        """
        device = use_device(params.device, params.threads)
        run = begin(params, parts, shards.vocabulary_size, device)
        decisive: dict[str, Any] = {
            "params": run.params.model_dump(exclude={"processes"}),
            "parts": results.records(parts),
            "shards": shards.fingerprint,
        }
        if start:
            decisive["start"] = continuing.state_sha256(start)
            decisive["migration"] = start.migration.record() if start.migration else None
            decisive["growths"] = [growth.record() for growth in start.growths]
            decisive["carries_optimizer_state"] = start.carries_optimizer_state
            _go_on(run, start, parts, shards, tokenizer)
        alike.check(decisive, device)
        scratch = scratch_folder(f"train-{checkpoint.run_key(decisive)}")
        return cls(run, parts, shards, tokenizer, folders, scratch)

    @cached_property
    def size(self) -> RunSize:
        """The run's size without the optimizer's state, which the first step allocates."""
        run, params = self.run, self.run.params
        microbatch = params.batch // params.gradient_accumulation
        return sizing.describe(run.model, run.optimizer, params.batch, microbatch, params.precision)

    def announce(self) -> None:
        """Print the run's size, with remarks and warnings about it."""
        params, text_tokens = self.run.params, self.batches.tokens
        for line in sizing.lines(self.size):
            print(f"train: {line}", flush=True)
        if params.processes > 1:
            print(f"train: {alike.how_shared(self.run)}", flush=True)
        for line in [*self.run.remarks, *_remarks(self.run, self.size, text_tokens)]:
            print(f"train: {line}", flush=True)
        if params.batch * params.context > text_tokens:
            print(
                f"warning: train: a batch of {params.batch:,} windows of {params.context:,} tokens"
                " is more than the whole text: windows repeat within a batch; set train.batch"
                " lower",
                file=sys.stderr,
                flush=True,
            )

    def resume(self) -> None:
        """Go back to the run's last checkpoint, if there is one.

        A checkpoint is used only if everything it refers to exists: the log, the times and the
        snapshots of the steps before it. Without one the run begins at its first step.
        """
        saved = checkpoint.load(self.scratch)
        if saved and self._reopen_files(saved):
            self._go_on_from(processes.from_first({"run": saved["run"]}))
            print(f"train: resuming from step {self.run.step:,}", flush=True)
        else:
            if (self.scratch / checkpoint.FILE).exists():
                print("train: the checkpoint is damaged: the run begins anew", flush=True)
            self.log.begin()
            self.times.begin()
            self._go_on_from(processes.from_first({}))

    def _go_on_from(self, saved: dict[str, Any]) -> None:
        if saved:
            self.run.restore(saved["run"])
        self.is_new = not saved

    def follow(self) -> None:
        """Take part in a run of which another process is the first: what it writes is not kept."""
        self.log.begin()
        self.times.begin()
        saved = processes.from_first(None)
        if saved is not None:  # else the first has found results that are finished
            self._go_on_from(saved)
            self.loop()

    def _reopen_files(self, saved: dict[str, Any]) -> bool:
        """Open log and times where a checkpoint left them; False where anything is missing."""
        step = saved["run"]["step"]
        return (
            snapshots.has_all(self.scratch, self.snapshot_steps, step)
            and self.log.begin(saved["log"])
            and self.times.begin(saved["times"])
        )

    def loop(self) -> None:
        """Take the steps that remain. Where the run diverges, note that and end."""
        params, run = self.run.params, self.run
        with compiler_errors():
            try:
                with ProgressBar("train", params.steps, "steps", run.own_step) as bar:
                    if run.earlier and self.is_new:
                        self.current_step = run.step
                        self.monitor.before_first_step(bar)
                    self._take_steps(bar)
                if run.step < run.last_step:
                    self._end_early()
                if params.keep == "best" and processes.is_first():
                    self._go_back_to_best()
            except Diverged as error:
                self._end_as_diverged(error)

    def _take_steps(self, bar: ProgressBar) -> None:
        """Take and log the remaining steps; save a checkpoint from time to time."""
        params, run = self.run.params, self.run
        saved_at = time.monotonic()
        self._keep_best()
        while run.step < run.last_step and not run.lost_patience:
            result = self._next_step()
            self.monitor.after_step(result, bar)
            self._keep_best()
            bar.advance(1)
            is_due = time.monotonic() - saved_at >= params.checkpoint_seconds
            if is_due and run.step < run.last_step and processes.is_first():
                self._save_checkpoint()
                saved_at = time.monotonic()

    def _next_step(self) -> StepResult:
        """Take a step, time it, count it, and write a snapshot if one is due (numbered from 0)."""
        run = self.run
        self.current_step = run.step + 1
        takes_snapshot = run.step in self.snapshot_steps
        before = snapshots.before(run.model, run.rule) if takes_snapshot else {}
        started = time.perf_counter()
        result = take_step(run, self.schedule, self.batches)
        run.seconds += time.perf_counter() - started
        if takes_snapshot:
            snapshot = {
                "step": run.step,
                "tokens": run.tokens,
                "learning_rate": result.learning_rate,
                **before,
                "after": run.model.state_dict(),
            }
            snapshots.write(self.scratch, snapshot)
        run.step += 1
        return result

    def _save_checkpoint(self) -> None:
        self.run.peak_bytes = results.peak_bytes(self.run)
        state = {"run": self.run.state(), "log": self.log.place(), "times": self.times.place()}
        checkpoint.save(self.scratch, state)

    def _keep_best(self) -> None:
        """Note what was learned, where it is the best yet and the run is to end with the best."""
        keeps = self.run.params.keep == "best" and processes.is_first()
        if keeps and self.run.is_best_yet:
            checkpoint.write(self.scratch / BEST, self.run.learned())

    def _end_early(self) -> None:
        """Say that no further step is taken."""
        run = self.run
        self.monitor.log_remaining_losses()
        reason = f"no better validation since step {run.best_step:,}"
        self.log.add({"step": run.step, "tokens": run.tokens, "stopped": reason})
        print(f"train: stopped early at step {run.step:,}: {reason}", flush=True)

    def _go_back_to_best(self) -> None:
        """Let the run end with what it had learned when its validation loss was lowest."""
        run = self.run
        if run.is_best_yet:
            return
        best = checkpoint.read(self.scratch / BEST)
        if best is None:
            raise UserError(
                f"{self.scratch / BEST}, this run's best weights, is missing or damaged; delete"
                f" {self.scratch} and run `dvc repro train`"
            )
        run.restore_learned(best)
        said = f"the weights of step {run.best_step:,}, whose validation loss was lowest"
        self.log.add({"step": run.step, "tokens": run.tokens, "kept": said})
        print(f"train: kept are {said}", flush=True)

    def _end_as_diverged(self, error: Diverged) -> None:
        """Note at which step the run diverged and why.

        The weights are those before that step, or those after it if validation or sampling failed.
        With `step_in_backward` some may already be updated.
        """
        self.diverged = Divergence(step=self.current_step, reason=error.reason)
        self.monitor.log_remaining_losses()
        print(
            f"train: DIVERGED at step {self.current_step:,}: {error.reason}. The run ends here and"
            f" is recorded as diverged; {ADVICE}",
            flush=True,
        )

    def publish(self) -> Timing:
        """Write what the run leaves into its folders; return what it took."""
        self.log.close()
        self.times.close()
        ended = Ended(
            self.run,
            self.parts,
            self.shards,
            self.batches.pool_tokens,
            self.scratch,
            self.size,
            self.snapshot_steps,
            self.diverged,
        )
        ended.publish(self.folders)
        return self.timing()

    def timing(self) -> Timing:
        """What the run took, as far as this process knows."""
        return results.timing_of(self.run, self.times.read())


def _go_on(
    run: Run, start: Start, parts: dict[str, Choice], shards: Shards, tokenizer: Tokenizer
) -> None:
    """Let a run that has been built from the seed go on from where another one ended.

    Raises UserError where it cannot.
    """
    saved = read_record(start.model, start.made_by)
    if not start.migration and saved.tokenizer_sha256 != shards.manifest.tokenizer_sha256:
        raise UserError(
            f"{start.model} was trained with another tokenizer than {shards.folder} was made with;"
            " run `dvc repro`"
        )
    position = results.position_of(run, shards, 0)
    taken = continuing.take_over(
        start, run.model, run.rule, run.optimizer, parts, position, tokenizer, shards
    )
    run.earlier = start.earlier
    run.step = run.first_step
    run.windows_read = taken.windows
    run.remarks = taken.remarks


def _say_waiting() -> None:
    print("train: another process is already executing this run; waiting for it", flush=True)


def _remarks(run: Run, size: RunSize, text_tokens: int) -> Iterator[str]:
    """What to expect of the run on this machine, one per line."""
    params = run.params
    too_large = sizing.too_large(size, params.device)
    if too_large:
        yield too_large
    yield f"{text_tokens:,} tokens of text, matrix products in {params.precision}"
    if params.precision == "bfloat16" and not has_bfloat16(run.device):
        yield (
            "slow, as this processor has no native bfloat16 support; set train.precision to float32"
        )
    if params.compile:
        yield "compiling in the first step: up to a few minutes the first time, then seconds"
