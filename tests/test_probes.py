"""What every probe keeps, and what each sees where the answer is known."""

import itertools
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import small
import test_training
import torch
from small import CONTEXT
from test_learning_rules import batch as tokens_and_targets
from test_learning_rules import refusal, rule_for
from test_training import Corpus
from torch import Tensor, nn

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.core.params import section
from lmlab.core.registry import Choice
from lmlab.evaluation import probe as probing
from lmlab.evaluation.probe import ProbeParams
from lmlab.evaluation.probes import cost
from lmlab.evaluation.probes.activations import dead_share, kurtosis
from lmlab.evaluation.probes.attention import (
    entropy,
    induction,
    random_tokens,
)
from lmlab.evaluation.probes.base import Batch, Probe, Reading, Snapshot
from lmlab.evaluation.probes.cost import peak_bytes
from lmlab.evaluation.probes.gradient_angle import cosine
from lmlab.evaluation.probes.gradient_noise_scale import noise_and_signal
from lmlab.evaluation.probes.similarity import alignment
from lmlab.evaluation.probes.spectra import effective_rank, stable_rank
from lmlab.experiments import preflight
from lmlab.model.layers.attention.base import SoftmaxAttention, ValueMap
from lmlab.model.layers.cache import Cache
from lmlab.model.models.base import LanguageModel, next_token_loss

corpus = test_training.corpus  # the fixture
PROBES = registry.names("probes")
every_probe = pytest.mark.parametrize("name", PROBES)
PARTS: dict[str, type[Probe]] = {name: registry.find("probes", name)[0] for name in PROBES}
TIMED = [name for name in PROBES if PARTS[name].timed]


def the_batch(size: int = 4) -> Batch:
    return Batch(*tokens_and_targets(size))


def chosen_model(name: str) -> Choice:
    return registry.choose(small.tree(), "models", name)


def snapshot(model: LanguageModel | None = None, rule: str = "backprop", step: int = 0) -> Snapshot:
    """Of a model in double precision, with an update that is a hundredth of a random one."""
    model = model if model is not None else small.rough(small.some_model(), seed=step)
    rng = torch.Generator().manual_seed(step)
    after = {
        name: parameter.detach()
        + 0.01 * torch.randn(parameter.shape, generator=rng, dtype=parameter.dtype)
        for name, parameter in model.named_parameters()
    }
    return Snapshot(step, 32 * step, model.eval(), after, rule_for(rule, model), "some_model")


def probe_for(name: str, **changes: Any) -> Probe:
    probe: Probe = registry.choose(small.tree(**changes), "probes", name).build()
    return probe


def readings(name: str, *snapshots: Snapshot, **changes: Any) -> list[Reading]:
    """All that a new probe reads off the snapshots, on the same batch."""
    probe = probe_for(name, **changes)
    return [reading for each in snapshots for reading in probe.look(each, the_batch())]


def values(name: str, *snapshots: Snapshot, **changes: Any) -> dict[tuple[str, str], float]:
    """The same by measure and place."""
    taken = readings(name, *snapshots, **changes)
    return {(measure, where): value for measure, where, value in taken}


def attends(model: LanguageModel) -> bool:
    """Whether a model has attention with a softmax."""
    return any(isinstance(module, SoftmaxAttention) for module in model.modules())


def check_looks_or_refuses(name: str, model: LanguageModel, rule: str = "backprop") -> None:
    """A probe gives finite readings, or says that the model lacks what the probe declares to need.

    A model that has it is never refused.
    """
    needs = PARTS[name].needs
    taken: list[Reading] = []
    message = ""
    try:
        taken = readings(name, snapshot(model, rule))
    except UserError as error:
        message = str(error)
    if message:
        lacking = f"{name} finds no {needs} in the model some_model; leave it out"
        assert needs
        assert message == f"params.yaml: probe.probes: {lacking}"
        assert needs != "attention with a softmax" or not attends(model)
    else:
        assert taken
        assert all(math.isfinite(reading.value) for reading in taken)


# ---------------------------------------------------------------- what every probe keeps


@every_probe
def test_a_probe_says_in_a_sentence_or_two_what_its_numbers_show(name: str) -> None:
    reading = PARTS[name].reading
    assert 40 <= len(reading) <= 300
    assert reading[0].isupper()
    assert reading.endswith(".")
    assert reading.count(". ") <= 1
    assert "  " not in reading
    assert "\n" not in reading


