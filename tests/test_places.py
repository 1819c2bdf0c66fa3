"""What every model keeps of its named places, and what is seen and changed there by hand."""

from typing import Any

import pytest
import small
import torch
from small import CONTEXT
from test_learning_rules import assign, batch, gradients, refusal
from torch import Tensor, nn

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.model import places
from lmlab.model.layers.attention import base as attention_base
from lmlab.model.layers.attention.base import Attention, SoftmaxAttention
from lmlab.model.layers.feed_forward.base import FeedForward
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.model.places import Place, changed, record

MODELS = small.variants("models")
ATTENTIONS = registry.names("layers.attention")
FEED_FORWARDS = registry.names("layers.feed_forward")
every_model = pytest.mark.parametrize("choice", MODELS, ids=map(small.title, MODELS))


def same(x: Tensor) -> Tensor:
    return x


def loss_of(model: LanguageModel) -> Tensor:
    tokens_BT, targets_BT = batch()
    return next_token_loss(model(tokens_BT), targets_BT)


def transformer_with(**layers: str) -> LanguageModel:
    """In double precision, of two blocks."""
    tree = small.tree()
    inner = {key: registry.choose(tree, f"layers.{key}", name) for key, name in layers.items()}
    choice = small.with_inner(registry.choose(tree, "models", "transformer"), **inner)
    if len(layers) == 1:  # the others may be whatever this one works with
        choice = small.fitting(choice, *layers)
    return small.rough(choice)


def is_pattern(name: str) -> bool:
    return name.endswith(".pattern")


def untouched(model: nn.Module) -> bool:
    """Whether nobody watches."""
    return not any(
        module._forward_hooks or module._forward_pre_hooks or getattr(module, "watchers", 0)
        for module in model.modules()
    )


# ---------------------------------------------------------------- every model


@every_model
def test_every_place_is_passed_once_with_a_batch_of_positions(choice: registry.Choice) -> None:
    model = small.rough(choice)
    names = places.names(model)
    assert names[0] == "embedding"
    assert names[-1] == "logits"
    assert len(set(names)) == len(names)
    for number in range(len(model.blocks)):
        first, last = (names.index(f"blocks.{number}.{end}") for end in ("input", "output"))
        inside = [name for name in names if name.startswith(f"blocks.{number}.")]
        assert names[first : last + 1] == inside
    with record(model) as states:
        logits_BTV = model(small.tokens(3, 5))
    assert set(states) == set(names)
    assert torch.equal(states["logits"], logits_BTV)
    for name, state in states.items():
        if is_pattern(name):
            assert state.shape[0] == 3
            assert state.shape[2:] == (5, 5)
        else:
            assert state.shape[:2] == (3, 5)
    for name in names:  # none twice in a call
        passed = []
        with changed(model, {name: lambda x, passed=passed: passed.append(1) or x}):  # type: ignore[misc]
            model(small.tokens(3, 5))
        assert len(passed) == 1
    assert untouched(model)


@every_model
def test_looking_and_changing_nothing_leave_every_bit(choice: registry.Choice) -> None:
    model = small.model(choice).train()
    names = [name for name in places.names(model) if not is_pattern(name)]
    plain = loss_of(model)
    plain.backward()
    expected = gradients(model)
    for context in (record(model, names), changed(model, dict.fromkeys(names, same))):
        model.zero_grad()
        with context:
            loss = loss_of(model)
        loss.backward()
        assert torch.equal(loss, plain)
        assert all(map(torch.equal, gradients(model), expected))
    for every in (record(model), changed(model, {"*": same})):  # weights of attention as well
        model.zero_grad()
        with every:
            loss = loss_of(model)
        loss.backward()
        assert torch.equal(loss, plain)
        torch.testing.assert_close(gradients(model), expected)


