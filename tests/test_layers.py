"""Layers against their formulas, and the contracts that every layer of a kind keeps."""

import math

import pytest
import small
import torch
from torch import Tensor, nn

from lmlab import parts
from lmlab.errors import UserError
from lmlab.layers.attention.base import Attention
from lmlab.layers.memory import Memory
from lmlab.layers.position.base import Position
from lmlab.parts import Choice

WIDTH, HEADS, CONTEXT = 16, 2, 8


def choice(kind: str, name: str, **changes: object) -> Choice:
    return parts.choose(small.tree(**changes), kind, name)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def attention(name: str, position: Position, context: int = CONTEXT, **changes: object) -> Attention:
    torch.manual_seed(0)
    built: Attention = choice("layers.attention", name, **changes).build(WIDTH, context, position).double()
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.5)
    return built


def position(name: str, context: int = CONTEXT) -> Position:
    built: Position = choice("layers.position", name).build(WIDTH, context).double()
    return built


# ---------------------------------------------------------------- positions


@pytest.mark.parametrize("name", parts.names("layers.position"))
def test_a_position_goes_on_where_it_is_told_to(name: str) -> None:
    place = position(name)
    x_BTD, x_BHTK = numbers(2, CONTEXT, WIDTH), numbers(2, HEADS, CONTEXT, WIDTH // HEADS)
    assert torch.equal(place.embed(x_BTD, 0)[:, 3:], place.embed(x_BTD[:, 3:], 3))
    assert torch.equal(place.rotate(x_BHTK, 0)[..., 3:, :], place.rotate(x_BHTK[..., 3:, :], 3))


@pytest.mark.parametrize("name", parts.names("layers.position"))
def test_rotated_scores_depend_on_the_distance_alone(name: str) -> None:
    place = position(name)
    query, key = numbers(1, 1, 1, 8, seed=1), numbers(1, 1, 1, 8, seed=2)

    def rotated_score(at: int, other: int) -> float:
        return float((place.rotate(query, at) * place.rotate(key, other)).sum())

    for distance in range(6):
        scores = [rotated_score(other + distance, other) for other in (0, 1, 7, 100)]
        assert scores == pytest.approx([scores[0]] * 4, abs=1e-10)


@pytest.mark.parametrize("name", parts.names("layers.position"))
def test_rotation_keeps_the_norm(name: str) -> None:
    x_BHTK = numbers(2, HEADS, 50, 8)
    torch.testing.assert_close(position(name).rotate(x_BHTK, 5).norm(dim=-1), x_BHTK.norm(dim=-1))


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


# ---------------------------------------------------------------- normalisations


@pytest.mark.parametrize("name", parts.names("layers.normalisation"))
def test_a_normalisation_takes_each_position_alone_and_forgets_its_scale(name: str) -> None:
    norm = choice("layers.normalisation", name).build(WIDTH).double()
    x_BTD = 100 * numbers(2, 5, WIDTH)
    whole = norm(x_BTD)
    assert whole.shape == x_BTD.shape
    torch.testing.assert_close(norm(x_BTD[:, 2:3]), whole[:, 2:3])
    torch.testing.assert_close(norm(7 * x_BTD), whole, rtol=0, atol=1e-6)
    assert torch.isfinite(norm(torch.zeros_like(x_BTD))).all()


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


@pytest.mark.parametrize("name", parts.names("layers.feed_forward"))
def test_a_feed_forward_layer_takes_each_position_alone(name: str) -> None:
    layer = choice("layers.feed_forward", name).build(WIDTH).double()
    x_BTD = numbers(2, 5, WIDTH)
    whole = layer(x_BTD)
    assert whole.shape == x_BTD.shape
    torch.testing.assert_close(layer(x_BTD[1:, 2:3]), whole[1:, 2:3])
    layer.out.weight.data.zero_()
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
        curve = 0.5 * up * (1 + torch.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
        inside = curve if name == "gelu" else torch.where(up > 0, up**2, 0)
    torch.testing.assert_close(layer(x_BTD), inside @ layer.out.weight.T)


# ---------------------------------------------------------------- attention


@pytest.mark.parametrize("name", parts.names("layers.attention"))
@pytest.mark.parametrize("place", parts.names("layers.position"))
def test_attention_with_a_memory_sees_the_last_tokens_of_a_context_and_no_others(name: str, place: str) -> None:
    layer = attention(name, position(place))
    x_BTD = numbers(2, 3 * CONTEXT, WIDTH)
    memory = Memory()
    for at in range(x_BTD.shape[1]):
        stepped = layer(x_BTD[:, at : at + 1], memory)
        memory.seen += 1
        seen = x_BTD[:, max(0, at + 1 - CONTEXT) : at + 1]
        torch.testing.assert_close(stepped[:, -1], layer(seen, None)[:, -1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", parts.names("layers.attention"))
def test_attention_reads_many_tokens_at_once_after_a_memory(name: str) -> None:
    layer = attention(name, position("rotary"))
    x_BTD = numbers(2, CONTEXT, WIDTH)
    memory = Memory()
    outputs = []
    for start, end in ((0, 3), (3, 4), (4, CONTEXT)):
        outputs.append(layer(x_BTD[:, start:end], memory))
        memory.seen += end - start
    torch.testing.assert_close(torch.cat(outputs, dim=1), layer(x_BTD, None), rtol=0, atol=1e-10)
    assert torch.isfinite(layer(numbers(2, 3 * CONTEXT, WIDTH), memory)).all()


@pytest.mark.parametrize("normalise", [True, False])
def test_multi_head_attention_is_its_definition(normalise: bool) -> None:
    layer = attention("multi_head", position("absent"), normalise_queries_and_keys=normalise)
    x_BTD = numbers(1, 6, WIDTH)
    queries, keys, values = (x_BTD[0] @ layer.queries_keys_values.weight.T).chunk(3, dim=-1)
    size = WIDTH // HEADS
    mixed = torch.zeros(6, WIDTH, dtype=torch.float64)
    for head in range(HEADS):
        of_head = slice(head * size, (head + 1) * size)
        for at in range(6):
            query, seen = queries[at, of_head], keys[: at + 1, of_head]
            if normalise:
                query = query / query.square().mean().sqrt()
                seen = seen / seen.square().mean(-1, keepdim=True).sqrt()
            weights = torch.softmax(seen @ query / math.sqrt(size), dim=0)
            mixed[at, of_head] = weights @ values[: at + 1, of_head]
    torch.testing.assert_close(layer(x_BTD, None)[0], mixed @ layer.out.weight.T)


@pytest.mark.parametrize("normalise", [True, False])
def test_normalised_queries_and_keys_have_no_scale(normalise: bool) -> None:
    layer = attention("multi_head", position("rotary"), normalise_queries_and_keys=normalise)
    x_BTD = numbers(2, CONTEXT, WIDTH)
    before = layer(x_BTD, None)
    layer.queries_keys_values.weight.data[: 2 * WIDTH] *= 3  # the rows of queries and keys, not of values
    same = torch.allclose(layer(x_BTD, None), before, rtol=0, atol=1e-10)
    assert same == normalise


class Slope(Position):
    """A bias that falls with the distance, for want of a part that has one."""

    def embed(self, x_BTD: Tensor, start: int) -> Tensor:
        return x_BTD

    def rotate(self, x_BHTK: Tensor, start: int) -> Tensor:
        return x_BHTK

    def bias(self, queries: int, keys: int) -> Tensor | None:
        at = torch.arange(keys - queries, keys, dtype=torch.float64)[:, None]
        return -(at - torch.arange(keys)).abs().expand(HEADS, queries, keys)


@pytest.mark.parametrize("name", parts.names("layers.attention"))
def test_attention_adds_the_bias_of_its_position(name: str) -> None:
    plain, sloped = attention(name, position("absent")), attention(name, Slope())
    sloped.load_state_dict(plain.state_dict())
    x_BTD = numbers(1, CONTEXT, WIDTH)
    whole = sloped(x_BTD, None)
    assert not torch.allclose(whole, plain(x_BTD, None))
    changed = x_BTD.clone()
    changed[:, 5] += 1
    assert torch.equal(sloped(changed, None)[:, :5], whole[:, :5])
    memory = Memory()
    for at in range(CONTEXT):
        torch.testing.assert_close(sloped(x_BTD[:, at : at + 1], memory)[:, 0], whole[:, at], rtol=0, atol=1e-10)
        memory.seen += 1


@pytest.mark.parametrize(("width", "heads"), [(16, 3), (16, 16), (16, 40), (18, 6), (10, 4), (2, 2), (15, 3), (15, 4)])
def test_heads_that_do_not_fit_are_refused_with_a_number_that_works(width: int, heads: int) -> None:
    with pytest.raises(UserError, match=r"layers\.attention\.multi_head\.heads: \d+ heads do not divide") as refused:
        choice("layers.attention", "multi_head", heads=heads).build(width, CONTEXT, position("rotary"))
    message = str(refused.value)
    assert "\n" not in message
    if width % 2:
        width = int(message.split()[-1])  # "make the width a multiple of 6"
    else:
        heads = int(message.split()[-2])  # "4 would"
    choice("layers.attention", "multi_head", heads=heads).build(width, CONTEXT, position("rotary"))
