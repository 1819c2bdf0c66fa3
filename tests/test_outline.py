"""What is told of a model that was not made, against what is counted on the model itself; and what
nobody could make.
"""

from collections.abc import Mapping
from typing import Any

import pytest
import small
import torch
from typer.testing import CliRunner

from lmlab.cli import app
from lmlab.core import params, registry
from lmlab.core.errors import UserError
from lmlab.core.params import Tree
from lmlab.core.registry import Choice
from lmlab.experiments import preflight
from lmlab.model.models import base as models
from lmlab.model.record import MemoryBytes
from lmlab.training import cost as sizing
from lmlab.training import outline
from lmlab.training import step as stepping

V = 20
DEEP = {
    **{
        f"models.{name}.layers": 7
        for name in ("convolution", "lstm", "min_gru", "perceptron", "rwkv", "state_space")
    },
    **{
        f"models.{name}.width": 8
        for name in ("convolution", "lstm", "min_gru", "perceptron", "rwkv", "state_space")
    },
    "models.transformer.depth": 7,
    "models.transformer.width": 8,
    "models.convolution.dilation": 1,
    "models.hybrid.layers": 13,
    "layers.attention.grouped_query.heads": 2,
}


def begun(tree: Tree, changes: Mapping[str, Any]) -> tuple[stepping.TrainParams, dict[str, Choice]]:
    changed = params.changed(tree, changes)
    train = params.section(changed, "train", stepping.TrainParams)
    return train, registry.choices(changed, "train", train)


def counted(choice: Choice, context: int, precision: str) -> outline.PassCost:
    model = models.build(choice, V, context)
    of_one, of_two = (sizing.kept_bytes(model, windows, precision) for windows in (1, 2))
    return outline.PassCost(sizing.window_flops(model)[0], of_one, of_two)


def with_attention(name: str) -> Tree:
    """The change of attention, with that of another part which the layer refuses."""
    plain = registry.choose(small.tree(), "models", "transformer")
    attention = registry.choose(small.tree(), "layers.attention", name)
    fitting = small.fitting(small.with_inner(plain, attention=attention), "attention")
    return {
        f"models.transformer.{key}": inner.name
        for key, inner in fitting.inner.items()
        if key == "attention" or inner != plain.inner[key]
    }


VARIANTS = [
    *[{"train.model": name} for name in registry.names("models")],
    *[with_attention(name) for name in registry.names("layers.attention")],
    *[{"models.transformer.residual": name} for name in registry.names("layers.residual")],
    *[{"models.transformer.feed_forward": name} for name in registry.names("layers.feed_forward")],
]


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: " ".join(changes.values()))
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_a_pass_of_few_blocks_says_of_all_is_what_all_take(
    changes: dict[str, Any], precision: str, tree: Tree
) -> None:
    train, chosen = begun(
        tree, {**DEEP, **changes, "train.context": 12, "train.precision": precision}
    )
    assert outline._cost_of_all_blocks(chosen["model"], V, train) == counted(
        chosen["model"], 12, precision
    )


@pytest.mark.parametrize("name", ["transformer", "perceptron", "lstm", "hybrid"])
def test_fake_tensors_take_what_real_ones_do(
    name: str, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outline, "QUICK_WEIGHTS", 0)
    _, chosen = begun(tree, {**DEEP, "train.model": name})
    few = outline.cut(chosen["model"], 2)
    assert outline._cost_of_window(few, V, 6, "float32") == counted(few, 6, "float32")


