"""A run that training goes on from: what a finished run hands on, and how a new one takes it over.

Handed on are the weights that training was at (some optimizers recommend others), the state of the
learning rule and of the optimizer by the parameter's name, and how far the text has been read.
`write` puts it into a folder beside the model, `take_over` reads it into a run that has been built
as if from scratch. With the same text, batch, rule, optimizer and learning rate, the run that goes
on takes the steps that the first one would have taken, to the last bit.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.core.files import checked, sha256, whole_folder
from lmlab.core.registry import Choice, recall
from lmlab.data.shards import Shards
from lmlab.data.start import Start
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import Tokenizer
from lmlab.data.vocabularies import Vocabularies
from lmlab.model.models.base import LanguageModel
from lmlab.model.record import ModelRecord, check_parts, read_record
from lmlab.training import checkpoint, growing
from lmlab.training.distilling import Teacher
from lmlab.training.growing import Shape
from lmlab.training.interventions import base as interventions
from lmlab.training.interventions.base import Intervention
from lmlab.training.learning_rules.base import LearningRule
from lmlab.training.migrating import migrated, text_of

FILE = "state.safetensors"
LOOKED_AT = 32
"""Windows of text for growths that look at the model at work."""
RULE = ["learning_rule", *interventions.KEYS]
"""The keys of `train` whose parts must be the same for the rule's state to be taken over."""


@dataclass(frozen=True)
class Position:
    """How far a run has read its text, and in which order."""

    shards: str
    context: int
    seed: int
    pool_tokens: int
    windows: int
    """Read so far."""

    def after(self, other: "Position") -> int:
        """From which window on to read where another run stopped; 0 in another order or text."""
        same = (self.shards, self.context, self.seed, self.pool_tokens) == (
            other.shards,
            other.context,
            other.seed,
            other.pool_tokens,
        )
        return other.windows if same else 0


def write(
    folder: Path,
    model: nn.Module,
    rule: LearningRule,
    optimizer: torch.optim.Optimizer,
    parts: Mapping[str, Choice],
    position: Position,
) -> None:
    """Write what a run hands on, beside its model."""
    state = {
        "model": model.state_dict(),
        "rule": rule.state_dict(),
        "optimizer": _by_name(model, rule, optimizer),
        "parts": {key: parts[key].name for key in (*RULE, "optimizer")},
        "optimizer_options": parts["optimizer"].options.model_dump(),
        "position": vars(position),
    }
    with whole_folder(folder) as partial:
        checkpoint.write(partial / FILE, state)


@dataclass(frozen=True)
class TakenOver:
    """What a run has taken over, and what it has not."""

    windows: int
    """Of the text, read before."""
    remarks: list[str]
    """What begins anew, a line each."""


def take_over(
    start: Start,
    model: LanguageModel,
    rule: LearningRule,
    optimizer: torch.optim.Optimizer,
    parts: Mapping[str, Choice],
    position: Position,
    tokenizer: Tokenizer,
    shards: Shards,
) -> TakenOver:
    """Put weights and states of the start into a run before its first step.

    `position` is that of the run itself, at its beginning, and `shards` is its text in the ids of
    `tokenizer`. Raises UserError where the model's parts are not the start's.
    """
    state, remarks = _reshaped(start, model, rule, optimizer, parts, tokenizer, shards)
    if not _fits(model.state_dict(), state["model"]):
        raise UserError(
            "params.yaml: train.context or the vocabulary is not the start's, and the model's shape"
            " depends on it; set train.context back"
        )
    model.load_state_dict(state["model"])
    changed = [key for key in RULE if state["parts"][key] != parts[key].name]
    if changed or not _fits(rule.state_dict(), state["rule"]):
        if state["rule"]:
            why = "is another one" if changed else "has tensors of other shapes"
            remarks.append(f"the learning rule {why}, so its state begins anew")
    else:
        rule.load_state_dict(state["rule"])
    if not start.carries_optimizer_state:
        remarks.append("the optimizer's state begins anew (start.optimizer_state)")
    elif state["parts"]["optimizer"] != parts["optimizer"].name:
        remarks.append(
            f"the optimizer is {parts['optimizer'].name} where it was"
            f" {state['parts']['optimizer']}, so its state begins anew"
        )
    elif reshaping := _reshaping(optimizer, parts["optimizer"], state["optimizer_options"]):
        remarks.append(f"the optimizer's state begins anew, as {reshaping} decides its form")
    else:
        remarks += _put_back(model, rule, optimizer, state["optimizer"])
    innermost = rule.innermost if isinstance(rule, Intervention) else rule
    if innermost.needs_teacher:
        innermost.teacher = Teacher.of(start, tokenizer, next(model.parameters()).device)
    windows = position.after(Position(**state["position"]))
    if not windows and state["position"]["windows"]:
        other = "tokenizer" if start.migration else "text, order or train.context"
        remarks.append(f"another {other}: the text is read from its beginning")
    return TakenOver(windows, remarks)


