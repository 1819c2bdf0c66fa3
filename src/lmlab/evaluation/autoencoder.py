"""Sparse autoencoders: the vectors at a place of a model as sums of few directions out of many.

A layer of width D may hold more than D features at once, in directions that are not orthogonal, as
long as few of them are active at a time: superposition (Elhage et al. 2022). A sparse autoencoder
looks for such directions without being told what they stand for (Bricken et al. 2023, "Towards
monosemanticity"; Cunningham et al. 2023). Of a vector x it makes activations a of F features, and
of these the reconstruction x̂:

    a = TopK(relu(W (x - b)))        x̂ = b + sum over f of a_f d_f

with directions d_f of length 1 and a pre-bias b. TopK keeps the k largest and sets the others to 0
(Gao et al. 2024, "Scaling and evaluating sparse autoencoders"). So k is how many features a token
may have, where the older penalty on the sum of activations needs a weight to be tuned, and makes
all activations too small. All that is left to minimise is |x - x̂|².

A feature that is never among the k largest gets no gradient and stays dead. By the auxiliary loss
of that paper, features that were idle for a while reconstruct what the others leave over.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.model.places import Change, changed, record

BATCH = 512
"""Vectors in a step."""
LEARNING_RATE = 0.005
"""Of a step with 512 features; it goes with one over the root of their number (Gao et al. 2024)."""
DECAY = 0.2
"""Share of the steps, the last ones, in which the learning rate falls to zero."""
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Of Adam (Kingma & Ba 2015)."""
IDLE_AFTER = 200
"""A feature is idle that would have been active so many times since it last was, were all features
equally often. (Sooner, and features that are only rare are disturbed; later, and the idle learn too
late. In the default run, of 512 features with 8 active, 4.5 % were dead without the auxiliary loss
and 0.2 % with it; with 4 active, 27 % and 4 %.)
"""
IDLE_ACTIVE = 32
"""How many idle features reconstruct at a time what the others leave over."""
WINDOWS_AT_ONCE = 16
"""In a pass of the model."""
LEAST_NATS = 0.01
"""A place that is worth less than this has no loss to recover."""
LEAST_VARIANCE = 1e-12
"""As a share of the mean square; vectors that vary less do so by rounding."""

Told = Callable[[int, int], None]
"""What is called after each step, with the steps done and all there are."""


@dataclass(frozen=True)
class SparseAutoencoder:
    """A trained autoencoder. Its vectors may have any dimensions before the last."""

    bias: Tensor
    """b, shape (D,)."""
    encoder: Tensor
    """W, shape (F, D)."""
    decoder: Tensor
    """The direction d_f of each feature, of length 1, shape (F, D)."""
    active: int
    """k: the most features that are active at a time."""

    @property
    def features(self) -> int:
        """F."""
        return len(self.decoder)

    def scores(self, x_ND: Tensor) -> Tensor:
        """W (x - b), of which the largest become activations, shape (N, F)."""
        return (x_ND - self.bias) @ self.encoder.T

    def encode(self, x_ND: Tensor) -> Tensor:
        """a_NF: how active each feature is, at least 0, in units of x; at most k are not 0."""
        return largest(self.scores(x_ND), self.active)

    def decode(self, a_NF: Tensor) -> Tensor:
        """x̂_ND."""
        return a_NF @ self.decoder + self.bias

    def reconstruct(self, x_ND: Tensor) -> Tensor:
        """x̂_ND of x_ND."""
        return self.decode(self.encode(x_ND))


def largest(scores_NF: Tensor, count: int) -> Tensor:
    """The `count` largest of each row where they are positive; everything else is 0."""
    highest = scores_NF.topk(min(count, scores_NF.shape[-1]), dim=-1)
    return torch.zeros_like(scores_NF).scatter(-1, highest.indices, highest.values.relu())


# ---------------------------------------------------------------- training


@dataclass(frozen=True)
class Recipe:
    """How an autoencoder is made."""

    features: int
    active: int
    steps: int
    seed: int
    """Decides the first directions and the order of the vectors."""


def train(x_ND: Tensor, recipe: Recipe, told: Told | None = None) -> SparseAutoencoder:
    """An autoencoder of the vectors, by `recipe.steps` steps of Adam on BATCH vectors each.

    It follows from the vectors and the recipe alone; torch's generator is neither used nor moved.
    What `told` raises ends the training and is passed on. Raises UserError where there is no
    vector.
    """
    if not len(x_ND):
        raise UserError("there are no vectors to train a sparse autoencoder on")
    rng = torch.Generator().manual_seed(recipe.seed)
    x_ND = x_ND.detach().to(torch.promote_types(x_ND.dtype, torch.float32))
    mean_D = x_ND.double().mean(dim=0).to(x_ND)
    size = (x_ND - mean_D).square().mean().sqrt()
    y_ND = (x_ND - mean_D) / (size if size > 0 else 1)  # so that one learning rate suits all
    learner = _Learner(recipe, x_ND.shape[1], rng, y_ND)
    batches = _batches(len(y_ND), rng)
    for step in range(recipe.steps):
        learner.step(y_ND[next(batches).to(y_ND.device)], _learning_rate(recipe, step))
        if told:
            told(step + 1, recipe.steps)
    bias_D, encoder_FD, decoder_FD = learner.weights
    # relu and TopK pass scale on: in units of x only the bias is another
    return SparseAutoencoder(mean_D + size * bias_D, encoder_FD, decoder_FD, recipe.active)


