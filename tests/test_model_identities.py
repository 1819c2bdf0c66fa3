"""What each model beside the transformer computes, held against torch's own, another form of the
same, or a count.
"""

import pytest
import small
import torch
from torch import nn

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.model.models.base import LanguageModel, parameter_count
from lmlab.model.models.min_gru import scan
from lmlab.model.models.rwkv import MAX_LOG_DECAY
from lmlab.model.models.rwkv import one_chunk as rwkv_chunk
from lmlab.model.models.state_space import one_chunk as state_space_chunk


def rough(name: str, **changes: object) -> LanguageModel:
    """A model in double precision with large weights."""
    return small.rough(registry.choose(small.tree(**changes), "models", name))


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- convolutions


@pytest.mark.parametrize(
    ("dilation", "receptive_field"), [(1, 1 + 3 * 2), (2, 1 + 2 * 7), (3, 1 + 2 * 13)]
)
def test_dilated_convolutions_see_as_far_as_the_formula_says(
    dilation: int, receptive_field: int
) -> None:
    model = rough("convolution", layers=3, kernel=3, dilation=dilation)
    assert model.receptive_field == receptive_field
    vectors = numbers(1, receptive_field + 2, 16).requires_grad_()
    x_BTD = vectors
    for block in model.blocks:
        x_BTD = block(x_BTD)
    x_BTD[:, -1].sum().backward()
    assert vectors.grad is not None
    reached = vectors.grad[0].any(dim=-1).tolist()
    assert reached[:2] == [False, False]
    assert reached[2]


def test_a_convolution_multiplies_its_last_weight_with_the_present_token() -> None:
    block = rough("convolution", kernel=3).blocks[1]
    x_BTD = numbers(1, 9, 16)
    normed, weight = block.norm(x_BTD)[0], block.value_gate.weight
    mixed = block.value_gate.bias + sum(
        weight[:, :, place] @ normed[8 - 2 * (2 - place)] for place in range(3)
    )
    value, gate = mixed.chunk(2)
    torch.testing.assert_close(block(x_BTD)[0, 8], x_BTD[0, 8] + value * gate.sigmoid())


# ---------------------------------------------------------------- LSTM


def test_lstm_is_torchs_lstm() -> None:
    recurrence = rough("lstm").blocks[0].recurrence
    torchs = nn.LSTM(16, 16, batch_first=True).double()

    def in_torchs_order(rows: torch.Tensor) -> torch.Tensor:
        take, keep, show, candidate = rows.detach().chunk(4)
        return torch.cat((take, keep, candidate, show))

    torchs.weight_ih_l0.data = in_torchs_order(recurrence.from_input.weight)
    torchs.weight_hh_l0.data = in_torchs_order(recurrence.from_last.weight)
    torchs.bias_ih_l0.data = in_torchs_order(recurrence.from_input.bias)
    torchs.bias_hh_l0.data.zero_()
    x_BTD = numbers(3, 20, 16)
    torch.testing.assert_close(recurrence(x_BTD, None), torchs(x_BTD)[0], rtol=0, atol=1e-10)


def test_lstm_keeps_what_its_gates_keep() -> None:
    """With the forget gate open and the input gate shut after the first token, the cell stays as it
    is.
    """
    recurrence = rough("lstm").blocks[0].recurrence
    for weight in (recurrence.from_input.weight, recurrence.from_last.weight):
        weight.data[: 3 * 16] = 0  # gates that read nothing
    recurrence.from_input.bias.data[:16] = -1e4  # shut
    recurrence.from_input.bias.data[16 : 2 * 16] = 1e4  # open
    x_BTD = numbers(1, 50, 16)
    assert not recurrence(x_BTD, None).any()
    recurrence.from_input.weight.data[:16, 0] = (
        2e4  # open for the first token alone, by its first number
    )
    x_BTD[:, :, 0] = -1
    x_BTD[:, 0, 0] = 1
    kept = recurrence(x_BTD, None)
    assert kept.any()
    torch.testing.assert_close(kept, kept[:, :1].expand_as(kept), rtol=0, atol=1e-12)


