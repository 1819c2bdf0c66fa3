"""Initialisation and rates as the width grows: tables worked by hand, and a coordinate check (Yang
et al. 2022, D.1).
"""

import random
from collections.abc import Callable, Iterator
from math import log, sqrt
from typing import Any

import pytest
import small
import torch
from torch import Tensor, nn

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.core.params import Tree
from lmlab.core.registry import Choice
from lmlab.experiments import preflight
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel
from lmlab.model.places import Place
from lmlab.training import cost as sizing
from lmlab.training import widths
from lmlab.training.learning_rules.base import LearningRule
from lmlab.training.optimizers.base import joined, parameter_groups
from lmlab.training.parametrisations.base import Parametrisation
from lmlab.training.step import Run, TrainParams, begin
from lmlab.training.widths import Fans

CPU = torch.device("cpu")
OPTIMIZERS = registry.names("optimizers")


NOISE = {"activity_forward_gradient", "node_perturbation", "three_factor_hebbian"}
NOISE |= {"evolution_strategies", "forward_gradient", "low_rank_evolution", "spsa"}
"""Rules whose gradients are mostly noise, which has another theory."""


def parametrisation(name: str, **changes: object) -> Parametrisation:
    built: Parametrisation = registry.choose(
        small.tree(**changes), "parametrisations", name
    ).build()
    return built


