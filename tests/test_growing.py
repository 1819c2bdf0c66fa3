"""A larger model from a smaller one: the same function, the optimizer's state by the same map."""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small
import test_training
import torch
from test_continuing import GOES_ON, logged, start_from, state, train
from test_training import Corpus
from torch import Tensor

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.core.registry import Choice
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training import growing
from lmlab.training.growing import Shape
from lmlab.training.growths.base import NEW

corpus = test_training.corpus  # the fixture
SHAPE = Shape(vocabulary_size=20, context=8, seed=0)
MODELS = small.variants("models", balance=0.0)
"""Without the mixture's penalty, which is no part of what a model computes."""
GROWTHS = [name for name in registry.names("growths") if name != "dropped"]


TOKENS = torch.randint(20, (2, 9), generator=torch.Generator().manual_seed(1))


def twice(value: float) -> float:
    return 2 * value


def one_more(value: int) -> int:
    return value + 1


CHANGES: dict[str, dict[str, Callable[[Any], Any]]] = {
    "interleaved": {"depth": twice, "layers": twice},
    "appended": {"depth": one_more, "layers": lambda layers: layers + 2},
    "stacked": {"depth": twice, "layers": twice},
    "wider_layers": {"expansion": twice, "state_expansion": twice},
    "duplicated": {"width": twice, "heads": twice, "groups": twice},
    "heads": {"groups": twice},
    "experts": {"experts": twice, "active": twice},
    "tables": {"buckets": twice, "longest": one_more, "order": one_more},
}
"""What each growth is tried with: options of any part of the model, with their new value."""
NOTHING = "has nothing to do"
UNLIKE = "has no block yet like|finds no place for block"
CHANGED = "does not preserve what models"


def refusal(growth: str, choice: Choice) -> str:
    """What is said of a growth that cannot be; empty for all others."""
    inner = {key: part.name for key, part in choice.inner.items()}
    of_part = {
        "heads": inner.get("attention") == "grouped_query",
        "experts": inner.get("feed_forward") == "mixture_of_experts",
        "tables": choice.name == "n_gram_table" or inner.get("embedding") == "n_gram",
        "wider_layers": choice.name not in ("convolution", "lstm", "n_gram_table"),
    }
    if not of_part.get(growth, choice.name != "n_gram_table"):
        return NOTHING
    within = {choice.name, *inner.values()}
    if growth == "stacked" and within & {"perceptron", "value"}:
        return "it has nothing for"  # a first block that is unlike all others
    if growth in ("interleaved", "appended"):
        if "perceptron" in within and choice.name == "hybrid":
            return UNLIKE  # its first block alone looks back
        if "post" in within or "hyper" in within:
            return CHANGED
        if growth == "interleaved" and "convolution" in within:
            first = choice.name == "hybrid" and inner["first"] == "convolution"
            return "" if first else CHANGED  # a block's dilation is that of its place
    if growth == "wider_layers" and "state_space" in within:
        return CHANGED  # it normalises over all hidden units
    if growth == "duplicated" and "alibi" in within:
        return CHANGED  # each head has another slope
    return ""


def larger(choice: Choice, changes: Mapping[str, Callable[[Any], Any]]) -> Choice:
    options = choice.options.model_dump()
    update = {key: change(options[key]) for key, change in changes.items() if key in options}
    inner = {key: larger(part, changes) for key, part in choice.inner.items()}
    return Choice(choice.kind, choice.name, choice.options.model_copy(update=update), inner)


def growth_of(name: str, **changes: Any) -> Choice:
    return registry.choose(small.tree(**changes), "growths", name)


class Optimizer(torch.optim.SGD):
    squares_in_state = ("square",)
    weights_in_state = ("base",)


