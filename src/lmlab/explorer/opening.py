"""Runs opened for the explorer, by their folders: served on a page, or written into one file."""

from collections.abc import Mapping
from pathlib import Path

from lmlab.core.params import Tree
from lmlab.explorer import held_out, server, single_file
from lmlab.explorer.microscope import Material
from lmlab.explorer.subject import Folders, Subject

OUTS = ("data/model", "data/tokenizer", "data/snapshots")
"""What the explorer needs of a run."""
READING = 64
"""Pieces of the training split in which features are looked for."""


def serve(runs: Mapping[str, Folders], corpus: Path, tree: Tree, port: int, opens: bool) -> None:
    """Serve runs by their names, until it is interrupted.

    Raises UserError where a file is missing or damaged.
    """
    subjects = _opened(runs)
    pieces, training = held_out.pieces(corpus), held_out.pieces(corpus, "train")
    reading = tuple(held_out.pieces(corpus, "train", READING))
    material = Material("\n".join(training), "\n".join(pieces), reading)
    server.serve(server.Explorer(subjects, pieces, material, tree), port, opens)


def write(runs: Mapping[str, Folders], corpus: Path, file: Path) -> str:
    """Write runs by their names into one file; what to tell of it. Raises UserError as `serve`."""
    scored = single_file.held_out_text(corpus)
    return single_file.write(_opened(runs), held_out.pieces(corpus), scored, file).line()


def _opened(runs: Mapping[str, Folders]) -> list[Subject]:
    return [Subject.open(name, folders) for name, folders in runs.items()]
