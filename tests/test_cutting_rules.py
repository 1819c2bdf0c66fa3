"""Learning rules that replace what flows backward at a cut: what each is exactly, and what it must
not be.
"""

from collections.abc import Callable
from typing import Any

import pytest
import small
import torch
from small import CONTEXT, VOCABULARY
from test_learning_rules import batch, gradients, rule_for, true_gradients
from torch import Tensor, nn

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.core.registry import Choice
from lmlab.model.models import base as models
from lmlab.model.models.base import LanguageModel, next_token_loss, with_past
from lmlab.training.learning_rules._feedback import state_name
from lmlab.training.learning_rules._linear_maps import linear_weights
from lmlab.training.learning_rules._shapes import stream_widths
from lmlab.training.learning_rules.base import LearningRule
from lmlab.training.learning_rules.block_local import similarity_loss
from lmlab.training.optimizers.base import joined, parameter_groups

UNTIED = [*small.variants("models"), small.some_model(dropout=0.2, logit_soft_cap=3.0)]
MODELS = [*UNTIED, small.some_model(tied=True)]
every_model = pytest.mark.parametrize("choice", MODELS, ids=small.title)


class Chain(LanguageModel):
    """Linear maps alone, without norms or residual connections: the gradient at each is the error
    times a matrix.
    """

    def __init__(self, width: int = 6, layers: int = 3) -> None:
        super().__init__()
        self.vocabulary_size, self.context, self.width = VOCABULARY, CONTEXT, width
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(Layer(width) for _ in range(layers))
        self.readout = nn.Linear(width, VOCABULARY, bias=False)

    def embed(self, tokens_BT: Tensor, cache: Any = None) -> Tensor:
        return self.embedding(tokens_BT)

    def head(self, x_BTD: Tensor) -> Tensor:
        return self.readout(x_BTD)


class Layer(nn.Module):
    """down(up(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x_BTD: Tensor, cache: Any = None) -> Tensor:
        return self.down(self.up(x_BTD))


def chain(seed: int = 0, layers: int = 3) -> LanguageModel:
    torch.manual_seed(seed)
    return Chain(layers=layers).double()


def by(rule: LearningRule, model: LanguageModel) -> list[Tensor]:
    """A rule's gradients of the model's parameters, the model left without any."""
    model.zero_grad()
    torch.manual_seed(2)
    rule.assign_gradients(model, *batch())
    found = gradients(model)
    model.zero_grad()
    return found


def named(model: LanguageModel, found: list[Tensor]) -> dict[str, Tensor]:
    return dict(zip([name for name, _ in model.named_parameters()], found, strict=True))


def moved(
    rule: LearningRule, model: LanguageModel, become: Callable[[Tensor], Tensor]
) -> LearningRule:
    """The rule with its state for each linear map made from that map's weight."""
    state = rule.state_dict()
    for name, weight in linear_weights(model).items():
        state[state_name(name)].copy_(become(weight.detach()))
    return rule


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


# ------------------------------------------------------------------ other weights on the way back


@every_model
@pytest.mark.parametrize(
    ("name", "become"),
    [
        ("feedback_alignment", Tensor.clone),
        ("sign_symmetry", Tensor.abs),
        ("kolen_pollack", Tensor.clone),
    ],
)
def test_with_the_forward_weights_as_feedback_it_is_backprop_bit_for_bit(
    name: str, become: Callable[[Tensor], Tensor], choice: Choice
) -> None:
    model = small.rough(choice).train()
    rule = moved(rule_for(name, model), model, become)
    assert same(by(rule, model), true_gradients_by_chance(model))


def true_gradients_by_chance(model: LanguageModel) -> list[Tensor]:
    return by(rule_for("backprop", model), model)