@every_model
def test_what_is_changed_at_a_place_reaches_the_logits_and_nothing_before_it(
    choice: registry.Choice,
) -> None:
    model = small.rough(choice)
    tokens_BT = small.tokens(6, CONTEXT)  # enough for every expert to be chosen
    with record(model) as plain:
        logits_BTV = model(tokens_BT)
    order = list(plain)  # that of a call
    generator = torch.Generator().manual_seed(0)
    for place, name in enumerate(order):
        shift = torch.randn(plain[name].shape, generator=generator, dtype=torch.float64)
        with changed(model, {name: lambda x, shift=shift: x + shift}), record(model) as states:  # type: ignore[misc]
            other_BTV = model(tokens_BT)
        counts_tokens = model.readout is None and name != "logits"  # a table of n-grams
        is_unused = ".experts." in name  # an expert may have been chosen by no token
        if not counts_tokens and not is_unused:
            assert not torch.equal(other_BTV, logits_BTV)
        assert torch.equal(states[name], plain[name] + shift)
        for earlier in order[:place]:
            is_same_place = (earlier, name) == ("embedding", "blocks.0.input")
            assert torch.equal(states[earlier], plain[earlier]) or is_same_place


@every_model
def test_gradients_at_places_are_the_slopes_of_the_loss(choice: registry.Choice) -> None:
    model = small.rough(choice)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)  # at which the loss is smooth enough for differences
    with record(model) as states:
        loss = loss_of(model)
    moved = [name for name in states if states[name].requires_grad]
    grads = torch.autograd.grad(loss, [states[name] for name in moved])
    generator = torch.Generator().manual_seed(1)
    for name, grad in zip(moved, grads, strict=True):
        direction = torch.randn(grad.shape, generator=generator, dtype=grad.dtype)
        step = 1e-6
        losses = []
        for sign in (1, -1):
            shift = sign * step * direction
            with torch.no_grad(), changed(model, {name: lambda x, shift=shift: x + shift}):  # type: ignore[misc]
                losses.append(float(loss_of(model)))
        slope = (losses[0] - losses[1]) / (2 * step)
        assert slope == pytest.approx(float((grad * direction).sum()), rel=1e-4, abs=1e-8)


@every_model
def test_a_text_read_in_pieces_shows_the_states_of_the_text_read_at_once(
    choice: registry.Choice,
) -> None:
    model = small.rough(choice)
    tokens_BT = small.tokens(2, CONTEXT)
    with torch.no_grad(), record(model) as whole:
        model(tokens_BT)
    cache = model.new_cache()
    pieces: dict[str, list[Tensor]] = {name: [] for name in whole}
    with torch.no_grad(), record(model) as states:
        for piece_BT in tokens_BT.split(3, dim=1):
            model(piece_BT, cache)
            for name, state in states.items():
                pieces[name].append(state)
    for name, state in whole.items():
        if is_pattern(name):
            last_BHTS = pieces[name][-1]
            time, keys = last_BHTS.shape[2:]
            torch.testing.assert_close(last_BHTS, state[:, :, -time:, -keys:])
        else:
            torch.testing.assert_close(torch.cat(pieces[name], dim=1), state)


@pytest.mark.parametrize("rule", registry.names("learning_rules"))
def test_every_rule_assigns_the_same_bits_when_it_is_watched(rule: str) -> None:
    model = small.rough(small.some_model())
    if refusal(rule, model):
        pytest.skip("the rule does not work with this model")
    assign(rule, model, *batch())
    expected = gradients(model)
    model.zero_grad()
    names = [name for name in places.names(model) if not is_pattern(name)]
    with record(model, names):
        assign(rule, model, *batch())
    assert all(map(torch.equal, gradients(model), expected))


# ---------------------------------------------------------------- every layer


