"""What optimizers share: parameter groups, weight decay, cautious steps, Adam, averaged weights.

An optimizer is any `torch.optim.Optimizer` that keeps these rules; one that is written here derives
from `Optimizer`, and one of torch's own calls `add_decay` and `add_caution` itself.

- It takes `(options, groups)`; its options derive from `OptimizerOptions`. Its `param_groups` are
  the groups it gets, in the same order (`param_groups`).
- `width_powers` says by group how the best learning rate goes with the model's width (ENTRYWISE).
- It moves a parameter only if that has a gradient, also where it is the only one or comes later
  than the others. At a learning rate of 0 nothing moves. Either holds for weight decay too.
- With gradients of zero only weight decay moves anything, and that only matrices.
- It is deterministic, and works in double precision if the parameters have it.
- All it remembers is in its `state`, in contiguous tensors and plain values: one that is saved and
  loaded takes the same steps to the last bit.
- One that trains at other weights than it recommends has the method `averages` (`Averaging`).
- Where options decide the form of its state, its attribute `state_options` names them: a run that
  goes on with others begins with no state. Of the entries of a parameter's state,
  `weights_in_state` names those that are weights themselves and `squares_in_state` those that are
  means of squared gradients: a model that grows, or gets another vocabulary, needs to know. Others
  are means of gradients, or numbers.
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
    """The peak learning rate, which the schedule's factor multiplies."""
    weight_decay: float = Field(ge=0)
    decay: Literal["decoupled", "coupled", "independent"]
    """The kind of weight decay (`add_decay`)."""
    cautious: bool
    """Whether steps against the gradient are left out (`add_caution`)."""


def parameter_groups(model: LanguageModel) -> Groups:
    """Every parameter once, in the groups `embeddings`, `readout`, `matrices` and `vectors`.

    `readout` is the output head (unembedding); where it is tied, its weight is among `embeddings`.
    `matrices` have two dimensions or more (convolutions three), `vectors` are gains and biases.
    Where a parametrisation has noted what grows with the width, groups are split by that
    (`by_fans`).
    """
    embedding_ids = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }
    readout_parameters = model.readout.parameters() if model.readout else ()
    readout_ids = {id(parameter) for parameter in readout_parameters}
    groups: Groups = {"embeddings": [], "readout": [], "matrices": [], "vectors": []}
    for parameter in model.parameters():
        if id(parameter) in embedding_ids:
            groups["embeddings"].append(parameter)
        elif id(parameter) in readout_ids:
            groups["readout"].append(parameter)
        elif parameter.ndim >= 2:
            groups["matrices"].append(parameter)
        else:
            groups["vectors"].append(parameter)
    return by_fans(groups)


def has_shape(state: Mapping[str, Any], shape: torch.Size) -> bool:
    """Whether a parameter's state has nothing but numbers and tensors of the parameter's shape."""
    return all(
        not isinstance(value, dict | list)
        and (not isinstance(value, Tensor) or not value.ndim or value.shape == shape)
        for value in state.values()
    )


def joined(groups: Groups, more: Groups) -> Groups:
    """Two sets of groups as one, in which groups of the same name are one."""
    names = dict.fromkeys([*groups, *more])
    return {name: [*groups.get(name, []), *more.get(name, [])] for name in names}


def param_groups(
    groups: Groups, options: OptimizerOptions, other_rate: float | None = None
) -> list[dict[str, Any]]:
    """The groups as torch takes them, each with its `name`, learning rate `lr` and weight `decay`.

    Weight decay acts on matrices alone. `other_rate` is the learning rate of all other groups where
    it differs from that of matrices. Whoever builds an optimizer may multiply a group's `lr` before
    training starts. The key is not torch's `weight_decay`, as `add_decay` does the work and torch's
    optimizers should not do it again. Under a parametrisation that follows the width there are two
    more keys: `base_lr`, the learning rate at the base width, and `epsilon_factor` (`epsilon_of`).
    """
    torch_groups: list[dict[str, Any]] = []
    for name, parameters in groups.items():
        is_matrices = kind_of(name) == "matrices"
        rate = options.learning_rate
        if not is_matrices and other_rate is not None:
            rate = other_rate
        decay = options.weight_decay if is_matrices else 0.0
        group = {"name": name, "params": parameters, "lr": rate, "decay": decay}
        torch_groups.append({**group, **_width_keys(name, parameters, rate)})
    return torch_groups


