"""Pictures show what the code does: the stages, a model's layers, a rule's signals."""

import re
from argparse import Namespace
from copy import deepcopy
from pathlib import Path
from xml.etree import ElementTree

import pytest
import small
import torch
from small import PROJECT
from test_learning_rules import batch, refusal, rule_for
from typer.testing import CliRunner

from lmlab import cli
from lmlab.core import params, registry
from lmlab.core.errors import UserError
from lmlab.evaluation.probes.base import Batch, Snapshot
from lmlab.evaluation.signals import ABOVE, LOSS, NOTHING, RULE, ZERO, Signals, signals
from lmlab.experiments.drawing import draw, model, pipeline, rule
from lmlab.experiments.drawing.svg import Arrow, Picture, Rectangle, Text
from lmlab.experiments.drawing.trained import pictures
from lmlab.model import places

RULES = registry.names("learning_rules")
MODELS = registry.names("models")
CHARACTERS = ["--vocabulary-size", "65"]
PICTURES = {
    "pipeline": ["pipeline"],
    "transformer": ["model", "transformer", *CHARACTERS],
    "block_local": ["rule", "block_local", *CHARACTERS],
    "feedback_alignment": ["rule", "feedback_alignment", *CHARACTERS],
}
"""Those in docs/pictures, and what `lmlab draw` is told."""


def seen(name: str) -> Signals:
    made = small.model(small.some_model()).double()
    return signals(rule_for(name, made), made, *batch())


def texts(picture: Picture) -> list[str]:
    """All text of a picture, which is well-formed and has no more than fits beside one another."""
    root = ElementTree.fromstring(picture.svg())
    namespace = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{namespace}svg"
    return [element.text or "" for element in root.iter(f"{namespace}text")]


# ---------------------------------------------------------------- signals


def test_backprop_sends_every_unit_its_gradient_through_the_one_above() -> None:
    units = seen("backprop").units
    assert [unit.name for unit in units] == ["embedding", "blocks.0", "blocks.1", "output head"]
    for unit in units:
        assert unit.source == ABOVE
        assert unit.signal == pytest.approx(1)
        assert unit.weights == pytest.approx(1)
    count = sum(unit.parameters for unit in units)
    assert count == sum(p.numel() for p in small.model(small.some_model()).parameters())


def test_signals_come_from_where_the_rules_say() -> None:
    frozen = seen("frozen").units
    assert [unit.source for unit in frozen] == [NOTHING, NOTHING, NOTHING, ABOVE]
    assert [unit.weights for unit in frozen[:3]] == [None] * 3
    local = seen("block_local").units
    assert [unit.source for unit in local] == [ABOVE, RULE, ABOVE, ABOVE]
    assert not any(unit.more for unit in local)
    assert local[2].signal == pytest.approx(1, abs=0.01)  # the last block's loss is the model's own
    contrasted = seen("forward_forward").units
    assert [unit.source for unit in contrasted] == [ABOVE, RULE, RULE, ABOVE]
    assert contrasted[0].more  # the first block's loss also reads its input
    interlocked = seen("interlocking").units
    assert [unit.source for unit in interlocked] == [ABOVE] * 4
    assert [unit.more for unit in interlocked] == [False, True, False, False]
    direct = seen("direct_feedback_macro")
    assert [unit.source for unit in direct.units] == [LOSS, LOSS, LOSS, ABOVE]
    assert all(abs(unit.signal or 0) < 0.5 for unit in direct.units[:3])
    assert list(direct.own) == ["feedback_0"]
    aligned = seen("feedback_alignment").units
    assert [unit.source for unit in aligned] == [ABOVE] * 4
    assert aligned[3].weights == pytest.approx(1, abs=0.01)  # but for the gain below it
    assert all(abs(unit.signal or 0) < 0.5 for unit in aligned[:3])
    coded = seen("predictive_coding").units
    assert all(unit.weights == pytest.approx(1, abs=0.01) for unit in coded)
    assert [unit.source for unit in coded] == [ABOVE] * 4  # errors come down by hand
    aimed = seen("target_propagation").units
    assert [unit.source for unit in aimed] == ["output head", "output head", ABOVE, ABOVE]


def test_a_block_that_is_trained_alone_is_told_nothing_by_the_block_above() -> None:
    """Also where a last pass, for the reported loss, runs through all blocks."""
    alone = seen("noprop")
    assert alone.forward_passes == 2
    assert [unit.source for unit in alone.units] == [ABOVE, "output head", ABOVE, ABOVE]


def test_a_signal_of_zeros_is_told_from_one_at_right_angles_and_from_none() -> None:
    predicted = seen("synthetic_gradients").units
    assert [unit.source for unit in predicted] == [ZERO, ZERO, ABOVE, ABOVE]
    for unit in predicted[:2]:
        assert (unit.signal, unit.weights) == (None, None)
        assert unit.weights_given_zero
    frozen = seen("frozen").units
    assert not any(unit.weights_given_zero for unit in frozen)
    made = small.model(small.some_model())
    words = texts(
        rule.drawn(
            rule_for("synthetic_gradients", made), "small", seen("synthetic_gradients"), "now"
        )
    )
    assert words.count("a signal that is zero in this step") == 2
    assert words.count("weights: zero in this step") == 2
    assert not any("cosine 0.00" in line or "they stay" in line for line in words)


