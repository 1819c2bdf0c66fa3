"""A training run in memory, and one step of it: gradients from the learning rule, clipped, applied
by the optimizer.

What a step makes of a run depends on its params, code and shards alone.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.core.registry import Choice, OneOf
from lmlab.data.batches import Batches
from lmlab.model import noise
from lmlab.model.compiling import Compiled
from lmlab.model.device import gains_by_bfloat16, multiplying_in
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
    """A run's loss, its gradient or what the model says is no finite number any more; `reason` says
    which.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


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
    gradient_accumulation: int = Field(ge=1)
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
    snapshots: int = Field(ge=0)
    checkpoint_seconds: float = Field(ge=0)

    @model_validator(mode="after")
    def _divides(self) -> "TrainParams":
        if self.batch % self.gradient_accumulation:
            raise ValueError(
                f"batch ({self.batch}) should be a multiple of accumulate"
                f" ({self.gradient_accumulation})"
            )
        if self.step_in_backward and (self.clip or self.gradient_accumulation > 1):
            raise ValueError(
                "step_in_backward never has the whole gradient, so set clip to 0 and accumulate"
                " to 1"
            )
        if self.step_in_backward and self.compile:
            raise ValueError(
                "step_in_backward saves nothing where compile makes all backward passes one; set"
                " either to false"
            )
        return self

    @property
    def order_seed(self) -> int:
        """What decides the order of the text: `data_seed`, or where that is -1 `seed`."""
        return self.seed if self.data_seed == -1 else self.data_seed

    def settled(self, width: int, low: bool) -> "TrainParams":
        """The same with what is left open: `batch` 0 is 16 windows at width 128, in proportion to
        the width.

        `precision` auto is bfloat16 where `low` says that it serves, else float32.
        """
        pieces = max(1, round(width / 8 / self.gradient_accumulation))
        batch = self.batch or pieces * self.gradient_accumulation
        precision = self.precision if self.precision != "auto" else "bfloat16" if low else "float32"
        return self.model_copy(update={"batch": batch, "precision": precision})