@pytest.mark.parametrize("name", ["feedback_alignment", "sign_symmetry"])
def test_in_lower_precision_too_the_forward_weights_as_feedback_give_backprop(name: str) -> None:
    model = small.model(small.some_model()).train()
    rule = moved(
        rule_for(name, model), model, Tensor.abs if name == "sign_symmetry" else Tensor.clone
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same(by(rule, model), true_gradients_by_chance(model))


@pytest.mark.parametrize(
    "name", ["feedback_alignment", "sign_symmetry", "kolen_pollack", "weight_mirror"]
)
def test_other_feedback_changes_all_gradients_but_the_readouts(name: str) -> None:
    model = small.rough(small.some_model())
    one, other = (named(model, by(rule_for(name, model, seed=seed), model)) for seed in (1, 2))
    exact = named(model, true_gradients(model, *batch()))
    above = {name for name in exact if name.startswith("readout")}
    assert above
    for parameter, gradient in exact.items():
        assert torch.equal(one[parameter], gradient) == (parameter in above)
        assert torch.equal(one[parameter], other[parameter]) == (parameter in above)


def test_feedback_is_drawn_as_large_as_the_weights_are() -> None:
    model = small.model(small.some_model(width=128))
    for scale in (1.0, 3.0):
        rule = rule_for("feedback_alignment", model, feedback_scale=scale)
        for name, weight in linear_weights(model).items():
            feedback = rule.get_buffer(state_name(name))
            assert feedback.std().item() == pytest.approx(scale * weight.std().item(), rel=0.1)
            assert (
                abs(nn.functional.cosine_similarity(feedback.flatten(), weight.flatten(), dim=0))
                < 0.1
            )


@pytest.mark.parametrize("name", ["feedback_alignment", "backprop"])
def test_in_a_chain_a_gradient_depends_on_the_weights_above_by_backprop_alone(name: str) -> None:
    """The middle weights are turned in a way that the layer above undoes: forward nothing
    changes.
    """
    model = chain()
    rule = rule_for(name, model)
    before = named(model, by(rule, model))
    middle = model.blocks[1]
    turn = torch.linalg.qr(
        torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    )[0]
    with torch.no_grad():
        middle.up.weight.copy_(turn @ middle.up.weight)
        middle.up.bias.copy_(turn @ middle.up.bias)
        middle.down.weight.copy_(middle.down.weight @ turn.T)
    after = named(model, by(rule, model))
    torch.testing.assert_close(after["readout.weight"], before["readout.weight"])
    turned = after["blocks.1.up.weight"]
    expected = before["blocks.1.up.weight"]
    torch.testing.assert_close(
        turned, expected if name == "feedback_alignment" else turn @ expected
    )
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            turned, turn @ expected if name == "feedback_alignment" else expected
        )


def test_the_signs_are_those_that_the_weights_have_now() -> None:
    model = small.rough(small.some_model())
    rule = rule_for("sign_symmetry", model)
    flipped = small.rough(small.some_model())
    with torch.no_grad():
        for one, other in zip(model.parameters(), flipped.parameters(), strict=True):
            one.copy_(other.abs())
    moved(rule, model, lambda weight: weight.abs())
    assert same(by(rule, flipped), by(rule_for("backprop", flipped), flipped))


def test_uniform_magnitudes_are_all_the_mean_of_the_weights() -> None:
    model = small.model(small.some_model())
    rule = rule_for("sign_symmetry", model, magnitudes="uniform")
    for name, weight in linear_weights(model).items():
        assert torch.equal(
            rule.get_buffer(state_name(name)), torch.full_like(weight, weight.abs().mean().item())
        )


# ------------------------------------------------------------------ frozen


@pytest.mark.parametrize(
    "choice", [choice for choice in UNTIED if choice.name != "n_gram_table"], ids=small.title
)
@pytest.mark.parametrize("embedding", [False, True])
def test_frozen_gives_the_head_its_exact_gradient_and_the_blocks_none(
    embedding: bool, choice: Choice
) -> None:
    model = small.rough(choice).train()
    exact = named(model, true_gradients_by_chance(model))
    rule = rule_for("frozen", model, embedding=embedding)
    torch.manual_seed(2)
    rule.assign_gradients(model, *batch())
    taught = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(torch.equal(gradient, exact[name]) for name, gradient in taught.items())
    assert not any(name.startswith("blocks.") for name in taught)
    assert any("readout" in name for name in taught)
    assert any("embedding" in name for name in taught) == embedding