@every_probe
def test_a_probe_leaves_model_rule_and_generator_as_they_were(name: str) -> None:
    looked_at = snapshot(small.rough(small.some_model(dropout=0.3)))
    model, rule = looked_at.model, looked_at.rule
    states = [
        {key: value.clone() for key, value in module.state_dict().items()}
        for module in (model, rule)
    ]
    after = {key: value.clone() for key, value in looked_at.after.items()}
    modes = [module.training for module in model.modules()]
    attributes = [set(vars(module)) for module in model.modules()]
    rng = torch.get_rng_state()
    assert readings(name, looked_at)
    assert torch.equal(torch.get_rng_state(), rng)
    for module, state in zip((model, rule), states, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    assert all(torch.equal(value, after[key]) for key, value in looked_at.after.items())
    assert all(
        parameter.grad is None and parameter.requires_grad
        for parameter in [*model.parameters(), *rule.parameters()]
    )
    assert [module.training for module in model.modules()] == modes
    assert [set(vars(module)) for module in model.modules()] == attributes
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", [name for name in PROBES if name not in TIMED])
def test_a_probe_reads_the_same_numbers_twice_each_finite_and_in_its_own_place(name: str) -> None:
    first = readings(name, snapshot(), snapshot(step=5))
    torch.manual_seed(99)
    assert readings(name, snapshot(), snapshot(step=5)) == first
    assert all(
        isinstance(reading.value, float) and math.isfinite(reading.value) for reading in first
    )
    alone = readings(name, snapshot())
    assert len({(reading.measure, reading.where) for reading in alone}) == len(alone)


@pytest.mark.parametrize(("name", "other"), small.drawn(PROBES, registry.names("models"), rounds=3))
def test_a_probe_looks_at_every_model_or_says_what_it_does_not_find(name: str, other: str) -> None:
    check_looks_or_refuses(name, small.model(chosen_model(other)))


TRANSFORMERS = {
    small.title(choice): choice
    for choice in small.variants("models")
    if choice.name == "transformer"
}


@pytest.mark.parametrize(("name", "variant"), small.drawn(PROBES, list(TRANSFORMERS), rounds=2))
def test_a_probe_looks_at_every_transformer(name: str, variant: str) -> None:
    check_looks_or_refuses(name, small.model(TRANSFORMERS[variant]))


@pytest.mark.parametrize(
    ("name", "rule"), small.drawn(PROBES, registry.names("learning_rules"), rounds=2)
)
def test_a_probe_looks_at_runs_by_every_rule(name: str, rule: str) -> None:
    model = small.model(small.some_model())
    if refusal(rule, model):
        pytest.skip("the rule refuses the model")
    check_looks_or_refuses(name, model, rule)


@pytest.mark.parametrize(
    "name", [name for name in PROBES if not (PARTS[name].timed or PARTS[name].remembers)]
)
def test_equal_snapshots_have_equal_readings_unless_the_probe_remembers(name: str) -> None:
    once = readings(name, snapshot())
    assert readings(name, snapshot(), snapshot()) == once + once


@pytest.mark.parametrize("model", registry.names("models"))
def test_only_models_without_softmax_attention_are_refused_by_attention(model: str) -> None:
    looked_at = snapshot(small.model(chosen_model(model)))
    if attends(looked_at.model):
        assert readings("attention", looked_at)
    else:
        with pytest.raises(UserError, match="attention finds no attention with a softmax"):
            readings("attention", looked_at)


# ---------------------------------------------------------------- gradients and updates


def test_backprop_is_at_no_angle_to_itself() -> None:
    taken = values("gradient_angle", snapshot())
    assert len(taken) == 2 * (1 + len(list(snapshot().model.parameters())))
    for (measure, where), value in taken.items():
        if measure == "rule":
            assert value == pytest.approx(1.0, abs=1e-12), where


def test_a_random_update_is_nearly_at_a_right_angle() -> None:
    model = small.rough(small.some_model(width=32))
    size = sum(parameter.numel() for parameter in model.parameters())
    seen = [
        values("gradient_angle", snapshot(model, step=step))["update", "all"] for step in range(40)
    ]
    spread = math.sqrt(sum(value**2 for value in seen) / len(seen))
    assert spread == pytest.approx(1 / math.sqrt(size), rel=0.4)


def test_the_angle_of_an_update_is_taken_to_the_way_downhill() -> None:
    down = snapshot()
    gradient = down.true_gradient(the_batch())
    for factor, expected in ((-0.1, 1.0), (0.1, -1.0)):
        after = {name: weight + factor * gradient[name] for name, weight in down.weights.items()}
        moved = Snapshot(0, 0, down.model, after, down.rule, "")
        assert values("gradient_angle", moved)["update", "all"] == pytest.approx(expected)
    still = Snapshot(0, 0, down.model, dict(down.weights), down.rule, "")
    assert values("gradient_angle", still)["update", "all"] == 0.0


def test_a_known_angle() -> None:
    assert cosine(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])) == pytest.approx(
        math.sqrt(0.5)
    )
    assert cosine(torch.zeros(2), torch.ones(2)) == 0.0


