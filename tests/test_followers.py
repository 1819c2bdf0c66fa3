"""A rule's own parameters that have to move as the model's do: whatever is done to the leader's
step is done to theirs.
"""

from typing import Any

import pytest
import small
import torch
from small import CONTEXT, VOCABULARY
from test_learning_rules import batch, refusal, rule_for
from torch import Tensor, nn

from lmlab.core import registry
from lmlab.core.params import changed, section
from lmlab.training import step as stepping
from lmlab.training.interventions.base import KEYS
from lmlab.training.optimizers.base import Averaging
from lmlab.training.step import Run, TrainParams

INTERVENTIONS = registry.names("interventions")
OPTIMIZERS = [
    name
    for name in registry.names("optimizers")
    if not issubclass(registry.find("optimizers", name)[0], Averaging)
]
"""Those whose parameters decay by the group's rate alone, and are no mixture with an average."""
STRONG = {
    "interventions.layer_rates.factor": 0.5,
    "interventions.global_clipping.limit": 0.04,  # not train.clip, at whose edge rounding decides
    "interventions.sample_clipping.limit": 0.1,
    "interventions.layer_clipping.limit": 0.01,
    "interventions.gradient_noise.sigma": 0.1,
    "interventions.delayed_gradients.delay": 1,
    "train.context": CONTEXT,
    "train.batch": 4,
    "train.precision": "float32",
    "train.clip": 0.05,
    "train.steps": 9,
    "models.transformer.width": 8,
    "schedules.constant.warmup": 0,
    "optimizers.adamw.learning_rate": 0.05,
    "optimizers.sgd.learning_rate": 0.05,
}


class Fixed:
    """The same batch at every step."""

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        return batch()


def began(rule: str, slots: dict[str, str], **values: Any) -> tuple[Run, Any]:
    """A run in double precision, with its schedule."""
    keys = {
        "train.learning_rule": rule,
        "train.schedule": "constant",
        **{f"train.{key}": name for key, name in slots.items()},
    }
    tree = changed(small.tree(weight_decay=0.2), {**STRONG, **keys, **values})
    params = section(tree, "train", TrainParams)
    chosen = registry.choices(tree, "train", params)
    run = stepping.begin(params, chosen, VOCABULARY, torch.device("cpu"))
    run.model.double()
    run.rule.double()
    return run, chosen["schedule"].build(params.steps)


def pairs(run: Run) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Leader and follower, by the leader's name."""
    weights, own = dict(run.model.named_parameters()), dict(run.rule.named_parameters())
    return {
        leader: (weights[leader], own[follower])
        for follower, leader in run.rule.leaders(run.model).items()
    }


def drift(run: Run, schedule: Any, steps: int = 4) -> float:
    """How far leader - follower ends from where its group's decay alone would have brought it, as a
    share; at the worst.
    """
    apart = {
        name: (leader - follower).detach().clone()
        for name, (leader, follower) in pairs(run).items()
    }
    before = [parameter.detach().clone() for parameter in run.model.parameters()]

    def decayed(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        of = {
            id(parameter): group
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        for name, (leader, follower) in pairs(run).items():
            assert (leader.grad is None) == (follower.grad is None), name
            if leader.grad is not None:
                group = of[id(leader)]
                rate = group.get(
                    "base_lr", group["lr"]
                )  # where rates follow the width, decay does not
                apart[name] *= 1 - rate * group["decay"]

    run.optimizer.register_step_pre_hook(decayed)
    for _ in range(steps):
        stepping.take_step(run, schedule, Fixed())  # type: ignore[arg-type]
        run.step += 1
    assert not all(torch.equal(*pair) for pair in zip(run.model.parameters(), before, strict=True))
    return max(
        float(((leader - follower).detach() - apart[name]).norm() / apart[name].norm())
        for name, (leader, follower) in pairs(run).items()
    )


LED = [
    name
    for name in registry.names("learning_rules")
    if not refusal(name, small.model(small.some_model()))
]
LED = [
    name
    for name in LED
    if rule_for(name, small.model(small.some_model())).leaders(small.model(small.some_model()))
]


def test_what_is_tried_here_is_every_rule_with_followers() -> None:
    assert LED == ["kolen_pollack"]


@pytest.mark.parametrize("rule", LED)
@pytest.mark.parametrize("intervention", INTERVENTIONS)
def test_leader_and_follower_stay_as_far_apart_whatever_edits_the_step(
    rule: str, intervention: str
) -> None:
    """Under every intervention, another beside it, rates by block and by maximal update, decay,
    clip and pieces.

    Slots, neighbour, optimizer and the rest go round with the intervention's number.
    """
    number = INTERVENTIONS.index(intervention)
    three = [intervention, INTERVENTIONS[(number + 1) % len(INTERVENTIONS)], "layer_rates"]
    first = number % 3
    tied = number % 4 == 3
    values = {
        "models.transformer.tied": tied,
        "train.parametrisation": "standard" if tied else "maximal_update",
        "train.optimizer": OPTIMIZERS[number % len(OPTIMIZERS)],
        "train.gradient_accumulation": 1 + number % 2,
    }
    run, schedule = began(
        rule, dict(zip(KEYS, three[first:] + three[:first], strict=True)), **values
    )
    assert drift(run, schedule) < 1e-9