def test_frozen_teaches_a_tied_readout_what_the_head_says_or_with_the_embedding_all_of_it() -> None:
    model = small.rough(small.some_model(tied=True))
    tokens, targets = batch()
    alone = by(rule_for("frozen", model, embedding=False), model)
    x_BTD = model.blocks[1](model.blocks[0](model.embed(tokens))).detach()
    next_token_loss(model.head(x_BTD), targets).backward()
    assert same(alone, gradients(model))
    model.zero_grad()
    whole = by(rule_for("frozen", model, embedding=True), model)
    exact = true_gradients(model, tokens, targets)
    tied = named(model, exact)["embedding.tokens.weight"]
    assert torch.equal(named(model, whole)["embedding.tokens.weight"], tied)
    assert not torch.equal(named(model, alone)["embedding.tokens.weight"], tied)


# ------------------------------------------------------------------ errors sent to where they are
# used


def below(model: LanguageModel) -> list[Tensor]:
    """What the error at the logits is multiplied with to be the gradient: at the embedding, above
    each block, and inside.
    """
    product = model.readout.weight.detach()
    products = [product]
    for block in reversed(model.blocks):
        for layer in (block.down, block.up):
            product = product @ layer.weight.detach()
            products.append(product)
    return products[::-1]


@every_model
def test_the_width_of_the_stream_is_known_at_every_cut_without_computing_it(choice: Choice) -> None:
    model = small.model(choice)
    modes = [module.training for module in model.modules()]
    widths = stream_widths(model)
    stream = [model.embed(batch()[0])]
    for block in model.blocks:
        stream.append(block(stream[-1]))
    assert widths == [s_BTS.shape[-1] for s_BTS in stream]
    assert [module.training for module in model.modules()] == modes
    with torch.device("meta"):
        assert stream_widths(models.build(choice, VOCABULARY, CONTEXT)) == widths


def test_macro_feedback_through_the_product_of_the_layers_above_is_backprop_in_a_chain() -> None:
    model = chain()
    rule = rule_for("direct_feedback_macro", model, shared=False, normalised=False)
    for number, product in enumerate(below(model)[::2]):
        rule.get_buffer(f"feedback_{number}").copy_(product)
    for ours, exact in zip(by(rule, model), true_gradients(model, *batch()), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-15)


def test_micro_feedback_through_the_product_of_the_layers_above_is_backprop_in_a_chain() -> None:
    model = chain()
    rule = rule_for("direct_feedback_micro", model)
    names = [
        f"blocks.{number}.{layer}.weight" for number in range(3) for layer in ("up", "down")
    ] + ["readout.weight"]
    for name, product in zip(names, below(model), strict=True):
        rule.get_buffer(state_name(name)).copy_(product)
    for ours, exact in zip(by(rule, model), true_gradients(model, *batch()), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["direct_feedback_macro", "direct_feedback_micro"])
def test_in_a_chain_errors_pass_by_the_weights_above(name: str) -> None:
    """Other weights above, the same error: nothing below learns otherwise."""
    model = chain()
    rule = rule_for(name, model)
    before = named(model, by(rule, model))
    middle = model.blocks[1]
    with torch.no_grad():  # forward this undoes itself
        middle.up.weight.mul_(3)
        middle.up.bias.mul_(3)
        middle.down.weight.div_(3)
    after = named(model, by(rule, model))
    for parameter in ("embedding.weight", "blocks.0.up.weight", "blocks.0.down.weight"):
        torch.testing.assert_close(after[parameter], before[parameter])
        assert before[parameter].any()


@pytest.mark.parametrize("name", ["direct_feedback_macro", "direct_feedback_micro"])
def test_other_direct_feedback_changes_what_is_below_the_head_alone(name: str) -> None:
    model = small.rough(small.some_model())
    one, other = (named(model, by(rule_for(name, model, seed=seed), model)) for seed in (1, 2))
    exact = named(model, true_gradients(model, *batch()))
    head = {"readout.weight"} | (
        {n for n in exact if n.startswith("final_norm")} if name.endswith("macro") else set()
    )
    for parameter, gradient in exact.items():
        assert torch.equal(one[parameter], gradient) == (parameter in head)
        assert torch.equal(one[parameter], other[parameter]) == (parameter in head)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
