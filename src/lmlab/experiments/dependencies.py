"""What a stage depends on: the code it imports, and the parts and params that params.yaml names.

DVC does not follow Python's imports, so dvc.yaml lists every file of code that a stage uses. The
lists are derived here, from the imports in the sources alone (nothing is imported), and written by
`lmlab deps --write`. The same closure is the code that a study's point is kept under.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from lmlab.core import params, registry
from lmlab.core.errors import UserError
from lmlab.core.files import whole_file
from lmlab.core.params import Tree

ROOT = Path(__file__).resolve().parents[3]
"""The folder of the project whose code this is."""
SOURCES = (".py", ".html", ".css", ".js")
"""How the names of files of code end."""
KINDS = {
    "download": ("corpora",),
    "tokenizer": ("tokenizers",),
    "shard": ("tokenizers",),
    "train": (
        *("tokenizers", "models", "learning_rules", "interventions"),
        *("optimizers", "parametrisations", "schedules", "migrations"),
    ),
    "evaluate": ("tokenizers", "models"),
    "probe": ("tokenizers", "models", "learning_rules", "interventions", "parametrisations"),
}
"""The kinds of parts that a stage builds, beside those that these are built from. A stage that is
missing here builds none.
"""
LISTS = {"train": "growths", "evaluate": "measures", "probe": "probes"}
"""The kinds of which a param lists several by name: the stage depends on all of them."""
SECTIONS = {
    "start": ("start",),
    "download": ("download",),
    "tokenizer": ("start", "tokenizer"),
    "shard": ("shard",),
    "train": ("start", "train", "growths"),
    "evaluate": ("evaluate", "measures"),
    "probe": ("probe", "probes"),
    "report": (
        *("start", "download", "tokenizer", "shard", "train", "growths"),
        *("evaluate", "measures", "probe", "probes"),
    ),
}
"""The sections of params.yaml that a stage reads."""
OPTIONS = {
    "download": ("corpora",),
    "tokenizer": ("tokenizers",),
    "train": KINDS["train"][1:],
    "report": ("corpora", *KINDS["train"]),
}
"""The kinds of parts whose options a stage reads from params.yaml. Others read them from what the
stage before has written.
"""
CHOOSERS = {
    "corpora": ("download.corpus",),
    "tokenizers": ("tokenizer.name",),
    "models": ("train.model",),
    "learning_rules": ("train.learning_rule",),
    "interventions": (
        *("train.intervention", "train.second_intervention", "train.third_intervention"),
    ),
    "optimizers": ("train.optimizer",),
    "parametrisations": ("train.parametrisation",),
    "schedules": ("train.schedule",),
    "migrations": ("start.migration",),
}
"""The keys of sections that name a part of a kind; keys of parts are found in their Options."""


def code(stage: str) -> list[str]:
    """The lines of dvc.yaml for the code of a stage: files, folders that are used whole, and
    `${...}` for the file of a part that a param names.
    """
    modules = {f"pipeline.{stage}"}
    part_lines = []
    for kind, key in _keys(KINDS.get(stage, ())):
        part_lines.append(f"src/lmlab/{registry.folder(kind).as_posix()}/${{{key}}}.py")
        modules |= {_module(kind, name) for name in registry.names(kind)}
    whole = ["src/lmlab/core"]
    if stage in LISTS:
        whole.append(f"src/lmlab/{registry.folder(LISTS[stage]).as_posix()}")
        modules |= {_module(LISTS[stage], name) for name in registry.names(LISTS[stage])}
    kinds = {kind for kind, _ in _keys(KINDS.get(stage, ()))}
    parts = {registry.file(kind, name) for kind in kinds for name in registry.names(kind)}
    files = {path for path in closure(modules) if path not in parts}
    return sorted({*part_lines, *_by_folder(files, whole)}, key=_order)


def options(stage: str) -> list[str]:
    """The lines of dvc.yaml for the params of a stage."""
    sections = list(SECTIONS[stage])
    return [*sections, *(f"{kind}.${{{key}}}" for kind, key in _keys(OPTIONS.get(stage, ())))]


def used(modules: Iterable[str], kinds: Iterable[str], tree: Tree) -> list[Path]:
    """The code that some modules use, with the parts of some kinds that params.yaml chooses."""
    chosen = set()
    for kind, key in _keys(kinds):
        section, _, name = key.rpartition(".")
        chosen.add(_module(kind, params.block(tree, section)[name]))
    return sorted(closure({*modules, *chosen}))


def write(path: Path) -> None:
    """Write the lists of code and of params in a dvc.yaml anew; all else stays as it is."""
    text = "".join(after for _, _, after in _blocks(path))
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def stale(path: Path) -> list[str]:
    """The stages of a dvc.yaml whose lists are not those that `write` would write."""
    return [stage for stage, before, after in _blocks(path) if before != after]


def _blocks(path: Path) -> Iterator[tuple[str, str, str]]:
    """What comes before the stages, then each of them: its name, its text, and the text with the
    lists made anew.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run from the project's top folder") from None
    head, *blocks = re.split(r"(?m)^(?=  \w+:$)", text)
    yield "", head, head
    for block in blocks:
        stage = block.strip().split(":")[0]
        yield stage, block, _rewritten(block, stage)