class _Doubled(nn.Module):
    """As a rule: what backprop gives, twice over, but for the readout, which is not taught."""

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        loss = next_token_loss(model(tokens_BT), targets_BT)
        (2 * loss).backward()
        assert model.readout is not None
        model.readout.weight.grad = None
        return loss.detach()


def test_a_rule_is_told_from_backprop_by_length_and_angle() -> None:
    true = snapshot()
    rules = Snapshot(0, 0, true.model, true.after, _Doubled(), "")  # type: ignore[arg-type]
    norms, angles = values("gradient_norm", rules), values("gradient_angle", rules)
    gradient = true.true_gradient(the_batch())
    for name, of_parameter in gradient.items():
        assert norms["backprop", name] == pytest.approx(float(of_parameter.norm()))
        taught = name != "readout.weight"
        assert norms["rule", name] == pytest.approx(2 * taught * norms["backprop", name])
        assert angles["rule", name] == pytest.approx(float(taught))
    total = math.sqrt(sum(norms["backprop", name] ** 2 for name in gradient))
    assert norms["backprop", "all"] == pytest.approx(total)
    rest = math.sqrt(total**2 - norms["backprop", "readout.weight"] ** 2)
    assert angles["rule", "all"] == pytest.approx(rest / total)


def test_an_update_is_measured_by_the_weights() -> None:
    one = snapshot()
    after = {
        name: weight * (1 + 0.25 * (name == "readout.weight"))
        for name, weight in one.weights.items()
    }
    taken = values("update_ratio", Snapshot(0, 0, one.model, after, one.rule, ""))
    assert taken["ratio", "readout.weight"] == pytest.approx(0.25)
    assert [
        value for (_, where), value in taken.items() if where not in ("readout.weight", "all")
    ] == pytest.approx([0.0] * (len(taken) - 2))
    assert 0 < taken["ratio", "all"] < 0.25


def test_weights_that_are_zero_have_no_ratio() -> None:
    model = small.rough(small.some_model())
    assert model.readout is not None
    nn.init.zeros_(model.readout.weight)
    assert ("ratio", "readout.weight") not in values("update_ratio", snapshot(model))


def test_the_noise_scale_recovers_what_was_planted() -> None:
    rng = torch.Generator().manual_seed(0)
    true, sigma = torch.randn(50, generator=rng).double(), 3.0
    noises = torch.randn(4000, 50, generator=rng).double() * sigma
    noise, signal = noise_and_signal(true + of_window for of_window in noises)
    assert noise == pytest.approx(50 * sigma**2, rel=0.02)
    assert signal == pytest.approx(float(true @ true), rel=0.05)


def test_the_noise_scale_is_unbiased_with_two_windows() -> None:
    """Over all pairs of the values 1 and 5 about the mean 3: variance 4 and squared mean 9, each on
    average exactly.
    """
    estimates = [
        noise_and_signal(torch.tensor([value]).double() for value in pair)
        for pair in itertools.product((1, 5), repeat=2)
    ]
    assert sum(noise for noise, _ in estimates) / 4 == pytest.approx(4)
    assert sum(signal for _, signal in estimates) / 4 == pytest.approx(9)