def tree(width: int, base: int, **changes: Any) -> dict[str, Any]:
    """Params of a run under maximal update, with as many heads as keep their width."""
    follows = {
        "width": width,
        "heads": max(1, width // 8),
        "base_width": base,
        "parametrisation": "maximal_update",
    }
    return small.tree(**{**follows, **changes})


def run_of(lowered: Tree, **other: Choice) -> Run:
    """A run before its first step; parts may be given in place of those that the params name."""
    train = TrainParams(**lowered["train"])
    choices = {**registry.choices(lowered, "train", train), **other}
    return begin(train, choices, small.VOCABULARY, CPU)


def transformer(lowered: Tree, **inner: str) -> Choice:
    """With layers of other kinds, by the key that names them."""
    choice = registry.choose(lowered, "models", "transformer")
    return small.with_inner(
        choice,
        **{key: registry.choose(lowered, f"layers.{key}", name) for key, name in inner.items()},
    )


# ---------------------------------------------------------------- at the base width, and the
# standard parametrisation


@pytest.mark.parametrize("choice", small.variants("models"), ids=small.title)
@pytest.mark.parametrize("name", registry.names("parametrisations"))
def test_at_the_base_width_no_first_weight_changes(name: str, choice: Choice) -> None:
    model, plain = small.model(choice), small.model(choice)
    if model.readout is None and name == "maximal_update":
        return
    parametrisation(name, base_width=model.width).scale_initialisation(model)
    assert all(
        torch.equal(one, other)
        for one, other in zip(model.parameters(), plain.parameters(), strict=True)
    )
    assert model.width_ratio == 1.0
    assert set(parameter_groups(model)) <= set(widths.USUAL)


@pytest.mark.parametrize("name", registry.names("parametrisations"))
def test_at_the_base_width_no_rate_changes(name: str) -> None:
    assert all(
        parametrisation(name, base_width=16).rate_factor(16, power) == 1.0
        for power in (-1.0, 0.0, 1.0)
    )


@pytest.mark.parametrize("rule", registry.names("learning_rules"))
def test_at_the_base_width_a_run_is_the_standard_one_to_the_last_bit(rule: str) -> None:
    """Of every rule, each with another optimizer, on two models in turn; with two steps where those
    do not take long.
    """
    place = registry.names("learning_rules").index(rule)
    optimizer = OPTIMIZERS[place % len(OPTIMIZERS)]
    runs = []
    for name in ("standard", "maximal_update"):
        lowered = tree(
            16,
            16,
            learning_rule=rule,
            optimizer=optimizer,
            parametrisation=name,
            row_width=4,
            depth=1,
            layers=1,
        )
        convolution = registry.choose(lowered, "models", "convolution")
        run = run_of(
            lowered, model=[convolution, transformer(lowered, embedding="n_gram")][place % 2]
        )
        for step in range(0 if rule in NOISE else 2):
            both = small.tokens(4, small.CONTEXT + 1, seed=step)
            with noise.keyed(0, step):
                run.rule.accumulate_gradients(run.model, [(both[:, :-1], both[:, 1:])])
            run.optimizer.step()
            run.optimizer.zero_grad()
        runs.append(run)
    one, other = ({**run.model.state_dict(), **run.rule.state_dict()} for run in runs)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    of_groups = [
        [
            {key: value for key, value in group.items() if key != "params"}
            for group in run.optimizer.param_groups
        ]
        for run in runs
    ]
    assert of_groups[0] == of_groups[1]


def test_the_standard_rates_fall_with_one_power_of_the_width() -> None:
    made = parametrisation("standard", base_width=128, power=0.5)
    assert [made.rate_factor(width, -1.0) for width in (32, 128, 512)] == [2.0, 1.0, 0.5]
    assert parametrisation("standard", power=0.0).rate_factor(1024, -1.0) == 1.0


# ---------------------------------------------------------------- by hand: what grows in each
# parameter, and what follows

TRANSFORMER = {
    "embedding.tokens.weight": ("embeddings", 0.0),
    "embedding.tables.0.weight": ("embeddings_fixed", 0.0),
    "embedding.widen.weight": ("matrices_fixed_fan_in", 0.0),
    "position.table.weight": ("embeddings", 0.0),
    "blocks.0.attention.queries.weight": ("matrices", -0.5),
    "blocks.0.attention.down.weight": ("matrices_fixed_fan_out", -1.0),
    "blocks.0.attention.keys_values.weight": ("matrices_fixed_fan_in", 0.0),
    "blocks.0.attention.out.weight": ("matrices", -0.5),
    "blocks.0.feed_forward.router.weight": ("matrices_fixed_fan_out", -1.0),
    "blocks.0.feed_forward.experts.0.up.weight": ("matrices", -0.5),
    "blocks.0.feed_forward.experts.0.out.weight": ("matrices", -0.5),
    "blocks.0.attention_residual.read": ("vectors_fixed", 0.0),
    "blocks.0.attention_residual.mix": ("vectors_fixed", 0.0),
    "blocks.0.attention_residual.write": ("vectors_fixed", 0.0),
    "blocks.0.attention_residual.by_token": ("matrices_fixed_fan_out", -1.0),
    "blocks.0.attention_residual.strength": ("vectors_fixed", 0.0),
    "blocks.0.attention_residual.placement.norm.slope": ("vectors_fixed", 0.0),
    "blocks.0.attention_residual.placement.norm.gain": ("vectors", 0.0),
    "blocks.0.attention_residual.placement.norm.bias": ("vectors", 0.0),
    "final_norm.slope": ("vectors_fixed", 0.0),
    "readout.weight": ("readout", -1.0),
}
STATE_SPACE = {
    "embedding.weight": ("embeddings", 0.0),
    "blocks.0.norm.weight": ("vectors", 0.0),
    "blocks.0.mixer.into.weight": ("matrices", -0.5),
    "blocks.0.mixer.convolution.weight": ("matrices_fixed_fan_in", 0.0),
    "blocks.0.mixer.convolution.bias": ("vectors", 0.0),
    "blocks.0.mixer.step_bias": ("vectors", 0.0),
    "blocks.0.mixer.log_decay": ("vectors", 0.0),
    "blocks.0.mixer.skip": ("vectors", 0.0),
    "blocks.0.mixer.norm.weight": ("vectors", 0.0),
    "blocks.0.mixer.out.weight": ("matrices", -0.5),
    "readout.weight": ("readout", -1.0),
}
"""The group of a parameter, and the power of the width that its initial weights are multiplied
with.
"""


def deviating_model(lowered: Tree) -> Choice:
    layers = {
        "attention": "latent",
        "feed_forward": "mixture_of_experts",
        "normalisation": "dynamic_tanh",
    }
    return transformer(lowered, embedding="n_gram", position="learned", residual="hyper", **layers)


@pytest.mark.parametrize(
    ("table", "choose"),
    [
        (TRANSFORMER, deviating_model),
        (STATE_SPACE, lambda lowered: registry.choose(lowered, "models", "state_space")),
    ],
)
def test_fan_in_and_fan_out_decide_for_each_parameter(
    table: dict[str, tuple[str, float]], choose: Callable[[Tree], Choice]
) -> None:
    choice = choose(tree(32, 8, row_width=4))
    model, plain = small.model(choice), small.model(choice)
    parametrisation("maximal_update", base_width=8).scale_initialisation(model)
    groups = {id(p): name for name, group in parameter_groups(model).items() for p in group}
    first, seen = dict(plain.named_parameters()), set()
    for name, parameter in model.named_parameters():
        alike = (
            name.replace("blocks.1.", "blocks.0.")
            .replace("experts.1.", "experts.0.")
            .replace("tables.1.", "tables.0.")
        )
        if alike in table:
            group, power = table[alike]
            assert groups[id(parameter)] == group, name
            torch.testing.assert_close(
                parameter.detach(), 4**power * first[name].detach(), rtol=1e-6, atol=0
            )
            seen.add(alike)
    assert seen == set(table)
    assert model.width_ratio == 4.0


POWERS = {
    "adamw": {"matrices": -1, "matrices_fixed_fan_out": -1, "readout": -1},
    "sgd": {
        "embeddings": 1,
        "vectors": 1,
        "matrices_fixed_fan_in": 1,
        "matrices_fixed_fan_out": -1,
        "readout": -1,
    },
    "muon": {"matrices_fixed_fan_out": -0.5, "readout": -1},
    "muon as_adam": {"matrices": -0.5, "matrices_fixed_fan_out": -1, "readout": -1},
}
"""What a group's rate goes with, as a power of the width; 0 where nothing stands."""
POWERS |= dict.fromkeys(("lion", "soap", "schedule_free"), POWERS["adamw"])


@pytest.mark.parametrize("name", sorted(POWERS))
def test_rates_follow_the_theory_of_each_optimizer(name: str) -> None:
    optimizer, _, scale = name.partition(" ")
    lowered = tree(32, 8, row_width=4, optimizer=optimizer, **({"scale": scale} if scale else {}))
    run = run_of(lowered, model=deviating_model(lowered))
    at_base = run_of(tree(32, 32, row_width=4, optimizer=optimizer), model=deviating_model(lowered))
    plain = {group["name"]: group["lr"] for group in at_base.optimizer.param_groups}
    names = {group["name"] for group in run.optimizer.param_groups}
    assert names >= {
        "embeddings_fixed",
        "vectors_fixed",
        "matrices_fixed_fan_in",
        "matrices_fixed_fan_out",
    }
    for group in run.optimizer.param_groups:
        expected = plain[widths.kind_of(group["name"])] * 4.0 ** POWERS[name].get(group["name"], 0)
        assert group["lr"] == group["initial_lr"] == pytest.approx(expected), group["name"]


def test_a_number_of_heads_grows_with_the_width_and_what_else_is_given_does_not() -> None:
    lowered = tree(32, 8)
    for attention, fixed in (("grouped_query", "groups"), ("latent", "latent")):
        choice = transformer(lowered, attention=attention)
        wider = widths._widened(choice, 96, 3)
        options, wide = (one.inner["attention"].options.model_dump() for one in (choice, wider))
        assert wide == {**options, "heads": 3 * options["heads"]}
        assert fixed in options
        assert wider.options.model_dump() == {**choice.options.model_dump(), "width": 96}


# ---------------------------------------------------------------- what is drawn otherwise than at
# one standard deviation


class Idioms(nn.Module):
    """Ways to draw weights, some of which follow the width by themselves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)  # both are drawn as 1 / sqrt(width)
        self.to_few = nn.Linear(width, 3, bias=False)
        self.by_hand = nn.Parameter(torch.randn(width, width) / sqrt(width))
        self.few_by_hand = nn.Parameter(torch.rand(3, width) * 0.1 / width)
        self.alike = nn.Parameter(torch.empty(width, width).normal_(0.0, 0.3))
        self.default = nn.Parameter(torch.empty(width, width).uniform_())
        self.normal = nn.Parameter(nn.init.xavier_normal_(torch.empty(width, width)))
        self.zeros = nn.Parameter(nn.init.zeros_(torch.empty(width, width).normal_()))
        self.from_few = nn.Parameter(torch.randn(width, 3))


IDIOMS = {
    "linear.weight": 0.0,
    "linear.bias": 0.5,
    "to_few.weight": -0.5,
    "by_hand": 0.0,
    "few_by_hand": 0.0,
    "alike": -0.5,
    "default": -0.5,
    "normal": 0.0,
    "zeros": 0.0,
    "from_few": 0.0,
}


def widened(build: Callable[[int], nn.Module], ratio: float = 4.0) -> tuple[nn.Module, nn.Module]:
    """A module scaled for a model so many times as wide as the base, and the same as it was
    drawn.
    """
    model = small.model(small.some_model())
    model.width_ratio = ratio
    module, plain = (build(model.width) for _ in range(2) if torch.manual_seed(0))
    parameters = list(module.parameters())
    groups = {
        "matrices": [p for p in parameters if p.ndim > 1],
        "vectors": [p for p in parameters if p.ndim < 2],
    }
    widths.scale_initialisation(module, groups, model, lambda other: build(other.width))
    return module, plain


def test_what_follows_the_width_by_itself_is_not_made_to_follow_it_twice() -> None:
    module, plain = widened(Idioms)
    first = dict(plain.named_parameters())
    assert set(first) == set(IDIOMS)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(
            parameter.detach(), 4 ** IDIOMS[name] * first[name].detach(), rtol=1e-6, atol=0
        )


class Truncated(nn.Module):
    """Drawn in a way that cannot be seen without storage."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Parameter(nn.init.trunc_normal_(torch.empty(width, width)))


def test_weights_that_nobody_can_tell_how_to_scale_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"^params.yaml: train.parametrisation: .* cannot see how hidden is drawn"
    ):
        widened(Truncated)


