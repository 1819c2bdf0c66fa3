"""The registry: everything an experiment may swap is a part, one module chosen by name.

A kind of part is a folder with a base.py in one of lmlab's rooms; its name is its path there
(`model/layers/attention` is the kind `layers.attention`). A part is a module in it that holds one
final class, named like the module (`multi_head` holds `MultiHead`), and an `Options` model. Its
options are in params.yaml under the kind: `layers.attention.multi_head`. Only the chosen module is
imported, so that DVC can list exactly the files that a run depends on, and a broken part affects no
run that does not use it. A module whose name begins with `_` is a helper of the parts beside it,
not a part.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from lmlab.core.errors import UserError
from lmlab.core.params import Params, Tree, nearest, section, shown

_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class OneOf:
    """Marks a key whose value names a part: `model: Annotated[str, OneOf("models")]`."""

    kind: str


def kinds() -> list[str]:
    """Every kind of part, as the dotted path to its options in params.yaml."""
    return sorted(_folders(_PACKAGE))


def folder(kind: str) -> Path:
    """The folder of a kind's modules, relative to the package: `model/layers/attention`."""
    return _folders(_PACKAGE)[kind]


def file(kind: str, name: str) -> Path:
    """The module of a part."""
    return _PACKAGE / folder(kind) / f"{name}.py"


def names(kind: str) -> list[str]:
    """The parts of a kind, from the file names alone: nothing is imported."""
    stems = (path.stem for path in (_PACKAGE / folder(kind)).glob("*.py"))
    return sorted(stem for stem in stems if stem != "base" and not stem.startswith("_"))


@cache
def _folders(package: Path) -> dict[str, Path]:
    """The folder of each kind, relative to the package; the kind's name is that path without the
    room.
    """
    folders = [base.parent.relative_to(package) for base in package.rglob("base.py")]
    return {".".join(folder.parts[1:]): folder for folder in folders}


def find(kind: str, name: str, key: str = "") -> tuple[type[Any], type[Params]]:
    """Import a part; return its class and its `Options`.

    `key` is the key of params.yaml that names it. Raises UserError where there is no such part, and
    TypeError where its module lacks the class or the options.
    """
    if name not in names(kind):
        prefix = f"params.yaml: {key}: " if key else ""
        hint = nearest(name, names(kind))
        raise UserError(f"{prefix}there is no {shown(name)} in {kind}; {hint}")
    module = import_module(".".join(["lmlab", *folder(kind).parts, name]))
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    own_classes = [cls for cls in classes if cls.__module__ == module.__name__]
    matching = [cls for cls in own_classes if cls.__name__.lower() == name.replace("_", "")]
    if len(matching) != 1 or not issubclass(getattr(module, "Options", type), Params):
        raise TypeError(
            f"{module.__name__} should hold a class named like the module and a Params model"
            " named Options"
        )
    return matching[0], module.Options


@dataclass(frozen=True)
class Choice:
    """A part chosen by name, with its options, and the parts that these name in turn."""

    kind: str
    name: str
    options: Params
    inner: dict[str, "Choice"] = field(default_factory=dict)

    @cached_property
    def part(self) -> type[Any]:
        """The part's class."""
        return find(self.kind, self.name)[0]

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """Build the part: call its class with its options, then the caller's arguments, and its
        inner choices by key.
        """
        return self.part(self.options, *args, **kwargs, **self.inner)

    def record(self) -> dict[str, Any]:
        """The choice as plain values for JSON; `recall` is the inverse."""
        inner = {key: choice.record() for key, choice in self.inner.items()}
        return {"name": self.name, "options": self.options.model_dump(), "inner": inner}


def recall(kind: str, record: dict[str, Any]) -> Choice:
    """The choice that `Choice.record` recorded. Raises UserError where its part or options no
    longer exist.
    """
    _, options_model = find(kind, record["name"])
    options = section({"saved": record["options"]}, "saved", options_model)
    kinds_by_key = dict(marked(options_model))
    inner = {key: recall(kinds_by_key[key], value) for key, value in record["inner"].items()}
    return Choice(kind, record["name"], options, inner)


def choose(tree: Tree, kind: str, name: str, key: str = "", within: tuple[str, ...] = ()) -> Choice:
    """The part `name` with its options from params.yaml, and likewise the parts that its options
    name.

    `within` are the parts it is chosen for, outermost first; raises UserError for one of them
    again, which would never end.
    """
    dotted = f"{kind}.{name}"
    if dotted in within:
        raise UserError(
            f"params.yaml: {key}: {name!r} cannot be built from itself; name another of {kind}"
        )
    _, options_model = find(kind, name, key)
    options = section(tree, dotted, options_model)
    return Choice(kind, name, options, choices(tree, dotted, options, (*within, dotted)))


def choices(
    tree: Tree, dotted: str, params: Params, within: tuple[str, ...] = ()
) -> dict[str, Choice]:
    """Every part that a section's keys name (those marked `OneOf`), by key."""
    chosen = {}
    for key, kind in marked(type(params)):
        chosen[key] = choose(tree, kind, getattr(params, key), f"{dotted}.{key}", within)
    return chosen


def marked(model: type[Params]) -> Iterator[tuple[str, str]]:
    """The keys of a section or of an `Options` that name a part, each with the kind of part."""
    for key, info in model.model_fields.items():
        for mark in info.metadata:
            if isinstance(mark, OneOf):
                yield key, mark.kind