def test_the_noise_scale_of_equal_windows_is_zero_and_of_one_is_refused() -> None:
    tokens, targets = tokens_and_targets(1)
    (same,) = (probe_for("gradient_noise_scale") for _ in range(1))
    taken = {
        r.measure: r.value
        for r in same.look(snapshot(), Batch(tokens.expand(3, -1), targets.expand(3, -1)))
    }
    true = sum(
        float(g.square().sum()) for g in snapshot().true_gradient(Batch(tokens, targets)).values()
    )
    assert taken == pytest.approx({"noise": 0.0, "signal": true, "scale": 0.0}, abs=1e-9)
    with pytest.raises(UserError, match=r"probe\.probes: gradient_noise_scale compares windows"):
        list(same.look(snapshot(), Batch(tokens, targets)))


# ---------------------------------------------------------------- activations, spectra, similarity


def test_kurtosis_is_known_for_coins_for_uniform_and_for_normal_numbers() -> None:
    assert kurtosis(torch.tensor([1.0, -1.0, 1.0, -1.0])) == pytest.approx(1.0)
    assert kurtosis(torch.linspace(-1, 1, 100_001)) == pytest.approx(1.8, rel=1e-3)
    assert kurtosis(
        torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    ) == pytest.approx(3.0, rel=0.03)
    assert kurtosis(torch.ones(5)) == 0.0


def test_units_that_never_wake_are_dead() -> None:
    hidden = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 1e-9]])
    assert dead_share(hidden, 0.001) == 0.5
    assert dead_share(hidden, 0.0) == 0.25
    assert dead_share(torch.zeros(3, 2), 0.001) == 1.0


def test_a_hidden_unit_that_is_cut_off_counts_as_dead_and_no_other() -> None:
    model = small.rough(chosen_model("transformer"))
    before = values("activations", snapshot(model))
    with torch.no_grad():
        model.blocks[1].feed_forward.up.weight[:16].zero_()  # type: ignore[index,union-attr]
    after = values("activations", snapshot(model))
    hidden = model.blocks[1].feed_forward.up.out_features  # type: ignore[union-attr]
    first, second = (("dead", f"blocks.{number}.feed_forward.units") for number in range(2))
    assert after[second] - before[second] == pytest.approx(16 / hidden)
    assert after[first] == before[first]


def test_the_size_of_the_stream_is_that_of_the_blocks_outputs() -> None:
    model = small.rough(small.some_model())
    taken = values("activations", snapshot(model))
    s_BTS = model.embed(the_batch().tokens)
    for number, block in enumerate(model.blocks):
        s_BTS = block(s_BTS)
        assert taken["root_mean_square", f"blocks.{number}"] == pytest.approx(
            s_BTS.square().mean().sqrt().item()
        )


@pytest.mark.parametrize("name", ["perceptron", "convolution"])  # a tanh of its own, and a gate
@pytest.mark.parametrize(("factor", "least", "most"), [(1e-3, 0.0, 0.0), (1e6, 0.99, 1.0)])
def test_squashing_functions_are_saturated_by_large_weights_and_not_by_small(
    name: str, factor: float, least: float, most: float
) -> None:
    model = small.rough(chosen_model(name))
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter.mul_(factor)
    taken = values("activations", snapshot(model))
    saturated = [value for (measure, _), value in taken.items() if measure == "saturated"]
    assert len(saturated) == len(model.blocks)
    assert all(least <= value <= most for value in saturated)


def test_ranks_are_known_for_the_identity_for_rank_one_and_for_zero() -> None:
    rng = torch.Generator().manual_seed(0)
    outer = torch.linalg.svdvals(torch.outer(*torch.randn(2, 7, generator=rng).double()))
    assert effective_rank(torch.ones(7)) == pytest.approx(7)
    assert stable_rank(torch.ones(7)) == pytest.approx(7)
    assert effective_rank(outer) == pytest.approx(1, abs=1e-9)
    assert stable_rank(outer) == pytest.approx(1, abs=1e-9)
    assert effective_rank(torch.zeros(3)) == stable_rank(torch.zeros(3)) == 0
    # shares 1/2, 1/4, 1/4: entropy 1.5 ln 2; squares 1, 1/4, 1/4
    assert effective_rank(torch.tensor([2.0, 1.0, 1.0])) == pytest.approx(2**1.5)
    assert stable_rank(torch.tensor([2.0, 1.0, 1.0])) == pytest.approx(1.5)


