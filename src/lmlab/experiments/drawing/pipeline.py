"""The pipeline, drawn from dvc.yaml: stages, which reads what another writes, and kinds of part."""

from pathlib import Path, PurePosixPath
from typing import Any

from lmlab.core import params, registry
from lmlab.experiments.drawing.svg import Picture

BOX, HEIGHT, COLUMN, ROW = 120, 44, 170, 120
"""Width and height of a stage, and the distance from one to the next."""
MOST_LINES = 3
"""Of kinds above a stage, and of outputs below it."""


def draw(file: Path = Path("dvc.yaml")) -> Picture:
    """The stages from left to right, those that could run at the same time above one another.

    Above each stage stand the kinds of part that no stage before it is built from, below it what it
    writes.
    """
    stages: dict[str, Any] = dict(params.read(file)["stages"])
    columns = _columns(stages)
    rows = max(map(len, columns))
    names = [name for column in columns for name in column]
    picture = Picture(
        description=f"The pipeline: {', '.join(names)}", width=20 + COLUMN * len(columns) - 40
    )
    places = {}
    for number, column in enumerate(columns):
        for row, name in enumerate(column):
            y = 70 + (ROW * (rows - len(column))) // 2 + ROW * row
            places[name] = (10 + COLUMN * number, y)
    for name, (x, y) in places.items():
        picture.box(x, y, BOX, HEIGHT, name)
        earlier = [_kinds(stages[source]) for source in _all_sources(name, _sources(stages))]
        _lines_above(picture, x + BOX // 2, y, sorted(_kinds(stages[name]).difference(*earlier)))
        outputs = _outputs(stages[name])
        for line, output in enumerate(outputs):
            picture.text(x + BOX // 2, y + HEIGHT + 18 + 16 * line, output, "small")
    for name, sources in _sources(stages).items():
        for source in sorted(_nearest(sources, stages)):
            (x, y), (from_x, from_y) = places[name], places[source]
            start, end = from_y + HEIGHT // 2, y + HEIGHT // 2
            across, down = x - from_x - BOX - 1, end - start
            curve = f"c{across // 2} 0 {across // 2} {down} {across} {down}"
            picture.arrow(f"M{from_x + BOX} {start}{curve}")
    legend = "orange: the kinds of part that come in with a stage; grey: what it writes"
    picture.text(10, picture.height + 24, legend, "small start")
    return picture


def _sources(stages: dict[str, Any]) -> dict[str, set[str]]:
    """For each stage, those whose outputs it reads."""
    writer = {
        output: name for name, stage in stages.items() for output in _paths(stage.get("outs", []))
    }
    return {
        name: {writer[path] for path in _paths(stage.get("deps", [])) if path in writer} - {name}
        for name, stage in stages.items()
    }


def _nearest(sources: set[str], stages: dict[str, Any]) -> set[str]:
    """The sources that are no sources of the others: what follows from them need not be drawn."""
    earlier = _sources(stages)
    behind: set[str] = set()
    for source in sources:
        behind |= _all_sources(source, earlier)
    return sources - behind


def _all_sources(name: str, sources: dict[str, set[str]]) -> set[str]:
    found = set(sources[name])
    for source in sources[name]:
        found |= _all_sources(source, sources)
    return found


def _columns(stages: dict[str, Any]) -> list[list[str]]:
    """The stages by how many stand before them at least."""
    sources = _sources(stages)
    depth: dict[str, int] = {}

    def depth_of(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max(map(depth_of, sources[name]), default=-1)
        return depth[name]

    columns: list[list[str]] = [[] for _ in range(1 + max(map(depth_of, stages)))]
    for name in stages:
        columns[depth[name]].append(name)
    return columns


def _paths(entries: list[Any]) -> list[str]:
    """The paths of a stage's deps or outs, with or without options of their own."""
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def _outputs(stage: dict[str, Any]) -> list[str]:
    """What a stage writes; several files of one folder are one line."""
    entries = [entry for key in ("outs", "metrics", "plots") for entry in stage.get(key, [])]
    paths = [PurePosixPath(path) for path in _paths(entries) if "timing" not in path]
    parents = [path.parent for path in paths if path.suffix]
    lines = [f"{path.parent}/*" if parents.count(path.parent) > 1 else str(path) for path in paths]
    return list(dict.fromkeys(lines))[:MOST_LINES]


def _kinds(stage: dict[str, Any]) -> set[str]:
    """The kinds of part that a stage's code is made of; those of layers are one."""
    folders = {f"src/lmlab/{registry.folder(kind)}": kind for kind in registry.kinds()}
    used = set()
    for path in _paths(stage.get("deps", [])):
        parent = str(PurePosixPath(path).parent)
        if path in folders:  # all parts of the kind
            used.add(folders[path].split(".")[0])
        if parent in folders and "${" in path:  # the one that a param names
            used.add(folders[parent].split(".")[0])
    return used


def _lines_above(picture: Picture, x: int, y: int, words: list[str]) -> None:
    """Words above a stage, two on a line where there are many."""
    per_line = 1 if len(words) <= MOST_LINES else 2
    lines = [
        " · ".join(word.replace("_", " ") for word in words[first : first + per_line])
        for first in range(0, len(words), per_line)
    ]
    for number, line in enumerate(reversed(lines)):
        picture.text(x, y - 10 - 16 * number, line, "kind")
