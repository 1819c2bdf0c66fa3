"""The weights between two runs: what the average of two models gives, and whether a barrier lies
between them.

Two runs are linearly connected where the loss along the straight line between their weights nowhere
rises above that line between their losses (Frankle et al. 2020, "Linear mode connectivity and the
lottery ticket hypothesis"); then their average may be better than either (Wortsman et al. 2022,
"Model soups"). Two runs that went on from the same one often are; two from scratch are not.
"""

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lmlab.core import params
from lmlab.core.errors import UserError
from lmlab.core.params import Tree
from lmlab.core.progress import ProgressBar
from lmlab.data.shards import Shards, open_shards
from lmlab.experiments import starting
from lmlab.experiments.stages.layout import Layout
from lmlab.model.device import use_device
from lmlab.model.models import base as models
from lmlab.model.models.base import LanguageModel
from lmlab.model.record import ModelRecord, differences
from lmlab.model.scoring import validation_bits
from lmlab.training.status import how_it_diverged
from lmlab.training.step import TrainParams


def interpolate(tree: Tree, layout: Layout, names: tuple[str, str], points: int) -> dict[str, Any]:
    """Bits per byte on the workspace's validation text at `points` places from the first run's
    weights to the second's, in windows that do not overlap.

    `barrier` is how far the worst of them lies above the straight line between the two runs' own.
    Raises UserError where the runs' models or tokenizers are not the same.
    """
    section = params.section(tree, "train", TrainParams)
    device = use_device(section.device, section.threads)
    shards = open_shards(layout.shards, layout.tokenizer_file)
    (first, of_first), (second, of_second) = (_model(name, device) for name in names)
    _check_alike(names, of_first, of_second, shards)
    shares = [place / (points - 1) for place in range(points)]
    between = copy.deepcopy(first)
    bits = []
    with ProgressBar("interpolate", points, "points") as bar:
        for share in shares:
            _put_between(between, first, second, share)
            bits.append(validation_bits(between, shards))
            bar.advance(1)
    line = [bits[0] + share * (bits[-1] - bits[0]) for share in shares]
    barrier = max(value - on_line for value, on_line in zip(bits, line, strict=True))
    return {
        "runs": list(names),
        "share_of_the_second": shares,
        "bits_per_byte": bits,
        "barrier": barrier,
        "gain": min(bits[0], bits[-1]) - min(bits),
    }


def lines(outcome: dict[str, Any]) -> Iterator[str]:
    """What was found, for the screen."""
    first, second = outcome["runs"]
    yield f"from {first} (0) to {second} (1):"
    for share, bits in zip(outcome["share_of_the_second"], outcome["bits_per_byte"], strict=True):
        yield f"  {share:4.2f}  {bits:.4f} bits per byte"
    yield f"barrier above the straight line: {outcome['barrier']:.4f}"
    if outcome["gain"] > 0:
        yield f"the best point is {outcome['gain']:.4f} below the better run"
    else:
        yield "no point between is below the better run"


def _model(name: str, device: torch.device) -> tuple[LanguageModel, ModelRecord]:
    """The model of a run, from DVC's cache."""
    with tempfile.TemporaryDirectory() as scratch:
        starting.made(name, starting.project()).lay_out("data/model", Path(scratch))
        model, saved = models.load(Path(scratch, "model"), device)
    if diverged := how_it_diverged(saved):
        raise UserError(f"{name} has no weights to go between: its training {diverged}")
    return model, saved


def _check_alike(
    names: tuple[str, str], first: ModelRecord, second: ModelRecord, shards: Shards
) -> None:
    """Raise UserError where there is nothing between two models, or no text to score them on."""
    if different := differences(first.model, second.model, f"models.{first.model['name']}"):
        raise UserError(
            f"{names[1]} has other parts than {names[0]}:"
            f" {'; '.join(different).replace('the start', names[0])}; name two runs of the same"
            " model"
        )
    for name, record in zip(names, (first, second), strict=True):
        if record.tokenizer_sha256 != shards.manifest.tokenizer_sha256:
            raise UserError(
                f"{name} has another tokenizer than the workspace, whose validation text is scored;"
                f" name runs with the workspace's, or `dvc exp apply {name}` first"
            )


def _put_between(
    model: LanguageModel, first: LanguageModel, second: LanguageModel, share: float
) -> None:
    """Give a model the weights at a share of the way from one to another."""
    ends = zip(first.state_dict().items(), second.state_dict().values(), strict=True)
    model.load_state_dict(
        {
            name: start.lerp(end, share) if start.is_floating_point() else start
            for (name, start), end in ends
        }
    )