@pytest.mark.parametrize("name", ATTENTIONS)
def test_head_outputs_are_what_out_reads_and_a_head_set_to_zero_is_its_columns_set_to_zero(
    name: str,
) -> None:
    model = transformer_with(attention=name)
    layer = model.get_submodule("blocks.1.attention")
    assert isinstance(layer, Attention)
    read: list[Tensor] = []
    hook = layer.out.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    place = "blocks.1.attention.head_outputs"
    with record(model, [place]) as states:
        model(batch()[0])
    hook.remove()
    y_BTHK = states[place]
    assert y_BTHK.shape[2] == layer.heads == 2
    assert torch.equal(y_BTHK.flatten(2), read[0])

    def without_head(y_BTHK: Tensor) -> Tensor:
        y_BTHK[:, :, 1] = 0
        return y_BTHK

    with changed(model, {place: without_head}):
        ablated_BTV = model(batch()[0])
    with torch.no_grad():
        layer.out.weight[:, y_BTHK.shape[3] :] = 0
    assert torch.equal(model(batch()[0]), ablated_BTV)


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("position", registry.names("layers.position"))
def test_patterns_are_the_weights_that_average_the_values(name: str, position: str) -> None:
    """The values are seen by giving all weight to one position after another."""
    layer = transformer_with(attention=name).get_submodule("blocks.1.attention")
    assert isinstance(layer, Attention)
    if not isinstance(layer, SoftmaxAttention):
        assert not any(map(is_pattern, places.names(layer)))
        return
    model = transformer_with(attention=name, position=position)
    pattern, outputs = "blocks.1.attention.pattern", "blocks.1.attention.head_outputs"
    tokens_BT = batch()[0]
    with record(model, [pattern, outputs]) as states:
        model(tokens_BT)
    w_BHTS, y_BTHK = states[pattern], states[outputs]
    torch.testing.assert_close(w_BHTS.sum(-1), torch.ones_like(w_BHTS[..., 0]))
    assert w_BHTS.triu(1).count_nonzero() == 0
    if layer.lookback is not None:
        assert w_BHTS.tril(-layer.lookback - 1).count_nonzero() == 0
    mean_BTHK = torch.zeros_like(y_BTHK)
    for position_s in range(CONTEXT):

        def only(x_BHTS: Tensor, position_s: int = position_s) -> Tensor:
            one_hot = torch.zeros_like(x_BHTS)
            one_hot[..., position_s] = 1
            return one_hot

        with changed(model, {pattern: only}), record(model, [outputs]) as seen:
            model(tokens_BT)
        mean_BTHK += w_BHTS[..., position_s].transpose(1, 2)[..., None] * seen[outputs]
    torch.testing.assert_close(mean_BTHK, y_BTHK)


@pytest.mark.parametrize("name", FEED_FORWARDS)
def test_units_are_what_out_reads(name: str) -> None:
    model = transformer_with(feed_forward=name)
    seen: dict[str, Tensor] = {}
    layers = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, FeedForward) and module.out is not None
    }
    assert layers

    def keeper(path: str) -> None:
        out = layers[path].out
        assert out is not None
        out.register_forward_pre_hook(lambda module, inputs: seen.update({path: inputs[0]}))

    for path in layers:
        keeper(path)
    with record(model) as states:
        model(batch()[0])
    assert set(seen) == set(layers)
    for path, units in seen.items():
        assert torch.equal(states[f"{path}.units"], units)


def test_the_shares_of_experts_add_up_to_one_and_can_be_forced() -> None:
    model = transformer_with(feed_forward="mixture_of_experts")
    place = "blocks.0.feed_forward.shares"
    with record(model, [place]) as states:
        model(batch()[0])
    torch.testing.assert_close(states[place].sum(-1), torch.ones(4, CONTEXT, dtype=torch.float64))

    def only_first(shares_BTE: Tensor) -> Tensor:
        return nn.functional.one_hot(
            torch.zeros(4, CONTEXT, dtype=torch.long), shares_BTE.shape[-1]
        )

    layer = model.get_submodule("blocks.0.feed_forward")
    with changed(model, {place: only_first}), record(model) as states:
        model(batch()[0])
    expert = layer.get_submodule("experts.0")
    norm = model.get_submodule("blocks.0.feed_forward_residual.placement")
    x_BTD = norm.before_layer(states["blocks.0.after_attention"])  # type: ignore[operator]
    torch.testing.assert_close(
        states["blocks.0.output"] - states["blocks.0.after_attention"], expert(x_BTD)
    )


def test_nothing_is_computed_for_weights_that_nobody_watches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = transformer_with(attention="multi_head")
    expected = model(batch()[0])

    def fail(*_: object) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(attention_base, "attention_weights", fail)
    with record(model, ["blocks.*.output", "*.head_outputs"]):
        assert torch.equal(model(batch()[0]), expected)
    with pytest.raises(AssertionError), record(model, ["*.pattern"]):
        model(batch()[0])
    assert untouched(model)


