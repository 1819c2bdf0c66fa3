"""Sparse autoencoders: they find what is known to be there, and a feature can be switched off."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import small
import torch
from test_explorer import CONTEXT, TEXT, subject
from test_probes import probe_for, snapshot, the_batch
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.evaluation import autoencoder as library
from lmlab.evaluation.autoencoder import Quality, Recipe, SparseAutoencoder
from lmlab.evaluation.probes.base import Batch, Reading
from lmlab.explorer import features as explorer
from lmlab.explorer import look, units
from lmlab.explorer.changes import Scale, applied
from lmlab.explorer.features import Features, Wish
from lmlab.explorer.subject import LAST, Moment, Subject
from lmlab.model import places
from lmlab.model.models.base import LanguageModel

PLACE = "blocks.1.output"


def superposed(count: int, features: int, width: int) -> tuple[Tensor, Tensor]:
    """Vectors that are each a sum of few of the directions, and the directions, of length 1."""
    rng = torch.Generator().manual_seed(123)  # another than that by which training begins
    directions_FD = torch.randn(features, width, generator=rng)
    directions_FD /= directions_FD.norm(dim=1, keepdim=True)
    is_active_NF = torch.rand(count, features, generator=rng) < 0.05
    sizes_NF = 0.5 + torch.rand(count, features, generator=rng)
    return (is_active_NF * sizes_NF) @ directions_FD, directions_FD


def some_vectors(count: int = 300, width: int = 6) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(1))


def mirrored(width: int) -> SparseAutoencoder:
    """One that reconstructs everything: each axis and its opposite."""
    axes = torch.cat((torch.eye(width), -torch.eye(width))).double()
    return SparseAutoencoder(torch.zeros(width).double(), axes, axes, width)


def certain(model: LanguageModel, tokens: Tensor) -> Tensor:
    """As targets, what a model thinks likeliest: so that zeros inside it cost it a lot."""
    with torch.no_grad():
        return model(tokens).argmax(dim=-1)


# ---------------------------------------------------------------- the autoencoder


def nearest(found: SparseAutoencoder, directions_FD: Tensor) -> Tensor:
    """The largest cosine of each direction with one that was found."""
    return (directions_FD @ found.decoder.T).amax(dim=1)


def test_directions_in_superposition_are_found() -> None:
    x_ND, directions_FD = superposed(8192, features=64, width=32)
    begun = library.train(x_ND, Recipe(features=128, active=3, steps=1, seed=0))
    assert nearest(begun, directions_FD).mean() < 0.6
    found = library.train(x_ND, Recipe(features=128, active=3, steps=300, seed=0))
    assert nearest(found, directions_FD).mean() > 0.98
    assert nearest(found, directions_FD).min() > 0.9


def test_features_that_are_idle_are_put_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of as many features as there are directions hardly one is left over."""
    x_ND, _ = superposed(8192, features=32, width=16)

    def dead() -> int:
        recipes = [Recipe(features=32, active=2, steps=300, seed=seed) for seed in range(3)]
        coders = [library.train(x_ND, recipe) for recipe in recipes]
        return sum(int((coder.encode(x_ND) == 0).all(dim=0).sum()) for coder in coders)

    with_loss = dead()
    monkeypatch.setattr(library, "IDLE_AFTER", math.inf)
    assert with_loss < dead() / 2


def test_no_more_than_k_features_are_active_and_none_is_negative() -> None:
    x_ND = some_vectors()
    found = library.train(x_ND, Recipe(features=24, active=3, steps=20, seed=0))
    a_NF = found.encode(x_ND)
    assert ((a_NF != 0).sum(dim=1) <= 3).all()
    assert (a_NF >= 0).all()
    tied = SparseAutoencoder(torch.zeros(6), torch.ones(24, 6), found.decoder, active=3)
    assert ((tied.encode(x_ND.abs()) > 0).sum(dim=1) == 3).all()
    assert library.largest(torch.tensor([[-3.0, 2.0, 1.0, 5.0]]), 2).tolist() == [[0, 2, 0, 5]]
    assert library.largest(torch.tensor([[-3.0, 2.0]]), 99).tolist() == [[0, 2]]


def test_directions_have_length_one() -> None:
    found = library.train(some_vectors(), Recipe(features=24, active=3, steps=20, seed=0))
    torch.testing.assert_close(found.decoder.norm(dim=1), torch.ones(24))


