"""The training loop: gradients from the learning rule, clipped, applied by the optimizer at the schedule's rate.

What a run ends in depends on its params, code and shards alone. It may be killed at any moment: started again it goes on
from its last checkpoint and writes the same bytes as a run that was never stopped. Times go to the caller, not to the log.
"""

import json
import math
import resource
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from lmlab import checkpoint, generation, sizing, snapshots
from lmlab.batches import Batches
from lmlab.device import gains_by_bfloat16, multiplies_bfloat16, multiplying_in, use_device
from lmlab.errors import UserError
from lmlab.evaluation.scoring import bits_per_byte, score
from lmlab.files import sha256
from lmlab.interventions import base as interventions
from lmlab.learning_rules.base import LearningRule
from lmlab.models import base as models
from lmlab.models.base import LanguageModel
from lmlab.optimizers.base import evaluation_weights, joined, parameter_groups, split_by_rate, stepping_in_backward
from lmlab.parametrisations.base import Parametrisation
from lmlab.params import Params
from lmlab.parts import Choice, OneOf
from lmlab.progress import ProgressBar
from lmlab.schedules.base import Schedule
from lmlab.shards import Shards
from lmlab.tokenizers.base import Ids, Tokenizer


class TrainParams(Params):
    """The section `train`."""

    model: Annotated[str, OneOf("models")]
    learning_rule: Annotated[str, OneOf("learning_rules")]
    intervention: Annotated[str, OneOf("interventions")]
    second_intervention: Annotated[str, OneOf("interventions")]
    third_intervention: Annotated[str, OneOf("interventions")]
    optimizer: Annotated[str, OneOf("optimizers")]
    schedule: Annotated[str, OneOf("schedules")]
    parametrisation: Annotated[str, OneOf("parametrisations")]
    steps: int = Field(ge=1)
    batch: int = Field(ge=0)
    accumulate: int = Field(ge=1)
    context: int = Field(ge=2)
    clip: float = Field(ge=0)
    step_in_backward: bool
    seed: int = Field(ge=0)
    data_seed: int = Field(ge=-1)
    pool_megatokens: float = Field(gt=0)
    precision: Literal["auto", "float32", "bfloat16"]
    device: Literal["cpu", "cuda", "mps"]
    threads: int = Field(ge=1)
    log_every: int = Field(ge=1)
    validate_every: int = Field(ge=0)
    sample_every: int = Field(ge=0)
    snapshots: int = Field(ge=0)
    checkpoint_seconds: float = Field(ge=0)

    @model_validator(mode="after")
    def _divides(self) -> "TrainParams":
        if self.batch % self.accumulate:
            raise ValueError(f"batch ({self.batch}) should be a multiple of accumulate ({self.accumulate})")
        if self.step_in_backward and (self.clip or self.accumulate > 1):
            raise ValueError("step_in_backward never has the whole gradient, so set clip to 0 and accumulate to 1")
        return self

    @property
    def order_seed(self) -> int:
        """What decides the order of the text: `data_seed`, or where that is -1 `seed`."""
        return self.seed if self.data_seed == -1 else self.data_seed

    def settled(self, width: int, low: bool) -> "TrainParams":
        """The same with what is left open: `batch` 0 is 16 windows at width 128, in proportion to the width.

        `precision` auto is bfloat16 where `low` says that it serves, else float32.
        """
        pieces = max(1, round(width / 8 / self.accumulate))
        batch = self.batch or pieces * self.accumulate
        precision = self.precision if self.precision != "auto" else "bfloat16" if low else "float32"
        return self.model_copy(update={"batch": batch, "precision": precision})


SAMPLE_TOKENS = 200
SAMPLE_TEMPERATURE = 0.8


