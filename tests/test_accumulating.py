"""A batch in pieces (`train.gradient_accumulation`) takes the step that it takes whole, whatever
rule, interventions and model.
"""

from random import Random
from typing import Any

import pytest
import small
import torch
from test_followers import Fixed, began
from test_learning_rules import batch, gradients, rule_for

from lmlab.core import registry
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel
from lmlab.training import step as stepping
from lmlab.training.interventions.base import KEYS

RULES = registry.names("learning_rules")
INTERVENTIONS = registry.names("interventions")
DRAWING = {
    "activity_forward_gradient",
    "evolution_strategies",
    "forward_forward",
    "forward_gradient",
    "low_rank_evolution",
    "node_perturbation",
    "noprop",
    "spsa",
    "target_propagation",
    "three_factor_hebbian",
}
"""Rules known to draw noise for what they are given, so that each piece has noise of its own."""
FEW = {"population": 2, "directions": 2, "maps_at_once": 0}


def weights_after(
    pieces: int, slots: dict[str, str], rule: str = "backprop", **values: Any
) -> torch.Tensor:
    """All weights, the rule's too, after three steps by plain descent: what they are tells each
    step's gradients.
    """
    values = {
        "train.optimizer": "sgd",
        "train.parametrisation": "standard",
        "train.gradient_accumulation": pieces,
        **values,
    }
    run, schedule = began(rule, slots, **values)
    for _ in range(3):
        stepping.take_step(run, schedule, Fixed())  # type: ignore[arg-type]
        run.step += 1
    return torch.cat(
        [
            parameter.detach().flatten()
            for learner in (run.model, run.rule)
            for parameter in learner.parameters()
        ]
    )


def found(
    rule: str, model: LanguageModel, pieces: int, number: int | None = None
) -> list[torch.Tensor]:
    """The gradients of model and rule from a batch in so many pieces, or from one of them by
    itself, under its key.
    """
    made = rule_for(rule, model, **FEW)
    parts_of_batch = list(zip(*(both.chunk(pieces) for both in batch()), strict=True))
    model.zero_grad()
    with noise.keyed(7, 0):
        if number is None:
            made.accumulate_gradients(model, parts_of_batch)
        else:
            with noise.within("piece", number):
                made.assign_gradients(model, *parts_of_batch[number])
    return gradients(model) + gradients(made)


@pytest.mark.parametrize("intervention", INTERVENTIONS)
def test_an_intervention_acts_on_the_step_and_not_on_its_pieces(intervention: str) -> None:
    """But `token_dropping`, whose noise is for the tokens of a piece: there pieces are right on
    average alone.
    """
    whole, pieces = (weights_after(count, {KEYS[0]: intervention}) for count in (1, 4))
    assert torch.allclose(whole, pieces, rtol=1e-9, atol=1e-11) == (
        intervention != "token_dropping"
    )


@pytest.mark.parametrize("seed", range(12))
def test_three_interventions_together_act_on_the_step_and_not_on_its_pieces(seed: int) -> None:
    rng = Random(seed)
    three = rng.sample([name for name in INTERVENTIONS if name != "token_dropping"], 3)
    rule = rng.choice(["backprop", "kolen_pollack", "weight_mirror"])
    whole, pieces = (
        weights_after(count, dict(zip(KEYS, three, strict=True)), rule) for count in (1, 4)
    )
    torch.testing.assert_close(pieces, whole, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_that_draws_no_noise_for_a_piece_finds_the_same_in_pieces(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it draws is seen, not listed, so that a new rule is held to this as well."""
    drawn: list[tuple[Any, ...]] = []
    generator = noise.generator

    def watched(*site: Any) -> torch.Generator:
        drawn.append(site)
        return generator(*site)

    monkeypatch.setattr(noise, "generator", watched)
    model = small.rough(small.some_model())
    whole, pieces = found(rule, model, 1), found(rule, model, 4)
    alike = [
        torch.allclose(one, other, rtol=1e-9, atol=1e-11)
        for one, other in zip(whole, pieces, strict=True)
    ]
    assert all(alike) or drawn
    if rule in DRAWING:
        assert drawn
        assert not all(alike)


@pytest.mark.parametrize(
    "rule", [name for name in RULES if name != "weight_mirror"]
)  # which draws once a step
def test_two_processes_with_half_a_batch_each_find_what_one_finds_in_two_pieces(rule: str) -> None:
    """The mean of what each piece gives by itself under its own key, for a rule that draws noise
    too.
    """
    model = small.rough(small.some_model(dropout=0.2)).train()
    together, *apart = found(rule, model, 2), found(rule, model, 2, 0), found(rule, model, 2, 1)
    for whole, one, other in zip(together, *apart, strict=True):
        torch.testing.assert_close(whole, (one + other) / 2, rtol=1e-9, atol=1e-12)


MODELS = small.variants("models")


@pytest.mark.parametrize("choice", MODELS, ids=small.title)
def test_every_model_gives_the_same_in_pieces(choice: registry.Choice) -> None:
    """But a mixture of experts whose penalty counts: it says that this is that of a piece."""
    model = small.rough(choice).train()
    mixed = [module for module in model.modules() if hasattr(module, "balance")]
    for counts in [False, True] if mixed else [False]:
        for module in mixed:
            module.balance = 0.1 * counts
        whole, pieces = found("backprop", model, 1), found("backprop", model, 4)
        alike = [
            torch.allclose(one, other, rtol=1e-9, atol=1e-11)
            for one, other in zip(whole, pieces, strict=True)
        ]
        assert all(alike) != counts