def _width_keys(name: str, parameters: list[nn.Parameter], rate: float) -> dict[str, float]:
    """The keys of a group that follows the width; none at the base width."""
    widenings = [widening_of(parameter) for parameter in parameters]
    ratios = [widening.ratio for widening in widenings if widening is not None]
    if not ratios:
        return {}
    epsilon_factor = 1 / ratios[0] if FANS[name].fan_out else 1.0
    return {"base_lr": rate, "epsilon_factor": epsilon_factor}


def epsilon_of(group: dict[str, Any], epsilon: float) -> float:
    """Adam's epsilon of a group, which is `epsilon` at the base width.

    Where the fan-out grows with the width, gradients shrink as 1 / fan_out, and so does the epsilon
    (Yang & Littwin 2023, "Tensor Programs IVb").
    """
    factor: float = group.get("epsilon_factor", 1.0)
    return epsilon * factor


def follow(own: nn.Parameter, leader: nn.Parameter) -> None:
    """Give a learning rule's own parameter the learning rate of a parameter of the model."""
    own.leader = weakref.ref(leader)  # type: ignore[attr-defined]  # the rule does not hold the model


def split_by_rate(optimizer: torch.optim.Optimizer, factors: dict[nn.Parameter, float]) -> None:
    """Multiply the learning rates of some parameters by a factor each.

    Parameters of a group whose factors differ become groups of their own, of the same name. To be
    done before the first step. A parameter without a factor has its leader's (`follow`), or else 1.
    """

    def factor_of(parameter: nn.Parameter) -> float:
        leader = getattr(parameter, "leader", None)
        inherited = factors.get(leader(), 1.0) if leader else 1.0
        return factors.get(parameter, inherited)

    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        by_factor: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_factor.setdefault(factor_of(parameter), []).append(parameter)
        for factor, parameters in by_factor.items():
            part = {**group, "params": parameters}
            for key in ("lr", "base_lr"):
                if key in group:
                    part[key] = group[key] * factor
            groups.append(part)
    optimizer.param_groups[:] = groups


def with_gradient(group: dict[str, Any]) -> list[tuple[nn.Parameter, Tensor]]:
    """A group's parameters that have a gradient, each with its gradient."""
    return [
        (parameter, parameter.grad) for parameter in group["params"] if parameter.grad is not None
    ]


