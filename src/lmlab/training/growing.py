"""A larger model from a smaller one: growths in turn, each a step to another shape, each checked.

The optimizer's state goes by the same maps as the weights: its means of gradients are what the
larger model would have had. A growth that is to preserve what the model computes is tried on random
tokens in double precision, so a model for which it does not is refused by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.core.params import Tree
from lmlab.core.registry import Choice
from lmlab.model.models.base import LanguageModel, build
from lmlab.model.record import ModelRecord, differences
from lmlab.training.growths.base import Grown, Growth
from lmlab.training.optimizers.base import has_shape
from lmlab.training.parametrisations.base import Parametrisation

TOLERANCE = 1e-9
"""The largest relative difference of logits in double precision, for growths that preserve."""
TOKENS = (2, 24)
"""Sequences, and tokens in each, on which that is tried."""
State = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """What a model is built with beside its parts, and what its initial weights are drawn by."""

    vocabulary_size: int
    context: int
    seed: int
    parametrisation: Choice | None = None
    """None: the standard one."""

    @classmethod
    def of(cls, saved: ModelRecord, parametrisation: Choice | None = None) -> "Shape":
        """That of a saved model."""
        return cls(saved.vocabulary_size, saved.context, saved.seed, parametrisation)

    def build(self, choice: Choice) -> LanguageModel:
        """The model with initial weights; torch's generator stays as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = build(choice, self.vocabulary_size, self.context)
        if self.parametrisation:
            parametrisation: Parametrisation = self.parametrisation.build()
            parametrisation.check(model)
            parametrisation.scale_initialisation(model)
        return model

    def draft(self, choice: Choice) -> LanguageModel:
        """The model without storage."""
        with torch.device("meta"):
            return build(choice, self.vocabulary_size, self.context)


def chosen(tree: Tree, names: Sequence[str]) -> list[Choice]:
    """The growths listed in `start.growth`. Raises UserError for one that does not exist."""
    return [registry.choose(tree, "growths", name, "start.growth") for name in names]


def grown(
    state: Mapping[str, Any],
    start: Choice,
    target: Choice,
    growths: Sequence[Choice],
    shape: Shape,
    optimizer: torch.optim.Optimizer,
    text_BS: Tensor,
) -> State:
    """What a run hands on (`continuing.write`), for a model of the parts `target`. `text_BS` are
    windows of training text for growths that look at the model at work.

    Raises UserError where the growths do not lead there, or one does not do what it is to do.
    """
    choice, made = explicit(start), _cast(state, torch.float64)
    for growth_choice in growths:
        larger = _towards(choice, explicit(target), growth_choice.part.keys)
        made = _step(made, choice, larger, growth_choice, shape, optimizer, text_BS)
        choice = larger
    (dtype,) = {value.dtype for value in state["model"].values() if value.is_floating_point()}
    return _cast(made, dtype)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """A tree with its arrays in another precision: in double, halves add up to what they were."""
    if isinstance(value, dict):
        return {key: _cast(inner, dtype) for key, inner in value.items()}
    if isinstance(value, list):
        return [_cast(inner, dtype) for inner in value]
    is_array = isinstance(value, Tensor) and value.ndim and value.is_floating_point()
    return value.to(dtype) if is_array else value


def check(start: Choice, target: Choice, growths: Sequence[Choice], shape: Shape) -> None:
    """Raise UserError where the growths do not lead from one model to the other, which needs no
    weights.
    """
    choice = explicit(start)
    for growth_choice in growths:
        larger = _towards(choice, explicit(target), growth_choice.part.keys)
        if larger.record() == choice.record():
            keys = ", ".join(growth_choice.part.keys)
            raise UserError(
                f"params.yaml: start.growth: {growth_choice.name} has nothing to do: it changes"
                f" {keys}, and these are the start's; take it out, or set them"
            )
        growth: Growth = growth_choice.build()
        _check_direction(growth_choice.name, growth, shape.draft(choice), shape.draft(larger))
        _tensors(growth_choice, growth, shape.draft(choice), shape.draft(larger))
        choice = larger
    if rest := differences(choice.record(), explicit(target).record(), f"models.{target.name}"):
        names = ", ".join(each.name for each in growths) or "none"
        raise UserError(
            f"params.yaml: start.growth: {names} cannot reach {'; '.join(rest)}; add the growth"
            " that changes it, or set it back"
        )


def explicit(choice: Choice) -> Choice:
    """The choice with a width that follows from the depth written out, so that each can change on
    its own.
    """
    options = choice.options
    if whole := getattr(options, "whole_width", 0):
        options = options.model_copy(update={"width": whole})
    inner = {key: explicit(part) for key, part in choice.inner.items()}
    return Choice(choice.kind, choice.name, options, inner)


def _towards(choice: Choice, target: Choice, keys: Sequence[str]) -> Choice:
    """The choice with its options of these names set to the target's."""
    wanted = target.options.model_dump() if target.name == choice.name else {}
    fields = choice.options.model_dump()
    update = {key: wanted[key] for key in keys if key in fields and key in wanted}
    inner = {
        key: _towards(part, target.inner[key], keys) if key in target.inner else part
        for key, part in choice.inner.items()
    }
    return Choice(choice.kind, choice.name, choice.options.model_copy(update=update), inner)