def test_scale_and_shift_of_the_vectors_change_nothing_else() -> None:
    x_ND, recipe = some_vectors().double(), Recipe(features=12, active=3, steps=50, seed=0)
    plain, other = library.train(x_ND, recipe), library.train(1000 * x_ND - 7, recipe)
    torch.testing.assert_close(other.decoder, plain.decoder)
    torch.testing.assert_close(
        other.reconstruct(1000 * x_ND - 7), 1000 * plain.reconstruct(x_ND) - 7
    )


def test_the_seed_decides_and_torch_s_generator_is_left_alone() -> None:
    x_ND, recipe = some_vectors(), Recipe(features=24, active=3, steps=30, seed=0)
    first = library.train(x_ND, recipe)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    with torch.no_grad():
        again = library.train(x_ND, recipe)
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("bias", "encoder", "decoder"):
        assert torch.equal(getattr(again, name), getattr(first, name))
        assert not getattr(again, name).requires_grad
    other = library.train(x_ND, Recipe(features=24, active=3, steps=30, seed=1))
    assert not torch.equal(other.decoder, first.decoder)


def test_a_step_is_one_of_adam_with_directions_brought_back_to_length_one() -> None:
    y_ND, recipe = some_vectors().double(), Recipe(features=12, active=3, steps=9, seed=0)
    learner = library._Learner(recipe, 6, torch.Generator().manual_seed(0), y_ND)
    weights = [weight.clone().requires_grad_() for weight in learner.weights]
    adam = torch.optim.Adam(weights, lr=0.01)
    for _ in range(5):
        coder = SparseAutoencoder(*weights, active=3)  # type: ignore[misc]
        loss = (y_ND - coder.reconstruct(y_ND)).square().mean()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        with torch.no_grad():
            weights[2] /= weights[2].norm(dim=1, keepdim=True)
        learner.step(y_ND, rate=0.01)
    for weight, expected in zip(learner.weights, weights, strict=True):
        torch.testing.assert_close(weight, expected.detach())


def test_training_tells_each_step_and_is_ended_by_what_is_raised() -> None:
    class EnoughError(Exception):
        pass

    told: list[tuple[int, int]] = []

    def tell(done: int, of: int) -> None:
        told.append((done, of))
        if done == 3:
            raise EnoughError

    x_ND = some_vectors()
    with pytest.raises(EnoughError):
        library.train(x_ND, Recipe(features=12, active=3, steps=5, seed=0), tell)
    assert told == [(1, 5), (2, 5), (3, 5)]
    with pytest.raises(UserError, match="no vectors"):
        library.train(x_ND[:0], Recipe(features=12, active=3, steps=5, seed=0))


def test_vectors_that_do_not_vary_are_reconstructed_by_the_bias() -> None:
    for value in (0.0, 3.3):
        x_ND = torch.full((100, 6), value)
        found = library.train(x_ND, Recipe(features=12, active=3, steps=20, seed=0))
        assert all(found.__dict__[name].isfinite().all() for name in ("bias", "encoder", "decoder"))
        torch.testing.assert_close(found.reconstruct(x_ND), x_ND)


# ---------------------------------------------------------------- in a model


def test_the_share_of_loss_recovered_is_known() -> None:
    density = torch.tensor([0.5, 0.0, 1.0, 0.0])
    quality = Quality(2.0, 2.5, 4.0, None, density)
    assert quality.nats_lost == 0.5
    assert quality.loss_recovered == 0.75
    assert quality.active == 1.5
    assert quality.dead == 0.5
    assert Quality(2.0, 4.0, 4.0, None, density).loss_recovered == 0
    assert Quality(2.0, 2.5, 2.001, None, density).loss_recovered is None


def test_where_everything_is_reconstructed_all_loss_is_recovered() -> None:
    model = small.rough(small.some_model())
    tokens = small.tokens(20, small.CONTEXT)
    targets = certain(model, tokens)
    exact = library.measure(mirrored(model.width), model, PLACE, tokens, targets)
    assert exact.loss_recovered == pytest.approx(1, abs=1e-9)
    assert exact.explained_variance == pytest.approx(1, abs=1e-9)
    assert exact.nats_lost == pytest.approx(0, abs=1e-9)
    assert exact.active == pytest.approx(model.width)
    recipe = Recipe(features=model.width, active=model.width, steps=1000, seed=0)
    x_ND = library.vectors(model, PLACE, small.tokens(200, small.CONTEXT, seed=1))
    learned = library.measure(library.train(x_ND, recipe), model, PLACE, tokens, targets)
    assert learned.loss_recovered == pytest.approx(1, abs=0.02)
    assert learned.explained_variance == pytest.approx(1, abs=0.01)