@pytest.mark.parametrize("seed", [0, 1])
def test_to_ask_what_grows_draws_nothing(seed: int) -> None:
    model = small.model(registry.choose(tree(32, 8), "models", "state_space"))
    torch.manual_seed(seed)
    expected = torch.rand(3)
    torch.manual_seed(seed)
    parametrisation("maximal_update", base_width=8).scale_initialisation(model)
    assert torch.equal(torch.rand(3), expected)


# ---------------------------------------------------------------- what learning rules have of their
# own


def rule_at(
    width: int, name: str, model: Choice | None = None, base: int = 16, **changes: Any
) -> tuple[LanguageModel, LearningRule]:
    lowered = tree(width, base, learning_rule=name, depth=3, vocabulary_size=40, **changes)
    run = run_of(lowered, **({"model": model} if model else {}))
    return run.model, run.rule


def own(rule: LearningRule) -> LearningRule:
    """Without the interventions around it."""
    return own(rule.rule) if isinstance(getattr(rule, "rule", None), LearningRule) else rule  # type: ignore[arg-type]


def size(tensor: Tensor) -> float:
    return tensor.detach().square().mean().sqrt().item()


OWN = {
    "block_local": {"heads.weights.0": ("readout", -1.0)},
    "interlocking": {"heads.weights.0": ("readout", -1.0)},
    "synthetic_gradients": {
        "nets.0.into.weight": ("matrices", -0.5),
        "nets.0.into.bias": ("vectors", 0.0),
        "nets.0.by_target": ("embeddings", 0.0),
        "nets.0.out.weight": ("matrices", 0.0),
        "nets.0.out.bias": ("vectors", 0.0),
    },
    "synthetic_gradients hidden": {
        "nets.0.into.weight": ("matrices_fixed_fan_out", -1.0),
        "nets.0.into.bias": ("vectors_fixed", 0.0),
        "nets.0.by_target": ("embeddings_fixed", 0.0),
        "nets.0.out.weight": ("matrices_fixed_fan_in", 0.0),
        "nets.0.out.bias": ("vectors", 0.0),
    },
    "target_propagation": {
        "inverses.0.into.weight": ("matrices", -0.5),
        "inverses.0.into.bias": ("vectors", 0.0),
        "inverses.0.out.weight": ("matrices", 0.0),
    },
}
"""The group of a rule's own parameter, and the power of the width that its size goes with."""


