"""The lab's own record in a folder for transformers, by which a run comes back as it was.

Nearly every number of the lab's weights stands somewhere in model.safetensors. Those that were
folded into something else are kept beside the record as they were.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmlab.core.files import write_json
from lmlab.export import anatomy
from lmlab.export.anatomy import Anatomy, Weights
from lmlab.export.architecture import Architecture
from lmlab.export.run import Run

FOLDER = "lmlab"
MODEL, TOKENIZER = "model.json", "tokenizer.json"
MADE_WITH, FOLDED = "made_with.json", "folded.safetensors"
FIRST = 2
"""Numbers begin here, since an architecture's own constants are 0 or 1."""


def write(folder: Path, run: Run, architecture: Architecture | None, tensors: Weights) -> None:
    """Write the record of a run whose weights became these tensors."""
    folder.mkdir()
    shutil.copyfile(run.folders.model / MODEL, folder / MODEL)
    shutil.copyfile(run.folders.tokenizer_file, folder / TOKENIZER)
    write_json(folder / MADE_WITH, dict(run.folders.made_with))
    if architecture is None:
        return
    own = anatomy.weights(run.model)
    back = taken_back(architecture, anatomy.of(run.model), own, tensors)
    folded = {name: value for name, value in own.items() if not _is_same(back.get(name), value)}
    if folded:
        save_file(folded, folder / FOLDED)


def _is_same(value: Tensor | None, own: Tensor) -> bool:
    return value is not None and torch.equal(value, own)


def read_folded(folder: Path) -> Weights:
    """The weights that were kept as they were."""
    file = folder / FOLDED
    return load_file(file) if file.is_file() else {}


def taken_back(
    architecture: Architecture,
    parts: Anatomy,
    shapes: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
) -> Weights:
    """The lab's weights out of an architecture's tensors, but for those that were folded.

    Where each number went is seen by sending numbered weights of the same `shapes` the same way.
    """
    numbered, first = {}, FIRST
    for name, like in shapes.items():
        numbers = torch.arange(first, first + like.numel(), dtype=torch.float64)
        numbered[name], first = numbers.view(like.shape), first + like.numel()
    names, counts, sent = [], [], []
    for name, value in architecture.tensors(parts, numbered).items():
        names.append(name)
        counts.append(value.numel())
        sent.append(value.double().flatten())
    arrived = torch.cat(sent)
    is_number = (arrived == arrived.round()) & (arrived >= FIRST) & (arrived < first)
    place = torch.full((first,), -1)
    place[arrived[is_number].long()] = is_number.nonzero()[:, 0]
    values = torch.cat([tensors[name].flatten() for name in names])
    back = {}
    for name, numbers in numbered.items():
        places = place[numbers.long()]
        if (places >= 0).all():
            back[name] = values[places].contiguous()
    if parts.tied and "embedding.tokens" in back:
        back["readout"] = back["embedding.tokens"]
    return back
