"""Every definition that a configuration uses, simplified, in an order in which it can be read.

The roots are the classes of the objects that a run consists of. What they mention comes along: of
functions all, of classes the methods and attributes that are read: of `self` in a class that an
object of theirs may have too, or of an object whose class is not known. A name that two modules
have both is given its module's name as well.
"""

import ast
from collections.abc import Collection, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import nn

from lmlab.export.eject.merge import call_directly, merge
from lmlab.export.eject.names import local_names
from lmlab.export.eject.reads import Reads, reads_in
from lmlab.export.eject.simplify import Known, Simplify
from lmlab.export.eject.source import Definition, Outside, WholeModule, meaning, source
from lmlab.export.eject.tidy import drop_unread_attributes, in_use, tidy
from lmlab.model.noise import Dropout
from lmlab.model.places import Place
from lmlab.training.interventions.base import Intervention

FLAGS = {
    *("backward", "final_in_backward", "compiles", "cannot_overfit", "acts_in_backward", "depth"),
    *("neutral", "width_powers", "shares_population", "remembers", "acts_on_windows"),
}
"""What learning rules, interventions and optimizers say of themselves to the lab."""
ALWAYS_PREFIXED = "lmlab.model.noise"
"""Its functions have names that are common words: `normal`, `seed`, `within`."""
CALLED_BY_TORCH = ("autograd.Function",)
"""Bases whose methods torch calls, so that all of them stay."""


@dataclass(frozen=True)
class Facts:
    """What is known of the whole configuration."""

    options: Mapping[str, Mapping[str, Any]]
    """By the module of a part."""
    absent: Collection[str]
    left_out: Collection[str]
    give_nothing: Collection[str]
    forward_mode: bool
    """Whether derivatives are taken forwards, or several at once."""

    def options_in(self, module: str) -> Mapping[str, Any]:
        """The options of a part, in its own module; in a kind's base, those of its only part."""
        if module in self.options:
            return self.options[module]
        kind = module.rpartition(".")[0]
        of_kind = [values for name, values in self.options.items() if name.startswith(f"{kind}.")]
        return of_kind[0] if len(of_kind) == 1 else {}


class Mention(NamedTuple):
    """What a statement mentions."""

    attributes: Reads
    names: list[tuple[str, str]]
    """Global names in order, each with the attribute that is taken of it, if any."""


@dataclass
class Piece:
    """A definition as it will be written."""

    definition: Definition
    node: ast.stmt
    uses: list[Definition] = field(default_factory=list)