def test_where_nothing_is_reconstructed_no_loss_is_recovered() -> None:
    model = small.rough(small.some_model())
    tokens = small.tokens(20, small.CONTEXT)
    zeros = mirrored(model.width)
    zeros = SparseAutoencoder(zeros.bias, 0 * zeros.encoder, zeros.decoder, zeros.active)
    quality = library.measure(zeros, model, PLACE, tokens, certain(model, tokens))
    assert quality.loss_recovered == 0
    assert quality.active == 0
    assert quality.dead == 1
    assert quality.explained_variance is not None
    assert quality.explained_variance <= 0


def test_losses_and_densities_are_those_of_one_pass() -> None:
    """Whatever the number of windows in a pass."""
    model = small.rough(small.some_model())
    tokens = small.tokens(2 * library.WINDOWS_AT_ONCE + 3, small.CONTEXT)
    targets = certain(model, tokens)
    x_ND = library.vectors(model, PLACE, tokens)
    with torch.no_grad(), places.record(model, [PLACE]) as states:
        logits_BTV = model(tokens)
    torch.testing.assert_close(x_ND, states[PLACE].flatten(0, 1))
    coder = library.train(x_ND, Recipe(features=32, active=2, steps=5, seed=0))
    quality = library.measure(coder, model, PLACE, tokens, targets)
    loss = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), targets.flatten())
    assert quality.plain_nats == pytest.approx(float(loss))
    is_active_NF = coder.encode(x_ND) > 0
    torch.testing.assert_close(quality.density, is_active_NF.double().mean(dim=0))
    error, spread = (x_ND - coder.reconstruct(x_ND)).square(), (x_ND - x_ND.mean(dim=0)).square()
    assert quality.explained_variance == pytest.approx(1 - float(error.sum() / spread.sum()))


def test_a_dead_place_gives_finite_numbers() -> None:
    model = small.rough(small.some_model())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    tokens = small.tokens(20, small.CONTEXT)
    for place in library.has_vectors(model, tokens):
        x_ND = library.vectors(model, place, tokens)
        coder = library.train(x_ND, Recipe(features=12, active=3, steps=5, seed=0))
        quality = library.measure(coder, model, place, tokens, tokens)
        numbers = quality.nats_lost, quality.zero_nats, quality.active, quality.dead
        assert all(map(math.isfinite, numbers)), place
        assert quality.loss_recovered is None
        assert quality.explained_variance is None


def test_the_model_is_left_as_it_was() -> None:
    model = small.rough(small.some_model())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    tokens = small.tokens(20, small.CONTEXT)
    logits_BTV = model(tokens)
    x_ND = library.vectors(model, PLACE, tokens)
    coder = library.train(x_ND, Recipe(features=12, active=3, steps=5, seed=0))
    library.measure(coder, model, PLACE, tokens, tokens)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(tokens), logits_BTV)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_weights_of_attention_are_no_vectors() -> None:
    model = small.rough(small.some_model())
    tokens = small.tokens(small.CONTEXT, small.CONTEXT)
    (pattern, *_) = (name for name in places.names(model) if name.endswith(".pattern"))
    assert pattern not in library.has_vectors(model, tokens)
    with pytest.raises(UserError, match="no vector for each token"):
        library.vectors(model, pattern, tokens)
    with pytest.raises(UserError, match="no place"):
        library.vectors(model, "blocks.9.output", tokens)


@pytest.mark.parametrize("factor", [0.0, -2.0, 0.5])
def test_a_feature_is_scaled_where_it_is_active_and_nothing_else_is(factor: float) -> None:
    x_ND = some_vectors(count=40)
    coder = library.train(x_ND, Recipe(features=12, active=3, steps=50, seed=0))
    a_NF = coder.encode(x_ND)
    feature = int((a_NF > 0).sum(dim=0).argmax())
    x_BTD = x_ND.view(4, 10, 6)
    y_ND = library.scaled(coder, feature, factor)(x_BTD).flatten(0, 1)
    is_active_N = a_NF[:, feature] > 0
    assert 0 < is_active_N.sum() < 40
    assert torch.equal(y_ND[~is_active_N], x_ND[~is_active_N])
    scaled_NF = a_NF.clone()
    scaled_NF[:, feature] *= factor
    torch.testing.assert_close(y_ND - x_ND, coder.decode(scaled_NF) - coder.decode(a_NF))


