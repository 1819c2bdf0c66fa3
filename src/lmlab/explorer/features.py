"""What a sparse autoencoder finds at a place: features, where each is active, and a switch for it.

The autoencoder (lmlab.evaluation.autoencoder) is trained here, in seconds, on the model's own
vectors for some text, once for each run, moment and place. Three windows of text in four are
learned from, the fourth is what its measures are of.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.evaluation import autoencoder as library
from lmlab.evaluation.autoencoder import Quality, Recipe, SparseAutoencoder, Told
from lmlab.explorer.subject import Subject
from lmlab.explorer.units import AROUND, SHOWN
from lmlab.model import places

MOST_WINDOWS = 200
MOST_TOKENS = 32_768
"""Of text that are read; of more, windows evenly spaced over it."""
MOST_FEATURES = 16_384
HELD_OUT = 4
"""One window in so many is not learned from."""
KEPT = 8
"""Autoencoders of a run; one more and the oldest is forgotten."""


@dataclass(frozen=True)
class Wish:
    """Which autoencoder is wanted."""

    multiple: int = 4
    """Features, as a multiple of the place's width."""
    active: int = 8
    """Features that a token may have at most."""
    steps: int = 500
    seed: int = 0


@dataclass(frozen=True)
class Features:
    """A trained autoencoder, and where its features were active in the text that was read."""

    moment: int
    place: str
    autoencoder: SparseAutoencoder
    quality: Quality
    ids: list[int]
    """Of the text, BOS before each piece."""
    starts: list[int]
    """Of the windows that were read, W of them."""
    found: Tensor
    """The numbers of the features that were most active, of shape (W, T, k)."""
    values: Tensor
    """How active each of these was; 0: not at all."""
    made_of: tuple[Wish, tuple[str, ...]]

    def checked(self, feature: int) -> int:
        """Raises UserError where there is no such feature."""
        if not 0 <= feature < self.autoencoder.features:
            raise UserError(
                f"{self.place} has no feature {feature}; the last is"
                f" {self.autoencoder.features - 1}"
            )
        return feature


_trained: WeakKeyDictionary[Subject, dict[tuple[int, str], Features]] = WeakKeyDictionary()


def trained(
    subject: Subject,
    moment: int,
    place: str,
    texts: Sequence[str],
    wish: Wish | None = None,
    told: Told | None = None,
) -> Features:
    """The features of a place at a moment, found in texts; the same call again takes no time.

    `told` is called after each step of training, with the steps done and all there are; what it
    raises ends the training, and nothing is kept. Raises UserError for a place that has no vector
    for each token, for fewer than two windows of text, and for too many features.
    """
    wish = wish or Wish()
    moment = range(len(subject.moments))[moment]
    made_of = wish, tuple(texts)
    kept = _trained.setdefault(subject, {})
    before = kept.get((moment, place))
    if before is None or before.made_of != made_of:
        features = _train(subject, moment, place, made_of, told)
        kept.pop((moment, place), None)
        kept[moment, place] = features
        while len(kept) > KEPT:
            del kept[next(iter(kept))]
    return kept[moment, place]


def known(subject: Subject, moment: int, place: str) -> Features:
    """The features that were found last at a place and a moment.

    Raises UserError where none were, or where they are forgotten.
    """
    moment = range(len(subject.moments))[moment]
    features = _trained.get(subject, {}).get((moment, place))
    if features is None:
        raise UserError(f"no features of {place} are known at this moment; look for them first")
    return features


def known_places(subject: Subject, moment: int) -> list[str]:
    """The places of which features are known at a moment."""
    moment = range(len(subject.moments))[moment]
    return [place for number, place in _trained.get(subject, {}) if number == moment]


@torch.no_grad()
def _train(
    subject: Subject,
    moment: int,
    place: str,
    made_of: tuple[Wish, tuple[str, ...]],
    told: Told | None,
) -> Features:
    wish, texts = made_of
    model, width = subject.at(moment), subject.model.context
    ids = [id_ for text in texts if text for id_ in subject.ids(text)]
    starts = _starts(len(ids), width)
    rows_WT = torch.tensor([ids[start : start + width + 1] for start in starts])
    x_ND = library.vectors(model, place, rows_WT[:, :-1])
    if not x_ND.isfinite().all():
        raise UserError(
            f"{place} gives no numbers at this moment: training diverged; choose an earlier one"
        )
    recipe = _recipe(place, wish, x_ND.shape[1])
    is_held_out = _is_held_out(len(starts))
    learned_ND = x_ND.view(len(starts), width, -1)[~is_held_out].flatten(0, 1)
    autoencoder = library.train(learned_ND, recipe, told)
    rest_WT = rows_WT[is_held_out]
    quality = library.measure(autoencoder, model, place, rest_WT[:, :-1], rest_WT[:, 1:])
    values_NK, found_NK = _most_active(autoencoder, x_ND)
    return Features(
        moment=moment,
        place=place,
        autoencoder=autoencoder,
        quality=quality,
        ids=ids,
        starts=starts,
        found=found_NK.view(len(starts), width, -1),
        values=values_NK.view(len(starts), width, -1),
        made_of=made_of,
    )


def _recipe(place: str, wish: Wish, width: int) -> Recipe:
    features = wish.multiple * width
    if features > MOST_FEATURES:
        raise UserError(
            f"{place} has {width:,} numbers a token, and {wish.multiple} times as many features are"
            f" more than {MOST_FEATURES:,}; look for fewer"
        )
    return Recipe(features, min(wish.active, features), wish.steps, wish.seed)