def test_every_matrix_has_its_spectrum() -> None:
    model = small.rough(chosen_model("convolution"))
    taken = values("spectra", snapshot(model))
    matrices = {name: p for name, p in model.named_parameters() if p.ndim >= 2}
    assert any(p.ndim == 3 for p in matrices.values())
    assert {where for _, where in taken} == set(matrices)
    for name, matrix in matrices.items():
        largest = torch.linalg.matrix_norm(matrix.detach().flatten(1), ord=2)
        assert taken["spectral_norm", name] == pytest.approx(float(largest))


def test_alignment_sees_neither_rotation_nor_scale_nor_shift() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(60, 10, generator=rng).double()
    rotation = torch.linalg.qr(torch.randn(10, 10, generator=rng).double()).Q
    assert alignment(x, x) == pytest.approx(1)
    assert alignment(x, 3 * x @ rotation + 5) == pytest.approx(1)
    assert alignment(x, x @ torch.randn(10, 10, generator=rng).double()) < 0.99
    assert alignment(x, torch.ones(60, 4).double()) == 0.0


def test_alignment_of_independent_data_is_about_zero_where_the_usual_estimate_is_not() -> None:
    rng = torch.Generator().manual_seed(0)
    pairs = [torch.randn(2, 100, 20, generator=rng).double() for _ in range(30)]
    assert abs(sum(alignment(x, y) for x, y in pairs) / 30) < 0.01

    def biased(x: Tensor, y: Tensor) -> float:
        x, y = x - x.mean(0), y - y.mean(0)
        return float((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))

    assert sum(biased(x, y) for x, y in pairs) / 30 == pytest.approx(0.16, abs=0.02)


def test_similarity_is_to_the_first_and_to_the_previous_snapshot() -> None:
    one, other = snapshot(), snapshot(step=3)
    probe = probe_for("similarity")
    seen = [
        {(r.measure, r.where): r.value for r in probe.look(s, the_batch())}
        for s in (one, other, other, one)
    ]
    blocks = [f"blocks.{number}" for number in range(len(one.model.blocks))]
    assert {measure for measure, _ in seen[0]} == {"to_first"}
    for block in blocks:
        assert seen[0]["to_first", block] == pytest.approx(1)
        assert seen[1]["to_first", block] == seen[1]["to_previous", block] < 0.9
        assert seen[2]["to_previous", block] == pytest.approx(1)
        assert seen[3]["to_first", block] == pytest.approx(1)
        assert seen[3]["to_previous", block] == pytest.approx(seen[1]["to_first", block])


# ---------------------------------------------------------------- attention, lens, Hessian, cost


def test_entropy_is_ln_t_for_uniform_attention_and_zero_for_one_hot() -> None:
    uniform = torch.ones(6, 6).tril() / torch.arange(1, 7)[:, None]
    entropies = entropy(torch.stack([uniform, torch.eye(6)])[None])
    assert entropies.tolist() == pytest.approx([sum(math.log(t) for t in range(1, 7)) / 6, 0.0])


class _Induction(SoftmaxAttention):
    """A block whose one head is an induction head by construction: it looks for the token that
    stands behind its own.
    """

    def __init__(self, scale: float, shift: int) -> None:
        super().__init__(
            registry.choose(small.tree(), "layers.position", "no_position").build(1, 1)
        )
        self.scale, self.shift = scale, shift

    def forward(
        self, x_BTD: Tensor, cache: Cache | None = None, map_values: ValueMap | None = None
    ) -> Tensor:
        keys = nn.functional.pad(x_BTD, (0, 0, self.shift, 0))[:, : x_BTD.shape[1]]
        out = self.attend(self.scale * x_BTD[:, None], keys[:, None], x_BTD[:, None], None)
        return out[:, 0]