def test_a_feature_times_one_is_the_vector_to_the_bit() -> None:
    x_BTD = some_vectors().view(3, 100, 6)
    x_BTD[0, :5] = -0.0
    coder = library.train(x_BTD.flatten(0, 1), Recipe(features=12, active=3, steps=5, seed=0))
    for feature in range(12):
        y_BTD = library.scaled(coder, feature, 1.0)(x_BTD.clone())
        assert torch.equal(y_BTD.view(torch.int32), x_BTD.view(torch.int32))
    for feature in (-1, 12):
        with pytest.raises(UserError, match=f"there is no feature {feature}; the last is 11"):
            library.scaled(coder, feature, 0.0)


# ---------------------------------------------------------------- the probe


def read(model: LanguageModel, batch: Batch | None = None, **changes: Any) -> list[Reading]:
    probe = probe_for("sparse_autoencoder", **changes)
    return list(probe.look(snapshot(model), batch or the_batch()))


VARIANTS = small.variants("models")


@pytest.mark.parametrize(
    "number", range(len(VARIANTS)), ids=[small.title(choice) for choice in VARIANTS]
)
def test_every_place_of_every_model_can_be_looked_at(number: int) -> None:
    model = small.model(VARIANTS[number]).eval()
    known = library.has_vectors(model, the_batch().tokens)
    readings = read(model, place="*", steps=2, features=1)
    assert {reading.where for reading in readings} == set(known)
    assert {name for name in places.names(model) if not name.endswith(".pattern")} == set(known)
    assert all(math.isfinite(reading.value) for reading in readings)


def test_the_probe_learns_from_one_half_and_is_measured_on_the_other() -> None:
    model, batch = small.rough(small.some_model()), the_batch(6)
    taken = {reading.measure: reading.value for reading in read(model, batch, steps=9)}
    x_ND = library.vectors(model, PLACE, batch.tokens[[0, 2, 4]])
    recipe = Recipe(features=4 * model.width, active=8, steps=9, seed=0)
    other = [1, 3, 5]
    quality = library.measure(
        library.train(x_ND, recipe), model, PLACE, batch.tokens[other], batch.targets[other]
    )
    assert taken["nats_lost"] == quality.nats_lost
    assert taken["active"] == quality.active <= 8
    assert taken["dead"] == quality.dead
    assert taken["explained_variance"] == quality.explained_variance


def test_the_probe_says_what_it_cannot_do() -> None:
    model = small.rough(small.some_model())
    with pytest.raises(UserError, match=r"place: blocks\.0\.attention\.pattern are weights of"):
        read(model, place="blocks.0.attention.pattern")
    with pytest.raises(UserError, match="sparse_autoencoder finds no place with a vector for each"):
        read(model, place="blocks.9.output")
    with pytest.raises(UserError, match="validation split has only one"):
        read(model, the_batch(1))


# ---------------------------------------------------------------- the explorer

QUICK = Wish(multiple=2, active=4, steps=60)


def found(one: Subject, place: str = PLACE, texts: Sequence[str] = (TEXT, TEXT[5:])) -> Features:
    return explorer.trained(one, LAST, place, texts, QUICK)


def an_active_one(one: Subject, features: Features, token: int) -> int:
    """A feature that is active where a token of TEXT is predicted."""
    number: int = explorer.at(one, features, read_before(one, token))["top"][0][0]
    return number


def read_before(one: Subject, token: int) -> list[int]:
    """What the model has read where a token of TEXT is predicted."""
    whole = look.Text.of(one, TEXT)
    window = whole.window(whole.window_of(token))
    return whole.ids[window.start : token + 1]