def _starts(count: int, width: int) -> list[int]:
    """Where the windows begin in so many ids: one behind the other, all with a token behind them.

    Raises UserError where there are fewer than two.
    """
    starts = list(range(0, count - width, width))
    if len(starts) < 2:
        raise UserError(
            f"the text has {count:,} tokens; to look for features it takes two windows of"
            f" {width:,} at least"
        )
    most = max(2, min(MOST_WINDOWS, MOST_TOKENS // width, len(starts)))
    return [starts[number * len(starts) // most] for number in range(most)]


def _is_held_out(windows: int) -> Tensor:
    """Which windows are not learned from: one in HELD_OUT, or the last of fewer."""
    number_W = torch.arange(windows)
    return number_W % HELD_OUT == min(HELD_OUT, windows) - 1


def _most_active(autoencoder: SparseAutoencoder, x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """The activations of the most active features of each vector, and these, of shape (N, k)."""
    pairs = [
        autoencoder.encode(x_ND[first : first + library.BATCH]).topk(autoencoder.active, dim=-1)
        for first in range(0, len(x_ND), library.BATCH)
    ]
    values, found = zip(*pairs, strict=True)
    return torch.cat(values), torch.cat(found)


# ---------------------------------------------------------------- what is shown


def summary(features: Features) -> dict[str, Any]:
    """How good the autoencoder is, and its features, those that are active most often first.

    `nats` are those of the held-out windows, with what flows at the place as it is, reconstructed,
    and zero; `density` is the share of held-out tokens at which a feature is active, `largest` its
    highest activation in all that was read.
    """
    autoencoder, quality = features.autoencoder, features.quality
    held_out = int(_is_held_out(len(features.starts)).sum())
    width = features.found.shape[1]
    return {
        "place": features.place,
        "moment": features.moment,
        "width": autoencoder.decoder.shape[1],
        "features": autoencoder.features,
        "most_active": autoencoder.active,
        "tokens": (len(features.starts) - held_out) * width,
        "held_out_tokens": held_out * width,
        "nats": {
            "plain": _short(quality.plain_nats),
            "reconstructed": _short(quality.reconstructed_nats),
            "zero": _short(quality.zero_nats),
        },
        "loss_recovered": _short(quality.loss_recovered),
        "explained_variance": _short(quality.explained_variance),
        "active": _short(quality.active),
        "dead": _short(quality.dead),
        "list": _listed(features),
    }


def _listed(features: Features) -> list[dict[str, Any]]:
    density_F = features.quality.density.tolist()
    largest_F = torch.zeros(len(density_F), dtype=features.values.dtype).scatter_reduce(
        0, features.found.flatten(), features.values.flatten(), "amax"
    )
    return [
        {
            "feature": feature,
            "density": _short(density_F[feature]),
            "largest": _short(float(largest_F[feature])),
        }
        for feature in sorted(range(len(density_F)), key=lambda feature: -density_F[feature])
    ]


def texts_of(subject: Subject, features: Features, feature: int) -> list[dict[str, Any]]:
    """The places in the text at which a feature is most active, at most one in each window; none
    where it is dead. Each is told as `units.texts_of` tells it.
    """
    of_feature = features.found == features.checked(feature)
    value_WT = (features.values * of_feature).sum(dim=-1)
    value_W, position_W = value_WT.max(dim=-1)
    told = []
    for window in value_W.argsort(descending=True, stable=True)[:SHOWN].tolist():
        if value_W[window] > 0:
            at = features.starts[window] + int(position_W[window])
            before = features.ids[max(1, at + 1 - AROUND) : at + 1]
            told.append(
                {
                    "value": _short(float(value_W[window])),
                    "before": subject.shown(before),
                    "next": subject.shown([features.ids[at + 1]])[0],
                }
            )
    return told


@torch.no_grad()
def at(subject: Subject, features: Features, ids: Sequence[int]) -> dict[str, Any]:
    """The features that are active where the token behind `ids` is predicted, the most active
    first, in the form of a layer of `look.look_at`.

    `ids` are what the model reads, at most a context of them. `length` is that of the vector, and
    `error` that of what the features do not explain of it. Inside `changes.applied` it is that of
    the changed model.
    """
    model = subject.at(features.moment)
    x_D = library.vectors(model, features.place, torch.tensor([list(ids)]))[-1]
    a_F = features.autoencoder.encode(x_D)
    top = a_F.topk(features.autoencoder.active)
    active = [
        [feature, _short(value)]
        for feature, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        if value > 0
    ]
    return {
        "place": features.place,
        "size": features.autoencoder.features,
        "length": _short(float(x_D.norm())),
        "error": _short(float((x_D - features.autoencoder.decode(a_F)).norm())),
        "active": len(active),
        "top": active,
    }


def _short(value: float | None) -> float | None:
    """Six digits: what a page shows, in fewer bytes."""
    return None if value is None else float(f"{value:.6g}")


# ---------------------------------------------------------------- what is changed


def change(
    features: Features, feature: int, factor: float, token: int | None = None, begin: int = 0
) -> places.Change:
    """A feature scaled at its place, x -> x + (factor - 1) a_f(x) d_f: 0 switches it off, 1 gives x
    back, to the bit.

    `token` is the one whose prediction it acts on, None: all; `begin` is the token that the model's
    first position predicts. Raises UserError where there is no such feature.
    """
    scale = library.scaled(features.autoencoder, features.checked(feature), factor)

    def at_token(x: Tensor) -> Tensor:
        if token is None:
            return scale(x)
        position = token - begin
        if 0 <= position < x.shape[1]:
            x[:, position : position + 1] = scale(x[:, position : position + 1])
        return x

    return at_token