class _OneHot(LanguageModel):
    """Tokens as one-hot vectors, then the blocks."""

    readout = None

    def __init__(self, vocabulary_size: int, *blocks: nn.Module) -> None:
        super().__init__()
        self.vocabulary_size, self.context, self.width, self.blocks = (
            vocabulary_size,
            16,
            vocabulary_size,
            nn.ModuleList(blocks),
        )

    def embed(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        return nn.functional.one_hot(tokens_BT, self.vocabulary_size).double()

    def head(self, x_BTD: Tensor) -> Tensor:
        return x_BTD


def test_a_hand_built_induction_head_scores_one_and_others_less() -> None:
    rule = rule_for("backprop", small.model(small.some_model()))

    def score(scale: float, shift: int) -> float:
        one = Snapshot(0, 0, _OneHot(12, _Induction(scale, shift)), {}, rule, "hand-built")
        return values("attention", one)["induction", "blocks.0.head.0"]

    assert score(1e3, 1) == pytest.approx(1.0)
    assert score(0.0, 1) == pytest.approx(sum(1 / t for t in range(9, 17)) / 8)  # sees all alike
    assert score(1e3, 0) < 0.01  # looks for its own token


def test_induction_is_counted_in_the_second_round_alone() -> None:
    weights = torch.zeros(1, 1, 8, 8)
    weights[..., torch.arange(4, 8), torch.arange(1, 5)] = 1.0
    assert induction(weights, 4).tolist() == [1.0]
    weights[..., 3, 0] = 1.0
    assert induction(weights, 4).tolist() == [1.0]
    assert induction(weights.roll(1, -1), 4).tolist() == [0.0]


def test_tokens_are_drawn_without_repeats_while_there_are_others() -> None:
    assert all(len(set(row.tolist())) == 9 for row in random_tokens(5, 9, 11, 0))
    assert random_tokens(3, 30, 11, 0).shape == (3, 30)
    assert not torch.equal(random_tokens(3, 9, 11, 0), random_tokens(3, 9, 11, 1))


@pytest.mark.parametrize("attention", registry.names("layers.attention"))
def test_every_head_of_every_block_has_its_readings(attention: str) -> None:
    inner = {"attention": registry.choose(small.tree(), "layers.attention", attention)}
    choice = small.fitting(small.with_inner(chosen_model("transformer"), **inner), "attention")
    model = small.rough(choice)
    if not issubclass(inner["attention"].part, SoftmaxAttention):
        with pytest.raises(UserError, match="softmax"):
            values("attention", snapshot(model))
        return
    taken = values("attention", snapshot(model))
    heads = {f"blocks.{block}.head.{head}" for block in range(2) for head in range(2)}
    assert set(taken) == {(measure, head) for measure in ("entropy", "induction") for head in heads}


def test_the_lens_behind_the_last_block_is_the_models_own_loss_to_the_bit() -> None:
    for name in registry.names("models"):
        model = small.model(chosen_model(name)).eval()
        taken = values("logit_lens", snapshot(model))
        assert len(taken) == len(model.blocks)
        with torch.no_grad():
            loss = next_token_loss(model(the_batch().tokens), the_batch().targets)
        assert taken["nats", f"blocks.{len(model.blocks) - 1}"] == float(loss)


def test_the_lens_behind_an_earlier_block_is_the_loss_of_a_model_that_ends_there() -> None:
    model = small.rough(small.some_model())
    taken = values("logit_lens", snapshot(model))
    model.blocks = model.blocks[:1]
    with torch.no_grad():
        loss = next_token_loss(model(the_batch().tokens), the_batch().targets)
    assert taken["nats", "blocks.0"] == float(loss)
    assert taken["nats", "blocks.1"] != taken["nats", "blocks.0"]


def test_the_hessians_top_eigenvalue_is_that_of_the_dense_hessian() -> None:
    model = small.rough(
        small.some_model(width=4, heads=1, depth=1, expansion=1.0), vocabulary_size=5
    )
    tokens = small.tokens(3, CONTEXT + 1, vocabulary_size=5)
    of_batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    names = [name for name, _ in model.named_parameters()]

    def loss(flat: Tensor) -> Tensor:
        parameters = dict(model.named_parameters())
        sizes = [parameters[name].numel() for name in names]
        weights = {
            n: part.view_as(parameters[n]) for n, part in zip(names, flat.split(sizes), strict=True)
        }
        return next_token_loss(
            torch.func.functional_call(model, weights, (of_batch.tokens,)), of_batch.targets
        )

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        dense = torch.autograd.functional.hessian(
            loss, torch.cat([p.detach().flatten() for p in model.parameters()])
        )
    assert isinstance(dense, Tensor)
    eigenvalues = torch.linalg.eigvalsh(dense)
    top = float(eigenvalues[eigenvalues.abs().argmax()])
    taken = {
        r.measure: r.value
        for r in probe_for("hessian", iterations=300).look(snapshot(model), of_batch)
    }
    assert taken["top_eigenvalue"] == pytest.approx(top, rel=1e-6)
    early = {
        r.measure: r.value
        for r in probe_for("hessian", iterations=3).look(snapshot(model), of_batch)
    }
    assert taken["error"] < early["error"]
    assert float((eigenvalues - early["top_eigenvalue"]).abs().min()) <= early["error"]


def test_backprop_costs_as_much_as_backprop_and_twice_as_much_if_done_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Twice(nn.Module):
        def assign_gradients(
            self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
        ) -> Tensor:
            losses = [next_token_loss(model(tokens_BT), targets_BT) for _ in range(2)]
            sum(losses).backward()  # type: ignore[union-attr]
            return losses[0].detach()

    one = snapshot(small.model(small.some_model(width=64), context=64))
    assert values("cost", one)["seconds", "backprop"] > 0
    passes: list[Tensor] = []
    forward = LanguageModel.forward

    def counted(model: LanguageModel, tokens_BT: Tensor, cache: Any = None) -> Tensor:
        passes.append(tokens_BT)
        return forward(model, tokens_BT, cache)

    def pass_count(run: Callable[[], None], device: torch.device) -> float:
        passes.clear()
        run()
        return len(passes)

    monkeypatch.setattr(cost, "seconds", pass_count)  # no test may depend on a time
    monkeypatch.setattr(LanguageModel, "forward", counted)
    own = values("cost", one)
    assert own["peak_bytes", "ratio"] == own["seconds", "ratio"] == 1.0
    both = values("cost", Snapshot(0, 0, one.model, one.after, Twice(), ""))  # type: ignore[arg-type]
    assert 1.5 < both["peak_bytes", "ratio"] <= 2.0
    assert both["seconds", "ratio"] == 2.0
    assert len(readings("cost", one, one)) == len(own)  # once is enough


def test_peak_memory_is_what_is_held_at_once() -> None:
    def hold() -> None:
        first, second = torch.empty(1000), torch.empty(2000)
        del first
        third = torch.empty(500)
        del second, third

    assert peak_bytes(hold, torch.device("cpu")) == pytest.approx(3000 * 4, rel=0.05)


# ---------------------------------------------------------------- the stage


def look(
    corpus: Corpus, folder: str, probes: list[str], **changes: Any
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The stage's library call on what `train` left in a folder: the table's rows, and what was
    timed.
    """
    tree = {
        **small.tree(),
        "probe": {
            "probes": probes,
            "windows": 3,
            "text": "",
            "device": "cpu",
            "threads": 1,
            "processes": 1,
            **changes,
        },
    }
    params = section(tree, "probe", ProbeParams)
    looked = probing.look(
        params,
        probing.chosen(tree, params),
        *corpus,
        Path(folder) / "snapshots",
        Path(folder) / "probes",
    )
    rows: list[dict[str, Any]] = pq.read_table(
        Path(folder) / "probes" / "probes.parquet"
    ).to_pylist()
    assert rows == [asdict(row) for row in looked.rows]
    return rows, looked.timings()


def test_the_stage_writes_one_table_the_same_bytes_each_time(corpus: Corpus) -> None:
    test_training.train(corpus, "run", dropout=0.2)
    rows, timed = look(corpus, "run", PROBES)
    first = Path("run/probes/probes.parquet").read_bytes()
    look(corpus, "run", PROBES)
    assert Path("run/probes/probes.parquet").read_bytes() == first
    assert {row["probe"] for row in rows} == set(PROBES) - set(TIMED)
    assert {(row["step"], row["tokens"]) for row in rows} == {(0, 0), (3, 96), (6, 192)}
    assert list(rows[0]) == ["step", "tokens", "probe", "measure", "where", "value"]
    assert set(timed) == {
        f"cost.{m}.{w}.step_0"
        for m in ("seconds", "peak_bytes")
        for w in ("rule", "backprop", "ratio")
    }


def test_what_the_stage_restores_is_what_the_run_was(corpus: Corpus) -> None:
    """The update's angle and the rule's own state come from the run: backprop's is 1, and an
    unmoved model has none.
    """
    test_training.train(corpus, "run", steps=30, snapshots=2, warmup=0)
    rows, _ = look(corpus, "run", ["gradient_angle", "update_ratio", "logit_lens"])
    at = {(row["step"], row["measure"], row["where"]): row["value"] for row in rows}
    assert at[0, "rule", "all"] == pytest.approx(1, abs=1e-6)
    assert 0.05 < at[0, "update", "all"] <= 1
    assert at[29, "nats", "blocks.1"] < at[0, "nats", "blocks.1"] - 0.1


def test_no_snapshots_or_no_probes_give_an_empty_table(corpus: Corpus) -> None:
    test_training.train(corpus, "none", snapshots=0)
    assert look(corpus, "none", PROBES) == ([], {})
    test_training.train(corpus, "some")
    assert look(corpus, "some", []) == ([], {})


def test_the_probe_batch_reaches_from_one_end_of_the_validation_text_to_the_other(
    corpus: Corpus,
) -> None:
    stream = torch.from_numpy(corpus[0].stream("validation").astype("int64"))
    windows = probing.fixed_batch(corpus[0], 8, 3, torch.device("cpu"))
    assert windows.tokens.shape == windows.targets.shape == (3, 8)
    assert torch.equal(windows.tokens[0], stream[:8])
    assert torch.equal(windows.targets[-1], stream[-8:])
    assert torch.equal(windows.tokens[:, 1:], windows.targets[:, :-1])
    short = probing.fixed_batch(corpus[0], 10_000, 3, torch.device("cpu"))
    assert short.tokens.shape == (1, len(stream) - 1)


def test_snapshots_of_another_tokenizer_are_refused(
    corpus: Corpus, shards_of: Callable[..., Corpus]
) -> None:
    test_training.train(corpus, "run")
    with pytest.raises(
        UserError,
        match=r"run/snapshots was left by a run with another tokenizer; run `dvc repro train`",
    ):
        look(shards_of("abc" * 50, "cab" * 20), "run", ["logit_lens"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"probes": ["spectar"]},
            r"params\.yaml: probe\.probes: there is no 'spectar' in probes; did you mean spectra\?",
        ),
        (
            {"probes": ["spectra", "spectra"]},
            r"params\.yaml: probe\.probes: spectra is named twice",
        ),
        ({"windows": 1}, r"params\.yaml: probe\.windows should be greater than or equal to 2"),
    ],
)
def test_a_wrong_section_is_refused_before_anything_runs(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small.PROJECT)
    tree = small.tree()
    with pytest.raises(UserError, match=message):
        preflight.check({**tree, "probe": {**tree["probe"], **changes}})


@pytest.mark.parametrize("model", registry.names("models"))
def test_the_probes_of_the_default_run_suit_every_model(model: str) -> None:
    looked_at = snapshot(small.model(chosen_model(model)))
    for name in ProbeParams(**small.tree()["probe"]).probes:
        assert readings(name, looked_at)


def test_what_a_run_that_diverged_left_is_looked_at_as_any_other(
    corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    """Snapshots until then, or none at all: every output of the stage is there."""
    chosen = registry.names("probes")
    chosen.remove("cost")
    params = ProbeParams(
        probes=chosen, windows=2, text="7 times", processes=1, device="cpu", threads=1
    )
    for snapshots, steps in ((7, {0}), (1, set())):
        test_training.train(
            corpus, f"run-{snapshots}", learning_rate=1e38, clip=0.0, snapshots=snapshots
        )
        left = Path(f"run-{snapshots}/snapshots")
        choices = probing.chosen(small.tree(context=8), params)
        probing.look(params, choices, *corpus, left, Path(f"probes-{snapshots}"))
        table = pq.read_table(Path(f"probes-{snapshots}/probes.parquet")).to_pydict()
        assert set(table) == set(probing.COLUMNS.names)
        assert set(table["step"]) == steps
        assert set(table["probe"]) == (set(chosen) if steps else set())
        assert ("nothing to look at" in capsys.readouterr().out) == (not steps)