def _check_direction(name: str, growth: Growth, old: LanguageModel, new: LanguageModel) -> None:
    """Raise UserError where a model that is to become larger would become smaller, or reversely."""
    if growth.shrinks:
        if len(new.blocks) > len(old.blocks):
            raise UserError(f"params.yaml: start.growth: {name} makes models shallower, not deeper")
        return
    before, after = old.state_dict(), new.state_dict()
    for tensor in before.keys() & after.keys():
        sizes = zip(before[tensor].shape, after[tensor].shape, strict=True)
        if any(size > larger for size, larger in sizes):
            raise UserError(f"params.yaml: start.growth: {name} makes models larger, not smaller")
    if len(old.blocks) > len(new.blocks):
        raise UserError(f"params.yaml: start.growth: {name} makes models deeper, not shallower")


def _tensors(
    choice: Choice, growth: Growth, old: LanguageModel, new: LanguageModel
) -> dict[str, Grown]:
    """What the growth says of each tensor, with the right shape. Raises UserError elsewhere."""
    tensors = growth.tensors(old, new)
    before, after = old.state_dict(), new.state_dict()
    for name, tensor in after.items():
        grown = tensors.get(name, Grown(""))
        source = before.get(grown.source)
        fits = source is not None and (grown.is_zero or _shape(grown, source) == tensor.shape)
        if not fits:
            raise UserError(
                f"params.yaml: start.growth: {choice.name} cannot grow models.{new.choice.name}:"
                f" it has nothing for {name}"
            )
    return tensors


def _shape(grown: Grown, source: Tensor) -> torch.Size:
    sizes = list(source.shape)
    for number, axis in grown.axes.items():
        sizes[number] = len(axis.sources)
    return torch.Size(sizes)


def _step(
    state: State,
    choice: Choice,
    larger: Choice,
    growth_choice: Choice,
    shape: Shape,
    optimizer: torch.optim.Optimizer,
    text_BS: Tensor,
) -> State:
    growth: Growth = growth_choice.build()
    old, new = shape.build(choice).double().eval(), shape.build(larger).double().eval()
    old.load_state_dict(state["model"])
    growth.look(old, text_BS)
    tensors = _tensors(growth_choice, growth, shape.draft(choice), shape.draft(larger))
    drawn = {name: tensor.detach().clone() for name, tensor in new.state_dict().items()}

    def weights(saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        made = {}
        for name, grown in tensors.items():
            made[name] = grown.weights(saved[grown.source], drawn[name])
        growth.finish(tensors, made, drawn)
        return made

    made = weights(state["model"])
    new.load_state_dict(made)
    if growth.preserves:
        _check_preserved(growth_choice.name, old, new)
    return {
        **state,
        "model": made,
        "optimizer": _optimizer(state, tensors, weights, optimizer),
    }


def _optimizer(
    state: State, tensors: Mapping[str, Grown], weights: Any, optimizer: torch.optim.Optimizer
) -> dict[str, dict[str, Any]]:
    """The optimizer's state by the parameter's name. What begins anew is left out: that of new
    blocks, and what has another shape than its parameter.
    """
    within = getattr(optimizer, "weights_in_state", ())
    squares = getattr(optimizer, "squares_in_state", ())
    saved = state["optimizer"]
    entries = {
        entry: weights(
            {
                name: saved.get(f"model.{name}", {}).get(entry, tensor)
                for name, tensor in state["model"].items()
            }
        )
        for entry in within
    }
    made = {name: values for name, values in saved.items() if not name.startswith("model.")}
    for name, grown in tensors.items():
        values = saved.get(f"model.{grown.source}")
        shape = state["model"][grown.source].shape
        if values is None or grown.is_new:
            continue
        if not grown.axes and grown.gradient_share == 1:
            made[f"model.{name}"] = values
        elif has_shape(values, shape):
            moved = {key: _moved(grown, key, value, squares) for key, value in values.items()}
            made[f"model.{name}"] = moved | {key: entries[key][name] for key in entries}
    return made


def _moved(grown: Grown, key: str, value: Any, squares: Sequence[str]) -> Any:
    if not isinstance(value, Tensor) or not value.ndim:
        return value
    return grown.gradient(value, power=2 if key in squares else 1)


@torch.no_grad()
def _check_preserved(name: str, old: LanguageModel, new: LanguageModel) -> None:
    """Raise UserError where two models do not give the same logits for random tokens."""
    tokens_BT = torch.randint(
        old.vocabulary_size, TOKENS, generator=torch.Generator().manual_seed(0)
    )
    tokens_BT = tokens_BT[:, : old.context]
    before, after = (model.eval()(tokens_BT) for model in (old, new))
    difference = (after - before).abs().max() / before.abs().max().clamp(min=1)
    if not difference <= TOLERANCE:
        raise UserError(
            f"params.yaml: start.growth: {name} does not preserve what models.{new.choice.name}"
            f" computes with these parts (its logits would change by {float(difference):.1g});"
            " choose another growth, or train from scratch"
        )