def _learning_rate(recipe: Recipe, step: int) -> float:
    """It is constant, then falls linearly to zero."""
    left = (recipe.steps - step) / recipe.steps
    return LEARNING_RATE * (512 / recipe.features) ** 0.5 * min(1.0, left / DECAY)


def _batches(count: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Numbers of vectors, BATCH at a time, round after round in a new order; fewer where there are
    fewer.
    """
    size = min(BATCH, count)
    while True:
        order_N = torch.randperm(count, generator=rng)
        for first in range(0, count - size + 1, size):
            yield order_N[first : first + size]


class _Learner:
    """An autoencoder's weights while they learn."""

    def __init__(self, recipe: Recipe, width: int, rng: torch.Generator, like: Tensor) -> None:
        """Directions are drawn evenly from all, and the encoder begins as the decoder (Gao et al.
        2024).
        """
        drawn_FD = torch.randn(recipe.features, width, generator=rng).to(like)
        decoder_FD = drawn_FD / drawn_FD.norm(dim=1, keepdim=True)
        self.weights = [like.new_zeros(width), decoder_FD.clone(), decoder_FD]
        self.moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in self.weights]
        self.active, self.steps = recipe.active, 0
        self.idle_after = IDLE_AFTER * recipe.features / recipe.active
        self.idle_F = torch.zeros(recipe.features, dtype=torch.long, device=like.device)
        """Vectors since each feature was last active."""

    def step(self, y_ND: Tensor, rate: float) -> None:
        """A step of Adam, after which each direction has length 1 again."""
        with torch.enable_grad():
            bias, encoder, decoder = (weight.detach().requires_grad_() for weight in self.weights)
            loss = self._loss(SparseAutoencoder(bias, encoder, decoder, self.active), y_ND)
            gradients = torch.autograd.grad(loss, (bias, encoder, decoder))
        self.steps += 1
        for weight, gradient, moments in zip(self.weights, gradients, self.moments, strict=True):
            self._update(weight, gradient, moments, rate)
        decoder_FD = self.weights[2]
        decoder_FD /= decoder_FD.norm(dim=1, keepdim=True)

    def _update(
        self, weight: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], rate: float
    ) -> None:
        """Move a weight, in place, by the running means of its gradient and of the square."""
        first, second = moments
        first.lerp_(gradient, 1 - BETA1)
        second.lerp_(gradient.square(), 1 - BETA2)
        mean = first / (1 - BETA1**self.steps)
        root_mean_square = (second / (1 - BETA2**self.steps)).sqrt()
        weight -= rate * mean / (root_mean_square + EPSILON)

    def _loss(self, coder: SparseAutoencoder, y_ND: Tensor) -> Tensor:
        """The mean square of what is not reconstructed, plus that of what the idle features, by
        themselves, do not reconstruct of it (Gao et al. 2024, where it counts a 32nd as much).
        """
        scores_NF = coder.scores(y_ND)
        a_NF = largest(scores_NF, coder.active)
        left_ND = y_ND - coder.decode(a_NF)
        loss = left_ND.square().mean()
        idle = (self.idle_F >= self.idle_after).nonzero().squeeze(-1)
        if len(idle):
            b_NI = largest(scores_NF.index_select(1, idle), IDLE_ACTIVE)
            by_idle_ND = b_NI @ coder.decoder.index_select(0, idle)
            loss = loss + (left_ND.detach() - by_idle_ND).square().mean()
        was_active_F = (a_NF > 0).any(dim=0)
        self.idle_F = (self.idle_F + len(y_ND)).masked_fill(was_active_F, 0)
        return loss


# ---------------------------------------------------------------- in a model


@dataclass(frozen=True)
class Quality:
    """How good an autoencoder is, on text that it was not trained on."""

    plain_nats: float
    """The model's loss as it is, in nats per token."""
    reconstructed_nats: float
    """With the reconstruction in place of what flows there."""
    zero_nats: float
    """With zeros there."""
    explained_variance: float | None
    """1 - sum of |x - x̂|² / sum of |x - mean|²; None where the vectors do not vary."""
    density: Tensor
    """The share of tokens at which each feature is active, shape (F,)."""

    @property
    def nats_lost(self) -> float:
        """What the model loses by the reconstruction, in nats per token."""
        return self.reconstructed_nats - self.plain_nats

    @property
    def loss_recovered(self) -> float | None:
        """(zero - reconstructed) / (zero - plain): 1 if the reconstruction does what x does, 0 if
        it is as good as none.

        It is measured against zeros, as in Bricken et al. 2023, for they are the same whatever the
        data, and zeros in the stream leave a model next to nothing to predict from. (The mean of
        the vectors can do more harm than zeros do, and so flatter the autoencoder.) None where
        zeros cost less than LEAST_NATS, as before training.
        """
        worth = self.zero_nats - self.plain_nats
        return 1 - self.nats_lost / worth if worth >= LEAST_NATS else None

    @property
    def active(self) -> float:
        """L0: how many features are active at a token on average."""
        return float(self.density.sum())

    @property
    def dead(self) -> float:
        """The share of features that are active nowhere in this text."""
        return float((self.density == 0).double().mean())