def _reshaped(
    start: Start,
    model: LanguageModel,
    rule: LearningRule,
    optimizer: torch.optim.Optimizer,
    parts: Mapping[str, Choice],
    tokenizer: Tokenizer,
    shards: Shards,
) -> tuple[dict[str, Any], list[str]]:
    """The start's state, for the size and the vocabulary of the model, and what became of it."""
    saved, state = read_record(start.model, start.made_by), _read(start)
    if not start.carries_optimizer_state:
        state["optimizer"] = {}
    without = state["model"].keys() - _of_model(state["optimizer"])
    remarks = []
    if start.growths:
        old, shape = recall("models", saved.model), Shape.of(saved, parts["parametrisation"])
        growing.check(old, parts["model"], start.growths, shape)
        text_BS = _text_to_look_at(start, shards, saved.context)
        state = growing.grown(state, old, parts["model"], start.growths, shape, optimizer, text_BS)
        names = ", ".join(growth.name for growth in start.growths)
        remarks.append(f"the model had {saved.parameters:,} parameters ({names})")
    else:
        check_parts(saved, parts["model"])
    if start.migration:
        _check_tokenizer(saved, shards, start.migration.name)
        both = Vocabularies(tokenizers.load(start.tokenizer_file, start.made_by), tokenizer)
        migration = start.migration.build()
        state = migrated(state, saved, model, rule, optimizer, parts, migration, both, shards)
        size, kept = both.new.vocabulary_size, len(both.kept)
        remarks.append(
            f"another tokenizer: {kept:,} of its {size:,} tokens keep their rows, {size - kept:,}"
            f" are new ({start.migration.name})"
        )
    parameters = dict(model.named_parameters())
    anew = parameters.keys() - _of_model(state["optimizer"]) - without
    if start.carries_optimizer_state and anew:
        remarks.append(f"the optimizer's state of {len(anew)} parameters begins anew")
    return state, remarks


def _check_tokenizer(saved: ModelRecord, shards: Shards, migration: str) -> None:
    """Raise UserError where there is nothing to migrate to."""
    if saved.tokenizer_sha256 == shards.manifest.tokenizer_sha256:
        raise UserError(
            f"params.yaml: start.migration: {migration} has nothing to do: the tokenizer is the"
            " start's; set it to identity, or choose another tokenizer"
        )


def _of_model(state: Mapping[str, Any]) -> set[str]:
    """The model's parameters of which an optimizer's state has something."""
    prefix = "model."
    return {name.removeprefix(prefix) for name in state if name.startswith(prefix)}


def _text_to_look_at(start: Start, shards: Shards, context: int) -> Tensor:
    """The first LOOKED_AT windows of the train split, shape (B, context + 1), where a growth needs
    them. Raises UserError where these are in another tokenizer.
    """
    looking = [growth.name for growth in start.growths if growth.part.shrinks]
    if not looking:
        return torch.zeros(0)
    if start.migration:
        raise UserError(
            f"params.yaml: start.growth: {looking[0]} has to see the model read the text with the"
            " tokenizer it has; set start.migration to identity and do one after the other"
        )
    ids = text_of(shards)[: LOOKED_AT * (context + 1)]
    return ids.unfold(0, context + 1, context + 1) if len(ids) > context else ids[None]


def state_sha256(start: Start) -> str:
    """The hash of a start's state. Raises UserError where that is missing or damaged."""
    return sha256(checked(start.state / FILE, start.made_by))


def _read(start: Start) -> dict[str, Any]:
    file = checked(start.state / FILE, start.made_by)
    state = checkpoint.read(file)
    if state is None:
        raise UserError(f"{file} is damaged; run `dvc repro --force {start.made_by}`")
    return state


def _fits(own: Mapping[str, Any], saved: Mapping[str, Any]) -> bool:
    """Whether a saved state has the names and shapes of a module's own."""
    return _shapes(own) == _shapes(saved)


def _shapes(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(value, "shape", None) for name, value in state.items()}


def _named(model: nn.Module, rule: LearningRule) -> dict[str, nn.Parameter]:
    """All that an optimizer may move, by name."""
    named = {f"model.{name}": parameter for name, parameter in model.named_parameters()}
    return named | {f"rule.{name}": parameter for name, parameter in rule.named_parameters()}


def _by_name(
    model: nn.Module, rule: LearningRule, optimizer: torch.optim.Optimizer
) -> dict[str, dict[str, Any]]:
    """The optimizer's state of each parameter that has one, by the parameter's name."""
    return {
        name: optimizer.state[parameter]
        for name, parameter in _named(model, rule).items()
        if optimizer.state.get(parameter)
    }


def _put_back(
    model: nn.Module,
    rule: LearningRule,
    optimizer: torch.optim.Optimizer,
    saved: Mapping[str, dict[str, Any]],
) -> Iterator[str]:
    """The inverse of `_by_name`; says what finds no place."""
    named = _named(model, rule)
    homeless = [name for name in saved if name not in named]
    for name, state in saved.items():
        if name in named:
            device = named[name].device
            optimizer.state[named[name]] = _moved(state, device)
    if homeless:
        yield f"the optimizer's state of {len(homeless)} parameters that are gone is dropped"


def _reshaping(optimizer: torch.optim.Optimizer, choice: Choice, saved: Mapping[str, Any]) -> str:
    """The first changed option that decides the form of the optimizer's state; empty for none."""
    now = choice.options.model_dump()
    for name in getattr(optimizer, "state_options", ()):
        if now[name] != saved.get(name):
            return f"optimizers.{choice.name}.{name}"
    return ""


def _moved(value: Any, device: torch.device) -> Any:
    """A tree of dicts and lists with its tensors on a device."""
    if isinstance(value, dict):
        return {key: _moved(inner, device) for key, inner in value.items()}
    if isinstance(value, list):
        return [_moved(inner, device) for inner in value]
    return value.to(device) if isinstance(value, Tensor) else value
