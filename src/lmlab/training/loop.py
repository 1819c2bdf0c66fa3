"""The training loop: step after step, with checkpoints, and a log of losses, validation and
samples.

What a run ends in depends on its params, code and shards alone. It may be killed at any moment:
started again it goes on from its last checkpoint and writes the same bytes as a run that was never
stopped. Times go to the caller, not to the log.

A run whose loss is no finite number any more has diverged. That is a result like any other: the run
ends there, with the status `diverged` in its record and the weights it had before that step.
"""

import math
import resource
import shutil
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lmlab.core.files import sha256, whole_folder
from lmlab.core.progress import ProgressBar
from lmlab.core.registry import Choice
from lmlab.data.batches import Batches
from lmlab.data.shards import Shards
from lmlab.data.tokenizers.base import Ids, Tokenizer
from lmlab.model import generation
from lmlab.model.compiling import compiler_errors
from lmlab.model.device import has_bfloat16, use_device
from lmlab.model.models import base as models
from lmlab.model.scoring import bits_per_byte, score, zero_loss_remark
from lmlab.training import checkpoint, snapshots
from lmlab.training import cost as sizing
from lmlab.training.checkpoint import Lines
from lmlab.training.optimizers.base import evaluation_weights
from lmlab.training.schedules.base import Schedule
from lmlab.training.status import ADVICE
from lmlab.training.step import Diverged, Run, TrainParams, begin, take_step

LOG = "log.jsonl"
SAMPLE_TOKENS = 200
SAMPLE_TEMPERATURE = 0.8


def train(
    params: TrainParams,
    parts: dict[str, Choice],
    shards: Shards,
    tokenizer: Tokenizer,
    model_folder: Path,
    log_folder: Path,
    snapshot_folder: Path | None = None,
    start: Path | None = None,
) -> dict[str, Any]:
    """Train, write the model, the log (`log.jsonl`) and if wished snapshots; return what it took in
    time and memory.

    With `start`, the folder of a saved model, its weights are the first. What is returned differs
    from run to run: `training_seconds`, `validation_seconds`, `tokens_per_second`, `peak_bytes` of
    the process (on a GPU, of tensors there) and `seconds_at`, the seconds in training steps until
    each step of the log. They count over all starts of a run. A run that diverges ends there;
    model.json then has the status `diverged`, with the step and the reason.
    """
    device = use_device(params.device, params.threads)
    params, run = begin(params, parts, shards.vocabulary_size, device)
    chosen = {key: choice.record() for key, choice in parts.items()}
    decides = {"params": params.model_dump(), "parts": chosen, "shards": shards.fingerprint}
    if start:
        begun, _ = models.load(start, torch.device("cpu"))
        run.model.load_state_dict(begun.state_dict())
        decides["start"] = sha256(start / models.WEIGHTS)
    scratch = checkpoint.scratch_folder(checkpoint.run_key(decides))
    outputs = {"model": model_folder, "training": log_folder}
    if snapshot_folder:
        outputs["snapshots"] = snapshot_folder
    with checkpoint.alone(
        scratch,
        lambda: print("train: another process is at this very run; waiting for it", flush=True),
    ):
        facts = checkpoint.take_over(scratch, outputs)
        if facts is None:
            facts = _Training(params, parts, run, shards, tokenizer, scratch).result(
                model_folder, log_folder, snapshot_folder
            )
        if checkpoint.awaited(scratch):
            checkpoint.hand_on(scratch, outputs, facts)
        else:
            checkpoint.discard(scratch)
    return facts


