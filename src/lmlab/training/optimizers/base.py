"""What optimizers share: named groups of parameters, weight decay, caution, Adam's direction,
weights for evaluation.
"""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.adam import adam

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.widths import FANS, Fans, by_fans, kind_of, widening_of, width_powers
from lmlab.training.widths import Groups as Groups


class OptimizerOptions(Params):
    """What every optimizer's options begin with."""

    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    decay: Literal["decoupled", "coupled", "independent"]
    cautious: bool


def parameter_groups(model: LanguageModel) -> Groups:
    """Every parameter once: `embeddings` (a tied readout too), `readout`, `matrices` and `vectors`
    (gains, biases).

    The weights of a convolution are among the matrices, though they have three dimensions. Where a
    parametrisation has asked what grows with the width, groups are split by that (`by_fans`).
    """
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }
    readout = {
        id(parameter) for parameter in (model.readout.parameters() if model.readout else ())
    } - embeddings
    groups: Groups = {"embeddings": [], "readout": [], "matrices": [], "vectors": []}
    for parameter in model.parameters():
        if id(parameter) in embeddings:
            groups["embeddings"].append(parameter)
        elif id(parameter) in readout:
            groups["readout"].append(parameter)
        else:
            groups["matrices" if parameter.ndim >= 2 else "vectors"].append(parameter)
    return by_fans(groups)


def joined(groups: Groups, more: Groups) -> Groups:
    """Two sets of groups as one: those of the same name together."""
    return {
        name: [*groups.get(name, []), *more.get(name, [])]
        for name in dict.fromkeys([*groups, *more])
    }


def param_groups(
    groups: Groups, options: OptimizerOptions, other_rate: float | None = None
) -> list[dict[str, Any]]:
    """The groups as torch wants them, each with its `name`, learning rate `lr` and weight decay
    `decay`.

    Weight decay acts on matrices alone. `other_rate` is the learning rate of the other groups, if
    it is another. Whoever builds an optimizer may multiply a group's `lr` before training starts.
    The key is not torch's `weight_decay`, since `add_decay` does the work and torch's optimizers
    should not do it again. Where a parametrisation follows the width, there is what does not go
    with it as `lr` does: `base_lr` at the base width, and `epsilon_factor` (`epsilon_of`).
    """
    matrices = {"lr": options.learning_rate, "decay": options.weight_decay}
    others = {"lr": options.learning_rate if other_rate is None else other_rate, "decay": 0.0}
    described: list[dict[str, Any]] = []
    for name, parameters in groups.items():
        rates = matrices if kind_of(name) == "matrices" else others
        described.append(
            {
                "name": name,
                "params": parameters,
                **rates,
                **_by_width(name, parameters, rates["lr"]),
            }
        )
    return described


def _by_width(name: str, parameters: list[nn.Parameter], rate: float) -> dict[str, float]:
    ratios = [widening.ratio for parameter in parameters if (widening := widening_of(parameter))]
    if not ratios:
        return {}
    return {"base_lr": rate, "epsilon_factor": 1 / ratios[0] if FANS[name].fan_out else 1.0}


def epsilon_of(group: dict[str, Any], epsilon: float) -> float:
    """What Adam adds to the size of a group's gradients, `epsilon` at the base width.

    Where the fan-out grows with the width, gradients get smaller by as much, and so does the
    epsilon (Yang & Littwin 2023, "Tensor Programs IVb").
    """
    factor: float = group.get("epsilon_factor", 1.0)
    return epsilon * factor


def follow(own: nn.Parameter, leader: nn.Parameter) -> None:
    """Let a parameter of a learning rule have whatever learning rate a parameter of the model is
    given.
    """
    own.leader = weakref.ref(leader)  # type: ignore[attr-defined]  # the rule does not hold the model