def add_decay(optimizer: torch.optim.Optimizer, options: OptimizerOptions) -> None:
    """Let any optimizer apply weight decay before each of its steps, by each group's `decay`.

    `decoupled` (Loshchilov & Hutter 2019): p -= lr * decay * p, bit for bit as torch's AdamW.
    `independent`: p -= (lr / peak lr) * decay * p, which follows the schedule but does not depend
    on the peak learning rate. `coupled`: the gradient gets decay * p added, as by an L2 penalty,
    and the optimizer treats the sum like any other gradient.

    Where a parametrisation follows the width, the lr of `decoupled` is the scheduled lr at the base
    width (`base_lr`): a step then takes the same share of a weight at any width, as with
    `independent`.
    """

    @torch.no_grad()
    def decay(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            if group["decay"] == 0:
                continue
            share = _shrinkage(group, options)
            for parameter, gradient in with_gradient(group):
                if options.decay == "coupled":
                    gradient.add_(parameter, alpha=group["decay"])
                else:
                    parameter.mul_(1 - share)

    if options.weight_decay > 0:
        optimizer.register_step_pre_hook(decay)


def _shrinkage(group: dict[str, Any], options: OptimizerOptions) -> float:
    """The share of each weight that decoupled or independent decay takes off in a step."""
    peak = group.get("initial_lr", group["lr"])
    schedule_factor = group["lr"] / peak if peak else 0.0
    rate: float = schedule_factor
    if options.decay == "decoupled":
        rate = schedule_factor * group["base_lr"] if "base_lr" in group else group["lr"]
    return rate * group["decay"]


SMALLEST_KEPT = 0.001
"""The least share of kept steps that the others are scaled by."""


def add_caution(optimizer: torch.optim.Optimizer, options: OptimizerOptions) -> None:
    """Cautious steps for any optimizer (Liang et al. 2024): no weight moves up its gradient.

    A weight whose step would do so stays. The other steps in its tensor are divided by the share
    that is kept, or by SMALLEST_KEPT if that is more, as the authors do. To be called after
    `add_decay`: weight decay then comes first, and is left alone.
    """
    before: list[tuple[nn.Parameter, Tensor, Tensor]] = []

    @torch.no_grad()
    def remember(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        before.clear()
        for group in optimizer.param_groups:
            for parameter, gradient in with_gradient(group):
                # the gradient too, as some of torch's optimizers write into it
                before.append((parameter, parameter.clone(), gradient.clone()))

    @torch.no_grad()
    def mask(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for parameter, start, gradient in before:
            kept = ((parameter - start) * gradient < 0).to(parameter.dtype)
            scale = kept / kept.mean().clamp(min=SMALLEST_KEPT)
            # lerp, since at a scale of 1 it gives where the step led, to the last bit
            parameter.copy_(start.lerp(parameter, scale))
        before.clear()

    if options.cautious:
        optimizer.register_step_pre_hook(remember)
        optimizer.register_step_post_hook(mask)


def entrywise(kind: str, fans: Fans) -> float:
    """The power of the width for steps whose entries are about as large as the learning rate.

    Such a step can be as long as it gets along its input: fan_in of its entries add up in each
    number of the output, so the learning rate goes as 1 / fan_in.
    """
    return -1.0 if fans.fan_in else 0.0


ENTRYWISE = width_powers(entrywise)
"""The `width_powers` of optimizers with such steps.

Every optimizer says by group how its best learning rate goes with the width ratio r, as r^power,
where initialisation follows the width as in maximal update (Yang et al. 2022, tables 3 and 8).
Fan-in and fan-out decide: a step is to change each number of a map's output by as much at any
width, so its spectral norm is to go as sqrt(fan_out / fan_in) (Yang et al. 2023, "A Spectral
Condition for Feature Learning").
"""


class Optimizer(torch.optim.Optimizer, ABC):
    """Base of the optimizers that are written here: final classes say how a group moves."""

    width_powers: dict[str, float]
    """By group, the power of the width with which its best learning rate goes (ENTRYWISE)."""
    squares_in_state = ("square",)

    def __init__(self, options: OptimizerOptions, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})
        add_decay(self, options)
        add_caution(self, options)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nothing here evaluates the loss anew
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            self.move(group, with_gradient(group))

    @abstractmethod
    def move(self, group: dict[str, Any], parameters: list[tuple[nn.Parameter, Tensor]]) -> None:
        """Update the parameters of a group in place, at its `lr`; each comes with its gradient."""


def adam_direction(
    state: dict[str, Any], gradient: Tensor, beta1: float, beta2: float, epsilon: float
) -> Tensor:
    """m̂ / (√v̂ + ε), by which Adam moves at learning rate -1 (Kingma & Ba 2015).

    `state` is the parameter's own; its `mean` and `square` are Adam's first and second moment.
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
    """Take Adam's step (Kingma & Ba 2015) in one pass over each parameter, as torch's fused form
    does: of large tables every pass takes its time.
    """
    for parameter, _ in parameters:
        if not states[parameter]:
            count = torch.zeros((), device=parameter.device)
            states[parameter].update(
                step=count, mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter)
            )
    weights: list[Tensor] = [parameter for parameter, _ in parameters]
    gradients = [gradient for _, gradient in parameters]
    means = [states[parameter]["mean"] for parameter in weights]
    squares = [states[parameter]["square"] for parameter in weights]
    steps = [states[parameter]["step"] for parameter in weights]
    adam(
        weights,
        gradients,
        means,
        squares,
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
        """The parameters that have an average, each with it: the weights to evaluate and save."""


@contextmanager
def evaluation_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, the model has the weights to evaluate and save; after it, exactly those it trains at.

    They differ only where the optimizer is `Averaging`.
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
    """Inside, a backward pass updates each parameter once its gradient is there, and frees that at
    once (Lv et al. 2023, LOMO).

    So the gradients never exist all at the same time. The norm of each is stored in `norms`.
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
