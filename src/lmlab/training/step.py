"""A training run in memory, and one step of it.

`begin` builds a run: its model, learning rule and optimizer. `take_step` updates the weights once:

1. set each parameter group's learning rate, its peak times the schedule's factor;
2. read the step's batch, or this process's share of it, cut into micro-batches (gradient
   accumulation);
3. let the learning rule add its gradients to `parameter.grad`: the rule `backprop` calls
   `backward()` on the loss, other rules estimate the gradient in other ways;
4. clip the gradients by their global norm;
5. let the optimizer update the weights, then set the gradients to None.

(With `step_in_backward`, 3 and 5 are interleaved and 4 is left out.) The result of a step depends
only on the run's state, its params, the code and the shards.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.core.registry import Choice, OneOf
from lmlab.data.batches import Batches
from lmlab.data.start import EarlierRun, spent
from lmlab.model import noise, processes
from lmlab.model.compiling import Compiled
from lmlab.model.device import autocast, trains_faster_in_bfloat16
from lmlab.model.models import base as models
from lmlab.model.models.base import LanguageModel
from lmlab.training.interventions import base as interventions
from lmlab.training.learning_rules.base import LearningRule
from lmlab.training.optimizers.base import (
    joined,
    parameter_groups,
    split_by_rate,
    stepping_in_backward,
)
from lmlab.training.parametrisations.base import Parametrisation
from lmlab.training.schedules.base import Schedule


class Diverged(Exception):  # noqa: N818 (the field's word)
    """A run's loss, gradient or logits have become NaN or infinite; `reason` says which."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TrainParams(Params):
    """The section `train` of params.yaml, where a comment explains each key."""

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
    gradient_accumulation: int = Field(ge=1)
    processes: int = Field(ge=1, le=4096)
    context: int = Field(ge=2, le=2**24)
    clip: float = Field(ge=0)
    step_in_backward: bool
    compile: bool
    seed: int = Field(ge=0)
    data_seed: int = Field(ge=-1)
    pool_megatokens: float = Field(gt=0)
    precision: Literal["auto", "float32", "bfloat16"]
    device: Literal["cpu", "cuda", "mps"]
    threads: int = Field(ge=1, le=4096)
    log_every: int = Field(ge=1)
    validate_every: int = Field(ge=0)
    sample_every: int = Field(ge=0)
    patience: int = Field(ge=0)
    keep: Literal["last", "best"]
    snapshots: int = Field(ge=0)
    checkpoint_seconds: float = Field(ge=0)

    @model_validator(mode="after")
    def _keys_fit_together(self) -> "TrainParams":
        if self.batch % self.gradient_accumulation:
            raise ValueError(
                f"batch ({self.batch}) should be a multiple of gradient_accumulation"
                f" ({self.gradient_accumulation})"
            )
        for key, chosen in (("patience", self.patience), ("keep", self.keep == "best")):
            if chosen and not self.validate_every:
                raise ValueError(f"{key} goes by validations, so set validate_every above 0")
        in_pieces = self.gradient_accumulation > 1 or self.processes > 1
        if self.step_in_backward and (self.clip or in_pieces):
            raise ValueError(
                "step_in_backward never holds all gradients at once, so set clip to 0 and"
                " gradient_accumulation and processes to 1"
            )
        if self.step_in_backward and self.compile:
            raise ValueError(
                "step_in_backward saves nothing where compile fuses the backward pass into one"
                " graph; set one of them to false"
            )
        return self

    @property
    def pool_tokens(self) -> int:
        """Tokens that are shuffled together in memory."""
        return int(self.pool_megatokens * 1e6)

    @property
    def order_seed(self) -> int:
        """The seed of the order of the text: `data_seed`, or `seed` where that is -1."""
        return self.seed if self.data_seed == -1 else self.data_seed

    def settled(
        self, width: int, bfloat16_helps: bool, shares_population: bool = False
    ) -> "TrainParams":
        """A copy with `gradient_accumulation`, `batch` and `precision` resolved.

        Where processes share the batch, `gradient_accumulation` becomes a multiple of their number,
        the least one. `batch` 0 becomes about width / 8 windows (16 at width 128), a multiple of
        `gradient_accumulation`. `precision` auto becomes bfloat16 where that helps, else float32.
        Raises UserError for a batch that cannot be shared by so many processes.
        """
        pieces = self.gradient_accumulation
        if not shares_population:
            pieces = math.lcm(pieces, self.processes)
        batch = self.batch or pieces * max(1, round(width / 8 / pieces))
        if batch % pieces:
            raise UserError(
                f"params.yaml: train.processes: {self.processes} processes cannot share a batch of"
                f" {batch} windows in {pieces} equal parts; set train.batch to a multiple of"
                f" {pieces}, or to 0"
            )
        precision = self.precision
        if precision == "auto":
            precision = "bfloat16" if bfloat16_helps else "float32"
        settled = {"gradient_accumulation": pieces, "batch": batch, "precision": precision}
        return self.model_copy(update=settled)


