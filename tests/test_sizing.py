"""What is counted of a model, against formulas worked out by hand."""

from collections.abc import Iterator

import pytest
import small
import torch

from lmlab.core.registry import Choice
from lmlab.training import cost as sizing

V, D, T, DEPTH = small.VOCABULARY, 16, small.CONTEXT, 2


@pytest.mark.parametrize("choice", small.variants("models"), ids=small.title)
def test_the_parts_of_any_model_add_up_to_its_parameters(choice: Choice) -> None:
    model = small.model(choice)
    assert sum(sizing.parameters_by_part(model).values()) == sum(
        p.numel() for p in model.parameters()
    )


def test_parameters_and_flops_of_a_transformer_are_those_of_its_formula() -> None:
    model = small.model(small.some_model())
    assert sizing.parameters_by_part(model) == {
        "embedding": V * D,
        "attention": DEPTH * 4 * D * D,
        "feed_forward": DEPTH * 8 * D * D,
        "attention_residual": DEPTH * D,
        "feed_forward_residual": DEPTH * D,
        "final_norm": D,
        "readout": D * V,
    }
    # two FLOPs for each weight, and 2 T D each for the scores and for the mixing of values
    assert sizing.forward_flops(model) == 2 * (DEPTH * 12 * D * D + D * V) + DEPTH * 4 * T * D


def test_of_a_mixture_only_the_experts_at_work_are_counted() -> None:
    def flops(**changes: object) -> int:
        return sizing.forward_flops(small.model(small.some_model(**changes)))

    for active in (1, 2):
        mixture = flops(feed_forward="mixture_of_experts", experts=4, active=active)
        assert mixture - flops() == DEPTH * (2 * D * 4 + (active - 1) * 2 * 8 * D * D)


def test_more_of_a_model_keeps_more_and_weights_are_not_counted_among_it() -> None:
    kept = [
        sizing.activation_bytes(small.model(small.some_model(depth=depth))) for depth in (1, 2, 3)
    ]
    assert kept[2] - kept[1] == kept[1] - kept[0] > 0
    few, many = (
        sizing.activation_bytes(small.model(small.some_model(), context=context))
        for context in (8, 16)
    )
    assert 1.9 < many / few < 2.2
    bigram = small.model(small.some_model(depth=1, width=64), context=2)
    assert sizing.activation_bytes(bigram) < sum(p.nbytes for p in bigram.parameters())


def test_windows_together_keep_their_own_each_and_in_bfloat16_about_half_of_it() -> None:
    model = small.model(small.some_model(width=64), context=32)
    one, three, nine = (sizing.activation_bytes(model, windows) for windows in (1, 3, 9))
    assert nine - three == 3 * (three - one)
    low = [sizing.activation_bytes(model, windows, "bfloat16") for windows in (1, 9)]
    assert 0.4 < (low[1] - low[0]) / (nine - one) < 0.75
    assert low[0] > one / 2  # it keeps the weights in bfloat16 too


@pytest.mark.parametrize("choice", small.variants("models"), ids=small.title)
def test_counting_changes_neither_the_model_nor_chance(choice: Choice) -> None:
    model = small.model(choice).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5  # so that there is something to draw
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    assert sizing.forward_flops(model) >= 0
    assert sizing.activation_bytes(model) > 0
    assert model.training
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def words(lines: Iterator[str]) -> str:
    return "\n".join(lines)


def test_a_description_names_every_group_with_its_rate() -> None:
    model = small.model(small.some_model())
    matrices = [p for p in model.parameters() if p.ndim > 1]
    optimizer = torch.optim.SGD(
        [{"name": "matrices", "params": matrices, "lr": 0.25, "decay": 0.5}]
    )
    size = sizing.describe(model, optimizer, batch=12, microbatch=3, precision="float32")
    assert size.batch == 12
    assert size.groups["matrices"].model_dump() == {
        "tensors": len(matrices),
        "parameters": sum(p.numel() for p in matrices),
        "learning_rate": 0.25,
        "weight_decay": 0.5,
    }
    assert size.bytes.activations == sizing.activation_bytes(model, 3)
    assert "learning rate 0.25, weight decay 0.5" in words(sizing.lines(size))
    assert "width 16, 2 blocks, batches of 12 windows" in words(sizing.lines(size))