class Grown:
    """A model in double precision whose weights tell its units apart, and what it grows into."""

    def __init__(self, choice: Choice, *steps: tuple[str, Choice], **changes: Any) -> None:
        self.choice, self.target = growing.explicit(choice), steps[-1][1]
        self.growths = [growth_of(name, **changes) for name, _ in steps]
        growing.check(self.choice, self.target, self.growths, SHAPE)
        self.old = SHAPE.build(self.choice).double()
        with torch.no_grad():
            for number, parameter in enumerate(self.old.parameters()):
                generator = torch.Generator().manual_seed(number)
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        self.gradients = gradients(self.old)
        moments = {
            f"model.{name}": {"mean": value, "square": value**2, "base": weight.detach(), "step": 3}
            for (name, value), weight in zip(
                self.gradients.items(), self.old.parameters(), strict=True
            )
        }
        saved = {"model": dict(self.old.state_dict()), "optimizer": moments, "rule": {}}
        optimizer = Optimizer([torch.nn.Parameter(torch.zeros(1))])
        self.state = growing.grown(
            saved, self.choice, self.target, self.growths, SHAPE, optimizer, TOKENS
        )
        self.new = SHAPE.build(self.target).double()
        self.new.load_state_dict(self.state["model"])


def logits(model: LanguageModel) -> Tensor:
    with torch.no_grad():
        return model.eval()(TOKENS)


def gradients(model: LanguageModel) -> dict[str, Tensor]:
    """Of the loss, by the parameter's name."""
    model.train()
    parameters = dict(model.named_parameters())
    loss = next_token_loss(model(TOKENS[:, :-1]), TOKENS[:, 1:])
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
    }


@pytest.mark.parametrize("growth", GROWTHS)
@pytest.mark.parametrize("choice", MODELS, ids=small.title)
def test_a_growth_preserves_the_function_or_is_refused_by_name(choice: Choice, growth: str) -> None:
    target = larger(growing.explicit(choice), CHANGES[growth])
    if words := refusal(growth, choice):
        with pytest.raises(UserError, match=words) as error:
            Grown(choice, (growth, target))
        assert str(error.value).startswith("params.yaml: start.growth: ")
        assert "\n" not in str(error.value)
        return
    grown = Grown(choice, (growth, target))
    before, after = logits(grown.old), logits(grown.new)
    if growth == "stacked":
        assert not torch.allclose(before, after)
        old, new = grown.old.state_dict(), grown.new.state_dict()
        count = len(grown.old.blocks)
        names = [name for name in new if name.startswith(f"blocks.{count}.")]
        assert names
        for name in names:
            assert torch.equal(new[name], old[name.replace(f"blocks.{count}.", "blocks.0.")])
    elif growth in ("interleaved", "appended", "tables"):
        assert torch.equal(before, after)
    else:
        torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)
        assert sum(p.numel() for p in grown.new.parameters()) > sum(
            p.numel() for p in grown.old.parameters()
        )


@pytest.mark.parametrize("growth", ["interleaved", "appended", "tables"])
def test_depth_and_tables_are_bitwise_in_float32_too(growth: str) -> None:
    for choice in MODELS:
        if not refusal(growth, choice):
            grown = Grown(choice, (growth, larger(growing.explicit(choice), CHANGES[growth])))
            assert torch.equal(logits(grown.old.float()), logits(grown.new.float()))