@pytest.mark.parametrize("name", sorted(OWN))
def test_a_rules_own_parameters_follow_the_width_as_the_models_do(name: str) -> None:
    rule_name, _, option = name.partition(" ")
    changes = {option: 24} if option else {}
    (_, narrow), (wide_model, wide) = (rule_at(width, rule_name, **changes) for width in (16, 256))
    groups = {
        id(p): group
        for group, parameters in wide.own_groups(wide_model).items()
        for p in parameters
    }
    for key, (group, power) in OWN[name].items():
        one, other = (own(rule).get_parameter(key) for rule in (narrow, wide))
        assert groups[id(other)] == group
        assert size(other) == pytest.approx(16**power * size(one), rel=0.35)


@pytest.mark.parametrize("name", registry.names("learning_rules"))
def test_every_own_parameter_of_a_rule_is_told_what_grows_or_led(name: str) -> None:
    model, rule = rule_at(64, name)
    leaders = rule.leaders(model)
    for key, parameter in rule.named_parameters():
        assert (key in leaders) != (widths.widening_of(parameter) is not None), (
            f"{key}: call follow_width at the end of the rule's __init__, or name its leader"
        )
    groups = joined(parameter_groups(model), rule.own_groups(model))
    assert set(groups) <= set(widths.FANS)


def test_block_locals_heads_start_as_the_models_readout_does() -> None:
    model, rule = rule_at(256, "block_local")
    assert model.readout is not None
    assert size(own(rule).get_parameter("heads.weights.0")) == pytest.approx(
        size(model.readout.weight), rel=0.1
    )


