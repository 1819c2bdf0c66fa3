"""The training loop: step after step, with checkpoints, and a log of losses, validation and samples.

What a run ends in depends on its params, code and shards alone. It may be killed at any moment: started again it goes on
from its last checkpoint and writes the same bytes as a run that was never stopped. Times go to the caller, not to the log.
"""

import json
import math
import resource
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lmlab import checkpoint, generation, sizing, snapshots
from lmlab.batches import Batches
from lmlab.compiling import failures_told
from lmlab.device import multiplies_bfloat16, use_device
from lmlab.errors import UserError
from lmlab.evaluation.scoring import bits_per_byte, score
from lmlab.files import sha256
from lmlab.models import base as models
from lmlab.optimizers.base import evaluation_weights
from lmlab.parts import Choice
from lmlab.progress import ProgressBar
from lmlab.schedules.base import Schedule
from lmlab.shards import Shards
from lmlab.stepping import Run, TrainParams, begin, take_step
from lmlab.tokenizers.base import Ids, Tokenizer

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
    """Train, write the model, the log (`log.jsonl`) and if wished snapshots; return what it took in time and memory.

    With `start`, the folder of a saved model, its weights are the first. What is returned differs from run to run:
    `training_seconds`, `validation_seconds`, `tokens_per_second`, `peak_bytes` of the process (on a GPU, of tensors there)
    and `seconds_at`, the seconds in training steps until each step of the log. They count over all starts of a run.
    Raises UserError when the loss stops being a number, naming the step and the last good checkpoint.
    """
    device = use_device(params.device, params.threads)
    params, run = begin(params, parts, shards.vocabulary, device)
    model = run.model
    batches = Batches(shards, params.batch, params.context, params.order_seed, int(params.pool_megatokens * 1e6))
    schedule: Schedule = parts["schedule"].build(params.steps)
    chosen = {key: choice.record() for key, choice in parts.items()}
    decides = {"params": params.model_dump(), "parts": chosen, "shards": shards.fingerprint}
    if start:
        begun, _ = models.load(start, torch.device("cpu"))
        model.load_state_dict(begun.state_dict())
        decides["start"] = sha256(start / models.WEIGHTS)
    scratch = checkpoint.scratch_folder(checkpoint.run_key(decides))
    at_once = params.batch // params.accumulate
    size = sizing.describe(model, run.optimizer, params.batch, at_once, params.precision)
    for line in sizing.lines(size):
        print(f"train: {line}", flush=True)
    print(f"train: {batches.tokens:,} tokens of text, matrix products in {params.precision}", flush=True)
    if params.precision == "bfloat16" and not multiplies_bfloat16(device):
        print("train: slow, as this processor cannot multiply bfloat16 itself; set train.precision to float32", flush=True)
    due = snapshots.positions(params.steps, params.snapshots if snapshot_folder else 0)
    saved = checkpoint.load(scratch)
    if saved and snapshots.has_all(scratch, due, saved["step"]):
        run.restore(saved)
        print(f"train: going on from step {run.step:,}", flush=True)

    if params.compile:
        print("train: compiling in the first step: up to some minutes the first time, then seconds", flush=True)
    with failures_told():
        _loop(params, run, schedule, batches, shards, tokenizer, scratch, log_folder, due)

    size["bytes"]["optimizer"] = sizing.optimizer_bytes(run.optimizer)
    tokens = run.step * params.batch * params.context
    facts = {"tokenizer_sha256": shards.manifest["tokenizer_sha256"], "steps": run.step, "seed": params.seed}
    ran = {"data_seed": params.order_seed, "pool_tokens": batches.pool_tokens, "precision": params.precision}
    with evaluation_weights(run.optimizer):
        models.save(model_folder, parts["model"], model, {**facts, **ran, "tokens": tokens, "size": size})
    if snapshot_folder:
        record = {"vocabulary": model.vocabulary, "context": model.context, **facts, "parts": chosen}
        snapshots.publish(scratch, snapshot_folder, due, record)
    checkpoint.discard(scratch)
    return {
        "training_seconds": run.seconds,
        "validation_seconds": run.validation_seconds,
        "tokens_per_second": tokens / run.seconds if run.seconds else 0.0,
        "peak_bytes": _peak_bytes(run),
        "seconds_at": {"step": [int(step) for step, _ in run.seconds_at], "seconds": [s for _, s in run.seconds_at]},
    }


def _peak_bytes(run: Run) -> int:
    """The most memory held so far: by tensors where they are on a CUDA device, otherwise by the whole process."""
    device = next(run.model.parameters()).device
    if device.type == "cuda":
        held = torch.cuda.max_memory_allocated(device)
    else:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, kibibytes elsewhere
        held = most if sys.platform == "darwin" else most * 1024
    return max(run.peak_bytes, held)