def test_features_are_looked_for_once_for_each_run_moment_and_place() -> None:
    one, told = subject(), []
    one.moments = [Moment(0, "", ""), Moment(0, "", "")]
    with pytest.raises(UserError, match="no features of"):
        explorer.known(one, LAST, PLACE)
    first = explorer.trained(
        one, LAST, PLACE, [TEXT], QUICK, told=lambda done, of: told.append((done, of))
    )
    assert told == [(number + 1, 60) for number in range(60)]
    assert explorer.trained(one, 1, PLACE, [TEXT], QUICK) is first
    assert explorer.known(one, LAST, PLACE) is first
    assert explorer.known_places(one, LAST) == [PLACE]
    assert explorer.known_places(one, 0) == []
    assert explorer.trained(one, 0, PLACE, [TEXT], QUICK) is not first
    assert explorer.trained(subject(), LAST, PLACE, [TEXT], QUICK) is not first
    assert explorer.trained(one, LAST, PLACE, [TEXT], QUICK) is first
    assert explorer.trained(one, LAST, PLACE, [TEXT[:60]], QUICK) is not first
    for number in range(explorer.KEPT):
        explorer.trained(one, LAST, "blocks.0.output", [TEXT], Wish(1, 1, 1, seed=number))
    assert explorer.known(one, 0, PLACE)
    for place in library.has_vectors(one.model, torch.tensor([one.ids(TEXT)[:8]])):
        explorer.trained(one, LAST, place, [TEXT], Wish(1, 1, 1))
    with pytest.raises(UserError, match="look for them first"):
        explorer.known(one, 0, PLACE)


def test_what_is_stopped_is_not_kept() -> None:
    one = subject()

    def stop(done: int, of: int) -> None:
        raise UserError("stopped")

    with pytest.raises(UserError, match="stopped"):
        explorer.trained(one, LAST, PLACE, [TEXT], QUICK, stop)
    with pytest.raises(UserError, match="look for them first"):
        explorer.known(one, LAST, PLACE)


def test_the_summary_lists_all_features_by_how_often_they_are_active() -> None:
    one = subject()
    features = found(one)
    told = explorer.summary(features)
    json.dumps(told)
    assert told["features"] == 2 * told["width"] == len(told["list"])
    assert {each["feature"] for each in told["list"]} == set(range(told["features"]))
    densities = [each["density"] for each in told["list"]]
    assert densities == sorted(densities, reverse=True)
    assert sum(densities) == pytest.approx(told["active"], rel=1e-4)
    assert told["active"] <= told["most_active"] == 4
    assert densities.count(0) / len(densities) == pytest.approx(told["dead"], rel=1e-4)
    windows = len(features.starts)
    assert told["tokens"] + told["held_out_tokens"] == windows * one.model.context
    assert told["held_out_tokens"] == windows // 4 * one.model.context
    assert told["nats"]["reconstructed"] != told["nats"]["plain"]


def test_three_windows_in_four_are_learned_from_and_the_fourth_is_measured() -> None:
    one = subject()
    features = found(one)
    read_WT = windows_read(features)
    next_WT = torch.tensor(features.ids)[1:].unfold(0, CONTEXT, CONTEXT)[: len(read_WT)]
    is_fourth = torch.tensor([number % 4 == 3 for number in range(len(read_WT))])
    assert 0 < is_fourth.sum() < len(read_WT) / 3
    learned_ND = library.vectors(one.model, PLACE, read_WT)
    learned_ND = learned_ND.view(len(read_WT), CONTEXT, -1)[~is_fourth].flatten(0, 1)
    recipe = Recipe(2 * one.model.width, QUICK.active, QUICK.steps, QUICK.seed)
    coder = library.train(learned_ND, recipe)
    torch.testing.assert_close(features.autoencoder.decoder, coder.decoder)
    quality = library.measure(coder, one.model, PLACE, read_WT[is_fourth], next_WT[is_fourth])
    torch.testing.assert_close(features.quality.density, quality.density)
    assert features.quality.plain_nats == pytest.approx(quality.plain_nats)
    assert features.quality.nats_lost == pytest.approx(quality.nats_lost, rel=1e-3)


def test_a_feature_s_texts_are_where_it_is_most_active() -> None:
    one = subject()
    features = found(one, texts=[TEXT])
    ids_WT = windows_read(features)
    a_NF = features.autoencoder.encode(library.vectors(one.model, PLACE, ids_WT))
    for each in explorer.summary(features)["list"][:5]:
        texts = explorer.texts_of(one, features, each["feature"])
        values = [text["value"] for text in texts]
        assert values == sorted(values, reverse=True)
        assert values[0] == each["largest"]
        assert all("".join(text["before"]) + text["next"] in TEXT for text in texts)
        a_N = a_NF[:, each["feature"]]
        assert values[0] == pytest.approx(float(a_N.max()), rel=1e-4)
        at = int(a_N.argmax())
        before = one.shown(features.ids[max(1, at + 1 - units.AROUND) : at + 1])
        assert (texts[0]["before"], texts[0]["next"]) == (before, one.shown(features.ids)[at + 1])