@pytest.mark.parametrize(
    "name", ["feedback_alignment", "weight_mirror", "sign_symmetry", "kolen_pollack"]
)
def test_feedback_weights_are_as_large_as_the_scaled_weights_are(name: str) -> None:
    lowered = tree(64, 16, row_width=4)
    model, rule = rule_at(
        64, name, model=deviating_model(lowered) if name != "weight_mirror" else None
    )
    feedback = dict([*own(rule).named_parameters(), *own(rule).named_buffers()])
    weights = {key.replace(".", "/"): weight for key, weight in model.named_parameters()}
    shared = feedback.keys() & weights.keys()
    assert len(shared) > 5
    for key in shared:
        assert size(feedback[key]) == pytest.approx(size(weights[key]), rel=0.2), key


@pytest.mark.parametrize("shared", [False, True])
def test_feedback_to_blocks_is_as_large_as_the_scaled_readout(shared: bool) -> None:
    model, rule = rule_at(64, "direct_feedback_macro", shared=shared)
    assert model.readout is not None
    for feedback in own(rule).buffers():
        assert size(feedback) == pytest.approx(size(model.readout.weight), rel=0.1)


@pytest.mark.parametrize(
    ("model", "inner", "fixed"),
    [
        (
            "transformer",
            {"attention": "latent", "embedding": "n_gram"},
            {"embedding/widen/weight", "attention/keys_values/weight"},
        ),
        ("state_space", {}, set()),
        ("convolution", {}, set()),
    ],
)
def test_feedback_to_a_map_is_as_large_as_a_gradient_there(
    model: str, inner: dict[str, str], fixed: set[str]
) -> None:
    """A gradient's numbers shrink with the width where their number grows with it, also in a
    depthwise convolution.
    """
    sizes = []
    for width in (16, 128):
        lowered = tree(width, 16, row_width=4)
        choice = (
            transformer(lowered, **inner) if inner else registry.choose(lowered, "models", model)
        )
        _, rule = rule_at(width, "direct_feedback_micro", model=choice)
        sizes.append({key: size(feedback) for key, feedback in own(rule).named_buffers()})
    assert len(sizes[0]) > 2
    for key, narrow in sizes[0].items():
        factor = 1.0 if any(key.endswith(name) for name in fixed) else 1 / 8
        assert sizes[1][key] == pytest.approx(factor * narrow, rel=0.25), key


def test_a_synthetic_gradient_is_as_small_as_a_gradient_in_a_wide_model() -> None:
    """A net says the same number however wide the model is; what it stands for shrinks with the
    width.
    """
    _, rule = rule_at(64, "synthetic_gradients")
    net_rule: Any = own(rule)
    stream, targets = torch.randn(2, 3, 64), small.tokens(2, 3)
    nn.init.normal_(net_rule.nets[0].out.weight)
    torch.testing.assert_close(
        net_rule.predict(1, stream, targets), net_rule.nets[0](stream, targets) / 4
    )


def test_an_answer_shown_by_noprop_is_as_large_in_a_wide_model() -> None:
    shown = []
    for width in (16, 256):
        model, rule = rule_at(width, "noprop", label=1.0, noise=0.0)
        noprop: Any = own(rule)
        shown.append(
            size(noprop._with_answer(model, torch.zeros(4, 8, width), small.tokens(4, 8), 1.0))
        )
    assert shown[1] == pytest.approx(shown[0], rel=0.2)


# ---------------------------------------------------------------- weight decay and epsilon


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("decay", "share"), [("decoupled", 0.5 * 0.02 * 0.1), ("independent", 0.5 * 0.1)]
)
def test_weight_decay_takes_the_same_share_at_any_width(
    optimizer: str, decay: str, share: float
) -> None:
    """Halfway up the schedule, of every matrix, whatever its rate goes with; nothing of anything
    else.
    """
    lowered = tree(
        32, 8, row_width=4, optimizer=optimizer, decay=decay, weight_decay=0.1, learning_rate=0.02
    )
    run = run_of(lowered, model=deviating_model(lowered))
    for group in run.optimizer.param_groups:
        group["lr"] = 0.5 * group["initial_lr"]
    before = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
    for parameter in run.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    run.optimizer.step()
    groups = {id(p): group["name"] for group in run.optimizer.param_groups for p in group["params"]}
    assert {name for name in groups.values() if name.startswith("matrices")} == {
        "matrices",
        "matrices_fixed_fan_in",
        "matrices_fixed_fan_out",
    }
    for name, parameter in run.model.named_parameters():
        factor = 1 - share if groups[id(parameter)].startswith("matrices") else 1.0
        torch.testing.assert_close(parameter.detach(), factor * before[name], rtol=1e-6, atol=0)