class Gathering:
    """The definitions that have been gathered so far."""

    def __init__(self, objects: Iterable[object], asked_for: Iterable[str], facts: Facts) -> None:
        self.facts = facts
        self.known = {
            definition: _known(instances) for definition, instances in _instances(objects).items()
        }
        self.asked_for = set(asked_for)
        """Attributes and methods that the template asks for."""
        self.reads: dict[Definition, Reads] = {}
        """What each piece reads."""
        self.derived: dict[str, dict[str, Any]] = {}
        """By module, options that come to something else than params.yaml says."""
        self._families: dict[Definition, set[Definition]] = {}
        self.nodes: dict[Definition, ast.stmt] = {}
        """What each definition has been simplified to so far."""
        self.pieces: dict[Definition, Piece] = {}
        self._mentions: dict[int, Mention] = {}
        self.outside: set[str] = set()
        """The imports of what is not the lab's."""

    def add(self, roots: Iterable[Definition]) -> None:
        """Gather the roots and all that they need, until nothing becomes simpler any more."""
        roots = list(roots)
        before = ""
        while True:
            self.pieces, self.reads, self._families, self.outside = {}, {}, {}, set()
            self._reach(roots)
            live = [piece.node for piece in self.pieces.values()]
            in_use_of = {each: self._in_use_of(each) for each in self.pieces}
            for piece in self.pieces.values():
                if isinstance(piece.node, ast.ClassDef):
                    text = [each for each in piece.node.body[:1] if _is_text(each)]
                    piece.node.body = [*text, *self.live(piece)] or [ast.Pass()]
                    read = self._read_of(piece.definition) - FLAGS
                    drop_unread_attributes(piece.node, read | in_use_of[piece.definition])
            call_directly(self.pieces, self.asked_for)
            tidy(live, self.asked_for | {root.name for root in roots})
            self._mentions.clear()
            now = "".join(map(ast.dump, live))
            if now == before and not merge(self.pieces, roots):
                return
            before = now

    def _reach(self, roots: Iterable[Definition]) -> None:
        pending = list(roots)
        while True:
            while pending:
                definition = pending.pop()
                if definition not in self.pieces:
                    if definition not in self.nodes:
                        self.nodes[definition] = self._simplified(definition)
                    self.pieces[definition] = Piece(definition, self.nodes[definition])
                    pending += self._needs(self.pieces[definition])
            self._families = _families(self.pieces)
            count = self._read_count()
            for piece in list(self.pieces.values()):
                self.reads[piece.definition] = self._reads(piece)
                pending += [need for need in self._needs(piece) if need not in self.pieces]
            if not pending and self._read_count() == count:
                return

    def _read_count(self) -> int:
        return sum(map(len, self.reads.values()))

    def _simplified(self, definition: Definition) -> ast.stmt:
        node = deepcopy(source(definition.module).definitions[definition.name])
        known = self.known.get(definition, Known())
        options = self.facts.options_in(definition.module)
        known = replace(
            known,
            options=options,
            absent=self.facts.absent,
            left_out=self.facts.left_out,
            give_nothing=self.facts.give_nothing,
        )
        simplify = Simplify(known)
        simple = simplify.visit(node)
        self.derived.setdefault(definition.module, {}).update(simplify.derived)
        assert isinstance(simple, ast.stmt)
        return ast.fix_missing_locations(simple)

    # ------------------------------------------------------------ what is alive

    def live(self, piece: Piece) -> list[ast.stmt]:
        """The statements of a piece that stay: of a class, the members that are asked for."""
        node = piece.node
        if not isinstance(node, ast.ClassDef):
            return [node]
        keeps_all = any(ast.unparse(base).endswith(CALLED_BY_TORCH) for base in node.bases)
        members = [member for member in node.body if not _is_text(member)]
        read = self._read_of(piece.definition) | self._counted_of(piece.definition)
        return [
            member
            for member in members
            if self._is_live(member, read) or (keeps_all and not self._is_of_forward_mode(member))
        ]

    def _is_of_forward_mode(self, member: ast.stmt) -> bool:
        """Whether a member of an autograd function is for derivatives that nobody takes here."""
        text = ast.unparse(member)
        return not self.facts.forward_mode and text.startswith(
            ("generate_vmap_rule", "@staticmethod\ndef jvp(")
        )

    def _is_live(self, member: ast.stmt, read: Collection[str]) -> bool:
        if isinstance(member, ast.FunctionDef):
            if _only_calls_its_base(member):
                return False
            if any(ast.unparse(each).endswith("abstractmethod") for each in member.decorator_list):
                return False
            if _is_empty(member):
                return False
            return member.name.startswith("__") or member.name in read
        if isinstance(member, ast.Assign):
            return any(
                part.id in read and part.id not in FLAGS
                for target in member.targets
                for part in ast.walk(target)
                if isinstance(part, ast.Name)
            )
        return isinstance(member, ast.AnnAssign)  # the field of a data class

    def _reads(self, piece: Piece) -> Reads:
        """What the live statements of a piece read."""
        reads = Reads()
        for statement in self.live(piece):
            reads.update(self._looked(statement).attributes)
        if not isinstance(piece.node, ast.ClassDef):  # its `self`, if any, may be anything
            reads.of_others |= reads.of_self | reads.counted
        return reads

    def _read_of(self, definition: Definition) -> set[str]:
        """The attributes that are read of objects of a class, or may be."""
        family = self._families.get(definition, {definition})
        own = (self.reads.get(each) for each in family)
        others = [reads.of_others for reads in self.reads.values()]
        if any(_is_of_options(self.pieces[each].node) for each in family):
            others += [reads.of_options for reads in self.reads.values()]
        return self.asked_for.union(*(reads.of_self for reads in own if reads), *others)

    def _counted_of(self, definition: Definition) -> set[str]:
        """The attributes of `self` that are read only in order to be changed."""
        family = self._families.get(definition, {definition})
        return set[str]().union(
            *(self.reads[each].counted for each in family if each in self.reads)
        )

    def _in_use_of(self, definition: Definition) -> set[str]:
        """Those of them whose changes may change something else."""
        family = self._families.get(definition, {definition})
        return in_use((self.pieces[each].node for each in family), self._counted_of(definition))

    def options_read(self, module: str) -> set[str]:
        """The options that are read of the part in a module: there, in what is no part itself, and
        in the methods of options. What its own names hide is not told apart.
        """
        read: set[str] = set()
        for definition, reads in self.reads.items():
            if definition.module == module or definition.module not in self.facts.options:
                read |= reads.of_options
                if _is_of_options(self.pieces[definition].node):
                    read |= reads.of_self
        return read

    def _looked(self, node: ast.AST) -> Mention:
        """What a statement mentions; looked up once until it is simplified further."""
        if id(node) not in self._mentions:
            self._mentions[id(node)] = Mention(reads_in([node]), list(_global_names([node])))
        return self._mentions[id(node)]

    # ------------------------------------------------------------ what a piece needs

    def _needs(self, piece: Piece) -> list[Definition]:
        piece.uses = []
        bases = piece.node.bases if isinstance(piece.node, ast.ClassDef) else []
        decorators = piece.node.decorator_list if isinstance(piece.node, ast.ClassDef) else []
        statements: list[ast.AST] = [*bases, *decorators, *self.live(piece)]
        mentioned = [name for each in statements for name in self._looked(each).names]
        for name, attribute in dict.fromkeys(mentioned):
            stands_for = meaning(piece.definition.module, name)
            if isinstance(stands_for, WholeModule) and attribute:
                stands_for = meaning(stands_for.module, attribute)
            if isinstance(stands_for, Outside):
                self.outside.add(stands_for.statement)
            elif isinstance(stands_for, Definition) and stands_for != piece.definition:
                piece.uses.append(stands_for)
        return piece.uses

    # ------------------------------------------------------------ what comes out

    def written(self, root: Definition, done: set[Definition]) -> Iterator[Piece]:
        """A root and what it needs that is not yet done, what is needed first."""
        if root in done:
            return
        done.add(root)
        piece = self.pieces[root]
        for need in piece.uses:
            yield from self.written(need, done)
        yield piece

    def names(self) -> dict[Definition, str]:
        """The name that each piece is written under."""
        by_name: dict[str, list[Definition]] = {}
        for definition in self.pieces:
            by_name.setdefault(definition.name, []).append(definition)
        names = {}
        for name, definitions in by_name.items():
            for number, definition in enumerate(definitions):
                prefix = definition.module.rpartition(".")[2]
                is_common = definition.module == ALWAYS_PREFIXED
                names[definition] = f"{prefix}_{name}" if number or is_common else name
        return names


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _families(pieces: Mapping[Definition, Piece]) -> dict[Definition, set[Definition]]:
    """By class, the classes that an object of it may have as well: where one derives from both."""
    families: dict[Definition, set[Definition]] = {}
    for definition, piece in pieces.items():
        if isinstance(piece.node, ast.ClassDef):
            lineage = set(_lineage(definition, pieces))
            for each in lineage:
                families.setdefault(each, set()).update(lineage)
    return families