def test_with_macro_feedback_a_block_is_taught_by_its_input_and_the_error_alone(
    shared: bool, normalised: bool
) -> None:
    """So the blocks may be taught in any order: here the lowest first, each by itself, with a norm
    for autograd to pass.
    """
    model = small.rough(small.some_model(depth=3))
    rule = rule_for("direct_feedback_macro", model, shared=shared, normalised=normalised)
    found = named(model, by(rule, model))
    tokens, targets = batch()
    stream = [model.embed(tokens)]
    for block in model.blocks:
        stream.append(block(stream[-1].detach()))
    logits = model.head(stream[-1].detach())
    error = (
        logits.softmax(-1) - nn.functional.one_hot(targets, VOCABULARY)
    ).detach() / targets.numel()
    feedback = dict(rule.named_buffers())
    assert len(feedback) == (1 if shared else len(stream))
    for number, s_BTS in enumerate(stream):
        heard = nn.functional.rms_norm(s_BTS, s_BTS.shape[-1:], eps=1e-6) if normalised else s_BTS
        heard.backward(error @ feedback[f"feedback_{0 if shared else number}"])
    alone = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(alone) > 10
    for name, gradient in alone.items():
        torch.testing.assert_close(gradient, found[name], rtol=1e-10, atol=1e-14)


def test_through_a_norm_macro_feedback_never_says_to_shrink_or_grow() -> None:
    """What arrives at the embedding is orthogonal to what it put out, at every token."""
    model = small.rough(small.some_model(depth=1))
    rule = rule_for("direct_feedback_macro", model, normalised=True)
    arrived = []
    embed = model.embed

    def listening(tokens_BT: Tensor, *more: Any) -> Tensor:
        x_BTD = embed(tokens_BT, *more)
        x_BTD.register_hook(lambda gradient: arrived.append((x_BTD.detach(), gradient)))
        return x_BTD

    model.embed = listening  # type: ignore[method-assign]
    rule.assign_gradients(model, *batch())
    ((x_BTD, gradient_BTD),) = arrived
    assert gradient_BTD.norm() > 0
    assert float((x_BTD * gradient_BTD).sum(-1).abs().max()) < 1e-5 * float(
        x_BTD.norm() * gradient_BTD.norm()
    )


@pytest.mark.parametrize(
    ("choice", "culprit"),
    [
        (next(choice for choice in MODELS if choice.name == "lstm"), "from_last"),
        (
            next(choice for choice in MODELS if "mixture_of_experts" in small.title(choice)),
            "router",
        ),
    ],
    ids=["lstm", "mixture of experts"],
)
def test_micro_feedback_refuses_maps_that_do_not_see_all_tokens(
    choice: Choice, culprit: str
) -> None:
    for device in ("cpu", "meta"):
        with torch.device(device):
            model = models.build(choice, VOCABULARY, CONTEXT)
        with pytest.raises(
            UserError, match=rf"train.learning_rule: direct_feedback_micro .*{culprit}"
        ):
            rule_for("direct_feedback_micro", model)


@pytest.mark.parametrize("name", ["frozen", "direct_feedback_macro"])
def test_rules_that_need_a_head_refuse_a_model_without_one(name: str) -> None:
    model = small.model(next(choice for choice in MODELS if choice.name == "n_gram_table"))
    with pytest.raises(UserError, match=f"train.learning_rule: {name} .*readout"):
        rule_for(name, model)