def test_decoupled_decay_follows_the_rates_of_the_standard_parametrisation_and_of_layers() -> None:
    def shares(**changes: Any) -> dict[str, float]:
        lowered = tree(32, 8, optimizer="adamw", weight_decay=0.1, learning_rate=0.02, **changes)
        run = run_of(lowered)
        before = {
            name: parameter.detach().clone() for name, parameter in run.model.named_parameters()
        }
        for parameter in run.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        run.optimizer.step()
        last = "blocks.{}.feed_forward.out.weight"
        after = dict(run.model.named_parameters())
        return {n: 1 - size(after[n]) / size(before[n]) for n in (last.format(0), last.format(1))}

    for share in shares(parametrisation="standard", power=0.5).values():
        assert share == pytest.approx(0.02 * 0.1 / 2, rel=1e-2)
    lower, upper = shares(intervention="layer_rates", factor=0.5).values()
    assert upper == pytest.approx(0.02 * 0.1, rel=1e-2)
    assert lower == pytest.approx(0.5 * 0.02 * 0.1, rel=1e-2)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "schedule_free", "soap"])
def test_adams_epsilon_is_as_small_as_the_gradients(optimizer: str) -> None:
    """Gradients as large as epsilon at the base width, r times as small where the fan-out grows:
    the same step, but lr.
    """
    epsilon = 0.001

    def steps(base: int) -> dict[str, tuple[str, float]]:
        lowered = tree(
            32,
            base,
            row_width=4,
            optimizer=optimizer,
            weight_decay=0.0,
            epsilon=epsilon,
            adam_epsilon=epsilon,
        )
        run = run_of(lowered, model=deviating_model(lowered))
        moved = {}
        for group in run.optimizer.param_groups:
            shrinks = base < 32 and widths.FANS[group["name"]].fan_out
            for parameter in group["params"]:
                parameter.grad = torch.full_like(parameter, epsilon / (4 if shrinks else 1))
        before = {
            name: parameter.detach().clone() for name, parameter in run.model.named_parameters()
        }
        run.optimizer.step()
        groups = {id(p): group for group in run.optimizer.param_groups for p in group["params"]}
        for name, parameter in run.model.named_parameters():
            group = groups[id(parameter)]
            moved[name] = group["name"], size(parameter.detach() - before[name]) / group["lr"]
        return moved

    at_base, wide = steps(32), steps(8)
    for name, (group, moved) in wide.items():
        if widths.kind_of(group) != "matrices" or optimizer in ("adamw", "schedule_free"):
            assert moved == pytest.approx(at_base[name][1], rel=1e-2), name
            assert 0.4 < moved < 0.6


# ---------------------------------------------------------------- what cannot be done is refused


def test_maximal_update_needs_a_readout_of_its_own() -> None:
    with pytest.raises(
        UserError, match=r"^params.yaml: train\.parametrisation: maximal_update needs .*tied: false"
    ):
        parametrisation("maximal_update").scale_initialisation(
            small.model(small.some_model(tied=True))
        )
    with pytest.raises(UserError, match="maximal_update needs a readout"):
        parametrisation("maximal_update").scale_initialisation(
            small.model(registry.choose(small.tree(), "models", "n_gram_table"))
        )


@pytest.mark.parametrize(
    ("model", "attention", "key"),
    [
        ("transformer", "latent", "layers.attention.latent"),
        ("rwkv", "multi_head", "models.rwkv"),
        ("state_space", "multi_head", "models.state_space"),
        ("hybrid", "multi_head", "layers.attention.multi_head"),
    ],
)
def test_heads_that_cannot_be_as_wide_at_the_base_width_are_refused_by_name(
    model: str, attention: str, key: str
) -> None:
    def checked(width: int, heads: int) -> None:
        lowered = tree(width, 32, heads=heads, model=model, attention=attention)
        run_of(lowered)

    checked(64, 4)
    with pytest.raises(UserError) as refused:
        checked(128, 2)
    assert str(refused.value) == (
        f"params.yaml: {key}.heads: maximal_update needs heads as wide as at the base width, and"
        " 2 at width 128 would be 0.5"
        " at base_width 32; give a multiple of 4, or 0 where the width may decide"
    )


