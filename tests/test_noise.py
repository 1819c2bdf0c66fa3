"""Noise by key: what is drawn at one site depends on nothing that is drawn elsewhere, nor on how
the work is cut up.
"""

import pytest
import small
import torch
from test_followers import Fixed, began
from test_learning_rules import batch, gradients, rule_for
from torch import Tensor

from lmlab.core import registry
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel
from lmlab.training import step as stepping
from lmlab.training.interventions.base import KEYS

LIKE = torch.empty(3, 4)


def test_the_same_key_and_site_give_the_same_numbers_and_any_other_others() -> None:
    def drawn(key: tuple[noise.Word, ...], *site: noise.Word) -> Tensor:
        with noise.keyed(*key):
            return noise.normal(LIKE, *site)

    first = drawn((1, 2), "here")
    assert torch.equal(first, drawn((1, 2), "here"))
    others = [
        drawn((1, 3), "here"),
        drawn((2, 2), "here"),
        drawn((1, 2), "there"),
        drawn((1,), "2", "here"),
    ]
    assert not any(torch.equal(first, other) for other in others)
    with noise.keyed(1, 2):
        noise.uniform(LIKE, "elsewhere")  # nothing here is a stream
        with noise.within("piece", 0):
            assert not torch.equal(first, noise.normal(LIKE, "here"))
        assert torch.equal(first, noise.normal(LIKE, "here"))


def masks(**slots: str) -> list[Tensor]:
    """What the dropout layers of a run let through in its second step, its weights at rest."""
    run, _ = began("backprop", slots, **{"models.transformer.dropout": 0.4})
    kept: list[Tensor] = []
    for module in run.model.modules():
        if isinstance(module, noise.Dropout):
            module.register_forward_hook(lambda _, inputs, output: kept.append(output == 0))
    run.model.train()
    with noise.keyed(run.params.seed, 1):
        run.rule.accumulate_gradients(run.model, [batch()])
    assert kept
    return kept


@pytest.mark.parametrize("other", ["gradient_noise", "quantised_gradients", "token_dropping"])
def test_another_thing_that_draws_changes_no_bit_of_what_is_dropped(other: str) -> None:
    alone = masks()
    for slots in ({KEYS[0]: other}, {KEYS[0]: other, KEYS[2]: "gradient_noise"}):
        assert all(torch.equal(*pair) for pair in zip(alone, masks(**slots), strict=True))


def test_one_more_layer_of_dropout_changes_none_of_the_others_masks() -> None:
    model = small.rough(small.some_model(dropout=0.4)).train()
    layers = [module for module in model.modules() if isinstance(module, noise.Dropout)]

    def outputs() -> list[Tensor]:
        with noise.keyed(3, 0):
            return [layer(torch.ones(4, 5)) for layer in layers]

    before = outputs()
    model.another = noise.Dropout(0.4)
    noise.name_sites(model)
    with noise.keyed(3, 0):
        model.another(torch.ones(4, 5))
        assert not any(torch.equal(model.another(torch.ones(4, 5)), one) for one in before)
    assert all(torch.equal(*pair) for pair in zip(before, outputs(), strict=True))
    assert not torch.equal(before[0], before[1])


def estimate(name: str, model: LanguageModel, **changes: object) -> Tensor:
    model.zero_grad()
    with noise.keyed(4, 0):
        rule_for(name, model, **changes).assign_gradients(model, *batch())
    return torch.cat([gradient.flatten() for gradient in gradients(model)])


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_directions_followed_in_pieces_are_those_followed_together(at_once: int) -> None:
    model = small.rough(small.some_model(dropout=0.3, width=8)).train()
    together = estimate("forward_gradient", model, directions=5, at_once=5)
    torch.testing.assert_close(
        estimate("forward_gradient", model, directions=5, at_once=at_once), together
    )


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("spsa", "directions"),
        ("forward_gradient", "directions"),
        ("evolution_strategies", "population"),
        ("low_rank_evolution", "population"),
        ("node_perturbation", "samples"),
        ("activity_forward_gradient", "samples"),
    ],
)
def test_a_member_draws_the_same_however_large_the_population(
    name: str, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What two members draw is drawn by three as well, and more."""
    model = small.rough(small.some_model(width=8, depth=1)).train()
    seed, drawn = noise.seed, set[int]()

    def noted(*site: noise.Word) -> int:
        drawn.add(seed(*site))
        return seed(*site)

    monkeypatch.setattr(noise, "seed", noted)
    of = []
    for count in (2, 2, 3):
        drawn.clear()
        estimate(name, model, **{size: count}, maps_at_once=0)
        of.append(drawn.copy())
    two, again, three = of
    assert two == again
    assert two < three
    assert 3 * len(two) == 2 * len(three)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_rates_by_block_draw_nothing_while_they_are_built(factor: float) -> None:
    made = []
    for slot in ("identity", "layer_rates"):
        run, _ = began(
            "kolen_pollack", {KEYS[0]: slot}, **{"interventions.layer_rates.factor": factor}
        )
        made.append(
            (
                [*run.model.state_dict().values(), *run.rule.state_dict().values()],
                torch.get_rng_state(),
            )
        )
    (plain, rng), (rated, same_chance) = made
    assert torch.equal(rng, same_chance)
    assert all(torch.equal(*pair) for pair in zip(plain, rated, strict=True))


@pytest.mark.parametrize("name", registry.names("interventions"))
def test_no_intervention_draws_while_it_is_built_nor_from_the_stream_in_a_step(name: str) -> None:
    states = []
    for slot in ("identity", name):
        run, schedule = began("backprop", {KEYS[1]: slot}, **{"models.transformer.dropout": 0.4})
        states.append(torch.get_rng_state())
        stepping.take_step(run, schedule, Fixed())  # type: ignore[arg-type]
        states.append(torch.get_rng_state())
    assert all(torch.equal(states[0], state) for state in states)