@dataclass
class Run:
    """A training run: its params, model, rule, optimizer and counters.

    `state` and `restore` save and reload what changes.
    """

    params: TrainParams
    """Resolved by `TrainParams.settled`."""
    model: LanguageModel
    rule: LearningRule
    optimizer: torch.optim.Optimizer
    compilation: AbstractContextManager[None] = field(default_factory=nullcontext)
    """Entered around every call of the rule; compiles the model's passes where `compile` is set."""
    earlier: list[EarlierRun] = field(default_factory=list)
    """The runs that this one goes on from, the first one first."""
    windows_read: int = 0
    """Of the text, by earlier runs."""
    remarks: list[str] = field(default_factory=list)
    """What of an earlier run is not taken over, a line each."""
    step: int = 0
    """Steps taken so far, those of earlier runs included."""
    loss_sum: float = 0.0
    """The sum of the losses since the log's last line with a training loss."""
    loss_count: int = 0
    """The number of those losses."""
    best_nats: float = math.inf
    """The lowest validation loss so far, in nats per token."""
    best_step: int = -1
    """Where that was; -1 before the first validation."""
    validations_since_best: int = 0
    seconds: float = 0.0
    """Spent in training steps alone, over all starts of the run."""
    validation_seconds: float = 0.0
    peak_bytes: int = 0
    """The most memory that a process of the run has held, as of the last checkpoint."""

    _COUNTERS = (
        *("step", "loss_sum", "loss_count", "best_nats", "best_step", "validations_since_best"),
        *("seconds", "validation_seconds", "peak_bytes"),
    )

    @property
    def first_step(self) -> int:
        """How many steps earlier runs took."""
        return spent(self.earlier).steps

    @property
    def last_step(self) -> int:
        """How many steps there will have been when this run ends."""
        return self.first_step + self.params.steps

    @property
    def own_step(self) -> int:
        """Steps of this run taken so far."""
        return self.step - self.first_step

    @property
    def own_tokens(self) -> int:
        """Tokens that this run has trained on so far, repetitions included."""
        return self.own_step * self.params.batch * self.params.context

    @property
    def tokens(self) -> int:
        """Tokens trained on so far, those of earlier runs and repetitions included."""
        return spent(self.earlier).tokens + self.own_tokens

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @cached_property
    def model_parameters(self) -> list[nn.Parameter]:
        """Listed once, as traversing every module costs about 1 % of a small step."""
        return list(self.model.parameters())

    @cached_property
    def rule_parameters(self) -> list[nn.Parameter]:
        """The learning rule's own parameters, such as feedback weights."""
        return list(self.rule.parameters())

    def note_validation(self, nats: float) -> None:
        """Count a validation loss, in nats per token."""
        self.validations_since_best += 1
        if nats < self.best_nats:
            self.best_nats, self.best_step, self.validations_since_best = nats, self.step, 0

    @property
    def is_best_yet(self) -> bool:
        """Whether the latest validation was of this step, and the best."""
        return self.best_step == self.step

    @property
    def lost_patience(self) -> bool:
        """Whether as many validations as `patience` have been no better than the best."""
        return 0 < self.params.patience <= self.validations_since_best

    def learned(self) -> dict[str, Any]:
        """The states of model, rule and optimizer."""
        return {
            "model": self.model.state_dict(),
            "rule": self.rule.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore_learned(self, state: dict[str, Any]) -> None:
        """The inverse of `learned`."""
        self.model.load_state_dict(state["model"])
        self.rule.load_state_dict(state["rule"])
        self.optimizer.load_state_dict(state["optimizer"])

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: what was learned, and the counters."""
        return {**self.learned(), **{key: getattr(self, key) for key in self._COUNTERS}}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.restore_learned(state)
        for key in self._COUNTERS:
            setattr(self, key, state[key])


def begin(
    params: TrainParams, parts: dict[str, Choice], vocabulary_size: int, device: torch.device
) -> Run:
    """A run before its first step, initialised from the seed.

    Its params are settled for the model's width, the rule and the device. Raises UserError for
    parts that cannot work together.
    """
    torch.manual_seed(params.seed)
    model = models.build(parts["model"], vocabulary_size, params.context).to(device)
    parametrisation: Parametrisation = parts["parametrisation"].build()
    parametrisation.check(model)
    parametrisation.scale_initialisation(model)
    rule = chosen_rule(params, parts, model).to(device)
    optimizer = _build_optimizer(parts["optimizer"], parametrisation, model, rule)
    compilation = Compiled(model) if params.compile else nullcontext()
    # a rule without a backward pass learns from small differences of the loss, for which bfloat16
    # has too little precision
    bfloat16_helps = rule.backward and trains_faster_in_bfloat16(device)
    settled = params.settled(model.width, bfloat16_helps, rule.shares_population)
    return Run(settled, model, rule, optimizer, compilation)


def chosen_rule(
    params: TrainParams, parts: dict[str, Choice], model: LanguageModel
) -> LearningRule:
    """The learning rule with its interventions. Raises UserError for what cannot work together."""
    rule = interventions.build_rule(parts, model)
    names = ", ".join(parts[key].name for key in ["learning_rule", *interventions.KEYS])
    if params.step_in_backward and not rule.final_in_backward:
        raise UserError(
            "params.yaml: train.step_in_backward needs gradients that are final once autograd"
            f" has accumulated them, which is not so with {names}; set it to false, or"
            " train.learning_rule to backprop and the interventions to identity"
        )
    _check_remembers_steps(params, rule)
    if params.compile and not rule.compiles:
        raise UserError(
            f"params.yaml: train.compile needs a rule that only calls the model as a whole, and"
            f" {names} goes inside it; set it to false, or train.learning_rule to backprop, with"
            " interventions that edit the gradients or none"
        )
    return rule


def _check_remembers_steps(params: TrainParams, rule: LearningRule) -> None:
    """Raise UserError where several processes would each remember other windows."""
    outer: LearningRule = rule
    while params.processes > 1 and isinstance(outer, interventions.Intervention):
        if outer.acts_on_windows and outer.rule.remembers and not outer.rule.shares_population:
            raise UserError(
                f"params.yaml: train.processes: {interventions.name_of(outer)} takes one window"
                f" after the other, and what is inside it remembers them in their order, which"
                " processes that share a batch cannot; set it to 1"
            )
        outer = outer.rule


def _build_optimizer(
    choice: Choice, parametrisation: Parametrisation, model: LanguageModel, rule: LearningRule
) -> torch.optim.Optimizer:
    """The optimizer of the model's and the rule's parameters, each group at its peak rate.

    `initial_lr` is that peak, for `take_step` to multiply by the schedule's factor.
    """
    groups = joined(parameter_groups(model), rule.own_groups(model))
    optimizer = choice.build(groups)
    rule_factors = {
        parameter: rule.rate_factor(name) for name, parameter in model.named_parameters()
    }
    split_by_rate(optimizer, rule_factors)
    for group in optimizer.param_groups:
        power = optimizer.width_powers.get(group["name"], 0.0)
        peak = group["lr"] * parametrisation.rate_factor(model.width, power)
        group["initial_lr"] = group["lr"] = peak
    return optimizer


class StepResult(NamedTuple):
    """What is logged of a step."""

    loss: float
    """Mean cross-entropy of the batch before the update, in nats per token."""
    gradient_norm: float
    """Global norm of the model's gradient before clipping."""
    learning_rate: float
    """Of the first group named `matrices`, or of the first group if there is none."""


def take_step(run: Run, schedule: Schedule, batches: Batches) -> StepResult:
    """Update the weights once, on the batch of step `run.step`. The caller counts the step.

    Raises Diverged if the loss or the gradient's norm is not finite. In that case no weight has
    been updated, but with `step_in_backward`, which updates them before either is known.
    """
    if not run.model.training:  # asked first, as `train()` goes through every module
        run.model.train()
    _set_learning_rates(run.optimizer, schedule.factor(run.own_step))
    with processes.sharing("population" if run.rule.shares_population else "batch"):
        microbatches = _microbatches(run, batches)
        if run.params.step_in_backward:
            loss, norm = _step_in_backward(run, microbatches)
        else:
            loss, norm = _clip_gradients(run, _fill_gradients(run, microbatches))
            run.optimizer.step()
            run.optimizer.zero_grad(set_to_none=True)
    return StepResult(loss, norm, _logged_rate(run.optimizer))


def _set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """All groups follow the same schedule, each from its own peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def _logged_rate(optimizer: torch.optim.Optimizer) -> float:
    groups = optimizer.param_groups
    matrices = [group for group in groups if group["name"] == "matrices"]
    group = matrices[0] if matrices else groups[0]
    return float(group["lr"])


def _microbatches(run: Run, batches: Batches) -> list[tuple[Tensor, Tensor]]:
    """The step's batch as `gradient_accumulation` equal parts (tokens_BT, targets_BT); where
    processes share it, this one's.
    """
    pieces, device = run.params.gradient_accumulation, run.device
    rank, count = processes.share_of("batch")
    if count == 1:
        tokens_BT, targets_BT = batches.at(run.own_step)
        own = list(zip(tokens_BT.chunk(pieces), targets_BT.chunk(pieces), strict=True))
    else:
        own = [batches.at(run.own_step, piece, pieces) for piece in range(rank, pieces, count)]
    return [(_moved(tokens, device), _moved(targets, device)) for tokens, targets in own]


def _moved(windows_BT: Tensor, device: torch.device) -> Tensor:
    """Windows on the device; an NVIDIA GPU goes on computing meanwhile."""
    if device.type == "cuda":
        return windows_BT.pin_memory().to(device, non_blocking=True)
    return windows_BT.to(device)


def _fill_gradients(run: Run, microbatches: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Let the rule add its gradients, averaged over micro-batches, to every `p.grad`.

    Returns the mean loss, a scalar that a GPU may still be computing. The rule's random draws are
    keyed by seed and step, so a resumed run repeats them.
    """
    with (
        autocast(run.params.precision, run.device),
        run.compilation,
        noise.keyed(run.params.seed, run.step),
    ):
        return run.rule.accumulate_gradients(run.model, microbatches)


def _clip_gradients(run: Run, loss_of_step: Tensor) -> tuple[float, float]:
    """Clip the model's gradients to the global norm `clip`; 0 disables clipping.

    The rule's own gradients are scaled by the same factor. Returns the loss and the norm before
    clipping, for which alone a step waits for a GPU. Raises Diverged where one is not finite.
    """
    model_parameters = _with_gradient(run.model_parameters)
    gradients = [p.grad for p in model_parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    loss, norm_value = _read(loss_of_step, norm)
    for what, value in (("loss", loss), ("gradient's norm", norm_value)):
        if not math.isfinite(value):
            run.optimizer.zero_grad(set_to_none=True)
            raise Diverged(f"the {what} is {value}")
    if run.params.clip and norm_value >= run.params.clip:
        clipped = model_parameters + _with_gradient(run.rule_parameters)
        torch.nn.utils.clip_grads_with_norm_(clipped, run.params.clip, norm)
    return loss, norm_value


def _read(*scalars: Tensor) -> list[float]:
    """The values of scalars, which a GPU is asked for once."""
    widest = torch.float64 if scalars[0].dtype == torch.float64 else torch.float32
    device = scalars[0].device
    values: list[float] = torch.stack([one.to(device, widest) for one in scalars]).tolist()
    return values


def _with_gradient(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.grad is not None]


def _step_in_backward(run: Run, microbatches: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Update each parameter during the backward pass, as soon as its gradient is complete.

    Returns the loss and the global norm of the gradient. Raises Diverged where one is not finite.
    """
    norms: dict[nn.Parameter, Tensor] = {}
    with stepping_in_backward(run.optimizer, run.model, norms):
        loss = float(_fill_gradients(run, microbatches))
    if not math.isfinite(loss):
        raise Diverged(f"the loss is {loss}")
    in_order = [norms[parameter] for parameter in run.model_parameters if parameter in norms]
    norm = float(torch.linalg.vector_norm(torch.stack(in_order)))
    if not math.isfinite(norm):
        raise Diverged(f"the gradient's norm is {norm}")
    return loss, norm
