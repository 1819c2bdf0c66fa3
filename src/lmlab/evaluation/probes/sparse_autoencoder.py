"""What a sparse autoencoder finds at a place (Bricken et al. 2023; Gao et al. 2024).

The autoencoder is that of lmlab.evaluation.autoencoder. It is trained on every other window of the
probe batch and measured on those between, so no number is about text that it has seen. The usual 8
windows of 128 tokens leave 512 tokens to learn from, and much of what is then lost is lost for want
of text; with 128 windows hardly anything is (docs/measures.md).
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import ClassVar

from pydantic import Field

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.evaluation.autoencoder import Quality, Recipe, has_vectors, measure, train, vectors
from lmlab.evaluation.probes.base import Batch, Probe, Reading, Snapshot, nothing_to_look_at

OPTION = "probes.sparse_autoencoder.place"


class Options(Params):
    """Options of the probe."""

    place: str = Field(min_length=1)
    features: int = Field(ge=1, le=1024)
    active: int = Field(ge=1, le=100_000)
    steps: int = Field(ge=1, le=1_000_000)
    seed: int = Field(ge=0, lt=2**63)


class SparseAutoencoder(Probe):
    """An autoencoder at each place that fits `place`, with `features` times the place's width many
    features, at most `active` of them active at a token.

    `nats_lost`: what the model loses per token if the reconstruction takes the place of what flows
    there. `loss_recovered`: 1 less that, as a share of what it loses by zeros there; left out where
    zeros cost next to nothing, as before training. `explained_variance` of the vectors; left out
    where they do not vary. `active`: features active at a token on average (L0). `dead`: the share
    of features that no token of the windows it is measured on activates.
    """

    reading = (
        "Loss recovered: near 1 if a few features a token do for the model what the whole vector"
        " does; usually above 0.9, less where it had few windows to learn from. Explained variance"
        " is high in untrained models too, and few features should be dead."
    )
    needs: ClassVar = f"place with a vector for each token that fits {OPTION}"

    def __init__(self, options: Options) -> None:
        super().__init__()
        if options.place.endswith(".pattern"):
            raise UserError(
                f"params.yaml: {OPTION}: {options.place} are weights of attention, which are no"
                " vector for each token; name another, such as blocks.1.output"
            )
        self.options = options

    def look(self, snapshot: Snapshot, batch: Batch) -> Iterator[Reading]:
        if len(batch.tokens) < 2:
            raise UserError(
                "params.yaml: probe.probes: sparse_autoencoder learns from one half of the windows"
                " and is measured on the other, and the validation split has only one;"
                " raise download.validation, lower train.context or leave it out"
            )
        known = has_vectors(snapshot.model, batch.tokens)
        places = [place for place in known if fnmatchcase(place, self.options.place)]
        if not places:
            raise nothing_to_look_at(self, snapshot)
        for place in places:
            quality = self._quality(snapshot, batch, place)
            yield Reading("nats_lost", place, quality.nats_lost)
            if quality.loss_recovered is not None:
                yield Reading("loss_recovered", place, quality.loss_recovered)
            if quality.explained_variance is not None:
                yield Reading("explained_variance", place, quality.explained_variance)
            yield Reading("active", place, quality.active)
            yield Reading("dead", place, quality.dead)

    def _quality(self, snapshot: Snapshot, batch: Batch, place: str) -> Quality:
        """Trained on the first window, the third and so on, measured on the others."""
        options = self.options
        x_ND = vectors(snapshot.model, place, batch.tokens[::2])
        features = options.features * x_ND.shape[1]
        recipe = Recipe(features, options.active, options.steps, options.seed)
        autoencoder = train(x_ND, recipe)
        return measure(autoencoder, snapshot.model, place, batch.tokens[1::2], batch.targets[1::2])