@dataclass
class Run:
    """Everything that changes during training. `state` and `restore` carry all of it over a
    restart.
    """

    model: LanguageModel
    rule: LearningRule
    optimizer: torch.optim.Optimizer
    passes: AbstractContextManager[None] = field(default_factory=nullcontext)
    """Stands around every call of the rule."""
    step: int = 0
    loss_sum: float = 0.0
    """Sum of the losses since the last line of the log, and their number."""
    loss_count: int = 0
    seconds: float = 0.0
    """Spent in training steps alone, over all starts of the run."""
    validation_seconds: float = 0.0
    peak_bytes: int = 0
    """The most memory that a process of the run has held, as of the last checkpoint."""

    @cached_property
    def parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The model's and the rule's own, listed once: to go through every module takes a hundredth
        of a small step.
        """
        return list(self.model.parameters()), list(self.rule.parameters())

    def state(self) -> dict[str, Any]:
        """A tree of tensors and plain values."""
        counters = {key: getattr(self, key) for key in self._COUNTERS}
        return {
            "model": self.model.state_dict(),
            "rule": self.rule.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **counters,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.model.load_state_dict(state["model"])
        self.rule.load_state_dict(state["rule"])
        self.optimizer.load_state_dict(state["optimizer"])
        for key in self._COUNTERS:
            setattr(self, key, state[key])

    _COUNTERS = ("step", "loss_sum", "loss_count", "seconds", "validation_seconds", "peak_bytes")


def chosen_rule(
    params: TrainParams, parts: dict[str, Choice], model: LanguageModel
) -> LearningRule:
    """The learning rule with its interventions. Raises UserError for what cannot work together."""
    rule = interventions.build_rule(parts, model)
    chosen = ", ".join(parts[key].name for key in ["learning_rule", *interventions.KEYS])
    if params.step_in_backward and not rule.final_in_backward:
        raise UserError(
            "params.yaml: train.step_in_backward needs gradients that are final once autograd"
            f" has them, and with {chosen}"
            " they are not; set it to false, or train.learning_rule to backprop and the"
            " interventions to identity"
        )
    if params.compile and not rule.compiles:
        raise UserError(
            f"params.yaml: train.compile needs a rule that calls the model as it is, and {chosen}"
            " goes inside; set it to"
            " false, or train.learning_rule to backprop, with interventions that edit the"
            " gradients or none"
        )
    return rule


def begin(
    params: TrainParams, parts: dict[str, Choice], vocabulary_size: int, device: torch.device
) -> tuple[TrainParams, Run]:
    """A run before its first step, drawn from the seed, and its params with what they leave to
    model, rule and device.

    Rules that learn from what small changes do to the loss need the digits that bfloat16 does not
    have.
    """
    torch.manual_seed(params.seed)
    model = models.build(parts["model"], vocabulary_size, params.context).to(device)
    parametrisation: Parametrisation = parts["parametrisation"].build()
    parametrisation.check(model)
    parametrisation.start(model)
    rule = chosen_rule(params, parts, model).to(device)
    optimizer = parts["optimizer"].build(joined(parameter_groups(model), rule.own_groups(model)))
    split_by_rate(optimizer, {p: rule.rate_factor(name) for name, p in model.named_parameters()})
    for group in optimizer.param_groups:
        factor = parametrisation.rate_factor(
            model.width, optimizer.width_powers.get(group["name"], 0.0)
        )
        group["initial_lr"] = group["lr"] = group["lr"] * factor
    low = rule.backward and gains_by_bfloat16(device)
    passes = Compiled(model) if params.compile else nullcontext()
    return params.settled(model.width, low), Run(model, rule, optimizer, passes)


def take_step(
    params: TrainParams, run: Run, schedule: Schedule, batches: Batches
) -> tuple[float, float, float]:
    """One update; returns the loss in nats per token, the norm of the gradient before clipping, and
    the learning rate.

    Groups may differ in theirs: what is returned, and logged, is the rate of `matrices`, or of the
    first group if the model has none. The schedule moves all of them alike, each from its own
    height (`initial_lr`). Raises Diverged, before any weight has moved (but with
    `step_in_backward`), where the loss or that norm is not finite.
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
    early = (
        stepping_in_backward(optimizer, model, lengths)
        if params.step_in_backward
        else nullcontext()
    )
    pieces = [
        (tokens.to(device), targets.to(device))
        for tokens, targets in zip(
            tokens_BT.chunk(params.gradient_accumulation),
            targets_BT.chunk(params.gradient_accumulation),
            strict=True,
        )
    ]
    with (
        multiplying_in(params.precision, device),
        run.passes,
        early,
        noise.keyed(params.seed, run.step),
    ):
        loss = float(run.rule.accumulate_gradients(model, pieces))
    if not math.isfinite(loss):
        optimizer.zero_grad(set_to_none=True)
        raise Diverged(f"the loss is {loss}")
    if params.step_in_backward:
        of_all = torch.stack(
            [lengths[parameter] for parameter in model.parameters() if parameter in lengths]
        )
        norm = float(torch.linalg.vector_norm(of_all))
        if not math.isfinite(norm):
            raise Diverged(f"the gradient's norm is {norm}")
    else:
        norm = _move(params, run)
    rates = {group["name"]: float(group["lr"]) for group in reversed(optimizer.param_groups)}
    return loss, norm, rates.get("matrices", float(optimizer.param_groups[0]["lr"]))


def _move(params: TrainParams, run: Run) -> float:
    """Clip the gradients, let the optimizer step, and return the norm that the model's gradient
    had.

    Raises Diverged, before any weight has moved, where that norm is not finite.
    """
    trained, own = (
        [parameter for parameter in parameters if parameter.grad is not None]
        for parameters in run.parameters
    )
    norm = torch.nn.utils.get_total_norm(
        [parameter.grad for parameter in trained if parameter.grad is not None]
    )
    length = float(norm)
    if not math.isfinite(length):
        run.optimizer.zero_grad(set_to_none=True)
        raise Diverged(f"the gradient's norm is {length}")
    if params.clip and not length < params.clip:
        torch.nn.utils.clip_grads_with_norm_(trained + own, params.clip, norm)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    return length
