"""One step of learning, and the model drawn: each number against the same thing done by hand."""

import math
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import small
import test_training
import torch
from test_continuing import train
from test_explorer import MODELS, TEXT, TOKENIZER, every_model, serving, subject
from test_training import Corpus
from torch import Tensor

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.core.registry import Choice
from lmlab.data.tokenizers import base as tokenizers
from lmlab.evaluation.probe import restored
from lmlab.evaluation.probes.base import Batch
from lmlab.explorer import drawing, microscope
from lmlab.explorer.microscope import Material, Wish
from lmlab.explorer.subject import LAST, Folders, Subject
from lmlab.model import places
from lmlab.model.models import base as models
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training import snapshots
from lmlab.training.cost import forward_flops

corpus = test_training.corpus  # the fixture
MATERIAL = Material(TEXT, "a dab of ace, bad cab; " * 2)
RATE = 0.001
ANY = Wish("backprop", "sgd")


def step_of(one: Subject, wish: Wish = ANY, **changes: Any) -> dict[str, Any]:
    return microscope.one_step(one, LAST, wish, MATERIAL, small.tree(**changes))


def batch_of(one: Subject, text: str) -> tuple[Tensor, Tensor]:
    """The windows that are described: as wide as the context, evenly spaced, eight at most."""
    ids = torch.tensor(one.ids(text))
    width = min(one.model.context, len(ids) - 1)
    last = len(ids) - 1 - width
    count = min(8, 1 + last // width)
    rows = [
        ids[start : start + width + 1]
        for start in [last * n // max(1, count - 1) for n in range(count)]
    ]
    both = torch.stack(rows)
    return both[:, :-1], both[:, 1:]


def by_hand(one: Subject, rate: float) -> tuple[LanguageModel, dict[str, Tensor], float, float]:
    """A step of plain gradient descent: the model after it, the gradient, both losses."""
    model = deepcopy(one.model)
    tokens_BT, targets_BT = batch_of(one, MATERIAL.training)
    loss = next_token_loss(model(tokens_BT), targets_BT)
    loss.backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter -= rate * gradient[name]
        after = next_token_loss(model(tokens_BT), targets_BT)
    return model, gradient, float(loss), float(after)


def test_a_step_of_gradient_descent_is_the_one_taken_by_hand() -> None:
    one = subject()
    plain = {"learning_rate": RATE, "momentum": 0.0, "weight_decay": 0.0, "nesterov": False}
    found = step_of(one, **plain)
    model, gradient, before, after = by_hand(one, RATE)
    square = sum(float(each.double().square().sum()) for each in gradient.values())
    assert math.isclose(found["loss"], before, rel_tol=1e-5)
    assert math.isclose(found["happened"], after - before, rel_tol=1e-3)
    assert math.isclose(found["predicted"], -RATE * square, rel_tol=1e-4)
    assert math.isclose(found["length"], RATE * math.sqrt(square), rel_tol=1e-4)
    tokens_BT, targets_BT = batch_of(one, MATERIAL.held_out)
    was, now = (float(next_token_loss(each(tokens_BT), targets_BT)) for each in (one.model, model))
    assert math.isclose(found["held_out"], now - was, rel_tol=1e-2, abs_tol=1e-6)
    assert sum(unit["share"] for unit in found["units"]) == pytest.approx(1)
    assert sum(unit["predicted"] for unit in found["units"]) == pytest.approx(found["predicted"])
    weights = {each["name"]: each for unit in found["units"] for each in unit["weights"]}
    assert weights.keys() == gradient.keys()
    for name, each in weights.items():
        assert math.isclose(each["true_length"], float(gradient[name].norm()), rel_tol=1e-4)
        assert each["cosine"] == pytest.approx(1)
    for unit in found["units"]:
        assert unit["signal"] == pytest.approx(1, abs=1e-5)
        assert unit["cosine"] == pytest.approx(1)


def test_the_tokens_that_got_better_are_those_of_the_batch_and_of_held_out_text() -> None:
    one = subject()
    found = step_of(one)
    for rows, text, change in (
        (found["batch"], MATERIAL.training, found["happened"]),
        (found["beyond"], MATERIAL.held_out, found["held_out"]),
    ):
        tokens_BT, targets_BT = batch_of(one, text)
        assert ["".join(row["texts"]) for row in rows] == [
            TOKENIZER.decode(row.numpy()) for row in targets_BT
        ]
        differences = [
            after - before
            for row in rows
            for before, after in zip(row["before"], row["after"], strict=True)
        ]
        assert len(differences) == targets_BT.numel()
        assert sum(differences) / len(differences) == pytest.approx(change)
        log_BTV = one.model(tokens_BT).double().log_softmax(-1)
        nats = -log_BTV.gather(-1, targets_BT[..., None])[..., 0]
        assert [value for row in rows for value in row["before"]] == pytest.approx(
            nats.flatten().tolist()
        )


def test_a_step_changes_nothing_of_the_model_it_is_taken_from() -> None:
    one = subject()
    before = {name: value.clone() for name, value in one.model.state_dict().items()}
    state = torch.get_rng_state()
    step_of(one, Wish("evolution_strategies", "adamw"))
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in one.model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert step_of(one) == step_of(one)
    twice = [step_of(one, Wish("backprop", "sgd", rate))["length"] for rate in (1.0, 2.0)]
    assert twice[1] == pytest.approx(2 * twice[0], rel=1e-3)


def refusal(one: Subject, rule: str) -> str:
    """Why a rule cannot work with a model; empty if it can."""
    try:
        registry.choose(small.tree(), "learning_rules", rule).build(one.model)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("choice", "rule"), small.drawn(MODELS, microscope.rules()), ids=lambda each: str(each)[:20]
)
def test_every_rule_on_every_model_takes_a_step_or_says_why_not(choice: Choice, rule: str) -> None:
    one = subject(choice)
    if refused := refusal(one, rule):
        assert "params.yaml: train.learning_rule" in refused
        return
    found = step_of(one, Wish(rule, "adamw"))
    assert len(found["units"]) == len(one.model.blocks) + 2
    names = [weight["name"] for unit in found["units"] for weight in unit["weights"]]
    assert sorted(names) == sorted(name for name, _ in one.model.named_parameters())
    assert found["length"] > 0
    for unit in found["units"]:
        assert unit["cosine"] is None or -1.0001 <= unit["cosine"] <= 1.0001


def test_a_block_that_is_told_the_wrong_thing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that tells one block the opposite: the units at and below it show it."""
    from lmlab.training.learning_rules.backprop import Backprop

    class Wrong(Backprop):
        def assign_gradients(
            self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
        ) -> Tensor:
            with places.changed(model, {"blocks.1.output": Reversed.apply}):  # type: ignore[no-untyped-call]
                return super().assign_gradients(model, tokens_BT, targets_BT)

    class Reversed(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, x: Tensor) -> Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(_: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return -gradient

    one = subject(depth=3)
    begun = microscope._begun

    def wrong(*words: Any) -> Any:
        run, notes = begun(*words)
        run.rule.__class__ = Wrong
        return run, notes

    monkeypatch.setattr(microscope, "_begun", wrong)
    found = step_of(one)
    by_name = {unit["name"]: unit for unit in found["units"]}
    for name in ("embedding", "blocks.0", "blocks.1"):
        assert by_name[name]["cosine"] == pytest.approx(-1, abs=1e-4), name
    for name in ("blocks.2", "output head"):
        assert by_name[name]["cosine"] == pytest.approx(1, abs=1e-4), name


@pytest.fixture
def trained(corpus: Corpus) -> Subject:
    """A run with a rule that has weights of its own."""
    rule = {"learning_rule": "kolen_pollack", "optimizer": "adamw", "gradient_noise": 0.1}
    train(corpus, "run", snapshots=3, steps=7, **rule)
    tokenizers.write("character", corpus[1], Path("tokenizer.json"))
    folders = Folders(Path("run/model"), Path("tokenizer.json"), Path("run/snapshots"))
    return Subject.open("run", folders)


def test_the_run_s_own_rule_comes_with_what_it_had_learned(trained: Subject) -> None:
    """Its direction is that which the probes' snapshot gives, on the same text."""
    record, states = snapshots.read(Path("run/snapshots"))
    material = Material(test_training.TEXT[:400], test_training.TEXT[400:600])
    snapshot = restored(record, next(states), torch.device("cpu"))
    found = microscope.one_step(trained, 0, Wish(), material, small.tree())
    assert (found["rule"], found["optimizer"]) == ("kolen_pollack", "adamw")
    assert found["notes"] == []
    batch = Batch(*batch_of(trained, material.training))
    own, true = snapshot.rule_gradient(batch), snapshot.true_gradient(batch)
    weights = {each["name"]: each for unit in found["units"] for each in unit["weights"]}
    for name, each in weights.items():
        cosine = torch.cosine_similarity(own[name].flatten(), true[name].flatten(), dim=0)
        assert each["cosine"] == pytest.approx(float(cosine), abs=1e-4), name


def test_a_rule_beside_it_is_new_and_that_is_said(trained: Subject) -> None:
    material = Material(test_training.TEXT[:400], "")
    with pytest.raises(UserError, match="there is no text to take a step on"):
        microscope.one_step(trained, LAST, Wish(), material, small.tree())
    material = Material(test_training.TEXT[:400], test_training.TEXT[400:600])
    found = microscope.one_step(trained, LAST, Wish("kolen_pollack"), material, small.tree())
    assert any("new" in note for note in found["notes"])
    one = subject()
    unknown = microscope.one_step(one, LAST, Wish(), MATERIAL, small.tree())
    assert any("left no snapshots" in note for note in unknown["notes"])


def test_the_server_takes_a_step_on_training_text_or_on_what_was_typed() -> None:
    one = subject()
    asked = {"rule": "backprop", "optimizer": "sgd", "rate": 0.5}
    with serving(one) as served:
        about = served.get("/api/about").json()
        assert "distillation" not in about["rules"]
        assert "sgd" in about["optimizers"]
        wish = Wish("backprop", "sgd", 0.5)
        on_training = served.post("step", asked).json()
        assert on_training["loss"] == pytest.approx(
            microscope.one_step(one, LAST, wish, MATERIAL, small.tree())["loss"]
        )
        typed = served.post("step", {**asked, "text": "abc", "typed": True}).json()
        assert [row["texts"] for row in typed["batch"]] == [["a", "b", "c"]]
        refused = served.post("step", {**asked, "rule": "backpropp"})
        assert refused.status_code == 400
        assert "backprop" in refused.json()["error"]
        assert served.post("drawing", {}).json() == drawing.structure(one)


def test_numbers_that_json_does_not_know_are_null() -> None:
    one = subject()
    with serving(one) as served:
        asked = {"rule": "backprop", "optimizer": "sgd", "rate": 1e6}
        answer = served.post("step", asked)
        assert answer.status_code == 200
        assert "NaN" not in answer.text


# ---------------------------------------------------------------- the drawing


def walked(tree: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [tree, *(each for inner in tree["inside"] for each in walked(inner))]


@every_model
def test_everything_in_the_model_is_drawn_once(choice: Choice) -> None:
    one = subject(choice)
    tree = drawing.structure(one)
    modules = walked(tree)
    assert tree["parameters"] == models.parameter_count(one.model)
    drawn = [place for module in modules for place in module["places"]]
    assert sorted(drawn) == sorted(places.names(one.model))
    weights = [
        f"{module['path']}.{name}".removeprefix(".")
        for module in modules
        for name in module["weights"]
    ]
    every = {name for name, _ in one.model.named_parameters(remove_duplicate=False)}
    assert set(weights) == every
    assert len(weights) == len(set(weights))
    if "mixture_of_experts" in small.title(choice):  # all experts are computed where none trains
        assert tree["flops"] > forward_flops(one.model)
    else:
        assert tree["flops"] == pytest.approx(forward_flops(one.model), rel=0.02)
    for module in modules:
        if not module["file"]:
            continue
        file, _, line = module["file"].partition(":")
        source = (small.PROJECT / file).read_text().splitlines()
        assert source[int(line) - 1].startswith(f"class {module['class']}"), module["file"]
        assert module["doc"]


def test_weights_are_measured_at_each_moment(trained: Subject) -> None:
    for moment in (0, 2, LAST):
        found = drawing.weights(trained, moment)
        first = {name: value.clone() for name, value in trained.at(0).named_parameters()}
        now = dict(trained.at(moment).named_parameters())
        assert found.keys() == now.keys()
        for name, value in now.items():
            assert found[name]["rms"] == pytest.approx(
                float(value.square().mean().sqrt()), rel=1e-4
            )
            way = float((value - first[name]).norm() / first[name].norm())
            assert found[name]["moved"] == pytest.approx(way, rel=1e-3, abs=1e-7)
    still = drawing.weights(trained, 0)
    assert all(each["moved"] == 0 for each in still.values())


def test_shapes_are_those_of_what_flows() -> None:
    one = subject(width=24, heads=3, depth=2)
    places_of = {
        place: shape
        for module in walked(drawing.structure(one))
        for place, shape in module["places"].items()
    }
    assert places_of["embedding"] == ["T", "24"]
    assert places_of["blocks.1.attention.pattern"] == ["3", "T", "T"]
    assert places_of["logits"] == ["T", str(TOKENIZER.vocabulary_size)]