class _Training:
    """One run from where it is to its end."""

    def __init__(
        self,
        params: TrainParams,
        parts: dict[str, Choice],
        run: Run,
        shards: Shards,
        tokenizer: Tokenizer,
        scratch: Path,
    ) -> None:
        self.params, self.parts, self.run, self.shards, self.tokenizer = (
            params,
            parts,
            run,
            shards,
            tokenizer,
        )
        self.scratch = scratch
        self.batches = Batches(
            shards,
            params.batch,
            params.context,
            params.order_seed,
            int(params.pool_megatokens * 1e6),
        )
        self.schedule: Schedule = parts["schedule"].build(params.steps)
        self.log, self.times = Lines(scratch / LOG), Lines(scratch / "times.jsonl")
        """Of the run, and (step, seconds in training steps until then) for each of its lines with a
        loss.
        """
        self.diverged: dict[str, Any] | None = None
        """The step and the reason, once it has."""
        self.taking = 0
        """The step that is being taken, counted from 1."""

    def result(
        self, model_folder: Path, log_folder: Path, snapshot_folder: Path | None
    ) -> dict[str, Any]:
        """Go on from the last checkpoint, or begin; publish what comes out; return the times."""
        params, run = self.params, self.run
        size = self._describe()
        due = snapshots.positions(params.steps, params.snapshots if snapshot_folder else 0)
        self._resume(due)
        with compiler_errors():
            try:
                self._loop(due)
            except Diverged as error:
                self._end_as_diverged(error)
        self.log.close()
        self.times.close()

        size["bytes"]["optimizer"] = sizing.optimizer_bytes(run.optimizer)
        tokens = run.step * params.batch * params.context
        facts = {
            "tokenizer_sha256": self.shards.manifest.tokenizer_sha256,
            "steps": run.step,
            "seed": params.seed,
        }
        ran = {
            "data_seed": params.order_seed,
            "pool_tokens": self.batches.pool_tokens,
            "precision": params.precision,
        }
        ended: dict[str, Any] = (
            {"status": "diverged", "diverged": self.diverged}
            if self.diverged
            else {"status": "finished"}
        )
        with evaluation_weights(run.optimizer):
            record = {**ended, **facts, **ran, "tokens": tokens, "size": size}
            models.save(model_folder, self.parts["model"], run.model, record)
        if snapshot_folder:
            chosen = {key: choice.record() for key, choice in self.parts.items()}
            record = {
                "vocabulary_size": run.model.vocabulary_size,
                "context": run.model.context,
                **facts,
                "parts": chosen,
            }
            # a step that led to no numbers is not looked at
            whole = [
                step for step in due if step < (self.taking - 1 if self.diverged else run.step)
            ]
            snapshots.publish(self.scratch, snapshot_folder, whole, record)
        with whole_folder(log_folder) as made:
            shutil.copyfile(self.log.path, made / LOG)
        at = self.times.read()
        return {
            "training_seconds": run.seconds,
            "validation_seconds": run.validation_seconds,
            "tokens_per_second": tokens / run.seconds if run.seconds else 0.0,
            "peak_bytes": _peak_bytes(run),
            "seconds_at": {
                "step": [int(step) for step, _ in at],
                "seconds": [seconds for _, seconds in at],
            },
        }

    def _describe(self) -> dict[str, Any]:
        """The run's size, which is printed too, with all else that is good to know before it takes
        its time.
        """
        params, run = self.params, self.run
        at_once = params.batch // params.gradient_accumulation
        size = sizing.describe(run.model, run.optimizer, params.batch, at_once, params.precision)
        for line in sizing.lines(size):
            print(f"train: {line}", flush=True)
        if too_large := sizing.too_large(size, params.device):
            print(f"train: {too_large}", flush=True)
        print(
            f"train: {self.batches.tokens:,} tokens of text, matrix products in {params.precision}",
            flush=True,
        )
        if params.batch * params.context > self.batches.tokens:
            print(
                f"warning: train: a batch of {params.batch:,} windows of {params.context:,}"
                " tokens is more than the whole"
                " text: the same windows come several times in it; set train.batch lower",
                file=sys.stderr,
                flush=True,
            )
        if params.precision == "bfloat16" and not has_bfloat16(next(run.model.parameters()).device):
            print(
                "train: slow, as this processor cannot multiply bfloat16 itself; set"
                " train.precision to float32",
                flush=True,
            )
        if params.compile:
            print(
                "train: compiling in the first step: up to some minutes the first time, then"
                " seconds",
                flush=True,
            )
        return size

    def _resume(self, due: list[int]) -> None:
        """Go back to the last checkpoint if there is one and all that belongs to it, else to the
        start.
        """
        saved = checkpoint.load(self.scratch)
        whole = saved is not None and snapshots.has_all(self.scratch, due, saved["run"]["step"])
        if saved and whole and self.log.begin(saved["log"]) and self.times.begin(saved["times"]):
            self.run.restore(saved["run"])
            print(f"train: going on from step {self.run.step:,}", flush=True)
        else:
            self.log.begin()
            self.times.begin()

    def _loop(self, due: list[int]) -> None:
        params, run = self.params, self.run
        saved_at = time.monotonic()
        with ProgressBar("train", params.steps, "steps", run.step) as bar:
            record = _Record(params, run, self.shards, self.tokenizer, self.log, self.times, bar)
            while run.step < params.steps:
                self.taking = run.step + 1
                before = snapshots.before(run.model, run.rule) if run.step in due else None
                started = time.perf_counter()
                loss, norm, rate = take_step(params, run, self.schedule, self.batches)
                run.seconds += time.perf_counter() - started
                if before:
                    seen = {
                        "step": run.step,
                        "tokens": run.step * params.batch * params.context,
                        "learning_rate": rate,
                    }
                    snapshots.write(
                        self.scratch, {**seen, **before, "after": run.model.state_dict()}
                    )
                run.step += 1
                record.after_step(loss, norm, rate)
                bar.advance(1)
                if (
                    run.step < params.steps
                    and time.monotonic() - saved_at >= params.checkpoint_seconds
                ):
                    self._save()
                    saved_at = time.monotonic()

    def _save(self) -> None:
        self.run.peak_bytes = _peak_bytes(self.run)
        state = {"run": self.run.state(), "log": self.log.place(), "times": self.times.place()}
        checkpoint.save(self.scratch, state)

    def _end_as_diverged(self, error: Diverged) -> None:
        """Record that the run ends here: before a step that it could not take, or behind one that
        left it speechless.
        """
        run = self.run
        self.diverged = {"step": self.taking, "reason": error.reason}
        if run.loss_count:  # what the log has not told yet
            seen = {"step": run.step, "tokens": run.step * self.params.batch * self.params.context}
            self.log.add({**seen, "train_nats": run.loss_sum / run.loss_count})
            self.times.add([run.step, run.seconds])
        print(
            f"train: DIVERGED at step {self.taking:,}: {error.reason}. The run ends here and is"
            " recorded as diverged;"
            f" {ADVICE}",
            flush=True,
        )