# ---------------------------------------------------------------- minGRU


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("time", [1, 2, 13, 128, 300])
def test_min_grus_scan_is_the_loop(time: int, dtype: torch.dtype, tolerance: float) -> None:
    keep = (3 * numbers(2, time, 5)).sigmoid().to(dtype)
    keep[:, :, 0], keep[:, :, 1] = 0, 1  # what forgets all, and what forgets nothing
    add = numbers(2, time, 5, seed=1).to(dtype)
    state, states = torch.zeros(2, 5, dtype=torch.float64), []
    for at in range(time):
        state = keep[:, at].double() * state + add[:, at].double()
        states.append(state)
    torch.testing.assert_close(
        scan(keep, add).double(), torch.stack(states, dim=1), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_min_gru_in_parallel_is_min_gru_step_by_step(dtype: torch.dtype, tolerance: float) -> None:
    recurrence = rough("min_gru").blocks[0].recurrence.to(dtype)
    x_BTD = numbers(2, 200, 16).to(dtype)
    update, candidate = recurrence.update_candidate(x_BTD).chunk(2, dim=-1)
    share, state, states = update.sigmoid(), torch.zeros_like(candidate[:, 0]), []
    for at in range(200):
        state = (1 - share[:, at]) * state + share[:, at] * candidate[:, at]
        states.append(state)
    expected = recurrence.out(torch.stack(states, dim=1))
    torch.testing.assert_close(recurrence(x_BTD, None), expected, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------- tables of n-grams


def table(order: int, buckets: int, vocabulary_size: int = small.VOCABULARY) -> LanguageModel:
    choice = registry.choose(small.tree(order=order, buckets=buckets), "models", "n_gram_table")
    return small.rough(choice, vocabulary_size=vocabulary_size)


def test_a_table_of_order_two_is_the_bigram_table() -> None:
    model = table(order=2, buckets=100)
    rows = model.blocks[0].tables[0].weight + model.blocks[0].unigram.weight
    assert rows.shape == (small.VOCABULARY, small.VOCABULARY)
    tokens = small.tokens(3, 20)
    assert torch.equal(model(tokens), rows[tokens])


def test_a_table_learns_the_share_of_each_token_after_each_other() -> None:
    model = table(order=2, buckets=100, vocabulary_size=4)
    text = small.tokens(1, 150, vocabulary_size=4)
    before, after = text[:, :-1], text[:, 1:]
    counts = torch.zeros(4, 4, dtype=torch.float64)
    counts.index_put_(
        (before[0], after[0]), torch.tensor(1.0, dtype=torch.float64), accumulate=True
    )
    rule = registry.choose(small.tree(), "learning_rules", "backprop").build(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    for _ in range(500):
        rule.assign_gradients(model, before, after)
        optimizer.step()
        optimizer.zero_grad()
    learned = model(torch.arange(4)[:, None])[:, 0].softmax(dim=-1)
    torch.testing.assert_close(
        learned.detach(), counts / counts.sum(dim=1, keepdim=True), rtol=0, atol=1e-6
    )


def test_a_table_has_a_row_for_every_n_gram_where_they_fit() -> None:
    """Two tokens back in all combinations, the beginning included: no two share a row."""
    tokens = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    model = table(order=3, buckets=20, vocabulary_size=4)
    assert [len(t.weight) for t in model.blocks[0].tables] == [4, 20]
    logits = torch.cat((model(tokens)[:, 1], model(torch.arange(4)[:, None])[:, 0]))
    assert len(torch.unique(logits.round(decimals=9), dim=0)) == 20
    assert [
        len(t.weight) for t in table(order=3, buckets=19, vocabulary_size=4).blocks[0].tables
    ] == [4, 19]


def test_a_tables_hashes_spread_evenly_also_with_a_large_vocabulary() -> None:
    model = table(order=5, buckets=64, vocabulary_size=3000)
    block = model.blocks[0]
    for embedding in block.tables:
        embedding.weight.data.zero_()
        assert len(embedding.weight) == 64
    block.tables[-1].weight.data[:, 0] = torch.arange(64)
    block.unigram.weight.data.zero_()
    counts = (
        model(small.tokens(20, 250, vocabulary_size=3000))[:, 3:, 0]
        .long()
        .flatten()
        .bincount(minlength=64)
    )
    share = counts.double() / counts.sum()
    assert len(counts) == 64
    assert (share - 1 / 64).abs().max() < 6 * (1 / 64 / counts.sum()).sqrt()


# ---------------------------------------------------------------- the perceptron


def test_a_perceptron_puts_the_oldest_of_its_window_first() -> None:
    block = rough("perceptron", window=3).blocks[0]
    x_BTD = numbers(1, 6, 16)
    normed = block.norm(x_BTD)
    expected = x_BTD[:, 4] + block.out(
        block.up(torch.cat([normed[:, at] for at in (2, 3, 4)], dim=-1)).tanh()
    )
    torch.testing.assert_close(block(x_BTD)[:, 4], expected)
    first = torch.cat(
        (torch.zeros(1, 32, dtype=torch.float64), normed[:, 0]), dim=-1
    )  # nothing before the beginning
    torch.testing.assert_close(block(x_BTD)[:, 0], x_BTD[:, 0] + block.out(block.up(first).tanh()))


# ---------------------------------------------------------------- hybrids


def hybrid(**changes: object) -> LanguageModel:
    return small.model(registry.choose(small.tree(**changes), "models", "hybrid"))


def test_a_hybrid_of_two_copies_of_a_model_is_that_model() -> None:
    model = small.rough(
        registry.choose(small.tree(first="lstm", second="lstm", layers=3), "models", "hybrid")
    )
    plain = small.rough(registry.choose(small.tree(layers=3), "models", "lstm"), seed=1)
    plain.blocks.load_state_dict(model.blocks.state_dict())
    plain.embedding, plain.readout, plain.final_norm = (
        model.ends.embedding,
        model.ends.readout,
        model.ends.final_norm,
    )
    tokens = small.tokens(2, 20)
    assert torch.equal(model(tokens), plain(tokens))


def test_a_hybrid_takes_its_models_blocks_in_turn_and_no_weight_more() -> None:
    tree = small.tree(layers=3, first="transformer", second="min_gru")
    model = small.model(registry.choose(tree, "models", "hybrid"))
    transformer, min_gru = (
        small.model(registry.choose(tree, "models", name)) for name in ("transformer", "min_gru")
    )
    sources = [transformer, min_gru, transformer]
    assert [type(block) for block in model.blocks] == [type(source.blocks[0]) for source in sources]
    of_ends = parameter_count(transformer) - parameter_count(transformer.blocks)
    of_blocks = 2 * parameter_count(transformer.blocks[0]) + parameter_count(min_gru.blocks[0])
    assert parameter_count(model) == of_ends + of_blocks
    assert len(model.state_dict()) == len(
        {id(p) for p in model.parameters()}
    )  # no weight under two names
    assert model.readout is model.ends.readout


def test_a_hybrid_sees_as_far_as_its_blocks_together() -> None:
    assert (
        hybrid(first="perceptron", second="perceptron", layers=2, window=4).receptive_field
        == 1 + 2 * 3
    )
    assert hybrid(first="perceptron", second="lstm", layers=2).receptive_field is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"first": "n_gram_table"},
            "models.hybrid.first: the blocks of n_gram_table end in logits",
        ),
        (
            {"second": "n_gram_table"},
            "models.hybrid.second: the blocks of n_gram_table end in logits",
        ),
        (
            {"residual": "hyper"},
            "models.hybrid.first: the blocks of transformer hand on more than the model's width",
        ),
        (
            {"first": "lstm", "second": "transformer", "residual": "value"},
            "models.hybrid.second: the blocks of transf",
        ),
    ],
)
def test_a_hybrid_of_models_that_do_not_go_together_is_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        hybrid(**changes)
    assert "\n" not in str(refused.value)


