"""Runs for the explorer: brought from where they are, then served or written into one file."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from lmlab.core import params
from lmlab.experiments import starting
from lmlab.experiments.stages.layout import Layout
from lmlab.explorer import held_out, server, single_file
from lmlab.explorer.microscope import Material
from lmlab.explorer.subject import Folders, Subject
from lmlab.model.device import use_device
from lmlab.training.step import TrainParams

OUTS = ("data/model", "data/tokenizer", "data/snapshots")
"""What the explorer needs of a run."""
READING = 64
"""Pieces of the training split in which features are looked for."""


def explore(names: Sequence[str], port: int, opens: bool, out: Path | None) -> None:
    """Show runs by name, or the workspace's: on a page that is served until it is interrupted, or
    in the file `out`.

    Raises UserError for a name that is no run, and where a file is missing or damaged.
    """
    tree = params.read()
    use_device("cpu", params.section(tree, "train", TrainParams).threads)
    corpus = Layout.below().corpus
    pieces = held_out.pieces(corpus)
    with tempfile.TemporaryDirectory() as scratch:
        subjects = [_opened(name, Path(scratch, str(at))) for at, name in enumerate(names)]
        subjects = subjects or [_subject("workspace", Layout.below())]
        if out is not None:
            scored = single_file.held_out_text(corpus)
            print(single_file.write(subjects, pieces, scored, out).line(), flush=True)
            return
        training = held_out.pieces(corpus, "train")
        reading = tuple(held_out.pieces(corpus, "train", READING))
        material = Material("\n".join(training), "\n".join(pieces), reading)
        server.serve(server.Explorer(subjects, pieces, material, tree), port, opens)


def _opened(name: str, folder: Path) -> Subject:
    """A run that has a name, laid out in a folder."""
    layout, run = Layout.below(folder), starting.made(name, starting.project())
    for out in OUTS:
        run.lay_out(out, layout.model.parent)
    return _subject(name, layout)


def _subject(name: str, layout: Layout) -> Subject:
    return Subject.open(name, Folders(layout.model, layout.tokenizer_file, layout.snapshots))