def _peak_bytes(run: Run) -> int:
    """The most memory held so far: by tensors where they are on a CUDA device, otherwise by the
    whole process.
    """
    device = next(run.model.parameters()).device
    if device.type == "cuda":
        held = torch.cuda.max_memory_allocated(device)
    else:
        most = resource.getrusage(
            resource.RUSAGE_SELF
        ).ru_maxrss  # bytes on macOS, kibibytes elsewhere
        held = most if sys.platform == "darwin" else most * 1024
    return max(run.peak_bytes, held)


@dataclass
class _Record:
    """What goes into the log and on the screen after a step: loss, validation and samples, each
    when it is due.
    """

    params: TrainParams
    run: Run
    shards: Shards
    tokenizer: Tokenizer
    log: Lines
    times: Lines
    bar: ProgressBar

    def after_step(self, loss: float, norm: float, rate: float) -> None:
        """Raises Diverged when what the model would say next is no number."""
        params, run = self.params, self.run
        run.loss_sum, run.loss_count = run.loss_sum + loss, run.loss_count + 1
        last = run.step == params.steps
        seen = {"step": run.step, "tokens": run.step * params.batch * params.context}
        validates = last or (params.validate_every and run.step % params.validate_every == 0)
        if validates or run.step % params.log_every == 0:
            self.times.add([run.step, run.seconds])
        if last or run.step % params.log_every == 0:
            mean, run.loss_sum, run.loss_count = run.loss_sum / run.loss_count, 0.0, 0
            self.log.add({**seen, "train_nats": mean, "learning_rate": rate, "gradient_norm": norm})
            self.bar.advance(0, f"loss {mean:.3f}, {seen['tokens'] / run.seconds:,.0f} tokens/s")
        try:
            if validates:
                self._validate(seen)
            if params.sample_every and (last or run.step % params.sample_every == 0):
                self._sample(seen)
        except FloatingPointError as error:
            raise Diverged(str(error)) from None

    @cached_property
    def _validation(self) -> Ids:
        return self.shards.stream("validation")

    def _validate(self, seen: dict[str, int]) -> None:
        run, context = self.run, self.params.context
        started = time.perf_counter()
        with evaluation_weights(run.optimizer):
            scored = score(run.model, self._validation, self.shards.bos, context, context)
        if not math.isfinite(scored.nats):
            raise Diverged(f"the loss on validation is {scored.nats}")
        bits = bits_per_byte(scored.nats, self.shards.count("validation", "bytes"))
        self.log.add(
            {**seen, "validation_nats": scored.nats_per_token, "validation_bits_per_byte": bits}
        )
        run.validation_seconds += time.perf_counter() - started
        loss = (
            f"{scored.nats_per_token:.4f} nats/token, {bits:.4f} bits/byte{zero_loss_remark(bits)}"
        )
        self.bar.say(f"train: step {run.step:,}: validation {loss}")

    def _sample(self, seen: dict[str, int]) -> None:
        model, seed = self.run.model, self.params.seed
        with evaluation_weights(self.run.optimizer):
            text = "".join(
                generation.sample_text(
                    model, self.tokenizer, "", SAMPLE_TOKENS, SAMPLE_TEMPERATURE, seed
                )
            )
        self.log.add({**seen, "sample": text})
        self.bar.say("\n".join(f"    {line}" for line in text.strip().splitlines()[:6]))
