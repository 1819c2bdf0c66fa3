"""One step of learning under the microscope: what a rule asks for, and what came of it.

On a batch of text at fixed weights w, a learning rule gives each parameter a signal in place of the
gradient g of the loss L, and an optimizer makes a step Δ of it. Beside the true gradient stand the
rule's direction and length; beside what the first order predicts of the step, ⟨g, Δ⟩, what
happened, L(w + Δ) - L(w), on the batch and on held-out text, token by token. The optimizer's memory
begins anew, gradients are not clipped, and nothing of the run changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmlab.core import params, registry
from lmlab.core.errors import UserError
from lmlab.core.params import Tree
from lmlab.core.registry import Choice
from lmlab.evaluation.signals import signals
from lmlab.explorer.subject import Subject
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training import step
from lmlab.training.interventions import base as interventions
from lmlab.training.step import Run, TrainParams

WINDOWS = 8
"""Of text in a batch at most, evenly spaced."""
OWN = ""
"""The name of the rule or optimizer that the run was trained with."""
Vectors = Mapping[str, Tensor]
"""A tensor for each parameter of the model, by its name."""


@dataclass(frozen=True)
class Material:
    """The text that a run learned from, and other text of its kind."""

    training: str
    held_out: str
    reading: tuple[str, ...] = ()
    """More of the training text, in pieces, to look for features in."""


@dataclass(frozen=True)
class Wish:
    """Which step to take."""

    rule: str = OWN
    """A learning rule with its options in params.yaml, or OWN: the run's, with its state."""
    optimizer: str = OWN
    rate: float = 1.0
    """The learning rate, as a share of the optimizer's peak rate."""


def rules() -> list[str]:
    """The learning rules that can be tried: those that need nothing but a model and text."""
    names = registry.names("learning_rules")
    return [name for name in names if not registry.find("learning_rules", name)[0].needs_teacher]


def one_step(
    subject: Subject, moment: int, wish: Wish, material: Material, tree: Tree
) -> dict[str, Any]:
    """A step on the training text from the weights of a moment; `tree` is params.yaml.

    Raises UserError where the rule cannot work with the model, and where there is no text.
    """
    run, notes = _begun(subject, moment, wish, tree)
    model = run.model
    batch = _batch(subject, material.training)
    held_out = _batch(subject, material.held_out)
    with torch.enable_grad(), noise.keyed(0, 0):
        seen = signals(run.rule, model, *batch)
        true = _true_gradient(model, *batch)
        run.rule.assign_gradients(model, *batch)
    given = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
    }
    before = [_nats(model, *each) for each in (batch, held_out)]
    if not before[0].isfinite().all():
        raise UserError(
            "the loss is no number at these weights: training diverged; choose an earlier moment"
        )
    moved = _taken(run, wish.rate)
    after = [_nats(model, *each) for each in (batch, held_out)]
    predicted = _product(true, moved)
    texts = [[subject.shown(row) for row in targets.tolist()] for _, targets in (batch, held_out)]
    return {
        "rule": run_name(wish.rule, subject, "learning_rule"),
        "optimizer": run_name(wish.optimizer, subject, "optimizer"),
        "notes": notes,
        "predicted": predicted,
        "happened": float((after[0] - before[0]).mean()),
        "held_out": float((after[1] - before[1]).mean()),
        "loss": float(before[0].mean()),
        "length": _length(moved),
        "units": [
            {
                "name": unit.name,
                "signal": unit.signal,
                "source": unit.source,
                **_compared(given, true, moved, names),
                "weights": [
                    {"name": name, **_compared(given, true, moved, [name])} for name in names
                ],
            }
            for unit, names in zip(seen.units, _parameters_by_unit(model), strict=True)
        ],
        "batch": _rows(texts[0], before[0], after[0]),
        "beyond": _rows(texts[1], before[1], after[1]),
    }


def run_name(wished: str, subject: Subject, key: str) -> str:
    """The name of a part that was wished for, or of the run's own."""
    if wished != OWN or subject.parts is None:
        return wished
    return subject.parts[key].name


def _begun(subject: Subject, moment: int, wish: Wish, tree: Tree) -> tuple[Run, list[str]]:
    """A run at the weights of a moment, and what has to be known of it."""
    parts, notes = _parts(subject, wish, tree)
    section = params.section(tree, "train", TrainParams)
    plain = {"precision": "float32", "compile": False, "step_in_backward": False, "device": "cpu"}
    section = section.model_copy(update={"context": subject.model.context, **plain})
    with noise.forked():
        run = step.begin(section, parts, subject.model.vocabulary_size, torch.device("cpu"))
    run.model.load_state_dict(subject.at(moment).state_dict())
    run.model.eval()
    if run.rule.state_dict():
        state = subject.rule_state(moment) if wish.rule == OWN else None
        if state is None:
            notes.append("the rule's own weights are new: it has not learned beside this model")
        else:
            run.rule.load_state_dict(state)
    return run, notes