def _lineage(definition: Definition, pieces: Mapping[Definition, Piece]) -> Iterator[Definition]:
    """A class and all that it derives from."""
    yield definition
    node = pieces[definition].node
    for base in node.bases if isinstance(node, ast.ClassDef) else []:
        stands_for = meaning(definition.module, base.id) if isinstance(base, ast.Name) else None
        if isinstance(stands_for, Definition) and stands_for in pieces:
            yield from _lineage(stands_for, pieces)


def _is_of_options(node: ast.stmt) -> bool:
    """Whether a class gives options their methods."""
    names = [ast.unparse(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
    return "SimpleNamespace" in names


def _only_calls_its_base(function: ast.FunctionDef) -> bool:
    """Whether a method hands on to its base class what it gets, and no more."""
    if len(function.body) != 1:
        return False
    names = ", ".join(argument.arg for argument in function.args.args[1:])
    return ast.unparse(function.body[0]) == f"super().{function.name}({names})"


def _is_empty(function: ast.FunctionDef) -> bool:
    """Whether a function does nothing but have a docstring."""
    return all(
        isinstance(each, ast.Pass)
        or (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
        for each in function.body
    )


def _instances(objects: Iterable[object]) -> dict[Definition, list[object]]:
    """The objects by the definitions of their classes and of those these derive from."""
    found: dict[Definition, list[object]] = {}
    for each in objects:
        for cls in type(each).__mro__:
            if cls.__module__.startswith("lmlab."):
                found.setdefault(Definition(cls.__module__, cls.__name__), []).append(each)
    return found


def _known(instances: list[Any]) -> Known:
    """What all objects of a class have in common."""
    first = instances[0]
    values = {**_class_values(type(first)), **vars(first)}
    if isinstance(first, Intervention):
        values["site"] = first.site  # it follows from the class's module
    modules = dict(first.named_children()) if isinstance(first, nn.Module) else {}
    assigned = _assigned_later(type(first))
    constants = {
        name: value
        for name, value in values.items()
        if isinstance(value, bool | int | float | str | None)
        and name not in assigned
        and name != "training"
        and all(getattr(other, name, object) == value for other in instances)
    }
    passed_through = {
        name
        for name, module in modules.items()
        if all(_passes_through(getattr(other, name, None)) for other in instances)
    }
    return Known(constants, passed_through)


def _passes_through(module: object) -> bool:
    return isinstance(module, Place) or (isinstance(module, Dropout) and not module.p)


def _class_values(cls: type) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("lmlab."):
            values.update(vars(base))
    return values


def _assigned_later(cls: type) -> set[str]:
    """The attributes that methods other than the constructor assign."""
    assigned: set[str] = set()
    for base in cls.__mro__:
        if base.__module__.startswith("lmlab."):
            node = source(base.__module__).definitions[base.__name__]
            for member in getattr(node, "body", []):
                if isinstance(member, ast.FunctionDef) and member.name != "__init__":
                    assigned |= {
                        part.attr
                        for part in ast.walk(member)
                        if isinstance(part, ast.Attribute) and not isinstance(part.ctx, ast.Load)
                    }
    return assigned


def _global_names(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, str]]:
    """Names that are read and not local, each with the attribute that is taken of it, if any."""
    for node in nodes:
        local = local_names(node)
        for part in ast.walk(node):
            if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
                if part.value.id not in local:
                    yield part.value.id, part.attr
            elif isinstance(part, ast.Name) and part.id not in local:
                yield part.id, ""