@dataclass
class Run:
    """Everything that changes during training. `state` and `restore` carry all of it over a restart."""

    model: LanguageModel
    rule: LearningRule
    optimizer: torch.optim.Optimizer
    log: list[dict[str, Any]]
    step: int = 0
    loss_sum: float = 0.0
    """Sum of the losses since the last line of the log, and their number."""
    loss_count: int = 0
    seconds: float = 0.0
    """Spent in training steps alone, over all starts of the run."""
    validation_seconds: float = 0.0
    seconds_at: list[list[float]] = field(default_factory=list)
    """(step, seconds in training steps until then), for each line of the log with a loss."""
    peak_bytes: int = 0
    """The most memory that a process of the run has held, as of the last checkpoint."""

    def state(self) -> dict[str, Any]:
        """A tree of tensors and plain values."""
        device = next(self.model.parameters()).device
        generators = {"cpu": torch.get_rng_state()}
        if device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(device)
        if device.type == "mps":
            generators["mps"] = torch.mps.get_rng_state()
        counters = {key: getattr(self, key) for key in self._COUNTERS}
        return {
            "model": self.model.state_dict(),
            "rule": self.rule.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generators": generators,
            "log": self.log,
            **counters,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.model.load_state_dict(state["model"])
        self.rule.load_state_dict(state["rule"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["generators"]["cpu"])
        if "cuda" in state["generators"]:
            torch.cuda.set_rng_state(state["generators"]["cuda"])
        if "mps" in state["generators"]:
            torch.mps.set_rng_state(state["generators"]["mps"])
        self.log[:] = state["log"]
        for key in self._COUNTERS:
            setattr(self, key, state[key])

    _COUNTERS = ("step", "loss_sum", "loss_count", "seconds", "validation_seconds", "seconds_at", "peak_bytes")


def chosen_rule(params: TrainParams, parts: dict[str, Choice], model: LanguageModel) -> LearningRule:
    """The learning rule with its interventions. Raises UserError for what cannot work together."""
    rule = interventions.build_rule(parts, model)
    if params.step_in_backward and not rule.final_in_backward:
        chosen = ", ".join(parts[key].name for key in ["learning_rule", *interventions.KEYS])
        raise UserError(
            f"params.yaml: train.step_in_backward needs gradients that are final once autograd has them, and with {chosen}"
            " they are not; set it to false, or train.learning_rule to backprop and the interventions to absent"
        )
    return rule


def begin(params: TrainParams, parts: dict[str, Choice], vocabulary: int, device: torch.device) -> tuple[TrainParams, Run]:
    """A run before its first step, drawn from the seed, and its params with what they leave to model, rule and device.

    Rules that learn from what small changes do to the loss need the digits that bfloat16 does not have.
    """
    torch.manual_seed(params.seed)
    model = models.build(parts["model"], vocabulary, params.context).to(device)
    parametrisation: Parametrisation = parts["parametrisation"].build()
    parametrisation.start(model)
    rule = chosen_rule(params, parts, model).to(device)
    optimizer = parts["optimizer"].build(joined(parameter_groups(model), rule.own_groups(model)))
    split_by_rate(optimizer, {p: rule.rate_factor(name) for name, p in model.named_parameters()})
    for group in optimizer.param_groups:
        factor = parametrisation.rate_factor(model.width, optimizer.width_powers.get(group["name"], 0.0))
        group["initial_lr"] = group["lr"] = group["lr"] * factor
    low = rule.backward and gains_by_bfloat16(device)
    return params.settled(model.width, low), Run(model, rule, optimizer, log=[])


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


def take_step(params: TrainParams, run: Run, schedule: Schedule, batches: Batches) -> tuple[float, float, float]:
    """One update; returns the loss in nats per token, the norm of the gradient before clipping, and the learning rate.

    Groups may differ in theirs: what is returned, and logged, is the rate of `matrices`, or of the first group if the model
    has none. The schedule moves all of them alike, each from its own height (`initial_lr`).
    """
    model, optimizer = run.model, run.optimizer
    device = next(model.parameters()).device
    if not model.training:  # it goes through every module
        model.train()
    factor = schedule.factor(run.step)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    tokens_BT, targets_BT = batches.at(run.step)
    lengths: dict[nn.Parameter, torch.Tensor] = {}
    early = stepping_in_backward(optimizer, model, lengths) if params.step_in_backward else nullcontext()
    loss = 0.0
    with multiplying_in(params.precision, device), early:
        for tokens, targets in zip(tokens_BT.chunk(params.accumulate), targets_BT.chunk(params.accumulate), strict=True):
            loss += float(run.rule.assign_gradients(model, tokens.to(device), targets.to(device))) / params.accumulate
    if params.step_in_backward:
        of_all = torch.stack([lengths[parameter] for parameter in model.parameters() if parameter in lengths])
        norm = float(torch.linalg.vector_norm(of_all))
    else:
        norm = _move(params, run)
    rates = {group["name"]: float(group["lr"]) for group in reversed(optimizer.param_groups)}
    return loss, norm, rates.get("matrices", float(optimizer.param_groups[0]["lr"]))


def _move(params: TrainParams, run: Run) -> float:
    """Clip the gradients, let the optimizer step, and return the norm that the model's gradient had."""
    taught, own = with_gradient(run.model), with_gradient(run.rule)
    if params.accumulate > 1:
        for parameter in taught + own:
            assert parameter.grad is not None
            parameter.grad /= params.accumulate
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in taught if parameter.grad is not None])
    length = float(norm)
    if params.clip and not length < params.clip:
        torch.nn.utils.clip_grads_with_norm_(taught + own, params.clip, norm)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    return length


def with_gradient(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a module that have a gradient."""
    return [parameter for parameter in module.parameters() if parameter.grad is not None]


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
