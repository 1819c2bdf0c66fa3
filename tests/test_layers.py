"""Layers against their formulas, and the contracts that every layer of a kind keeps."""

import math
from typing import Any

import pytest
import small
import torch
from torch import Tensor, nn

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.core.registry import Choice
from lmlab.model.layers.attention.base import (
    Attention,
    SoftmaxAttention,
    ValueMap,
    attend,
    head_count,
)
from lmlab.model.layers.cache import Cache
from lmlab.model.layers.embedding.base import Embedding
from lmlab.model.layers.feed_forward.base import FeedForward
from lmlab.model.layers.position.base import Position

WIDTH, HEADS, CONTEXT = 16, 2, 8


def choice(kind: str, name: str, **changes: object) -> Choice:
    return registry.choose(small.tree(**changes), kind, name)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def attention(
    name: str, position: Position, context: int = CONTEXT, **changes: object
) -> Attention:
    torch.manual_seed(0)
    built: Attention = (
        choice("layers.attention", name, **changes).build(WIDTH, context, position).double()
    )
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.5)
    return built


def position(name: str, context: int = CONTEXT) -> Position:
    built: Position = choice("layers.position", name).build(WIDTH, context).double()
    return built


# ---------------------------------------------------------------- positions


@pytest.mark.parametrize("name", registry.names("layers.position"))
def test_a_position_goes_on_where_it_is_told_to(name: str) -> None:
    place = position(name)
    x_BTD, x_BHTK = numbers(2, CONTEXT, WIDTH), numbers(2, HEADS, CONTEXT, WIDTH // HEADS)
    assert torch.equal(place.embed(x_BTD, 0)[:, 3:], place.embed(x_BTD[:, 3:], 3))
    assert torch.equal(place.rotate(x_BHTK, 0)[..., 3:, :], place.rotate(x_BHTK[..., 3:, :], 3))


def test_every_position_tells_the_order_in_one_way_but_for_the_one_that_is_none() -> None:
    x_BTD, x_BHTK = numbers(2, CONTEXT, WIDTH), numbers(2, HEADS, CONTEXT, 8)
    ways = {}
    for name in registry.names("layers.position"):
        place = position(name)
        changes = {
            "embed": place.embed(x_BTD, 1) is not x_BTD,
            "rotate": place.rotate(x_BHTK, 1) is not x_BHTK,
        }
        ways[name] = [
            way
            for way, does in {**changes, "bias": place.bias(HEADS, 2, 3) is not None}.items()
            if does
        ]
    assert ways == {
        "no_position": [],
        "alibi": ["bias"],
        "learned": ["embed"],
        "rotary": ["rotate"],
    }


ROTATE = ["rotary"]
"""The positions that turn queries and keys: of the others these properties are no tests."""


@pytest.mark.parametrize("name", ROTATE)
def test_rotated_scores_depend_on_the_distance_alone(name: str) -> None:
    place = position(name)
    query, key = numbers(1, 1, 1, 8, seed=1), numbers(1, 1, 1, 8, seed=2)

    def rotated_score(at: int, other: int) -> float:
        return float((place.rotate(query, at) * place.rotate(key, other)).sum())

    for distance in range(6):
        scores = [rotated_score(other + distance, other) for other in (0, 1, 7, 100)]
        assert scores == pytest.approx([scores[0]] * 4, abs=1e-10)
    assert rotated_score(3, 0) != pytest.approx(rotated_score(2, 0), abs=1e-3)


@pytest.mark.parametrize("name", ROTATE)
def test_rotation_keeps_the_norm(name: str) -> None:
    x_BHTK = numbers(2, HEADS, 50, 8)
    turned_BHTK = position(name).rotate(x_BHTK, 5)
    torch.testing.assert_close(turned_BHTK.norm(dim=-1), x_BHTK.norm(dim=-1))
    assert (turned_BHTK - x_BHTK).norm(dim=-1).min() > 0.1


def test_rotary_turns_each_pair_at_its_own_speed() -> None:
    place = choice("layers.position", "rotary").build(8, CONTEXT)
    x_BHTK = torch.zeros(1, 1, 1, 8, dtype=torch.float64)
    for pair in range(4):
        one = x_BHTK.clone()
        one[..., pair] = 1
        angle = 5 * 10_000 ** (-pair / 4)
        turned = place.rotate(one, 5)[0, 0, 0]
        assert turned[pair].item() == pytest.approx(math.cos(angle))
        assert turned[pair + 4].item() == pytest.approx(math.sin(angle))


def test_rotary_gives_the_same_bits_however_far_it_has_been_asked_before() -> None:
    x_BHTK = numbers(1, 1, 5, 6).float()
    fresh = choice("layers.position", "rotary").build(6, CONTEXT)
    for far in (7, 64, 1001):
        used = choice("layers.position", "rotary").build(6, CONTEXT)
        used.rotate(numbers(1, 1, far, 6).float(), 0)
        assert torch.equal(used.rotate(x_BHTK, 1), fresh.rotate(x_BHTK, 1))


def test_learned_positions_add_a_row_each_and_stay_at_the_last_beyond_the_context() -> None:
    place = position("learned")
    x_BTD = numbers(2, CONTEXT + 3, WIDTH)
    rows = [*range(CONTEXT), *[CONTEXT - 1] * 3]
    assert torch.equal(place.embed(x_BTD, 0), x_BTD + place.table.weight[rows])
    assert torch.equal(place.embed(x_BTD[:, :2], 100), x_BTD[:, :2] + place.table.weight[-1])


def test_alibi_takes_off_the_distance_at_a_slope_of_its_own_in_each_head() -> None:
    bias = position("alibi").bias(4, 2, 5)
    assert bias is not None
    assert bias.shape == (4, 2, 5)
    for head, slope in enumerate((1 / 4, 1 / 16, 1 / 64, 1 / 256)):
        for query, at in enumerate((3, 4)):
            assert bias[head, query, : at + 1].tolist() == [
                -slope * (at - key) for key in range(at + 1)
            ]


# ---------------------------------------------------------------- normalisations


@pytest.mark.parametrize("name", registry.names("layers.normalisation"))
def test_a_normalisation_takes_each_position_alone(name: str) -> None:
    norm = choice("layers.normalisation", name).build(WIDTH).double()
    x_BTD = 100 * numbers(2, 5, WIDTH)
    whole = norm(x_BTD)
    assert whole.shape == x_BTD.shape
    torch.testing.assert_close(norm(x_BTD[:, 2:3]), whole[:, 2:3])
    assert torch.isfinite(norm(torch.zeros_like(x_BTD))).all()


@pytest.mark.parametrize(
    "name", sorted({*registry.names("layers.normalisation")} - {"identity", "dynamic_tanh"})
)
def test_a_normalisation_forgets_the_scale(name: str) -> None:
    norm = choice("layers.normalisation", name).build(WIDTH).double()
    x_BTD = 100 * numbers(2, 5, WIDTH)
    torch.testing.assert_close(norm(7 * x_BTD), norm(x_BTD), rtol=0, atol=1e-6)


def test_dynamic_tanh_is_its_formula_and_keeps_each_number_in_bounds() -> None:
    norm = choice("layers.normalisation", "dynamic_tanh").build(WIDTH).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x_BTD = numbers(2, 3, WIDTH)
    torch.testing.assert_close(norm(x_BTD), torch.tanh(norm.slope * x_BTD) * norm.gain + norm.bias)
    assert (norm(1e6 * x_BTD) - norm.bias).abs().le(norm.gain.abs() + 1e-12).all()


def test_rms_norm_is_its_formula() -> None:
    norm = choice("layers.normalisation", "rms_norm").build(WIDTH).double()
    nn.init.normal_(norm.gain)
    x_BTD = numbers(2, 3, WIDTH)
    formula = x_BTD / (x_BTD.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.gain
    torch.testing.assert_close(norm(x_BTD), formula)


def test_layer_norm_is_torchs() -> None:
    norm = choice("layers.normalisation", "layer_norm").build(WIDTH).double()
    theirs = nn.LayerNorm(WIDTH, eps=1e-5).double()
    for mine, other in ((norm.gain, theirs.weight), (norm.bias, theirs.bias)):
        nn.init.normal_(mine)
        other.data.copy_(mine.data)
    x_BTD = numbers(2, 3, WIDTH)
    torch.testing.assert_close(norm(x_BTD), theirs(x_BTD))


# ---------------------------------------------------------------- feed-forward layers


@pytest.mark.parametrize("name", registry.names("layers.feed_forward"))
def test_a_feed_forward_layer_takes_each_position_alone(name: str) -> None:
    layer = choice("layers.feed_forward", name).build(WIDTH).double()
    x_BTD = numbers(2, 5, WIDTH)
    whole = layer(x_BTD)
    assert whole.shape == x_BTD.shape
    torch.testing.assert_close(layer(x_BTD[1:, 2:3]), whole[1:, 2:3])
    writers = [
        module.out
        for module in layer.modules()
        if isinstance(module, FeedForward) and module.out is not None
    ]
    assert writers
    for writer in writers:
        writer.weight.data.zero_()
    assert not layer(x_BTD).any()  # what models start at a smaller scale is indeed the last map


@pytest.mark.parametrize("name", ["gelu", "relu_squared", "swiglu"])
def test_feed_forward_layers_are_their_formulas(name: str) -> None:
    layer = choice("layers.feed_forward", name).build(WIDTH).double()
    x_BTD = numbers(2, 5, WIDTH)
    if name == "swiglu":
        hidden = round(2.667 * WIDTH)
        gate, up = x_BTD @ layer.gate_up.weight[:hidden].T, x_BTD @ layer.gate_up.weight[hidden:].T
        inside = gate / (1 + torch.exp(-gate)) * up
    else:
        up = x_BTD @ layer.up.weight.T
        curve = up * 0.5 * (1 + torch.erf(up / math.sqrt(2)))
        inside = curve if name == "gelu" else torch.where(up > 0, up**2, 0)
    torch.testing.assert_close(layer(x_BTD), inside @ layer.out.weight.T)


def experts(**changes: object) -> nn.Module:
    torch.manual_seed(0)
    built: nn.Module = (
        choice("layers.feed_forward", "mixture_of_experts", **changes).build(WIDTH).double()
    )
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.5)
    return built


@pytest.mark.parametrize("training", [True, False])
def test_a_single_expert_is_the_plain_layer_to_the_last_bit(training: bool) -> None:
    mixture = experts(experts=1, active=1, balance=0.0).train(training)
    x_BTD = numbers(2, 5, WIDTH)
    assert torch.equal(mixture(x_BTD), mixture.experts[0](x_BTD))


@pytest.mark.parametrize("active", [1, 2, 3])
def test_a_mixture_is_its_definition_in_training_and_after(active: int) -> None:
    mixture = experts(experts=3, active=active)
    x_BTD = numbers(2, 5, WIDTH)
    expected = torch.zeros_like(x_BTD)
    used = set()
    for b in range(2):
        for t in range(5):
            shares = torch.softmax(mixture.router.weight @ x_BTD[b, t], dim=0)
            for expert in shares.argsort(descending=True)[:active].tolist():
                used.add(expert)
                expected[b, t] += (
                    shares[expert] * mixture.experts[expert](x_BTD[b : b + 1, t : t + 1])[0, 0]
                )
    assert len(used) > 1  # or nothing of the routing would be seen
    torch.testing.assert_close(mixture.train()(x_BTD), expected)
    torch.testing.assert_close(mixture.eval()(x_BTD), expected)


@pytest.mark.parametrize("training", [True, False])
def test_a_mixture_is_causal_to_rounding_in_training_and_to_the_bit_after(training: bool) -> None:
    mixture, sent = experts(experts=3, active=1).train(training), set()
    for seed in range(5):  # each draws another future, which other experts get
        torch.manual_seed(seed)
        x_BTD = numbers(1, 40, WIDTH)
        x_BTD[:, 20:] = torch.randn(1, 20, WIDTH).double()
        sent.add(tuple(mixture.router(x_BTD[0, 20:]).argmax(dim=-1).tolist()))
        if not seed:
            before = mixture(x_BTD)[:, :20]
        torch.testing.assert_close(
            mixture(x_BTD)[:, :20], before, rtol=1e-13 * training, atol=1e-14 * training
        )
    assert len(sent) == 5


def test_the_penalty_is_one_when_experts_are_used_alike_and_their_number_when_one_does_all() -> (
    None
):
    mixture = experts(experts=4)
    alike = mixture.penalty(torch.full((8, 4), 0.25), torch.arange(8)[:, None] % 4)
    alone = mixture.penalty(
        torch.eye(4)[torch.zeros(8, dtype=torch.long)], torch.zeros(8, 1, dtype=torch.long)
    )
    assert (alike.item(), alone.item()) == pytest.approx((1.0, 4.0))


def test_the_penaltys_gradient_is_added_in_training_alone_and_its_value_never() -> None:
    x_BTD = numbers(2, 5, WIDTH)
    gradients, outputs = [], []
    for balance, training in ((0.0, True), (0.3, True), (0.3, False), (0.0, False)):
        mixture = experts(experts=3, active=1, balance=balance).train(training)
        outputs.append(mixture(x_BTD))
        outputs[-1].square().sum().backward()
        gradients.append(mixture.router.weight.grad)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(gradients[2], gradients[3])
    mixture = experts(experts=3, active=1)
    shares = mixture.router(x_BTD.flatten(0, 1)).softmax(-1)
    (0.3 * mixture.penalty(shares, shares.topk(1).indices)).backward()
    torch.testing.assert_close(gradients[1] - gradients[0], mixture.router.weight.grad)


def test_balance_spreads_tokens_over_experts_that_a_router_would_leave_idle() -> None:
    mixture = experts(experts=4, active=1, balance=1.0).float().train()
    x_BTD = numbers(8, 32, WIDTH).float() + 1
    nn.init.normal_(mixture.router.weight, std=0.02)
    mixture.router.weight.data[2] += 0.5

    def busiest() -> float:
        return mixture.router(x_BTD).argmax(-1).flatten().bincount(minlength=4).max().item() / (
            8 * 32
        )

    assert busiest() > 0.95
    optimizer = torch.optim.AdamW(mixture.router.parameters(), lr=0.01)
    for _ in range(200):
        (0 * mixture(x_BTD)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert busiest() < 0.5


def test_more_active_experts_than_there_are_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"mixture_of_experts\.active \(5\) is more than there are experts \(4\)"
    ):
        experts(experts=4, active=5)


# ---------------------------------------------------------------- embeddings


def embedding(name: str, vocabulary_size: int = 7, **changes: object) -> Embedding:
    torch.manual_seed(0)
    built: Embedding = (
        choice("layers.embedding", name, **changes).build(vocabulary_size, WIDTH).double()
    )
    return built


@pytest.mark.parametrize("name", registry.names("layers.embedding"))
@pytest.mark.parametrize("buckets", [20, 10**6])
def test_an_embedding_read_in_pieces_is_that_read_at_once(name: str, buckets: int) -> None:
    embed = embedding(name, buckets=buckets)
    tokens = small.tokens(2, 12, vocabulary_size=7)
    cache = Cache()
    pieces = [
        embed(tokens[:, start:end], cache) for start, end in ((0, 1), (1, 2), (2, 7), (7, 12))
    ]
    assert torch.equal(torch.cat(pieces, dim=1), embed(tokens))
    assert all(tensor.shape[1] <= 8 for tensor in cache.tensors.values())


def test_narrow_rows_read_in_pieces_are_those_read_at_once() -> None:
    embed = embedding("n_gram", row_width=3)
    tokens = small.tokens(2, 12, vocabulary_size=7)
    cache = Cache()
    pieces = [
        embed(tokens[:, start:end], cache) for start, end in ((0, 1), (1, 2), (2, 7), (7, 12))
    ]
    assert torch.allclose(torch.cat(pieces, dim=1), embed(tokens), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("row_width", [0, 3])
def test_an_n_gram_embedding_sees_its_longest_n_gram_and_no_further(row_width: int) -> None:
    embed = embedding("n_gram", longest=3, buckets=10**6, row_width=row_width)
    tokens = small.tokens(1, 9, vocabulary_size=7)
    before = embed(tokens)
    tokens[0, 4] = (tokens[0, 4] + 1) % 7
    changed = (embed(tokens) != before).any(-1)[0].tolist()
    assert changed == [False] * 4 + [True] * 3 + [False] * 2


def test_with_rows_enough_every_n_gram_has_its_own() -> None:
    embed = embedding("n_gram", vocabulary_size=4, longest=3, buckets=10**6)
    assert [table.num_embeddings for table in embed.tables] == [
        25,
        125,
    ]  # a beginning of the text is a fifth token
    every = torch.cartesian_prod(*[torch.arange(5)] * 3)
    rows = embed._rows(every, 1)[-1][:, 0]
    assert sorted(rows.tolist()) == list(range(125))


def test_without_rows_enough_n_grams_spread_evenly_over_those_there_are() -> None:
    embed = embedding("n_gram", vocabulary_size=30, longest=3, buckets=101)
    every = torch.cartesian_prod(*[torch.arange(31)] * 3)
    counts = embed._rows(every, 1)[-1][:, 0].bincount(minlength=101)
    expected = 31**3 / 101
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert 50 < chi_square < 160  # 100 degrees of freedom: mean 100, standard deviation 14


def test_an_n_gram_embedding_with_empty_tables_is_the_plain_one() -> None:
    plain, more = embedding("token"), embedding("n_gram")
    more.tokens.load_state_dict(plain.tokens.state_dict())
    for table in more.tables:
        nn.init.zeros_(table.weight)
    tokens = small.tokens(2, 9, vocabulary_size=7)
    assert torch.equal(more(tokens), plain(tokens))


def test_narrow_rows_stand_side_by_side_and_are_widened_to_the_model() -> None:
    embed = embedding("n_gram", vocabulary_size=4, longest=3, buckets=10**6, row_width=2)
    assert [table.embedding_dim for table in embed.tables] == [2, 2]
    tokens = torch.tensor([[1, 3, 2]])
    pair, triple = embed.tables[0].weight[3 * 5 + 2], embed.tables[1].weight[(1 * 5 + 3) * 5 + 2]
    expected = embed.tokens.weight[2] + embed.widen.weight @ torch.cat((pair, triple))
    assert torch.allclose(embed(tokens)[0, -1], expected, atol=1e-6)


def test_dropout_of_n_grams_leaves_out_whole_rows_in_training_alone() -> None:
    embed = embedding("n_gram", vocabulary_size=7, longest=2, buckets=10**6, dropout=0.25)
    tokens = small.tokens(50, 20, vocabulary_size=7)
    plain, row = (
        embed.eval()(tokens),
        embed.tables[0](embed._rows(nn.functional.pad(tokens, (1, 0), value=7), 20)[0]),
    )
    torch.manual_seed(0)
    seen = embed.train()(tokens) - embed.tokens(tokens)
    left_out = (seen == 0).all(-1)
    assert 0.2 < left_out.double().mean() < 0.3
    assert torch.allclose(seen[~left_out], row[~left_out] / 0.75)
    assert torch.equal(embed.eval()(tokens), plain)


# ---------------------------------------------------------------- placements, residual connections


def connection(name: str, index: int = 0, placement: str = "pre", **changes: object) -> nn.Module:
    torch.manual_seed(0)
    norm = choice("layers.normalisation", "rms_norm")
    built: nn.Module = choice("layers.residual", name, **changes).build(
        WIDTH, index, choice("layers.placement", placement).build(WIDTH, norm)
    )
    return built.double()


def norm_of(x_BTD: Tensor) -> Tensor:
    return x_BTD / (x_BTD.square().mean(-1, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize(
    ("placement", "formula"),
    [
        ("pre", lambda x, layer: x + layer(norm_of(x))),
        ("post", lambda x, layer: norm_of(x + layer(x))),
        ("sandwich", lambda x, layer: x + norm_of(layer(norm_of(x)))),
    ],
)
def test_placements_are_their_formulas(placement: str, formula: Any) -> None:
    x_BTD = numbers(2, 5, WIDTH)
    weight = numbers(WIDTH, WIDTH, seed=1)

    def layer(x: Tensor) -> Tensor:
        return torch.tanh(x @ weight)

    joined = connection("plain", placement=placement)(x_BTD, layer)
    torch.testing.assert_close(joined, formula(x_BTD, layer))


@pytest.mark.parametrize("placement", registry.names("layers.placement"))
@pytest.mark.parametrize("dynamic", [False, True])
def test_one_stream_of_hyper_connections_is_the_plain_connection(
    placement: str, dynamic: bool
) -> None:
    x_BTD, weight = numbers(2, 5, WIDTH), numbers(WIDTH, WIDTH, seed=1)
    plain = connection("plain", 3, placement)
    hyper = connection("hyper", 3, placement, streams=1, dynamic=dynamic)

    def through(residual: Any) -> Tensor:
        stream = residual(residual.expand(x_BTD), lambda x: torch.tanh(x @ weight))
        y_BTD: Tensor = residual.reduce(stream)
        return y_BTD

    assert torch.equal(through(hyper), through(plain))


@pytest.mark.parametrize("name", registry.names("layers.residual"))
def test_a_residual_connection_calls_its_layer_once_and_says_whether_it_widens(name: str) -> None:
    x_BTD = numbers(2, 5, WIDTH)
    for index in range(4):
        residual = connection(name, index)
        calls: list[Tensor] = []

        def layer(x: Tensor, map_values: ValueMap | None = None, calls: Any = calls) -> Tensor:
            if map_values is not None:
                map_values(numbers(2, HEADS, 5, 8))
            calls.append(x)
            return x

        stream = residual.expand(x_BTD)
        if not residual.widens:
            assert stream is x_BTD
            assert residual.reduce(stream) is stream
        if name == "value" and index > 0:  # which finds the first block's values in the stream
            stream = torch.cat((stream, numbers(2, 5, WIDTH)), dim=-1)
        assert residual.reduce(residual(stream, layer)).shape == x_BTD.shape
        assert len(calls) == 1


def test_hyper_connections_are_their_definition() -> None:
    residual = connection("hyper", 1, streams=3, dynamic=True)
    for name in ("read", "mix", "write", "by_token", "strength"):
        nn.init.normal_(residual.get_parameter(name))
    weight = numbers(WIDTH, WIDTH, seed=1)
    x_BTD = numbers(1, 4, WIDTH)
    streams = numbers(1, 4, 3 * WIDTH, seed=2)
    joined = residual(streams, lambda x: torch.tanh(x @ weight))
    assert torch.equal(residual.expand(x_BTD), torch.cat([x_BTD] * 3, dim=-1))
    for t in range(4):
        h = streams[0, t].view(3, WIDTH)
        centred = h - h.mean(-1, keepdim=True)
        by_token = torch.tanh(
            centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() @ residual.by_token.T
        )
        read = residual.read + residual.strength[0] * by_token[:, 0]
        write = residual.write + residual.strength[1] * by_token[:, 4]
        output = torch.tanh(norm_of(read @ h) @ weight)
        for i in range(3):
            mixed = sum(
                (residual.mix.view(3, 3)[i, j] + residual.strength[0] * by_token[j, 1 + i]) * h[j]
                for j in range(3)
            )
            torch.testing.assert_close(joined[0, t].view(3, WIDTH)[i], mixed + write[i] * output)


def test_the_value_residual_mixes_the_first_values_into_later_ones_and_carries_them_along() -> None:
    x_BTD = numbers(2, 5, WIDTH)
    first, feed_forward, later = (connection("value", index) for index in (0, 1, 2))
    seen: list[Tensor] = []

    def attention_of(own_BHTK: Tensor) -> Any:
        def layer(x: Tensor, map_values: ValueMap) -> Tensor:
            seen.append(map_values(own_BHTK))
            return x

        return layer

    first_values, later_values = numbers(2, HEADS, 5, 8, seed=1), numbers(2, HEADS, 5, 8, seed=2)
    stream = first(first.expand(x_BTD), attention_of(first_values))
    stream = feed_forward(stream, lambda x: x)  # which has no values to map
    later.own.data.fill_(0.25)
    later.first.data.fill_(2.0)
    stream = later(stream, attention_of(later_values))
    assert torch.equal(seen[0], first_values)
    torch.testing.assert_close(seen[1], 0.25 * later_values + 2.0 * first_values)
    assert later.reduce(stream).shape == x_BTD.shape
    assert not [*first.parameters()][
        1:
    ]  # the gain of its norm alone: there is nothing to mix in yet


# ---------------------------------------------------------------- attention


def refusal(name: str, place: str) -> str:
    """What an attention layer says to a position encoding that it cannot apply; else empty."""
    try:
        attention(name, position(place))
    except UserError as error:
        return str(error)
    return ""


def fitting(name: str) -> Position:
    """A position encoding that an attention layer applies, one that acts in it if there is one."""
    places = ["rotary", "alibi", "no_position"]
    return position(next(place for place in places if not refusal(name, place)))


def acts_in_attention(place: str) -> bool:
    x_BHTK = numbers(1, HEADS, 1, WIDTH // HEADS)
    return (
        position(place).bias(HEADS, 1, 1) is not None
        or position(place).rotate(x_BHTK, 1) is not x_BHTK
    )


@pytest.mark.parametrize("name", registry.names("layers.attention"))
@pytest.mark.parametrize("place", registry.names("layers.position"))
def test_attention_applies_its_position_or_refuses_it(name: str, place: str) -> None:
    plain = attention(name, position("no_position"))
    refused = refusal(name, place)
    if refused:
        assert acts_in_attention(place)
        assert not isinstance(plain, SoftmaxAttention)
        assert refused.startswith("params.yaml: models.transformer.position: ")
        return
    layer = attention(name, position(place))
    layer.load_state_dict(plain.state_dict())
    x_BTD = numbers(1, CONTEXT, WIDTH)
    whole = layer(x_BTD, None)
    assert torch.allclose(whole, plain(x_BTD, None)) != acts_in_attention(place)
    changed = x_BTD.clone()
    changed[:, 5] += 1
    assert torch.equal(layer(changed, None)[:, :5], whole[:, :5])


@pytest.mark.parametrize("name", registry.names("layers.attention"))
def test_attention_without_a_cache_reads_as_far_back_as_it_says_and_no_further(name: str) -> None:
    layer = attention(name, fitting(name))
    before = numbers(1, 3 * CONTEXT, WIDTH)
    after = before.clone()
    after[:, 0] += 1
    is_changed = (layer(after) != layer(before)).any(-1)[0]
    last = 3 * CONTEXT - 1 if layer.lookback is None else layer.lookback
    assert is_changed[last]
    assert not is_changed[last + 1 :].any()


@pytest.mark.parametrize("name", registry.names("layers.attention"))
@pytest.mark.parametrize("place", registry.names("layers.position"))
def test_attention_with_a_cache_reads_as_far_as_it_says_and_no_further(
    name: str, place: str
) -> None:
    if refusal(name, place):
        pytest.skip("refused, as it may")
    layer = attention(name, position(place))
    x_BTD = numbers(2, 3 * CONTEXT, WIDTH)
    cache = Cache()
    for at in range(x_BTD.shape[1]):
        stepped = layer(x_BTD[:, at : at + 1], cache)
        cache.seen += 1
        seen = x_BTD[
            :, max(0, at + 1 - layer.receptive_field) if layer.receptive_field else 0 : at + 1
        ]
        torch.testing.assert_close(stepped[:, -1], layer(seen, None)[:, -1], rtol=0, atol=1e-10)
    kept = {key: tensor.numel() for key, tensor in cache.tensors.items()}
    layer(x_BTD[:, :1], cache)
    assert {
        key: tensor.numel() for key, tensor in cache.tensors.items()
    } == kept  # it does not grow for ever


@pytest.mark.parametrize("name", registry.names("layers.attention"))
def test_attention_reads_many_tokens_at_once_after_a_cache(name: str) -> None:
    layer = attention(name, fitting(name))
    x_BTD = numbers(2, CONTEXT, WIDTH)
    cache = Cache()
    outputs = []
    for start, end in ((0, 3), (3, 4), (4, CONTEXT)):
        outputs.append(layer(x_BTD[:, start:end], cache))
        cache.seen += end - start
    torch.testing.assert_close(torch.cat(outputs, dim=1), layer(x_BTD, None), rtol=0, atol=1e-10)
    assert torch.isfinite(layer(numbers(2, 3 * CONTEXT, WIDTH), cache)).all()


@pytest.mark.parametrize("name", ["multi_head", "grouped_query", "sliding_window"])
@pytest.mark.parametrize("epsilon", [1e-5, 0.3])
@pytest.mark.parametrize("normalise", [True, False])
def test_multi_head_attention_is_its_definition(name: str, epsilon: float, normalise: bool) -> None:
    more = {"grouped_query": {"groups": HEADS}, "sliding_window": {"window": 6}}.get(name, {})
    layer = attention(name, position("no_position"), qk_norm=normalise, epsilon=epsilon, **more)
    x_BTD = numbers(1, 6, WIDTH)
    queries, keys, values = (x_BTD[0] @ layer.queries_keys_values.weight.T).chunk(3, dim=-1)
    size = WIDTH // HEADS
    mixed = torch.zeros(6, WIDTH, dtype=torch.float64)
    for head in range(HEADS):
        of_head = slice(head * size, (head + 1) * size)
        for at in range(6):
            query, seen = queries[at, of_head], keys[: at + 1, of_head]
            if normalise:
                query = query / (query.square().mean() + epsilon).sqrt()
                seen = seen / (seen.square().mean(-1, keepdim=True) + epsilon).sqrt()
            weights = torch.softmax(seen @ query / math.sqrt(size), dim=0)
            mixed[at, of_head] = weights @ values[: at + 1, of_head]
    torch.testing.assert_close(layer(x_BTD, None)[0], mixed @ layer.out.weight.T)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("before", [0, 2])
def test_attention_in_bfloat16_has_the_gradients_of_the_exact_one(
    window: int | None, biased: bool, before: int
) -> None:
    batch, heads, time, width = 2, 3, 7, 4
    exact = [
        numbers(batch, heads, length, width, seed=seed).bfloat16().double().requires_grad_()
        for seed, length in enumerate((time, before + time, before + time))
    ]
    rounded = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    bias = numbers(heads, time, before + time, seed=3).bfloat16() if biased else None
    direction = numbers(batch, heads, time, width, seed=4).bfloat16()
    outputs = []
    for q, k, v in (exact, rounded):
        output = attend(q, k, v, bias, window)
        output.backward(direction.to(output.dtype))
        outputs.append(output)
    assert outputs[1].dtype == torch.bfloat16
    pairs = [*zip(rounded, exact, strict=True)]
    for low, expected in [(outputs[1], outputs[0]), *((a.grad, b.grad) for a, b in pairs)]:
        assert low is not None
        assert expected is not None
        assert (low.double() - expected).norm() < 0.02 * expected.norm()


def test_attention_in_bfloat16_never_sees_the_future_in_training_either() -> None:
    q, k, v = (numbers(1, 2, 6, 4, seed=seed).bfloat16().requires_grad_() for seed in range(3))
    before = attend(q, k, v, None)
    changed = attend(q, *(torch.cat((x[:, :, :3], x[:, :, 3:] + 1), dim=2) for x in (k, v)), None)
    assert torch.equal(changed[:, :, :3], before[:, :, :3])
    assert not torch.equal(changed[:, :, 3], before[:, :, 3])


def test_a_window_as_long_as_the_text_is_plain_attention_to_the_last_bit() -> None:
    for place in registry.names("layers.position"):
        plain = attention("multi_head", position(place))
        x_BTD = numbers(2, CONTEXT, WIDTH)
        for window, same in ((CONTEXT, True), (CONTEXT + 5, True), (CONTEXT - 1, False)):
            sliding = attention("sliding_window", position(place), window=window)
            sliding.load_state_dict(plain.state_dict())
            assert torch.equal(sliding(x_BTD), plain(x_BTD)) == same


def test_as_many_groups_as_heads_are_multi_head_attention_to_the_last_bit() -> None:
    plain = attention("multi_head", position("rotary"))
    grouped = attention("grouped_query", position("rotary"), groups=HEADS)
    grouped.load_state_dict(plain.state_dict())
    x_BTD = numbers(2, CONTEXT, WIDTH)
    assert torch.equal(grouped(x_BTD), plain(x_BTD))


def test_one_group_is_multi_head_attention_whose_heads_have_the_same_keys_and_values() -> None:
    plain = attention("multi_head", position("rotary"))
    grouped = attention("grouped_query", position("rotary"), groups=1)
    queries, keys, values = grouped.queries_keys_values.weight.data.split((WIDTH, 8, 8))
    plain.queries_keys_values.weight.data = torch.cat((queries, keys, keys, values, values))
    plain.out.load_state_dict(grouped.out.state_dict())
    x_BTD = numbers(2, CONTEXT, WIDTH)
    torch.testing.assert_close(grouped(x_BTD), plain(x_BTD))


def test_groups_that_do_not_divide_the_heads_are_refused() -> None:
    with pytest.raises(UserError, match=r"grouped_query\.groups: 3 groups do not divide 2 heads"):
        attention("grouped_query", position("rotary"), groups=3)


@pytest.mark.parametrize("epsilon", [1e-5, 0.3])
def test_latent_attention_is_its_definition(epsilon: float) -> None:
    layer = attention("latent", position("no_position"), epsilon=epsilon)
    x_TD = numbers(6, WIDTH)
    latent = x_TD @ layer.down.weight[:6].T
    latent = latent / latent.square().mean(-1, keepdim=True).add(epsilon).sqrt()
    place = x_TD @ layer.down.weight[6:].T
    keys, values = (latent @ layer.keys_values.weight.T).chunk(2, dim=-1)
    queries = x_TD @ layer.queries.weight.T
    mixed = torch.zeros(6, WIDTH, dtype=torch.float64)
    for head in range(HEADS):
        of_head = slice(8 * head, 8 * head + 8)
        for at in range(6):
            key = torch.cat((keys[: at + 1, of_head], place[: at + 1]), dim=-1)
            weights = torch.softmax(
                key @ queries[at, 12 * head : 12 * head + 12] / math.sqrt(12), dim=0
            )
            mixed[at, of_head] = weights @ values[: at + 1, of_head]
    torch.testing.assert_close(layer(x_TD[None])[0], mixed @ layer.out.weight.T)


def test_latent_attention_remembers_one_small_vector_a_token() -> None:
    cache = Cache()
    attention("latent", position("rotary"))(numbers(1, 5, WIDTH), cache)
    assert (
        sum(tensor.shape[-1] for tensor in cache.tensors.values()) == 6 + 4
    )  # of 32 for keys and values


@pytest.mark.parametrize("time", [1, 5, 64, 65, 150])
def test_linear_attention_is_its_definition_at_any_length(time: int) -> None:
    layer = attention("linear", position("no_position"))
    x_TD = numbers(time, WIDTH)
    queries, keys, values = (x_TD @ layer.queries_keys_values.weight.T).chunk(3, dim=-1)
    queries, keys = (torch.where(x > 0, x + 1, x.exp()) for x in (queries, keys))
    mixed = torch.zeros(time, WIDTH, dtype=torch.float64)
    for head in range(HEADS):
        of_head = slice(8 * head, 8 * head + 8)
        weights = (queries[:, of_head] @ keys[:, of_head].T).tril()
        mixed[:, of_head] = weights @ values[:, of_head] / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(layer(x_TD[None])[0], mixed @ layer.out.weight.T)


def test_linear_attention_in_single_precision_is_the_same_step_by_step() -> None:
    layer = attention("linear", position("rotary")).float()
    x_BTD = numbers(1, 150, WIDTH).float()
    cache = Cache()
    steps = []
    for at in range(150):
        steps.append(layer(x_BTD[:, at : at + 1], cache))
        cache.seen += 1
    whole = layer(x_BTD)
    torch.testing.assert_close(
        torch.cat(steps, dim=1), whole, rtol=0, atol=1e-5 * whole.abs().max().item()
    )


@pytest.mark.parametrize("name", registry.names("layers.attention"))
def test_values_may_be_changed_before_they_are_mixed(name: str) -> None:
    layer = attention(name, fitting(name))
    x_BTD = numbers(2, CONTEXT, WIDTH)
    same, none = layer(x_BTD, None, lambda v: v), layer(x_BTD, None, torch.zeros_like)
    torch.testing.assert_close(same, layer(x_BTD))
    assert not none.any()
    cache, steps = Cache(), []
    for at in range(CONTEXT):
        steps.append(layer(x_BTD[:, at : at + 1], cache, lambda v: 2 * v))
        cache.seen += 1
    receptive_field = layer.receptive_field or CONTEXT
    torch.testing.assert_close(
        torch.cat(steps, dim=1)[:, :receptive_field],
        2 * same[:, :receptive_field],
        rtol=0,
        atol=1e-10,
    )


@pytest.mark.parametrize("width", [2, 16, 64, 96, 128, 192, 320, 384, 1024])
def test_the_number_of_heads_can_be_left_to_the_width(width: int) -> None:
    heads = head_count(0, width, "key")
    assert width % (2 * heads) == 0
    assert heads == max(1, width // 64) or width % 64


@pytest.mark.parametrize("normalise", [True, False])
def test_normalised_queries_and_keys_have_no_scale(normalise: bool) -> None:
    layer = attention("multi_head", position("rotary"), qk_norm=normalise)
    x_BTD = numbers(2, CONTEXT, WIDTH)
    before = layer(x_BTD, None)
    layer.queries_keys_values.weight.data[: 2 * WIDTH] *= (
        3  # the rows of queries and keys, not of values
    )
    same = torch.allclose(layer(x_BTD, None), before, rtol=0, atol=1e-4)  # but for the epsilon
    assert same == normalise


@pytest.mark.parametrize(
    ("width", "heads"), [(16, 3), (16, 16), (16, 40), (18, 6), (10, 4), (2, 2), (15, 3), (15, 4)]
)
def test_heads_that_do_not_fit_are_refused_with_a_number_that_works(width: int, heads: int) -> None:
    with pytest.raises(
        UserError, match=r"layers\.attention\.multi_head\.heads: \d+ heads do not divide"
    ) as refused:
        choice("layers.attention", "multi_head", heads=heads).build(
            width, CONTEXT, position("rotary")
        )
    message = str(refused.value)
    assert "\n" not in message
    if width % 2:
        width = int(message.split()[-1])  # "make the width a multiple of 6"
    else:
        heads = int(message.split()[-2])  # "4 would"
    choice("layers.attention", "multi_head", heads=heads).build(width, CONTEXT, position("rotary"))