@pytest.mark.parametrize("growth", [name for name in GROWTHS if name != "stacked"])
@pytest.mark.parametrize("choice", MODELS, ids=small.title)
def test_the_state_is_what_the_larger_model_would_have_had(choice: Choice, growth: str) -> None:
    """Means of gradients, and of their squares, at the places where there was something before.
    With copies that are exactly alike their gradients are shares of the old one; copies that are
    read at different places have gradients that add up to it.
    """
    if refusal(growth, choice):
        pytest.skip("refused")
    target = larger(growing.explicit(choice), CHANGES[growth])
    grown = Grown(choice, (growth, target), difference=0.0)
    found = gradients(grown.new)
    tensors = growth_of(growth).build().tensors(SHAPE.draft(grown.choice), SHAPE.draft(target))
    names = {name for name, _ in grown.new.named_parameters()}
    carried = {name.removeprefix("model.") for name in grown.state["optimizer"]}
    assert carried == {name for name in names if not tensors[name].is_new}
    compared = 0
    for name in carried:
        entries = grown.state["optimizer"][f"model.{name}"]
        assert entries["step"] == 3
        known = torch.ones_like(found[name], dtype=torch.bool)
        for number, axis in tensors[name].axes.items():
            shape = [1] * known.ndim
            shape[number] = -1
            known &= (axis.sources != NEW).reshape(shape)
        if growth in ("tables", "heads"):
            total = found[name]
            for number, axis in tensors[name].axes.items():
                if axis.gradient is not None:
                    shape = list(total.shape)
                    shape[number] = int(axis.sources.max()) + 1
                    total = total.new_zeros(shape).index_add(number, axis.sources, total)
                    torch.testing.assert_close(total, grown.gradients[name])
                    assert torch.equal(
                        entries["mean"],
                        grown.gradients[name].index_select(number, axis.sources)
                        * axis.gradient.reshape(-1, *[1] * (total.ndim - 1)),
                    )
                    compared += total.numel()
                    known &= False
        scale = max(gradient.abs().max().item() for gradient in grown.gradients.values())
        for key, expected in (("mean", found[name]), ("square", found[name] ** 2)):
            torch.testing.assert_close(
                entries[key][known], expected[known], rtol=1e-9, atol=1e-12 * max(1, scale)
            )
        if growth not in ("tables", "heads"):
            assert not entries["mean"][~known].any()
        weights = dict(grown.new.named_parameters())[name]
        torch.testing.assert_close(entries["base"], weights.detach())
        compared += int(known.sum())
    assert compared >= sum(parameter.numel() for parameter in grown.old.parameters())


def chains() -> list[tuple[int, Choice]]:
    draw = random.Random(0)
    models = [choice for choice in MODELS if choice.name not in ("n_gram_table", "hybrid")]
    return [(number, draw.choice(models)) for number in range(40)]