def test_a_hybrid_of_models_of_other_widths_or_with_too_few_blocks_is_refused() -> None:
    tree = small.tree(first="transformer", second="min_gru")
    models = tree["models"]
    wider = {**tree, "models": {**models, "min_gru": {**models["min_gru"], "width": 32}}}
    with pytest.raises(
        UserError,
        match=r"models\.hybrid: transformer is 16 wide and min_gru 32; give both the same width",
    ):
        small.model(registry.choose(wider, "models", "hybrid"))
    deeper = {**tree, "models": {**models, "hybrid": {**models["hybrid"], "layers": 6}}}
    with pytest.raises(
        UserError, match=r"models\.hybrid\.layers asks for 3 blocks of transformer, which has 2"
    ):
        small.model(registry.choose(deeper, "models", "hybrid"))


# ---------------------------------------------------------------- state spaces


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("decay", [1e-3, 1.0, 100.0])
def test_a_chunk_of_a_state_space_is_its_recurrence(
    decay: float, dtype: torch.dtype, tolerance: float
) -> None:
    log_keep = -decay * numbers(2, 3, 40).abs().to(dtype)
    values, keys, queries = (
        numbers(*shape, seed=1).to(dtype) for shape in ((2, 3, 40, 5), (2, 40, 4), (2, 40, 4))
    )
    first = state = numbers(2, 3, 5, 4, seed=2).to(dtype)
    outputs = []
    for at in range(40):
        written = values[:, :, at, :, None] * keys[:, at][:, None, None, :]
        state = log_keep[:, :, at, None, None].exp() * state + written
        outputs.append((state * queries[:, at][:, None, None, :]).sum(dim=-1))
    y, last = state_space_chunk(log_keep, values, keys, queries, first)
    torch.testing.assert_close(y, torch.stack(outputs, dim=2), rtol=tolerance, atol=10 * tolerance)
    torch.testing.assert_close(last, state, rtol=tolerance, atol=10 * tolerance)