def _parts(subject: Subject, wish: Wish, tree: Tree) -> tuple[dict[str, Choice], list[str]]:
    """The parts of the step: the run's own, and those that were wished for."""
    notes = []
    section = params.section(tree, "train", TrainParams)
    if subject.parts is None:
        if OWN in (wish.rule, wish.optimizer):
            notes.append(
                "the run left no snapshots, so its learning rule and optimizer are not known:"
                " those of params.yaml are taken"
            )
        parts = registry.choices(tree, "train", section)
    else:
        parts = dict(subject.parts)
    if wish.rule not in (OWN, *rules()):
        raise UserError(
            f"{wish.rule or 'the rule'} cannot be tried here; choose one of {', '.join(rules())}"
        )
    parts["model"] = subject.model.choice
    for key, kind, name in (
        ("learning_rule", "learning_rules", wish.rule),
        ("optimizer", "optimizers", wish.optimizer),
    ):
        if name != OWN:
            parts[key] = registry.choose(tree, kind, name)
    if wish.rule != OWN:
        identity = registry.choose(tree, "interventions", "identity")
        parts |= dict.fromkeys(interventions.KEYS, identity)
    return parts, notes


def _batch(subject: Subject, text: str) -> tuple[Tensor, Tensor]:
    """Up to WINDOWS windows of a text, evenly spaced: what is read and what is predicted, each of
    shape (B, T).
    """
    ids = torch.tensor(subject.ids(text))
    if len(ids) < 2:
        raise UserError("there is no text to take a step on; type one, or run `dvc repro download`")
    width = min(subject.model.context, len(ids) - 1)
    last = len(ids) - 1 - width
    count = min(WINDOWS, 1 + last // width)
    starts = [last * number // max(1, count - 1) for number in range(count)]
    rows_BS = torch.stack([ids[start : start + width + 1] for start in starts])
    return rows_BS[:, :-1].contiguous(), rows_BS[:, 1:].contiguous()


def _true_gradient(model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor) -> Vectors:
    parameters = dict(model.named_parameters())
    loss = next_token_loss(model(tokens_BT), targets_BT)
    gradients = torch.autograd.grad(
        loss, list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(parameters, gradients, strict=True))


def _taken(run: Run, rate: float) -> Vectors:
    """Let the optimizer take its step; how far each parameter moved."""
    parameters = dict(run.model.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for group in run.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * rate
    run.optimizer.step()
    return {name: parameter.detach() - before[name] for name, parameter in parameters.items()}


@torch.no_grad()
def _nats(model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """The cross-entropy of each target, in double precision, shape (B, T)."""
    log_BTV = model(tokens_BT).double().log_softmax(-1)
    return -log_BTV.gather(-1, targets_BT[..., None])[..., 0]


def _parameters_by_unit(model: LanguageModel) -> list[list[str]]:
    """The names of the parameters of each unit, as `signals` tells them apart."""
    embedding: list[str] = []
    blocks: list[list[str]] = [[] for _ in model.blocks]
    head: list[str] = []
    for name, _ in model.named_parameters():
        path = name.split(".")
        if path[0] == "blocks":
            blocks[int(path[1])].append(name)
        elif "embedding" in path or "position" in path:
            embedding.append(name)
        else:
            head.append(name)
    return [embedding, *blocks, head]


def _compared(
    given: Vectors, true: Vectors, moved: Vectors, names: Sequence[str]
) -> dict[str, float | None]:
    """A signal beside the gradient, over some parameters.

    `cosine` between the two, None where one is zero; their lengths; `share` of the squared length
    of the whole step; and `predicted`, what their move changes in the loss by the first order.
    """
    own, exact = ({name: vectors[name] for name in names} for vectors in (given, true))
    lengths = [_length(vectors) for vectors in (own, exact)]
    step_length = _length(moved)
    of_unit = {name: moved[name] for name in names}
    return {
        "cosine": _product(own, exact) / (lengths[0] * lengths[1]) if all(lengths) else None,
        "length": lengths[0],
        "true_length": lengths[1],
        "share": (_length(of_unit) / step_length) ** 2 if step_length else 0.0,
        "predicted": _product(exact, of_unit),
    }


def _product(one: Vectors, other: Vectors) -> float:
    return float(sum((one[name].double() * other[name].double()).sum() for name in one))


def _length(vectors: Vectors) -> float:
    return float(sum(vector.double().square().sum() for vector in vectors.values())) ** 0.5


def _rows(texts: list[list[str]], before_BT: Tensor, after_BT: Tensor) -> list[dict[str, Any]]:
    return [
        {"texts": text, "before": before.tolist(), "after": after.tolist()}
        for text, before, after in zip(texts, before_BT, after_BT, strict=True)
    ]