def has_vectors(model: LanguageModel, tokens_BT: Tensor) -> list[str]:
    """The places that have a vector for each token: all but weights of attention."""
    with torch.no_grad(), record(model) as states:
        model(tokens_BT[:1])
    return [name for name, x in states.items() if _is_of_tokens(name, x, tokens_BT[:1])]


def _is_of_tokens(place: str, x: Tensor, tokens_BT: Tensor) -> bool:
    return not place.endswith(".pattern") and x.ndim > 2 and x.shape[:2] == tokens_BT.shape


def _pieces(x: Tensor, size: int) -> Iterator[Tensor]:
    for first in range(0, len(x), size):
        yield x[first : first + size]


@torch.no_grad()
def vectors(model: LanguageModel, place: str, tokens_BT: Tensor) -> Tensor:
    """What flows through a place, a vector for each token: x_ND.

    What has several dimensions there, such as a head and its numbers, is one vector. Raises
    UserError for a place that does not exist or has no vector for each token.
    """
    found = []
    for batch_BT in _pieces(tokens_BT, WINDOWS_AT_ONCE):
        with record(model, [place]) as states:
            model(batch_BT)
        x = states[place]
        if not _is_of_tokens(place, x, batch_BT):
            raise UserError(f"place {place}: it has no vector for each token; choose another")
        found.append(x.flatten(2).flatten(0, 1))
    return torch.cat(found)


def measure(
    autoencoder: SparseAutoencoder,
    model: LanguageModel,
    place: str,
    tokens_BT: Tensor,
    targets_BT: Tensor,
) -> Quality:
    """The autoencoder of a place on other text than it was trained on. The model, in evaluation
    mode, is left as it was.
    """

    def reconstruction(x: Tensor) -> Tensor:
        pieces = _pieces(x.flatten(2).flatten(0, 1), BATCH)
        return torch.cat([autoencoder.reconstruct(piece_ND) for piece_ND in pieces]).view_as(x)

    x_ND = vectors(model, place, tokens_BT)
    error, active_F = 0.0, torch.zeros_like(autoencoder.encoder[:, 0], dtype=torch.float64)
    for part_ND in _pieces(x_ND, BATCH):
        a_NF = autoencoder.encode(part_ND)
        active_F += (a_NF > 0).sum(dim=0)
        error += float((part_ND - autoencoder.decode(a_NF)).double().square().sum())
    return Quality(
        plain_nats=_loss(model, tokens_BT, targets_BT),
        reconstructed_nats=_loss(model, tokens_BT, targets_BT, {place: reconstruction}),
        zero_nats=_loss(model, tokens_BT, targets_BT, {place: torch.zeros_like}),
        explained_variance=_explained(x_ND, error),
        density=active_F / len(x_ND),
    )


def _explained(x_ND: Tensor, error: float) -> float | None:
    """The share of the variance that is explained where the sum of squared errors is `error`."""
    x_ND = x_ND.double()
    variance = float((x_ND - x_ND.mean(dim=0)).square().sum())
    return 1 - error / variance if variance > LEAST_VARIANCE * x_ND.square().sum() else None


@torch.no_grad()
def _loss(
    model: LanguageModel,
    tokens_BT: Tensor,
    targets_BT: Tensor,
    changes: dict[str, Change] | None = None,
) -> float:
    """The model's loss with changes at some places, in nats per token."""
    total = 0.0
    with changed(model, changes or {}):
        for first in range(0, len(tokens_BT), WINDOWS_AT_ONCE):
            batch_BT = tokens_BT[first : first + WINDOWS_AT_ONCE]
            answers_BT = targets_BT[first : first + WINDOWS_AT_ONCE]
            total += float(next_token_loss(model(batch_BT), answers_BT)) * answers_BT.numel()
    return total / targets_BT.numel()


def scaled(autoencoder: SparseAutoencoder, feature: int, factor: float) -> Change:
    """A change that scales one feature at the autoencoder's place and leaves everything else:

        x -> x + (factor - 1) a_f(x) d_f

    0 switches it off; 1 gives x back, to the bit; where it is not active nothing changes. What the
    autoencoder does not reconstruct stays in x. Raises UserError where there is no such feature.
    """
    if not 0 <= feature < autoencoder.features:
        raise UserError(f"there is no feature {feature}; the last is {autoencoder.features - 1}")

    def change(x: Tensor) -> Tensor:
        if factor == 1:
            return x
        activation = autoencoder.encode(x.flatten(2))[..., feature, None]
        return x + ((factor - 1) * activation * autoencoder.decoder[feature]).view_as(x)

    return change