def test_the_params_are_refused_before_any_stage_runs() -> None:
    project = tree(128, 32, heads=2)
    with pytest.raises(
        UserError, match=r"layers\.attention\.multi_head\.heads: maximal_update needs heads as wide"
    ):
        preflight.check(project)
    preflight.check(tree(128, 32, heads=4))


def test_heads_left_to_the_width_are_not_refused() -> None:
    for width in (16, 48, 192, 320):
        run_of(tree(width, 128, heads=0, depth=1))


def test_a_model_that_cannot_be_wider_is_refused() -> None:
    choice = registry.choose(tree(33, 16, heads=2, expansion=1.5), "models", "state_space")
    model = small.model(choice)
    with pytest.raises(
        UserError,
        match=r"^params.yaml: train.parametrisation: .* cannot be built at 2 to 8 times its width",
    ):
        parametrisation("maximal_update", base_width=16).scale_initialisation(model)


def test_a_runs_size_names_every_group() -> None:
    lowered = tree(32, 8, row_width=4, optimizer="muon")
    run = run_of(lowered, model=deviating_model(lowered))
    size = sizing.describe(run.model, run.optimizer, batch=1, microbatch=1, precision="float32")
    assert sum(group.parameters for group in size.groups.values()) == sum(
        p.numel() for p in run.model.parameters()
    )
    assert set(size.groups) == {group["name"] for group in run.optimizer.param_groups}


# ---------------------------------------------------------------- the coordinate check

NARROW, WIDE = 32, 128
RATES = {"lion": 0.001, "muon": 0.01, "sgd": 0.02}
USUAL_RATE = 0.003
"""Of optimizers that are not among RATES."""
STEPS = 3
TOLERANCE = 0.4
FEW = (".router", ".tables.0", ".tables.1", ".tables.2")
LOGITS = "model."
Sizes = dict[tuple[str, str], float]
"""Root mean squares, by what was measured and the module's name."""


def watched(module: nn.Module, seen: dict[str, tuple[Any, list[Tensor]]]) -> None:
    """Remember the inputs and outputs of every module."""

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            seen[name] = (
                inputs,
                [tensor.detach() for tensor in (output if isinstance(output, list) else [output])],
            )

        return hook

    for name, part in module.named_modules():
        part.register_forward_hook(keep(name))


def sizes(lowered: Tree, **other: Choice) -> Sizes:
    """Of each module of model and rule: its output at first, what a few steps changed in it, and
    its own weights' share.

    A map to a fixed number (a router, say) is small at first and tends to its own share, so only
    that is measured; logits are such, too, but are changed by all below.
    """
    run = run_of(lowered, **other)
    model, rule = (
        run.model.train().double(),
        own(run.rule.double()),
    )  # some changes would be lost in rounding
    of_model: dict[str, tuple[Any, list[Tensor]]] = {}
    of_rule: dict[str, tuple[Any, list[Tensor]]] = {}
    watched(model, of_model)
    watched(rule, of_rule)
    both = small.tokens(4, small.CONTEXT + 1, seed=5)
    tokens, targets = both[:, :-1], both[:, 1:]

    def look() -> dict[str, tuple[Any, list[Tensor]]]:
        of_model.clear()
        model(tokens)
        return {
            **{f"model.{name}": kept for name, kept in of_model.items()},
            **{f"rule.{n}": kept for n, kept in of_rule.items()},
        }

    for step in range(STEPS + 1):
        with noise.keyed(0, 0):
            run.rule.assign_gradients(model, tokens, targets)
        if step == 0:
            before = look()
        if step < STEPS:
            run.optimizer.step()
        run.optimizer.zero_grad()
    after = look()
    modules = {f"model.{name}": part for name, part in model.named_modules()}
    modules |= {f"rule.{name}": part for name, part in rule.named_modules()}
    return dict(_measured(modules, before, after))


def _measured(
    modules: dict[str, nn.Module], before: Any, after: Any
) -> Iterator[tuple[tuple[str, str], float]]:
    for name, (inputs, outputs) in before.items():
        part, now = modules[name], after[name][1]
        if [tensor.shape for tensor in outputs] != [tensor.shape for tensor in now]:
            continue  # an expert was sent other tokens
        if isinstance(part, Place):
            continue  # it computes nothing
        is_map = isinstance(part, nn.Linear | nn.Conv1d | nn.Embedding)
        if not is_map or _fans(part) != Fans(True, False):
            yield ("changed", name), size(_flat(now) - _flat(outputs))
            if name != LOGITS:
                yield ("at first", name), size(_flat(outputs))
        if is_map:
            with torch.no_grad():
                yield ("by its own weights", name), size(part(*inputs) - outputs[0])