def test_places_have_no_weights_and_are_not_saved() -> None:
    model = transformer_with(attention="multi_head")
    assert not any("pattern" in key or "units" in key for key in model.state_dict())
    assert not list(Place().parameters())
    assert isinstance(model.get_submodule("blocks.0.attention"), SoftmaxAttention)


# ---------------------------------------------------------------- by hand


def test_a_patched_activation_is_what_the_blocks_above_make_of_it() -> None:
    model = transformer_with()
    clean_BT, corrupted_BT = small.tokens(2, 6, seed=0), small.tokens(2, 6, seed=1)
    with record(model, ["blocks.0.output"]) as clean:
        model(clean_BT)
    at = torch.tensor([2, 5])

    def patch(s_BTS: Tensor) -> Tensor:
        s_BTS[:, at] = clean["blocks.0.output"][:, at]
        return s_BTS

    with changed(model, {"blocks.0.output": patch}):
        patched_BTV = model(corrupted_BT)
    s_BTS = model.blocks[0](model.embed(corrupted_BT)).clone()
    s_BTS[:, at] = model.blocks[0](model.embed(clean_BT))[:, at]
    assert torch.equal(patched_BTV, model.head(model.blocks[1](s_BTS)))


def test_a_change_in_place_alters_nothing_that_came_before() -> None:
    model = transformer_with()
    with record(model) as plain:
        model(batch()[0])
    with record(model) as states, changed(model, {"blocks.1.input": Tensor.zero_}):
        model(batch()[0])
    assert torch.equal(states["blocks.0.output"], plain["blocks.0.output"])
    assert not states["blocks.1.input"].any()  # a record inside or outside sees what flows on


def test_the_innermost_change_comes_first_and_all_end_with_their_context() -> None:
    model = transformer_with()
    order: list[str] = []

    def noted(name: str, factor: float) -> places.Change:
        def change(x: Tensor) -> Tensor:
            order.append(name)
            return factor * x + 1

        return change

    place = "blocks.0.attention.head_outputs"
    with record(model, [place]) as plain:
        expected = model(batch()[0])
    with changed(model, {place: noted("outer", 2)}), record(model, [place]) as states:
        with changed(model, {place: noted("inner", 3)}):
            model(batch()[0])
            torch.testing.assert_close(states[place], 2 * (3 * plain[place] + 1) + 1)
        model(batch()[0])
        torch.testing.assert_close(states[place], 2 * plain[place] + 1)
    assert order == ["inner", "outer", "outer"]
    assert torch.equal(model(batch()[0]), expected)


def test_a_pattern_stands_for_all_places_it_fits() -> None:
    model = transformer_with()
    with record(model, ["blocks.*.output", "blocks.0.output", "logits"]) as states:
        model(batch()[0])
    assert list(states) == ["blocks.0.output", "blocks.1.output", "logits"]
    with record(model, "logits") as only:
        model(batch()[0])
    assert list(only) == ["logits"]
    with changed(model, {"*.units": torch.zeros_like}), record(model, "*.units") as states:
        model(batch()[0])
    assert len(states) == 2
    assert not any(units.any() for units in states.values())


def test_a_place_outside_the_blocks_is_one_as_well() -> None:
    class WithPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.doubled = Place()

        def forward(self, x: Tensor) -> Tensor:
            return self.doubled(2 * x) + 1

    module = WithPlace()
    assert places.names(module) == ["doubled", "logits"]
    with record(module) as states, changed(module, {"doubled": lambda x: 10 * x}):
        module(torch.ones(2))
    assert states["doubled"].tolist() == [20.0, 20.0]
    assert states["logits"].tolist() == [21.0, 21.0]


# ---------------------------------------------------------------- what can go wrong