def _loop(
    params: TrainParams, run: Run, schedule: Schedule, batches: Batches, shards: Shards, tokenizer: Tokenizer,
    scratch: Path, log_folder: Path, due: list[int],
) -> None:  # fmt: skip
    saved_step, saved_at = run.step, time.monotonic()
    with _Log(log_folder / "log.jsonl", run.log) as log, ProgressBar("train", params.steps, "steps", run.step) as bar:
        record = _Record(params, run, shards, tokenizer, log, bar)
        while run.step < params.steps:
            before = snapshots.before(run.model, run.rule) if run.step in due else None
            started = time.perf_counter()
            loss, norm, rate = take_step(params, run, schedule, batches)
            run.seconds += time.perf_counter() - started
            if before:
                seen = {"step": run.step, "tokens": run.step * params.batch * params.context, "learning_rate": rate}
                snapshots.write(scratch, {**seen, **before, "after": run.model.state_dict()})
            run.step += 1
            try:
                record.after_step(loss, norm, rate)
            except FloatingPointError as error:
                kept = f"step {saved_step:,} in {scratch / checkpoint.FILE}" if saved_step else "none was saved yet"
                raise UserError(
                    f"training broke down at step {run.step:,}: {error}; last good checkpoint: {kept}; try a lower"
                    " optimizers.*.learning_rate, more warm-up or a train.clip of 1"
                ) from None
            bar.advance(1)
            if run.step < params.steps and time.monotonic() - saved_at >= params.checkpoint_seconds:
                run.peak_bytes = _peak_bytes(run)
                checkpoint.save(scratch, run.state())
                saved_step, saved_at = run.step, time.monotonic()


class _Log:
    """Lines of JSON, on disk as soon as they are added; a resumed run begins with those up to its checkpoint."""

    def __init__(self, path: Path, rows: list[dict[str, Any]]) -> None:
        self.path, self.rows = path, rows

    def __enter__(self) -> "_Log":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "w", encoding="utf-8")
        for row in self.rows:
            self._write(row)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self._write(row)

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()


@dataclass
class _Record:
    """What goes into the log and on the screen after a step: loss, validation and samples, each when it is due."""

    params: TrainParams
    run: Run
    shards: Shards
    tokenizer: Tokenizer
    log: _Log
    bar: ProgressBar

    def after_step(self, loss: float, norm: float, rate: float) -> None:
        """Raises FloatingPointError when a loss, or what the model would say next, is no number."""
        params, run = self.params, self.run
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(f"loss {loss}, gradient norm {norm}")
        run.loss_sum, run.loss_count = run.loss_sum + loss, run.loss_count + 1
        last = run.step == params.steps
        seen = {"step": run.step, "tokens": run.step * params.batch * params.context}
        validates = last or (params.validate_every and run.step % params.validate_every == 0)
        if validates or run.step % params.log_every == 0:
            run.seconds_at.append([run.step, run.seconds])
        if last or run.step % params.log_every == 0:
            mean, run.loss_sum, run.loss_count = run.loss_sum / run.loss_count, 0.0, 0
            self.log.add({**seen, "train_nats": mean, "learning_rate": rate, "gradient_norm": norm})
            self.bar.advance(0, f"loss {mean:.3f}, {seen['tokens'] / run.seconds:,.0f} tokens/s")
        if validates:
            self._validate(seen)
        if params.sample_every and (last or run.step % params.sample_every == 0):
            self._sample(seen)

    @cached_property
    def _validation(self) -> Ids:
        return self.shards.stream("validation")

    def _validate(self, seen: dict[str, int]) -> None:
        run, context = self.run, self.params.context
        started = time.perf_counter()
        with evaluation_weights(run.optimizer):
            scored = score(run.model, self._validation, self.shards.document, context, context)
        if not math.isfinite(scored.nats):
            raise FloatingPointError(f"validation loss {scored.nats}")
        bits = bits_per_byte(scored.nats, self.shards.count("validation", "bytes"))
        self.log.add({**seen, "validation_nats": scored.nats_per_token, "validation_bits_per_byte": bits})
        run.validation_seconds += time.perf_counter() - started
        self.bar.say(f"train: step {run.step:,}: validation {scored.nats_per_token:.4f} nats/token, {bits:.4f} bits/byte")

    def _sample(self, seen: dict[str, int]) -> None:
        model, seed = self.run.model, self.params.seed
        with evaluation_weights(self.run.optimizer):
            text = "".join(generation.sample_text(model, self.tokenizer, "", SAMPLE_TOKENS, SAMPLE_TEMPERATURE, seed))
        self.log.add({**seen, "sample": text})
        self.bar.say("\n".join(f"    {line}" for line in text.strip().splitlines()[:6]))