@pytest.mark.parametrize(
    ("changes", "context"),
    [
        ({"train.model": "lstm"}, 50),
        ({"train.model": "rwkv", "models.rwkv.chunk": 8}, 75),
        ({"train.model": "state_space", "models.state_space.chunk": 5}, 61),
        (
            {
                "train.model": "hybrid",
                "models.hybrid.first": "lstm",
                "models.hybrid.second": "transformer",
            },
            45,
        ),
    ],
)
def test_of_a_model_that_loops_over_the_window_short_ones_say_what_a_long_one_takes(
    changes: dict[str, Any], context: int, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, chosen = begun(tree, {**DEEP, **changes})
    few = outline.cut(chosen["model"], 2)
    monkeypatch.setattr(outline._Passes, "is_quick", lambda self, tokens: tokens < context)
    assert outline._cost_of_window(few, V, context, "float32") == counted(few, context, "float32")


def test_a_whole_description_is_that_of_the_run_itself(tree: Tree) -> None:
    train, chosen = begun(
        tree, {"models.transformer.depth": 6, "models.transformer.width": 32, "train.context": 16}
    )
    run = stepping.begin(train, chosen, V, torch.device("cpu"))
    settled = run.params
    microbatch = settled.batch // settled.gradient_accumulation
    size = sizing.describe(run.model, run.optimizer, settled.batch, microbatch, settled.precision)
    assert outline.describe(train, chosen, V) == size


REFUSED = {
    "modules, and more than": [
        {"models.transformer.depth": 100_000, "models.transformer.width": 2},
        {"train.model": "lstm", "models.lstm.layers": 10**18},
        {"train.model": "hybrid", "models.min_gru.layers": 10**9},
        {
            "models.transformer.feed_forward": "mixture_of_experts",
            "layers.feed_forward.mixture_of_experts.experts": 200,
        }
        | {"models.transformer.depth": 100},
    ],
    "GB of memory": [
        {"models.transformer.depth": 300},
        {"models.transformer.width": 10**6},
        {"train.batch": 10**12},
        {"train.intervention": "delayed_gradients", "interventions.delayed_gradients.delay": 10**6},
        {
            "train.learning_rule": "target_propagation",
            "learning_rules.target_propagation.expansion": 1e6,
        },
    ],
    "no machine has memory": [
        {"models.transformer.width": 10**15 + 1, "layers.attention.multi_head.heads": 0},
        {"train.model": "perceptron", "models.perceptron.window": 10**14},
        {"train.model": "rwkv", "models.rwkv.width": 10**15},
        {"models.transformer.residual": "hyper", "layers.residual.hyper.streams": 10**15},
    ],
    "is out of bounds": [
        {"train.seed": 2**64},
        {"models.transformer.width": 10**20},
        {"train.clip": 1e300},
    ],
    "more than a number can hold": [
        {
            "train.intervention": "layer_rates",
            "interventions.layer_rates.factor": 1e30,
            "models.transformer.depth": 20,
        }
    ],
    "would look back more than": [
        {"train.model": "convolution", "models.convolution.layers": 60},
        {"train.model": "convolution", "models.convolution.kernel": 10**14},
    ],
}


@pytest.mark.parametrize(
    ("words", "changes"),
    [(words, changes) for words, cases in REFUSED.items() for changes in cases],
    ids=lambda value: (
        " ".join(str(part) for part in value.values()) if isinstance(value, dict) else None
    ),
)
def test_what_nobody_could_make_is_refused_in_one_line(
    words: str, changes: dict[str, Any], tree: Tree
) -> None:
    with pytest.raises(UserError) as refused:
        preflight.check(params.changed(tree, changes))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_heads_are_found_at_once_whatever_the_width(tree: Tree) -> None:
    with (
        outline.without_storage(),
        pytest.raises(UserError, match="make the width a multiple of 2"),
    ):
        models.build(begun(tree, {"models.transformer.width": 10**9 + 7})[1]["model"], V, 8)


def test_size_answers_for_what_does_not_fit_and_says_so(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        params, "read", lambda: params.changed(tree, {"models.transformer.depth": 200})
    )
    shown = CliRunner().invoke(app, ["size", "--vocabulary-size", "66"])
    assert shown.exit_code == 0
    assert "width 6400, 200 blocks" in shown.output
    assert f"{200 * 12 * 6400**2 + 401 * 6400 + 2 * 66 * 6400:,} parameters" in shown.output
    assert "this does not fit: weights, gradients come to 786.5 GB" in shown.output


def test_activations_that_do_not_fit_are_said(tree: Tree) -> None:
    train, chosen = begun(tree, {"train.batch": 10**6})
    size = outline.describe(train, chosen, V)
    said = sizing.too_large(size, "cpu")
    assert said is not None
    assert "activations come to" in said
    assert sizing.too_large(size, "cuda") is None
    little = MemoryBytes(weights=1, gradients=1, activations=None)
    assert sizing.too_large(size.model_copy(update={"bytes": little}), "cpu") is None