def test_a_wrong_name_is_told_the_nearest() -> None:
    model = transformer_with(attention="multi_head")
    nearest = "no place {} in this model; the nearest is {}, and lmlab.model.places.names"
    wrong = {
        "blocks.0.atention.pattern": "blocks.0.attention.pattern",
        "block.1.output": "blocks.1.output",
        "blocks.7.output": "blocks.1.output",
    }
    for name, right in wrong.items():
        for context in (record(model, [name]), changed(model, {name: same})):
            with pytest.raises(UserError) as error, context:
                pass
            assert str(error.value).startswith(f"no place {name} in this model; the nearest is ")
            assert "\n" not in str(error.value)
            if "7" not in name:
                assert str(error.value).startswith(nearest.format(name, right))
    assert untouched(model)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("foo.*", "no place fits foo.* in this model; lmlab.model.places.names(model) lists"),
        ("blocks.*.unit", "no place fits blocks.*.unit in this model; lmlab.model"),
        ("", "no place '' in this model; lmlab.model.places.names(model) lists them all"),
        ("zzz", "no place zzz in this model; lmlab.model.places.names(model) lists them all"),
        (1, "1 is no name of a place; names are text, such as blocks.0.output"),
        (None, "None is no name of a place"),
    ],
)
def test_what_is_near_to_no_name_is_told_none(name: Any, message: str) -> None:
    model = transformer_with()
    for context in (record(model, [name]), changed(model, {name: same})):
        with pytest.raises(UserError) as error, context:
            pass
        assert str(error.value).startswith(message)
    with pytest.raises(UserError, match="2 is no name of a place"), record(model, 2):  # type: ignore[arg-type]
        pass
    assert untouched(model)


@pytest.mark.parametrize("change", [torch.zeros(3), None, 2.0])
def test_what_is_no_function_is_refused_at_once(change: Any) -> None:
    model = transformer_with()
    changes = {"logits": same, "*.units": change}
    kind = type(change).__name__
    message = rf"^place blocks\.0\..*units: the change is no function but of type {kind};"
    with pytest.raises(UserError, match=message), changed(model, changes):
        pass
    assert untouched(model)


def test_changes_of_one_place_are_applied_in_the_order_given() -> None:
    model = transformer_with()
    place = "blocks.0.output"
    with record(model, [place]) as plain:
        model(batch()[0])
    doubled_first = {"*.output": lambda x: 2 * x, place: lambda x: x + 1}
    raised_first = dict(reversed(doubled_first.items()))
    for changes, expected in (
        (doubled_first, 2 * plain[place] + 1),
        (raised_first, 2 * (plain[place] + 1)),
    ):
        with changed(model, changes), record(model, [place]) as states:
            model(batch()[0])
        torch.testing.assert_close(states[place], expected)


def test_an_expert_sees_the_tokens_routed_to_it_in_one_row_in_training_and_all_after() -> None:
    model = transformer_with(feed_forward="mixture_of_experts")
    active = model.get_submodule("blocks.0.feed_forward").active
    for training in (True, False):
        with record(model.train(training), "blocks.0.*.experts.*.units") as states:
            model(batch()[0])
        shapes = [state.shape[:-1] for state in states.values()]
        if training:
            assert sum(shape.numel() for shape in shapes) == 4 * CONTEXT * active
            assert {len(shape) for shape in shapes} == {1}
        else:
            assert {*shapes} == {(4, CONTEXT)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x.to(torch.complex128), "returned numbers of type torch.complex128; what flows"),
        (lambda x: x[:, :1], r"returned shape \(4, 1, 2, 8\); what flows there has shape"),
        (lambda x: x.mean(), r"returned shape \(\); what flows there has shape \(4, 8, 2, 8\)"),
        (lambda x: None, r"returned NoneType; it must return a tensor of shape \(4, 8, 2, 8\)"),
    ],
)
def test_a_change_of_the_wrong_shape_is_refused_and_ends(change: places.Change, words: str) -> None:
    model = transformer_with()
    place = "blocks.0.attention.head_outputs"
    with pytest.raises(UserError, match=f"place {place}: the change {words}"):  # noqa: SIM117
        with changed(model, {place: change}):
            model(batch()[0])
    assert untouched(model)


def test_watching_ends_also_when_the_model_fails() -> None:
    model = transformer_with()
    with pytest.raises(IndexError), record(model), changed(model, {"*": same}):
        model(torch.full((1, 3), 999))
    assert untouched(model)
    with record(model) as states:
        model(batch()[0])
    assert set(states) == set(places.names(model))