class Shifted(nn.Module):
    """A convolution of two positions that gives the earlier no weight: a linear map, but for where
    its input lies.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv1d(width, width, 2)
        with torch.no_grad():
            self.mix.weight[:, :, 0] = 0

    def forward(self, x_BTD: Tensor, cache: Any = None) -> Tensor:
        return self.mix(with_past(x_BTD, cache, 1).transpose(1, 2)).transpose(1, 2)


def test_micro_feedback_reaches_the_positions_that_a_convolution_reads() -> None:
    model = chain(layers=1)
    model.blocks = nn.ModuleList([Shifted(6).double()])
    rule = rule_for("direct_feedback_micro", model)
    rule.get_buffer("readout/weight").copy_(model.readout.weight.detach())
    rule.get_buffer("blocks/0/mix/weight").copy_(
        (model.readout.weight @ model.blocks[0].mix.weight[:, :, 1]).detach()
    )
    for ours, exact in zip(by(rule, model), true_gradients(model, *batch()), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-15)


# ------------------------------------------------------------------ feedback that learns


def optimizer_of(
    name: str, model: LanguageModel, rule: LearningRule, **changes: Any
) -> torch.optim.Optimizer:
    """As training builds it, the model's parameters and the rule's own together."""
    groups = joined(parameter_groups(model), rule.own_groups(model))
    return registry.choose(small.tree(**changes), "optimizers", name).build(groups)


def differences(model: LanguageModel, rule: LearningRule) -> dict[str, float]:
    """The norm of W - B for each map."""
    return {
        name: (weight - rule.get_parameter(state_name(name))).detach().norm().item()
        for name, weight in linear_weights(model).items()
    }


def steps(
    count: int, model: LanguageModel, rule: LearningRule, optimizer: torch.optim.Optimizer
) -> None:
    for _ in range(count):
        rule.assign_gradients(model, *batch())
        optimizer.step()
        optimizer.zero_grad()


def test_kolen_pollacks_difference_shrinks_by_the_rate_times_its_decay_a_step() -> None:
    model = small.rough(small.some_model())
    rule = rule_for("kolen_pollack", model, decay=0.2)
    optimizer = optimizer_of(
        "sgd",
        model,
        rule,
        decay="decoupled",
        weight_decay=0.0,
        learning_rate=0.05,
        momentum=0.0,
        nesterov=False,
    )
    at_first = differences(model, rule)
    steps(5, model, rule, optimizer)
    for name, norm in differences(model, rule).items():
        assert norm == pytest.approx(at_first[name] * (1 - 0.05 * 0.2) ** 5, rel=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_kolen_pollacks_difference_shrinks_as_the_optimizer_decays_matrices(name: str) -> None:
    """And stays as it was in the readout, which optimizers do not decay."""
    model = small.rough(small.some_model())
    rule = rule_for("kolen_pollack", model, decay=0.0)
    optimizer = optimizer_of(
        name, model, rule, decay="decoupled", weight_decay=0.2, learning_rate=0.05
    )
    at_first, readout = differences(model, rule), model.readout.weight.detach().clone()
    steps(5, model, rule, optimizer)
    for weight, norm in differences(model, rule).items():
        factor = 1.0 if weight.startswith("readout") else (1 - 0.05 * 0.2) ** 5
        assert norm == pytest.approx(at_first[weight] * factor, rel=1e-10)
    assert not torch.equal(model.readout.weight, readout)


def test_kolen_pollacks_feedback_gets_what_this_call_gives_the_weights() -> None:
    model = small.rough(small.some_model())
    rule = rule_for("kolen_pollack", model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    rule.assign_gradients(model, *batch())
    for name, weight in linear_weights(model).items():
        torch.testing.assert_close(rule.get_parameter(state_name(name)).grad, weight.grad - 1)


def test_kolen_pollacks_feedback_stands_in_the_group_of_its_weight() -> None:
    for tied in (False, True):
        model = small.model(small.some_model(tied=tied))
        rule = rule_for("kolen_pollack", model)
        groups = {id(p): name for name, group in parameter_groups(model).items() for p in group}
        own = {id(p): name for name, group in rule.own_groups(model).items() for p in group}
        for name, weight in linear_weights(model).items():
            assert own[id(rule.get_parameter(state_name(name)))] == groups[id(weight)]
        assert ("embeddings" in own.values()) == tied


def alignment(model: LanguageModel, rule: LearningRule) -> float:
    """Cosine of all W and all B."""
    state = rule.state_dict()
    weights = linear_weights(model)
    one = torch.cat([weight.detach().flatten() for weight in weights.values()])
    other = torch.cat([state[state_name(name)].flatten() for name in weights])
    return nn.functional.cosine_similarity(one, other, dim=0).item()


def test_forward_and_feedback_weights_come_to_agree_in_training() -> None:
    aligned = {}
    for name in ("kolen_pollack", "weight_mirror", "feedback_alignment"):
        model = small.model(small.some_model())
        rule = rule_for(name, model)
        assert abs(alignment(model, rule)) < 0.1
        steps(60, model, rule, optimizer_of("adamw", model, rule))
        aligned[name] = alignment(model, rule)
    assert aligned["kolen_pollack"] > 0.7
    assert aligned["weight_mirror"] > 0.7
    assert aligned["feedback_alignment"] < 0.5


def test_a_mirror_shows_each_map_its_own_weights_in_the_size_of_rate_over_decay() -> None:
    choices = [
        registry.choose(small.tree(), "models", name)
        for name in ("state_space", "convolution", "transformer")
    ]
    for choice in choices:
        model = small.rough(choice)
        rule = rule_for("weight_mirror", model, samples=4000, rate=0.1, decay=0.2, every=1)
        for _ in range(25):
            rule._mirror(model)  # type: ignore[operator]
        for name, weight in linear_weights(model).items():
            feedback = rule.get_buffer(state_name(name))
            assert (
                nn.functional.cosine_similarity(feedback.flatten(), weight.flatten(), dim=0) > 0.99
            )
            assert (feedback.norm() / weight.norm()).item() == pytest.approx(0.5, rel=0.02)


def test_a_mirror_moves_feedback_every_so_many_calls_alone() -> None:
    model = small.model(small.some_model())
    rule = rule_for("weight_mirror", model, every=3)
    seen = []
    for _ in range(7):
        before = rule.get_buffer("readout/weight").clone()
        rule.assign_gradients(model, *batch())
        seen.append(not torch.equal(rule.get_buffer("readout/weight"), before))
    assert seen == [True, False, False, True, False, False, True]


# ------------------------------------------------------------------ local losses


def local_losses(rule: LearningRule, model: LanguageModel) -> list[Tensor]:
    """The losses of all blocks, from one forward pass without cuts."""
    tokens, targets = batch()
    x_BTD, losses = model.embed(tokens), []
    for number, block in enumerate(model.blocks[:-1]):
        x_BTD = block(x_BTD)
        normalised = nn.functional.rms_norm(x_BTD, x_BTD.shape[-1:])
        losses.append(
            next_token_loss(normalised @ rule.get_parameter(f"heads.weights.{number}").T, targets)
        )
    return [*losses, next_token_loss(model.head(model.blocks[-1](x_BTD)), targets)]


def block_of(name: str) -> int:
    """Of a parameter by its name; the embedding counts to block 0, the head to none."""
    return (
        int(name.split(".")[1])
        if name.startswith("blocks.")
        else 0
        if name.startswith("embedding")
        else -1
    )


LOCAL = [
    ("block_local", {"similarity": 0.0}),
    ("block_local", {"similarity": 0.5}),
    ("interlocking", {"span": 2}),
    ("synthetic_gradients", {}),
]


@pytest.mark.parametrize(("name", "changes"), LOCAL)
@pytest.mark.parametrize("other", registry.names("models"))
def test_one_block_alone_learns_by_backprop_bit_for_bit(
    name: str, changes: dict[str, Any], other: str
) -> None:
    model = small.rough(registry.choose(small.tree(depth=1, layers=1), "models", other)).train()
    assert len(model.blocks) == 1
    rule = rule_for(name, model, **changes)
    assert not list(rule.parameters())
    assert same(by(rule, model), true_gradients_by_chance(model))


@pytest.mark.parametrize("span", [1, 2, 3])
def test_a_local_loss_teaches_the_blocks_of_its_span_and_none_below(span: int) -> None:
    """Each parameter's gradient is the sum of those of the losses at most span - 1 blocks above
    it.
    """
    model = small.rough(small.some_model(depth=4))
    rule = rule_for("interlocking", model, span=span)
    found = named(model, by(rule, model))
    rule.zero_grad()
    losses = local_losses(rule, model)
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        block = block_of(name)
        reaching = losses[-1:] if block < 0 else losses[block : block + span]
        exact = torch.autograd.grad(sum(reaching), parameter, retain_graph=True)[0]
        torch.testing.assert_close(found[name], exact, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("residual", ["plain", "value", "hyper"])
def test_with_a_span_of_all_blocks_it_is_backprop_from_the_sum_of_all_losses(residual: str) -> None:
    model = small.rough(small.some_model(depth=3, residual=residual))
    rule = rule_for("interlocking", model, span=7)
    ours = by(rule, model) + gradients(rule)
    rule.zero_grad()
    sum(local_losses(rule, model)).backward()
    for found, exact in zip(ours, gradients(model) + gradients(rule), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-13)


def test_interlocking_with_span_one_is_block_local_without_similarity_bit_for_bit() -> None:
    model = small.rough(small.some_model(depth=3))
    one, other = (
        rule_for("interlocking", model, span=1),
        rule_for("block_local", model, similarity=0.0),
    )
    assert same(by(one, model), by(other, model))
    assert same(gradients(one), gradients(other))
    assert not same(by(rule_for("interlocking", model, span=2), model), by(other, model))


@pytest.mark.parametrize("similarity", [0.0, 0.5, 1.0])
def test_no_gradient_crosses_a_block(similarity: float) -> None:
    """Other weights in a block or head change what is learned there and above, never below."""
    model = small.rough(small.some_model(depth=3))
    rule = rule_for("block_local", model, similarity=similarity)
    before = named(model, by(rule, model))
    with torch.no_grad():
        for parameter in model.blocks[1].parameters():
            parameter.mul_(1.1)
    after = named(model, by(rule, model))
    for name, gradient in before.items():
        assert torch.equal(gradient, after[name]) == (block_of(name) == 0)
        assert gradient.any()


def test_similarities_are_correlations_and_their_loss_the_mean_square_of_the_difference() -> None:
    _, targets = batch(2)
    targets_BTV = nn.functional.one_hot(targets, VOCABULARY).double()
    s_BTS = torch.randn(
        2, CONTEXT, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    squares = [
        (torch.corrcoef(of_stream) - torch.corrcoef(of_targets)).square()
        for of_stream, of_targets in zip(s_BTS, targets_BTV, strict=True)
    ]
    torch.testing.assert_close(similarity_loss(s_BTS, targets_BTV), torch.stack(squares).mean())
    assert similarity_loss(5 * targets_BTV + 3, targets_BTV).item() == pytest.approx(0, abs=1e-15)


# ------------------------------------------------------------------ guessed gradients


@every_model
def test_with_the_true_gradient_for_a_guess_it_is_backprop_bit_for_bit(choice: Choice) -> None:
    model = small.rough(choice).train()
    rule = rule_for("synthetic_gradients", model)
    tokens, targets = batch()
    torch.manual_seed(2)
    stream = [model.embed(tokens)]
    for block in model.blocks:
        stream.append(block(stream[-1]))
    for s_BTS in stream[1:]:
        s_BTS.retain_grad()
    next_token_loss(model.head(stream[-1]), targets).backward()
    exact = gradients(model)
    tokens_in_batch = (
        targets.numel()
    )  # a power of two: multiplied and divided, numbers stay as they were
    rule.predict = lambda number, s_BTS, targets_BT: (
        tokens_in_batch * stream[number].grad
    ).requires_grad_()  # type: ignore
    assert same(by(rule, model), exact)


def test_at_first_guesses_are_zero_and_only_the_last_block_and_the_head_learn() -> None:
    model = small.rough(small.some_model(depth=3))
    exact = named(model, true_gradients(model, *batch()))
    found = named(model, by(rule_for("synthetic_gradients", model), model))
    for name, gradient in found.items():
        if block_of(name) in (-1, 2):
            assert torch.equal(gradient, exact[name])
        else:
            assert not gradient.any()


def test_guesses_come_to_point_along_the_gradient() -> None:
    model = small.model(small.some_model())
    rule = rule_for("synthetic_gradients", model)
    optimizer = torch.optim.Adam(
        rule.parameters(), lr=0.01
    )  # the model stays, so that there is one thing to learn
    steps(150, model, rule, optimizer)
    tokens, targets = batch()
    s_BTS = model.blocks[0](model.embed(tokens)).detach().requires_grad_()
    next_token_loss(model.head(model.blocks[1](s_BTS)), targets).backward()
    predict: Callable[..., Tensor] = rule.predict  # type: ignore[assignment]
    assert (
        nn.functional.cosine_similarity(
            predict(1, s_BTS, targets).flatten(), s_BTS.grad.flatten(), dim=0
        )
        > 0.9
    )


def test_guesses_across_the_stream_have_no_part_along_it() -> None:
    s_BTS = torch.randn(2, 3, 16)
    model = small.model(small.some_model())
    for across in (True, False):
        rule = rule_for("synthetic_gradients", model, across=across)
        for parameter in rule.parameters():
            nn.init.normal_(parameter)
        predict: Callable[..., Tensor] = rule.predict  # type: ignore[assignment]
        along = (predict(1, s_BTS, torch.zeros(2, 3, dtype=torch.long)) * s_BTS).sum(dim=-1)
        assert (along.abs().max() < 1e-4) == across