def _fans(part: Any) -> Fans:
    return widths.fans_of(
        "embeddings" if isinstance(part, nn.Embedding) else "matrices", part.weight
    )


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten().double() for tensor in tensors])


def powers(
    at: Callable[[int], tuple[Tree, dict[str, Choice]]], wide: int = WIDE
) -> dict[tuple[str, str], float]:
    """Of the width, with which each of them goes; of what is zero at both widths there is none."""
    one, other = (sizes(lowered, **parts) for lowered, parts in map(at, (NARROW, wide)))
    both = {key: (one[key], other[key]) for key in one if key in other}
    return {
        key: log(two / one) / log(wide / NARROW) for key, (one, two) in both.items() if one or two
    }


def check(at: Callable[[int], tuple[Tree, dict[str, Choice]]], optimizer: str) -> None:
    found = powers(
        at, 2 * WIDE if optimizer == "sgd" else WIDE
    )  # gradients as they are vary more from draw to draw
    assert sum(what == "changed" for what, _ in found) > 1
    for (what, module), power in found.items():
        least = -TOLERANCE
        if optimizer == "soap":
            least = (
                -0.75
            )  # its rate is for steps that are all along their input, and turned ones are less so
        if module.endswith(FEW) and optimizer == "sgd":
            least = (
                -0.85
            )  # the gradients of few outputs are sums over the width, of random signs at first
        assert least < power < TOLERANCE, (what, module, power)


def at_width(
    optimizer: str, pick: Callable[[Tree], Choice] | None = None, **changes: Any
) -> Callable[[int], Any]:
    def at(width: int) -> tuple[Tree, dict[str, Choice]]:
        rate = RATES.get(optimizer, USUAL_RATE)
        rates = {"learning_rate": rate, "adam_learning_rate": rate, "weight_decay": 0.0}
        lowered = tree(
            width, NARROW, optimizer=optimizer, row_width=4, groups=1, **rates, **changes
        )
        return lowered, {"model": pick(lowered)} if pick else {}

    return at


def drawn_models() -> Iterator[tuple[str, str, Callable[[Tree], Choice]]]:
    """Every model and every layer of every kind, each with an optimizer drawn for it; of hybrids a
    few.
    """
    draw = random.Random(0)
    choices = [
        choice for choice in small.variants("models") if "n_gram_table" not in small.title(choice)
    ]
    hybrids = [choice for choice in choices if choice.name == "hybrid"]
    for choice in [
        *(choice for choice in choices if choice.name != "hybrid"),
        *draw.sample(hybrids, 2),
    ]:

        def pick(lowered: Tree, choice: Choice = choice) -> Choice:
            names = {key: inner.name for key, inner in choice.inner.items()}
            plain = registry.choose(lowered, choice.kind, choice.name)
            return small.with_inner(
                plain,
                **{k: registry.choose(lowered, choice.inner[k].kind, n) for k, n in names.items()},
            )

        yield small.title(choice), draw.choice(OPTIMIZERS), pick


DRAWN = list(drawn_models())


@pytest.mark.parametrize(
    ("optimizer", "pick"),
    [drawn[1:] for drawn in DRAWN],
    ids=[f"{drawn[0]}-{drawn[1]}" for drawn in DRAWN],
)
def test_what_steps_change_neither_grows_nor_vanishes_with_the_width(
    optimizer: str, pick: Callable[[Tree], Choice]
) -> None:
    check(at_width(optimizer, pick), optimizer)


@pytest.mark.parametrize("embedding", ["n_gram", "token"])
@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, "muon as_adam"])
def test_nor_with_any_optimizer_and_embedding(optimizer: str, embedding: str) -> None:
    optimizer, _, scale = optimizer.partition(" ")
    check(
        at_width(optimizer, embedding=embedding, **({"scale": scale} if scale else {})), optimizer
    )


@pytest.mark.parametrize("rule", sorted({*registry.names("learning_rules")} - NOISE))
def test_nor_with_any_rule_that_has_gradients(rule: str) -> None:
    """By gradient descent, which shows how large gradients are; but it soon makes the inverses
    diverge.
    """
    optimizer = "adamw" if rule == "target_propagation" else "sgd"
    check(at_width(optimizer, learning_rule=rule), optimizer)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_in_the_standard_parametrisation_it_grows_so_the_check_can_fail(optimizer: str) -> None:
    at = at_width(optimizer, parametrisation="standard")
    found = powers(at)
    assert found["changed", "model.readout"] > 0.35