def test_a_rule_without_a_backward_pass_sends_nothing_back() -> None:
    directions = small.tree()["learning_rules"]["spsa"]["directions"]
    perturbed = seen("spsa")
    assert perturbed.forward_passes == 2 * directions + 1
    assert {unit.source for unit in perturbed.units} == {NOTHING}
    assert all(unit.weights is not None for unit in perturbed.units)


@pytest.mark.parametrize("name", RULES)
def test_watching_leaves_model_and_rule_as_they_were(name: str) -> None:
    made = small.model(small.some_model()).double()
    of_rule = rule_for(name, made)
    both = [made, of_rule]
    before = [tensor.clone() for each in both for tensor in each.state_dict().values()]
    signals(of_rule, made, *batch())
    after = [tensor for each in both for tensor in each.state_dict().values()]
    assert all(map(torch.equal, after, before))
    assert all(parameter.grad is None for each in both for parameter in each.parameters())
    assert not {"embed", "head"} & set(vars(made))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in made.modules())


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize(("name", "of_model"), small.drawn(RULES, MODELS))
def test_every_rule_is_drawn_in_every_model_it_works_with(name: str, of_model: str) -> None:
    tree = params.changed(small.tree(), {"train.model": of_model})
    made = small.model(registry.choose(tree, "models", of_model), vocabulary_size=draw.VOCABULARY)
    if refusal(name, made):
        with pytest.raises(UserError, match=f"train.learning_rule: {name}"):
            draw.of_rule(tree, name, draw.VOCABULARY)
        return
    words = texts(draw.of_rule(tree, name, draw.VOCABULARY))
    blocks = [f"blocks.{number}" for number in range(len(made.blocks))]
    assert {"tokens", "embedding", *blocks, "output head", "loss"} <= set(words)
    once, again = (draw.of_rule(tree, name, draw.VOCABULARY) for _ in range(2))
    assert once.svg() == again.svg()


@pytest.mark.parametrize("choice", small.variants("models"), ids=small.title)
def test_every_model_is_drawn_with_all_its_places(choice: registry.Choice) -> None:
    tree = small.tree()
    for key, inner in choice.inner.items():
        tree = dict(params.changed(tree, {f"models.{choice.name}.{key}": inner.name}))
    made = small.model(choice, vocabulary_size=65, context=tree["train"]["context"])
    words = texts(draw.of_model(tree, choice.name, 65))
    count = sum(parameter.numel() for parameter in made.parameters())
    assert any(f"{count:,} parameters" in line for line in words)
    shown = {line.split("  ")[0].rpartition(".")[2] for line in words}
    for name in places.names(made):
        last = name.rpartition(".")[2]
        assert last in shown


def heights(picture: Picture) -> dict[str, int]:
    """Where each line of text stands, the last of those that are alike."""
    return {shape.text: shape.y for shape in picture.shapes if isinstance(shape, Text)}


def test_a_model_within_a_model_lends_its_ends_and_not_as_one_box() -> None:
    picture = draw.of_model(small.tree(), "hybrid", 65)
    of_first = draw.of_model(small.tree(), "transformer", 65)
    at = heights(picture)
    assert at["embedding: token"] < at["input  B T 16"] < at["output head"]
    words = texts(picture)
    assert set(texts(of_first)[-8:]) <= set(words)  # what stands behind the blocks
    assert not any(line.startswith("ends") for line in words)


def test_layers_that_read_one_another_stand_below_and_others_side_by_side() -> None:
    at = heights(draw.of_model(small.tree(), "n_gram_table", 65))
    assert at["unigram: embedding"] == at["3 tables"]
    at = heights(draw.of_model(small.tree(), "lstm", 65))
    assert at["norm"] < at["recurrence"]


@pytest.mark.parametrize("choice", small.variants("models"), ids=small.title)
def test_a_block_says_how_far_it_reads_where_that_is_limited(choice: registry.Choice) -> None:
    made = small.model(choice).eval()
    words = texts(model.drawn(made))
    lookbacks = {getattr(block, "lookback", None) for block in made.blocks}
    for lookback in lookbacks - {None, 0, 1}:
        assert f"reads {lookback} positions back" in words
    assert any(line.startswith("reads ") for line in words) == (lookbacks != {None})
    if choice.name == "convolution":
        assert len(lookbacks) == len(made.blocks)  # by which alone they can be told apart


def test_the_stream_has_no_gaps() -> None:
    """Each arrow begins where a box or another arrow's head is."""
    for name in MODELS:
        picture = draw.of_model(small.tree(), name, 65)
        boxes = [shape for shape in picture.shapes if isinstance(shape, Rectangle)]
        below = {shape.y + shape.height for shape in boxes if not shape.style}
        above = {shape.y for shape in boxes if not shape.style}
        straight = [
            re.fullmatch(r"M(\d+) (\d+)V(\d+)", shape.path)
            for shape in picture.shapes
            if isinstance(shape, Arrow)
        ]
        lines = [(int(line[2]), int(line[3])) for line in straight if line]
        assert len(lines) == len(above) - 1
        for start, end in lines:
            assert start in below
            assert end + 1 in above