@pytest.mark.parametrize(("number", "choice"), chains(), ids=lambda value: str(value)[:2])
def test_random_chains_preserve_the_function(number: int, choice: Choice) -> None:
    draw = random.Random(number)
    fitting = [name for name in GROWTHS if name != "stacked" and not refusal(name, choice)]
    names = draw.sample(fitting, k=min(len(fitting), draw.randint(2, 4)))
    depth = [name for name in names if name in ("interleaved", "appended")]
    names = [name for name in names if name not in depth[1:] and name != "heads"]
    current = growing.explicit(choice)
    steps = []
    for name in names:
        current = larger(current, CHANGES[name])
        steps.append((name, current))
    if "interleaved" in names and "convolution" in small.title(choice):
        pytest.skip("refused")
    grown = Grown(choice, *steps)
    torch.testing.assert_close(logits(grown.new), logits(grown.old), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize(("difference", "part"), [(0.0, False), (1.0, True)])
@pytest.mark.parametrize("growth", ["duplicated", "experts"])
def test_copies_stay_alike_unless_they_are_made_unequal(
    growth: str, difference: float, part: bool
) -> None:
    changes = {"feed_forward": "mixture_of_experts"} if growth == "experts" else {}
    choice = registry.choose(small.tree(balance=0.0, **changes), "models", "transformer")
    target = larger(growing.explicit(choice), CHANGES[growth])
    grown = Grown(choice, (growth, target), difference=difference)
    model = grown.new
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        for parameter, gradient in zip(model.parameters(), gradients(model).values(), strict=True):
            parameter.grad = gradient
        optimizer.step()
    weights = model.state_dict()
    if growth == "duplicated":
        first, second = weights["embedding.tokens.weight"].chunk(2, dim=1)
    else:
        count = grown.choice.inner["feed_forward"].options.model_dump()["experts"]
        first, second = (
            weights[f"blocks.0.feed_forward.experts.{number}.up.weight"] for number in (0, count)
        )
    assert torch.allclose(first, second, atol=1e-9) != part


def test_the_blocks_that_matter_least_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those without which the loss is lowest, one at a time."""
    choice, target = model(depth=5), model(depth=2)
    deep = Grown(model(depth=4), ("appended", choice)).new.eval()
    with torch.no_grad():
        for number, parameter in enumerate(deep.parameters()):
            generator = torch.Generator().manual_seed(100 + number)
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    losses = []
    for block in deep.blocks:
        with monkeypatch.context() as patched, torch.no_grad():
            patched.setattr(block, "forward", lambda x_BTD, cache=None: x_BTD)
            losses.append(float(next_token_loss(deep(TOKENS[:, :-1]), TOKENS[:, 1:])))
    kept = sorted(sorted(range(5), key=lambda number: losses[number])[-2:])
    saved = {"model": dict(deep.state_dict()), "optimizer": {}, "rule": {}}
    optimizer, dropped = Optimizer([torch.nn.Parameter(torch.zeros(1))]), growth_of("dropped")
    growing.check(choice, target, [dropped], SHAPE)
    made = growing.grown(saved, choice, target, [dropped], SHAPE, optimizer, TOKENS)["model"]
    for place, number in enumerate(kept):
        for name in ("attention.out.weight", "feed_forward.up.weight"):
            old = saved["model"][f"blocks.{number}.{name}"]
            assert torch.equal(made[f"blocks.{place}.{name}"], old)
    for name, depth in (("dropped", 6), ("interleaved", 2)):
        with pytest.raises(UserError, match=r"not (deeper|shallower)"):
            growing.check(choice, model(depth=depth), [growth_of(name)], SHAPE)


# ---------------------------------------------------------------- what is refused


def model(name: str = "transformer", **changes: Any) -> Choice:
    return growing.explicit(registry.choose(small.tree(**changes), "models", name))


@pytest.mark.parametrize(
    ("growths", "changes", "words"),
    [
        (["interleaved"], {"width": 32}, r"interleaved has nothing to do: it changes depth"),
        (["interleaved"], {"depth": 4, "width": 32}, r"cannot reach models\.transformer\.width"),
        (["wider_layers"], {"depth": 4}, "wider_layers has nothing to do"),
        (["interleaved"], {"depth": 1}, "makes models deeper, not shallower"),
        (["wider_layers"], {"expansion": 0.5}, "makes models larger, not smaller"),
        (["duplicated"], {"width": 24}, "24 is none of 16"),
        (["duplicated"], {"width": 32}, "they would be 16 wide where they were 8; set their numb"),
        (["duplicated"], {"depth": 4}, "duplicated has nothing to do"),
        (["interleaved"], {"depth": 4, "embedding": "n_gram"}, "cannot reach .*embedding: n_gram"),
    ],
)
def test_what_cannot_be_reached_is_refused_by_name(
    growths: list[str], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as error:
        growing.check(model(), model(**changes), [growth_of(name) for name in growths], SHAPE)
    assert "\n" not in str(error.value)


def test_a_growth_that_does_not_exist_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match="there is no 'interleave' in growths; did you mean"):
        growing.chosen(small.tree(), ["interleave"])


def test_the_width_of_a_default_model_is_the_one_it_had() -> None:
    """A width of 0 follows the depth, so depth alone does not reach a deeper default."""
    before, after = (model(width=0, heads=0, depth=depth) for depth in (2, 4))
    with pytest.raises(UserError, match=r"cannot reach models\.transformer\.width: 128"):
        growing.check(before, after, [growth_of("interleaved")], SHAPE)
    both = [growth_of("interleaved"), growth_of("duplicated")]
    growing.check(before, after, both, SHAPE)


# ---------------------------------------------------------------- in a run


RUNS = ("first", "second", "scratch")


def goes_on(folder: str, growths: list[str], corpus: Corpus, **changes: Any) -> Any:
    chosen = tuple(growth_of(name) for name in growths)
    return train(corpus, folder, replace(start_from("first"), growths=chosen), **changes)


@pytest.mark.parametrize("optimizer", registry.names("optimizers"))
def test_a_run_goes_on_with_a_larger_model(
    optimizer: str, corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"optimizer": optimizer, "validate_every": 1}
    first = train(corpus, "first", **changes)
    bigger = {**changes, "depth": 4, "expansion": 8.0, "width": 32, "heads": 4}
    names = ["duplicated", "wider_layers", "interleaved"]
    second = goes_on("second", names, corpus, **bigger)
    said = capsys.readouterr().out
    assert f"the model had {first.parameters:,} parameters (duplicated, wider_layers, int" in said
    assert second.parameters > 2 * first.parameters
    assert second.steps == 2 * first.steps
    assert second.flops > 2 * first.flops
    ended = logged("first", "validation_bits_per_byte")[-1][1]
    step, at_once = logged("second", "validation_bits_per_byte")[0]
    assert step == first.steps
    if optimizer != "schedule_free":  # which goes on from other weights than it is judged by
        assert math.isclose(at_once, ended, rel_tol=1e-5)
    again = goes_on("again", names, corpus, **bigger)
    assert again.weights_sha256 == second.weights_sha256


@pytest.mark.parametrize("parametrisation", registry.names("parametrisations"))
def test_new_weights_are_drawn_as_the_larger_model_draws_them(
    parametrisation: str, corpus: Corpus
) -> None:
    """A unit that nothing reads yet has the weights that a run from scratch gives it."""
    of_width = {"parametrisation": parametrisation, "base_width": 4, "heads": 0}
    train(corpus, "first", **of_width)
    wider = {**of_width, "expansion": 8.0, "learning_rate": 1e-30, "steps": 1}
    goes_on("second", ["wider_layers"], corpus, **wider)
    train(corpus, "scratch", **wider)
    name = "blocks.0.feed_forward.up.weight"
    small_one, grown, drawn = (state(folder)["model"][name] for folder in RUNS)
    known = len(small_one)
    assert torch.equal(grown[:known], small_one)
    torch.testing.assert_close(grown[known:], drawn[known:])


def test_a_run_goes_on_with_fewer_blocks(
    corpus: Corpus, shards_of: small.ShardsOf, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(corpus, "first", depth=3)
    second = goes_on("second", ["dropped"], corpus, depth=2)
    assert second.parameters < first.parameters
    assert "begins anew" not in capsys.readouterr().out  # each block that is left keeps its own
    start = replace(
        start_from("first"),
        growths=(growth_of("dropped"),),
        migration=registry.choose(small.tree(), "migrations", "mean"),
    )
    with pytest.raises(UserError, match="do one after the other"):
        train(corpus, "third", start, depth=2)


def test_the_parameters_whose_optimizer_s_state_begins_anew_are_counted(
    corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    train(corpus, "first", optimizer="adamw", depth=2)
    goes_on("second", ["appended"], corpus, optimizer="adamw", depth=3)
    names = state("second")["model"].keys()
    new = sum(name.startswith("blocks.2.") for name in names)
    assert new
    assert f"the optimizer's state of {new} parameters begins anew" in capsys.readouterr().out


def test_another_rule_s_tensors_begin_anew_where_they_do_not_fit(
    corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    train(corpus, "first", learning_rule="feedback_alignment")
    goes_on("second", ["interleaved"], corpus, learning_rule="feedback_alignment", depth=4)
    assert "rule has tensors of other shapes, so its state begins anew" in capsys.readouterr().out


def test_a_run_grows_and_gets_another_tokenizer_at_once(
    corpus: Corpus, shards_of: small.ShardsOf, capsys: pytest.CaptureFixture[str]
) -> None:
    from lmlab.data.tokenizers import base as tokenizers

    first = train(corpus, "first")
    folder = Path("first/tokenizer")
    folder.mkdir()
    tokenizers.write("character", corpus[1], folder / "tokenizer.json")
    other = shards_of(test_training.TEXT, "12 times 12 is 144.\n", tokenizer="bpe")
    start = replace(
        start_from("first"),
        growths=(growth_of("interleaved"),),
        migration=registry.choose(small.tree(), "migrations", "spelled"),
    )
    second = train(other, "second", start, depth=4)
    assert "another tokenizer: the text is read from its beginning" in capsys.readouterr().out
    with pytest.raises(UserError, match="spelled has nothing to do: the tokenizer is the start's"):
        train(corpus, "third", start, depth=4)
    assert second.vocabulary_size == other[1].vocabulary_size
    assert second.steps == 2 * first.steps
    blocks = {name.split(".")[1] for name in state("second")["model"] if "blocks" in name}
    assert blocks == {"0", "1", "2", "3"}
    assert GOES_ON