def test_a_state_space_computes_the_same_in_chunks_of_any_size() -> None:
    tokens = small.tokens(2, 37)
    whole = rough("state_space", chunk=64)(tokens)
    for chunk in (1, 5, 36, 37):
        torch.testing.assert_close(
            rough("state_space", chunk=chunk)(tokens), whole, rtol=0, atol=1e-9
        )


def test_a_state_space_that_forgets_all_at_once_sees_no_farther_than_its_convolution() -> None:
    mixer = rough("state_space", kernel=2).blocks[0].mixer
    x_BTD = numbers(1, 40, 16)
    changed = x_BTD.clone()
    changed[:, 10] += 1
    mixer.log_decay.data.fill_(20)
    differ = (
        (mixer(changed, None) != mixer(x_BTD, None)).any(dim=-1)[0].nonzero().flatten().tolist()
    )
    assert differ == [10, 11]
    mixer.log_decay.data.fill_(-20)
    differ = (
        (mixer(changed, None) != mixer(x_BTD, None)).any(dim=-1)[0].nonzero().flatten().tolist()
    )
    assert differ == list(range(10, 40))


def test_heads_that_do_not_divide_a_state_spaces_inner_width_are_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"models\.state_space\.heads: 3 heads do not divide .* 32; .* a multiple of 3",
    ):
        small.model(registry.choose(small.tree(heads=3), "models", "state_space"))