def windows_read(features: Features) -> Tensor:
    """The text in windows one behind the other, of shape (W, T)."""
    return torch.tensor(features.ids)[:-1].unfold(0, CONTEXT, CONTEXT)


def test_a_dead_feature_has_no_texts() -> None:
    one = subject()
    features = found(one)
    none = torch.zeros_like(features.values)
    dead = Features(**{**features.__dict__, "values": none})
    assert explorer.texts_of(one, dead, 0) == []
    with pytest.raises(UserError, match=r"has no feature 9999; the last is \d+"):
        explorer.texts_of(one, features, 9999)


def test_the_features_at_a_token_are_those_of_the_vector_there() -> None:
    one = subject()
    features, token = found(one), 30
    told = explorer.at(one, features, read_before(one, token))
    json.dumps(told)
    layers = look.look_at(one, LAST, TEXT, token, [])["layers"]
    (layer,) = (layer for layer in layers if layer["place"] == PLACE)
    assert told["length"] == pytest.approx(layer["length"], rel=1e-5)
    x_D = library.vectors(one.model, PLACE, torch.tensor([read_before(one, token)]))[-1]
    a_F = features.autoencoder.encode(x_D)
    assert told["active"] == len(told["top"]) == int((a_F > 0).sum())
    assert [feature for feature, _ in told["top"]] == a_F.argsort(descending=True)[
        : told["active"]
    ].tolist()
    expected = float((x_D - features.autoencoder.reconstruct(x_D)).norm())
    assert told["error"] == pytest.approx(expected, rel=1e-4)
    off = Scale(kind="scale", place="blocks.0.output", factor=0.0)
    with applied(one, one.model, [off], 0):
        assert explorer.at(one, features, read_before(one, token)) != told


def logits(one: Subject, features: Features, *arguments: Any) -> Tensor:
    """Of TEXT's first window, with a feature scaled."""
    tokens_BT = torch.tensor([one.ids(TEXT)[: one.model.context]])
    change = explorer.change(features, *arguments)
    with torch.no_grad(), places.changed(one.model, {PLACE: change}):
        return one.model(tokens_BT)[0]


def test_a_feature_that_is_switched_off_changes_the_predictions_and_times_one_changes_none() -> (
    None
):
    one = subject()
    features, token = found(one), 10
    feature = an_active_one(one, features, token)
    with torch.no_grad():
        plain_TV = one.model(torch.tensor([one.ids(TEXT)[: one.model.context]]))[0]
    assert torch.equal(logits(one, features, feature, 1.0), plain_TV)
    assert torch.equal(logits(one, features, feature, 1.0, token), plain_TV)
    assert not torch.equal(logits(one, features, feature, 0.0)[token], plain_TV[token])
    at_token_TV = logits(one, features, feature, 0.0, token)
    assert torch.equal(at_token_TV[:token], plain_TV[:token])
    assert not torch.equal(at_token_TV[token], plain_TV[token])
    later_TV = logits(one, features, feature, 0.0, token + 3, 3)
    assert torch.equal(later_TV, at_token_TV)
    assert torch.equal(logits(one, features, feature, 0.0, 9999), plain_TV)
    with pytest.raises(UserError, match="has no feature 9999"):
        logits(one, features, 9999, 0.0)


def test_what_cannot_be_looked_for_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    one = subject()
    for text in ("", "abc"):
        with pytest.raises(UserError, match="two windows of 16 at least"):
            found(one, texts=[text])
    with pytest.raises(UserError, match="no vector for each token"):
        found(one, place="blocks.0.attention.pattern")
    monkeypatch.setattr(explorer, "MOST_FEATURES", 10)
    with pytest.raises(UserError, match="more than 10; look for fewer"):
        found(one)


def test_of_much_text_windows_evenly_spaced_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "MOST_WINDOWS", 4)
    assert explorer._starts(1 + 16 * 8, 16) == [0, 32, 64, 96]
    assert explorer._starts(1 + 16 * 3, 16) == [0, 16, 32]
    assert explorer._is_held_out(3).tolist() == [False, False, True]
    assert explorer._is_held_out(9).nonzero().flatten().tolist() == [3, 7]
