"""Direct, indirect and total effects, against the same computed by hand."""

import pytest
import small
import torch
from small import CONTEXT
from test_learning_rules import batch
from test_places import transformer_with
from torch import Tensor

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.evaluation.effects import effects
from lmlab.model.models.base import LanguageModel
from lmlab.model.places import Change


def without_first_head(y_BTHK: Tensor) -> Tensor:
    y_BTHK[:, :, 0] = 0
    return y_BTHK


def test_the_direct_effect_of_a_head_is_what_its_output_does_to_the_head_alone() -> None:
    model = transformer_with()
    tokens_BT = batch()[0]
    place = "blocks.0.attention.head_outputs"
    seen = effects(model, tokens_BT, {place: without_first_head})

    layer = model.get_submodule("blocks.0.attention")
    first_block = model.blocks[0]
    reads: list[Tensor] = []
    hook = layer.out.register_forward_pre_hook(lambda _, inputs: reads.append(inputs[0]))  # type: ignore[union-attr,operator]
    logits_BTV = model(tokens_BT)
    hook.remove()
    columns = slice(0, reads[0].shape[-1] // 2)
    removed_BTD = reads[0][..., columns] @ layer.out.weight[:, columns].T  # type: ignore[union-attr,index,operator]
    x_BTD = model.blocks[1](first_block(model.embed(tokens_BT)))
    direct_BTV = model.head(x_BTD - removed_BTD) - logits_BTV
    torch.testing.assert_close(seen.direct, direct_BTV)
    with torch.no_grad():
        layer.out.weight[:, columns] = 0  # type: ignore[union-attr,index,operator]
    torch.testing.assert_close(seen.total, model(tokens_BT) - logits_BTV)
    torch.testing.assert_close(seen.indirect, seen.total - seen.direct)
    assert seen.indirect.abs().max() > 1e-3


@pytest.mark.parametrize(
    "name", [name for name in registry.names("models") if name != "n_gram_table"]
)
def test_behind_the_last_block_all_is_direct(name: str) -> None:
    model = small.rough(registry.choose(small.tree(), "models", name))
    place = f"blocks.{len(model.blocks) - 1}.output"
    seen = effects(model, batch()[0], {place: lambda x_BTD: x_BTD.roll(1, -1)})
    torch.testing.assert_close(seen.direct, seen.total)
    assert seen.total.abs().max() > 1e-3


def test_where_later_layers_add_nothing_all_is_direct() -> None:
    model = transformer_with()
    with torch.no_grad():
        for layer in ("attention", "feed_forward"):
            model.get_submodule(f"blocks.1.{layer}.out").weight.zero_()  # type: ignore[operator,union-attr]
    seen = effects(model, batch()[0], {"blocks.0.attention.head_outputs": without_first_head})
    assert seen.indirect.abs().max() > 1e-3  # through the first block's feed-forward layer
    with torch.no_grad():
        model.get_submodule("blocks.0.feed_forward.out").weight.zero_()  # type: ignore[operator,union-attr]
    assert_all_direct(model, {"blocks.0.attention.head_outputs": without_first_head})
    assert_all_direct(
        model, {"blocks.0.attention.head_outputs": abs, "blocks.0.attention.pattern": abs}
    )
    with torch.no_grad():
        model.get_submodule("blocks.0.attention.out").weight.zero_()  # type: ignore[operator,union-attr]
    assert_all_direct(model, {"embedding": lambda x_BTD: x_BTD.roll(1, -1)})
    assert_all_direct(model, {"blocks.0.input": lambda x_BTD: x_BTD.roll(1, -1)})


def assert_all_direct(model: LanguageModel, changes: dict[str, Change]) -> None:
    seen = effects(model, batch()[0], changes)
    torch.testing.assert_close(seen.direct, seen.total)
    assert seen.total.abs().max() > 1e-3


def test_nothing_changed_has_no_effect_to_the_bit() -> None:
    model = transformer_with()
    seen = effects(model, batch()[0], {"blocks.0.feed_forward.units": lambda x: x})
    assert seen.total.shape == (4, CONTEXT, model.vocabulary_size)
    assert not seen.total.any()
    assert not seen.direct.any()


def hyper() -> LanguageModel:
    return transformer_with(residual="hyper")


@pytest.mark.parametrize(
    ("model", "places", "words"),
    [
        (transformer_with, ["blocks.0.output", "blocks.1.output"], "places in one block, not of"),
        (transformer_with, ["logits"], "places in one block, not of logits"),
        (transformer_with, ["blocks.0.outputs"], "the nearest is blocks.0.output"),
        (hyper, ["blocks.0.output"], "whose blocks add to one residual stream"),
    ],
)
def test_what_has_no_direct_effect_is_refused(model: object, places: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        effects(model(), batch()[0], dict.fromkeys(places, torch.zeros_like))  # type: ignore[operator]