# ---------------------------------------------------------------- RWKV


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("decay", [0.0, 1e-3, MAX_LOG_DECAY])
def test_a_chunk_of_rwkv_is_its_recurrence(
    decay: float, dtype: torch.dtype, tolerance: float
) -> None:
    """Also at the largest decay and chunk that there may be."""
    log_keep = -decay * torch.linspace(0.5, 1, 3 * 5, dtype=dtype).view(3, 5)
    bonus = numbers(3, 5).to(dtype)
    r, k, v = (numbers(2, 3, 64, 5, seed=seed).to(dtype) for seed in (1, 2, 3))
    first = state = numbers(2, 3, 5, 5, seed=4).to(dtype)
    outputs = []
    for at in range(64):
        written = k[:, :, at, :, None] * v[:, :, at, None, :]
        outputs.append((r[:, :, at, :, None] * (state + bonus[..., None] * written)).sum(dim=2))
        state = log_keep.exp()[..., None] * state + written
    y, last = rwkv_chunk(log_keep, bonus, r, k, v, first)
    torch.testing.assert_close(y, torch.stack(outputs, dim=2), rtol=tolerance, atol=10 * tolerance)
    torch.testing.assert_close(last, state, rtol=tolerance, atol=10 * tolerance)


def test_rwkv_computes_the_same_in_chunks_of_any_size() -> None:
    tokens = small.tokens(2, 61)
    whole = rough("rwkv", chunk=64)(tokens)
    for chunk in (1, 5, 60, 61):
        torch.testing.assert_close(rough("rwkv", chunk=chunk)(tokens), whole, rtol=0, atol=1e-9)


def test_rwkvs_bonus_is_for_the_present_token_alone() -> None:
    r, k, v = (numbers(1, 2, 9, 4, seed=seed) for seed in (1, 2, 3))
    log_keep, empty = (
        -torch.ones(2, 4, dtype=torch.float64) / 10,
        torch.zeros(1, 2, 4, 4, dtype=torch.float64),
    )
    without, last = rwkv_chunk(log_keep, torch.zeros_like(log_keep), r, k, v, empty)
    assert not without[:, :, 0].any()  # the state holds the past alone
    bonus = numbers(2, 4, seed=4)
    with_bonus, same = rwkv_chunk(log_keep, bonus, r, k, v, empty)
    torch.testing.assert_close(
        with_bonus - without, (r * bonus[:, None] * k).sum(-1, keepdim=True) * v
    )
    assert torch.equal(same, last)


def test_heads_that_do_not_divide_rwkvs_width_are_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"models\.rwkv\.heads: 3 heads do not divide the width 16; .* a multiple of 3",
    ):
        small.model(registry.choose(small.tree(heads=3), "models", "rwkv"))


# ---------------------------------------------------------------- caches


@pytest.mark.parametrize("name", sorted({*registry.names("models")} - {"hybrid", "transformer"}))
def test_a_cache_of_states_or_windows_is_as_large_after_one_token_as_after_many(name: str) -> None:
    model, tokens, sizes = rough(name), small.tokens(2, 40), set()
    cache = model.new_cache()
    for piece in (tokens[:, :1], tokens[:, 1:2], tokens[:, 2:30], tokens[:, 30:]):
        model(piece, cache)
        sizes.add(sum(tensor.numel() for of_block in cache for tensor in of_block.tensors.values()))
    assert len(sizes) == 1


@pytest.mark.parametrize("name", sorted({*registry.names("models")} - {"transformer"}))
def test_reading_in_pieces_of_any_length_is_reading_at_once(name: str) -> None:
    """Far beyond a context and a chunk, where nothing is forgotten."""
    model = rough(name, first="rwkv", second="state_space")
    tokens = small.tokens(2, 120)
    cache = model.new_cache()
    pieces = [model(piece, cache) for piece in tokens.split([1, 2, 40, 1, 70, 6], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), rtol=0, atol=1e-9)
