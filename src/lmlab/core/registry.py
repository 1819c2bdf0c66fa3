"""The registry: everything an experiment may swap is a part, one module, chosen by its name.

A kind of part is a folder with a base.py in one of lmlab's rooms; its name is its path there
(`model/layers/attention` is the kind `layers.attention`). A part is a module in it that holds one
final class, named as the module is (`multi_head` holds `MultiHead`), and an `Options` model beside
it. Its options stand in params.yaml under the kind: `layers.attention.multi_head`. Only the chosen
module is imported, so that DVC can name exactly the files a run depends on, and a part that is
broken harms no run that does not use it. A module whose name begins with `_` helps the parts beside
it and is none.
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
    """Every kind of part, as the dotted path under which params.yaml has its options."""
    return sorted(_folders(_PACKAGE))


def folder(kind: str) -> Path:
    """Where the modules of a kind are, below the folder of lmlab: `model/layers/attention`."""
    return _folders(_PACKAGE)[kind]


def file(kind: str, name: str) -> Path:
    """The module of a part."""
    return _PACKAGE / folder(kind) / f"{name}.py"


def names(kind: str) -> list[str]:
    """The parts of a kind, found from the file names alone: nothing is imported."""
    stems = (path.stem for path in (_PACKAGE / folder(kind)).glob("*.py"))
    return sorted(stem for stem in stems if stem != "base" and not stem.startswith("_"))


@cache
def _folders(package: Path) -> dict[str, Path]:
    """The folder of each kind, relative to the package: the kind's name is what is left without the
    room.
    """
    folders = [base.parent.relative_to(package) for base in package.rglob("base.py")]
    return {".".join(folder.parts[1:]): folder for folder in folders}


def find(kind: str, name: str, key: str = "") -> tuple[type[Any], type[Params]]:
    """Import a part: its class and its `Options`. `key` is what asked for it, for the error
    message.
    """
    if name not in names(kind):
        asked = f"params.yaml: {key}: " if key else ""
        raise UserError(f"{asked}there is no {shown(name)} in {kind}; {nearest(name, names(kind))}")
    module = import_module(".".join(["lmlab", *folder(kind).parts, name]))
    wanted = name.replace("_", "")
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    ]
    matching = [cls for cls in classes if cls.__name__.lower() == wanted]
    if len(matching) != 1 or not issubclass(getattr(module, "Options", type), Params):
        raise TypeError(
            f"{module.__name__} should hold a class named like the module and a Params model"
            " named Options"
        )
    return matching[0], module.Options


@dataclass(frozen=True)
class Choice:
    """A part picked by name, with its options, and the parts it is itself built from."""

    kind: str
    name: str
    options: Params
    inner: dict[str, "Choice"] = field(default_factory=dict)

    @cached_property
    def part(self) -> type[Any]:
        """The part's class."""
        return find(self.kind, self.name)[0]

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """Make the part: its class called with its options, what the caller gives, and its inner
        choices by name.
        """
        return self.part(self.options, *args, **kwargs, **self.inner)

    def record(self) -> dict[str, Any]:
        """The choice as plain values for JSON; `recall` is the inverse."""
        inner = {key: choice.record() for key, choice in self.inner.items()}
        return {"name": self.name, "options": self.options.model_dump(), "inner": inner}


def recall(kind: str, record: dict[str, Any]) -> Choice:
    """The choice that `Choice.record` wrote down. Raises UserError if its part or options are no
    longer what they were.
    """
    _, options_model = find(kind, record["name"])
    options = section({"saved": record["options"]}, "saved", options_model)
    kinds_by_key = dict(marked(options_model))
    inner = {key: recall(kinds_by_key[key], value) for key, value in record["inner"].items()}
    return Choice(kind, record["name"], options, inner)


def choose(tree: Tree, kind: str, name: str, key: str = "", within: tuple[str, ...] = ()) -> Choice:
    """The part `name` with the options that params.yaml gives it, and so on for the parts its
    options name.

    `within` are the parts it is chosen for, outermost first: one of them again would never end, and
    is refused.
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
    named = marked(type(params))
    return {
        key: choose(tree, kind, getattr(params, key), f"{dotted}.{key}", within)
        for key, kind in named
    }


def marked(model: type[Params]) -> Iterator[tuple[str, str]]:
    """The keys of a section or of a part that name a part, with the kind each names."""
    for key, info in model.model_fields.items():
        for mark in info.metadata:
            if isinstance(mark, OneOf):
                yield key, mark.kind