def split_by_rate(optimizer: torch.optim.Optimizer, factors: dict[nn.Parameter, float]) -> None:
    """Make a group of its own, of the same name, of those parameters of a group whose learning
    rates differ by a factor.

    To be done before the first step. A parameter that is not among the factors has its leader's
    (`follow`), or else keeps its group's rate.
    """

    def factor_of(parameter: nn.Parameter) -> float:
        leader = getattr(parameter, "leader", None)
        led = factors.get(leader(), 1.0) if leader else 1.0
        return factors.get(parameter, led)

    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        alike: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            alike.setdefault(factor_of(parameter), []).append(parameter)
        for factor, members in alike.items():
            multiplied = {
                key: value * factor for key, value in group.items() if key in ("lr", "base_lr")
            }
            groups.append({**group, **multiplied, "params": members})
    optimizer.param_groups[:] = groups


def held(group: dict[str, Any]) -> list[tuple[nn.Parameter, Tensor]]:
    """A group's parameters that have a gradient, each with it."""
    return [
        (parameter, parameter.grad) for parameter in group["params"] if parameter.grad is not None
    ]


def add_decay(optimizer: torch.optim.Optimizer, options: OptimizerOptions) -> None:
    """Pull weights towards zero before each step of any optimizer, by each group's `decay`. At 0 it
    costs nothing.

    `decoupled` (Loshchilov & Hutter 2019): p -= lr * decay * p, bit for bit as torch's AdamW does
    it. `independent`: p -= (lr / peak lr) * decay * p, so that it follows the schedule, but not the
    size of the learning rate. `coupled` adds decay * p to the gradient: the gradient of an L2
    penalty, which the optimizer then treats as any other.

    Where a parametrisation follows the width, the lr of `decoupled` is that at the base width
    (`base_lr`), on the schedule: a step then takes the same share of a weight at any width, as it
    does with `independent`.
    """

    @torch.no_grad()
    def decay(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            if not group["decay"]:
                continue
            peak = group.get("initial_lr", group["lr"])
            share = group["lr"] / peak if peak else 0.0
            decoupled = share * group["base_lr"] if "base_lr" in group else group["lr"]
            rate = decoupled if options.decay == "decoupled" else share
            for parameter, gradient in held(group):
                if options.decay == "coupled":
                    gradient.add_(parameter, alpha=group["decay"])
                else:
                    parameter.mul_(1 - rate * group["decay"])

    if options.weight_decay:
        optimizer.register_step_pre_hook(decay)


SMALLEST_SHARE = 0.001


def add_caution(optimizer: torch.optim.Optimizer, options: OptimizerOptions) -> None:
    """Cautious steps (Liang et al. 2024) for any optimizer: a weight whose step would go up its
    gradient stays.

    The other steps in its tensor grow by the inverse of the share that is kept (at most a
    thousandfold, as the authors do). Call this after `add_decay`: what that does to the weights
    then comes before, and is left alone.
    """
    before: list[tuple[nn.Parameter, Tensor, Tensor]] = []

    @torch.no_grad()
    def remember(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # the gradients too: some of torch's optimizers write into them
        before[:] = [
            (p, p.clone(), gradient.clone())
            for group in optimizer.param_groups
            for p, gradient in held(group)
        ]

    @torch.no_grad()
    def hold_back(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for parameter, start, gradient in before:
            kept = ((parameter - start) * gradient < 0).to(parameter.dtype)
            # from the start to where the step led, or beyond: where all is kept this is that place,
            # to the last bit
            parameter.copy_(start.lerp(parameter, kept / kept.mean().clamp(min=SMALLEST_SHARE)))
        before.clear()

    if options.cautious:
        optimizer.register_step_pre_hook(remember)
        optimizer.register_step_post_hook(hold_back)


def entrywise(kind: str, fans: Fans) -> float:
    """The power of the width for steps whose entries have about the size of the learning rate: lr
    as 1 / fan_in.

    Such a step is as long as it can be along its input, so in the output fan_in of its entries add
    up.
    """
    return -1.0 if fans.fan_in else 0.0


ENTRYWISE = width_powers(entrywise)
"""The `width_powers` of optimizers with such steps.

Every optimizer says by group how its best learning rate goes with the width r, as r^power, where
initialisation follows the width as maximal update has it (Yang et al. 2022, tables 3 and 8). What
decides is how fan-in and fan-out go with it: a step is to change each number of a map's output by
as much at any width, hence to have a spectral norm in proportion to sqrt(fan_out / fan_in) (Yang et
al. 2023, "A Spectral Condition for Feature Learning").
"""


class Optimizer(torch.optim.Optimizer, ABC):
    """Base of the optimizers written here: final classes say how a group moves, given the
    parameters with a gradient.
    """

    width_powers: dict[str, float]

    def __init__(self, options: OptimizerOptions, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})
        add_decay(self, options)
        add_caution(self, options)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nothing here evaluates the loss anew
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            self.move(group, held(group))

    @abstractmethod
    def move(self, group: dict[str, Any], parameters: list[tuple[nn.Parameter, Tensor]]) -> None:
        """Take one step in place at the group's `lr`."""


def adam_direction(
    state: dict[str, Any], gradient: Tensor, beta1: float, beta2: float, epsilon: float
) -> Tensor:
    """Adam's step at learning rate -1 (Kingma & Ba 2015), in the gradient's shape; `state` is that
    parameter's own.
    """
    if not state:
        state.update(step=0, mean=torch.zeros_like(gradient), square=torch.zeros_like(gradient))
    state["step"] += 1
    mean = state["mean"].lerp_(gradient, 1 - beta1) / (1 - beta1 ** state["step"])
    square = state["square"].lerp_(gradient.square(), 1 - beta2) / (1 - beta2 ** state["step"])
    return mean.div_(square.sqrt_().add_(epsilon))


def adam_step(
    states: Mapping[Any, dict[str, Any]],
    parameters: Sequence[tuple[nn.Parameter, Tensor]],
    rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
) -> None:
    """Move parameters as Adam does (Kingma & Ba 2015), in one pass over each: of large tables every
    pass is felt.
    """
    for parameter, _ in parameters:
        if not states[parameter]:
            count = torch.zeros((), device=parameter.device)
            states[parameter].update(
                step=count, mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter)
            )
    moved: list[Tensor] = [parameter for parameter, _ in parameters]
    mean, square, steps = (
        [states[parameter][key] for parameter in moved] for key in ("mean", "square", "step")
    )
    adam(
        moved,
        [gradient for _, gradient in parameters],
        mean,
        square,
        [],
        steps,
        fused=True,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=rate,
        weight_decay=0.0,
        eps=epsilon,
        maximize=False,
    )


@runtime_checkable
class Averaging(Protocol):
    """An optimizer that trains at other weights than those it recommends."""

    def averages(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """The parameters that have one, each with the weights to evaluate and to keep."""


@contextmanager
def evaluation_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, the model has the weights that are to be evaluated or kept; after it, exactly those
    it trains at.
    """
    averages = list(optimizer.averages()) if isinstance(optimizer, Averaging) else []
    training = [parameter.detach().clone() for parameter, _ in averages]
    with torch.no_grad():
        for parameter, average in averages:
            parameter.copy_(average)
        try:
            yield
        finally:
            for (parameter, _), weights in zip(averages, training, strict=True):
                parameter.copy_(weights)


@contextmanager
def stepping_in_backward(
    optimizer: torch.optim.Optimizer, module: nn.Module, norms: dict[nn.Parameter, Tensor]
) -> Iterator[None]:
    """Inside, a parameter moves as soon as a backward pass has its gradient, which is let go at
    once (Lv et al. 2023, LOMO).

    So at no time are all gradients there. The norm of each is noted in `norms`.
    """

    def move(parameter: Tensor) -> None:
        assert isinstance(parameter, nn.Parameter)
        assert parameter.grad is not None
        norms[parameter] = torch.linalg.vector_norm(parameter.grad)
        optimizer.step()  # no other parameter has a gradient now
        parameter.grad = None

    handles = []
    for parameter in module.parameters():
        handle = parameter.register_post_accumulate_grad_hook(move)  # type: ignore[no-untyped-call]
        handles.append(handle)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