def _rewritten(block: str, stage: str) -> str:
    sections = re.split(r"(?m)^(?=    \w+:)", block)
    lists = {"deps": code(stage), "params": options(stage)} if stage in SECTIONS else {}
    made = []
    for section in sections:
        name = section.strip().split(":")[0]
        if name in lists:
            items = re.findall(r"(?m)^    - (\S+)", section)
            kept = [item for item in items if not _is_code(item)] if name == "deps" else []
            lines = [f"    {name}:", *(f"    - {item}" for item in [*kept, *lists[name]])]
            section = "\n".join(lines) + "\n"
        made.append(section)
    return "".join(made)


def _is_code(item: str) -> bool:
    return item.startswith(("src/", "pipeline/"))


def _order(line: str) -> tuple[bool, str]:
    return not line.startswith("pipeline/"), line


def _keys(kinds: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each key that names a part of these kinds, or of those that they are built from, with the
    kind it names.
    """
    for kind in kinds:
        for key in CHOOSERS[kind]:
            yield kind, key
    for kind in kinds:
        yield from _inner_keys(kind, ())


def _inner_keys(kind: str, within: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The keys of a kind's parts that name other parts, as their Options mark them."""
    for name in registry.names(kind):
        for key, inner in _marks(registry.file(kind, name)):
            yield inner, f"{kind}.{name}.{key}"
            if inner not in (kind, *within):
                yield from _inner_keys(inner, (kind, *within))


@cache
def _marks(path: Path) -> tuple[tuple[str, str], ...]:
    """The keys in a part's module that are annotated with `OneOf`, with the kind each names."""
    found = []
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            for call in ast.walk(node.annotation):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "OneOf":
                    found.append((node.target.id, str(ast.literal_eval(call.args[0]))))
    return tuple(found)


def _module(kind: str, name: str) -> str:
    return ".".join(["lmlab", *registry.folder(kind).parts, name])


def _by_folder(files: set[Path], whole: list[str]) -> Iterator[str]:
    """Files relative to the project; one line for each folder that is listed whole, or is among
    the files whole with all below it.
    """
    folders = {path.parent for path in files}
    used_whole = {folder for folder in folders if set(_sources(folder)) <= files}
    used_whole |= {ROOT / folder for folder in whole}
    for path in files | used_whole:
        if not used_whole.intersection(path.parents):
            yield path.relative_to(ROOT).as_posix()


def _sources(folder: Path) -> list[Path]:
    """The files of code in a folder and below it that do something."""
    return [path for path in folder.rglob("*") if path.suffix in SOURCES and _does(path)]


def _does(path: Path) -> bool:
    """Whether a file is more than a docstring."""
    return path.suffix != ".py" or len(_parsed(path).body) > 1 or path.name != "__init__.py"


def closure(modules: Iterable[str]) -> set[Path]:
    """The files of first-party code that importing these modules reads, and the templates that lie
    beside them.
    """
    seen: set[Path] = set()
    pending = list(modules)
    while pending:
        path = _source(pending.pop())
        if path is not None and path not in seen:
            seen.add(path)
            pending += _imports(path)
    return {path for path in seen if _does(path)} | {
        template for path in seen for template in _templates(path)
    }


def _templates(path: Path) -> list[Path]:
    """The templates, styles and scripts that a module names, beside it."""
    beside = [other for other in path.parent.iterdir() if other.suffix in SOURCES[1:]]
    text = path.read_text("utf-8") if beside else ""
    return [other for other in beside if other.name in text]


@cache
def _source(module: str) -> Path | None:
    """The file of a first-party module; None for any other name."""
    if module.split(".")[0] not in ("lmlab", "pipeline"):
        return None
    base = ROOT.joinpath("src" if module.startswith("lmlab") else "", *module.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


@cache
def _imports(path: Path) -> tuple[str, ...]:
    """Every first-party module that a file imports anywhere in it, with the packages around it."""
    found: set[str] = set()
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
    packages = {
        ".".join(name.split(".")[:depth])
        for name in found
        for depth in range(1, name.count(".") + 2)
    }
    return tuple(sorted(name for name in packages if _source(name)))


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