@pytest.mark.parametrize("name", registry.names("layers.position"))
def test_positions_are_drawn_where_they_act(name: str) -> None:
    tree = params.changed(small.tree(), {"models.transformer.position": name})
    words = texts(draw.of_model(tree, "transformer", 65))
    shown = name.replace("_", " ")
    in_attention, in_stream = f"{shown} positions" in words, f"position: {shown}" in words
    assert in_attention == (name in ("alibi", "rotary"))
    assert in_stream == (name == "learned")


def test_a_run_is_drawn_as_it_is_at_its_last_snapshot() -> None:
    """The rule is the run's own, with the weights it has now, within no intervention."""
    made = small.model(small.some_model()).eval()
    inner = rule_for("feedback_alignment", made)
    around = registry.choose(small.tree(), "interventions", "gradient_noise").build(made, inner)
    one = Snapshot(6, 100, made, {}, around, "some_model")
    tokens, targets = batch()
    before = [tensor.clone() for tensor in [*made.state_dict().values(), *inner.buffers()]]
    drawn = pictures(one, Batch(tokens, targets))
    assert all(map(torch.equal, [*made.state_dict().values(), *inner.buffers()], before))
    assert texts(Picture.model_validate(drawn["model"])) == texts(model.drawn(made))
    words = texts(Picture.model_validate(drawn["rule"]))
    assert words[0] == "feedback alignment"
    assert any("at step 7 of training, on validation text" in line for line in words)
    units = signals(deepcopy(inner).double(), deepcopy(made).double(), tokens, targets).units
    for unit in units[:-1]:
        assert unit.signal is not None
        assert f"cosine {round(unit.signal, 2) + 0.0:.2f}" in words
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(3)
    assert pictures(one, Batch(tokens, targets)) != drawn


def test_the_pipeline_is_drawn_as_dvc_has_it() -> None:
    picture = pipeline.draw(PROJECT / "dvc.yaml")
    words = texts(picture)
    stages = ["start", "download", "tokenizer", "shard", "train", "evaluate", "probe", "report"]
    assert set(stages) <= set(words)
    assert picture.svg().count('class="line"') == 8  # train to both, both to report
    for kind in ("corpora", "tokenizers", "measures", "probes", "schedules"):
        assert words.count(kind) == 1


@pytest.mark.parametrize("name", PICTURES)
def test_the_pictures_of_the_documents_are_what_the_code_draws(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)
    out, kept = tmp_path / "picture.svg", f"docs/pictures/{name}.svg"
    words = ["draw", *PICTURES[name], "--out"]
    done = CliRunner().invoke(cli.app, [*words, str(out)])
    assert done.exit_code == 0, done.output
    assert out.read_text() == (PROJECT / kept).read_text(), " ".join(["lmlab", *words, kept])


# ---------------------------------------------------------------- what can go wrong


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["modle"], "'modle' is none of pipeline, model, rule; name one of them"),
        (["pipeline", "train"], "there is only one, so leave out 'train'"),
        (["pipeline", *CHARACTERS], "it has no vocabulary; leave out --vocabulary-size"),
        (["rule", "backprob"], "did you mean backprop?"),
        (["model", "transfomer"], "did you mean transformer?"),
    ],
)
def test_what_cannot_be_drawn_is_told_in_one_line(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)
    done = CliRunner().invoke(cli.app, ["draw", *words])
    assert done.exit_code == 2
    assert message in done.output
    assert done.output.count("\n") == 1


def test_the_vocabulary_of_a_rule_is_the_one_named_or_the_tokenizers_or_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_text((PROJECT / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    width = 128

    def head_parameters(vocabulary_size: int) -> int:
        """Without those of its norm."""
        out = draw.draw("rule", "frozen", vocabulary_size, tmp_path / "picture.svg")
        words = ElementTree.parse(out).getroot().itertext()
        counts = [line for line in words if line.endswith(" parameters")]
        return int(counts[-1].split()[0].replace(",", "")) - width

    assert head_parameters(33) == 33 * width
    assert head_parameters(0) == draw.VOCABULARY * width
    draw.TOKENIZER.parent.mkdir(parents=True)
    draw.TOKENIZER.touch()

    def loaded(path: Path) -> Namespace:
        assert path == draw.TOKENIZER
        return Namespace(vocabulary_size=21)

    monkeypatch.setattr(draw.tokenizers, "load", loaded)
    assert head_parameters(0) == 21 * width


def test_a_model_too_large_to_be_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    large = params.changed(params.read(PROJECT / "params.yaml"), {"models.transformer.width": 2048})
    with pytest.raises(UserError, match=r"parameters are too many for that; set models\.transfor"):
        draw.of_rule(large, "backprop", draw.VOCABULARY)
