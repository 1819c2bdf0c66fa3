"""Any configuration as one plain Python file that needs nothing of lmlab.

The file is made of the lab's own source, of the parts that were chosen alone; `loop.py.txt` is what
stands around them. Run, it prints the lab's losses bit for bit.
"""

import ast
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import torch

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.core.files import whole_file
from lmlab.core.params import Params, Tree, section
from lmlab.core.registry import Choice
from lmlab.data import documents
from lmlab.data.shards import Shards
from lmlab.data.tokenizers.base import Tokenizer
from lmlab.data.tokenizers.character import Character
from lmlab.export.gather import Facts, Gathering, Piece, Rename, local_names
from lmlab.export.source import Definition, WholeModule, meaning, source
from lmlab.model.noise import Dropout
from lmlab.training.interventions.base import KEYS
from lmlab.training.learning_rules.base import LearningRule
from lmlab.training.optimizers.base import Averaging
from lmlab.training.step import Run, TrainParams, begin

ENCODERS = {
    "Character": '''
ID_OF = {character: id_ for id_, character in enumerate(DATA["characters"]) if character}
UNSEEN = DATA["characters"].index("")


def encode(text):
    """An id for each character; one that the train split lacks is spelled by its code point."""
    ids = []
    for character in text:
        if character in ID_OF:
            ids.append(ID_OF[character])
            continue
        digits, left = [], ord(character)
        while (UNSEEN + 1) ** len(digits) < 0x110000:
            left, digit = divmod(left, UNSEEN + 1)
            digits.insert(0, digit)
        ids += [UNSEEN, *digits]
    return ids
''',
    "Byte": '''
def encode(text):
    """Its bytes."""
    return list(text.encode("utf-8", "surrogatepass"))
''',
}
"""The tokenizers that are written out, by class."""
STREAM = '''

def stream(split):
    """The ids of a split, BOS before each document."""
    return [id_ for text in DATA[split] for id_ in (BOS, *encode(text))]
'''
STREAM_OF_IDS = '''
def stream(split):
    """The ids of a split, BOS before each document, as the lab's tokenizer made them."""
    return DATA[split]
'''
EVALUATION_WEIGHTS = "evaluation_weights"
TEMPLATE = Path(__file__).with_name("loop.py.txt")
TEMPLATE_IMPORTS = (
    "import torch",
    "import numpy as np",
    "import json",
    "from functools import partial",
)
ASKED_FOR = ("forward", "embed", "head", "assign_gradients", "factor", "step", "blocks", "width")
"""What the template asks of the parts."""


@dataclass
class Config:
    """A run that can be ejected, built."""

    params: TrainParams
    parts: dict[str, Choice]
    run: Run
    rule: Any
    schedule: Any


def eject(tree: Tree, shards: Shards, tokenizer: Tokenizer, corpus: Path, out: Path) -> list[Path]:
    """Write the run that params describe as `out` and the data it reads as JSON beside it.

    Raises UserError, naming it, for a part that cannot be ejected.
    """
    config = _configured(tree, shards)
    data = out.with_suffix(".json")
    code = _code(config, shards, data.name).replace("«TOKENIZER»", _encoder(tokenizer))
    code = _formatted(code)
    content = json.dumps(_data(shards, tokenizer, corpus), ensure_ascii=False)
    for file, text in ((data, content), (out, code)):
        with whole_file(file) as partial:
            partial.write_text(text, encoding="utf-8")
    return [out, data]


def _configured(tree: Tree, shards: Shards) -> Config:
    params = section(tree, "train", TrainParams)
    parts = registry.choices(tree, "train", params)
    for key in KEYS:
        if parts[key].name != "identity":
            raise _cannot(key, parts[key].name, "identity")
    for key, value, instead in (
        ("parametrisation", parts["parametrisation"].name, "standard"),
        ("precision", params.precision, "float32"),
        ("device", params.device, "cpu"),
        ("compile", params.compile, False),
        ("step_in_backward", params.step_in_backward, False),
    ):
        if value != instead:
            raise _cannot(key, value, instead)
    run = begin(params, parts, shards.vocabulary_size, torch.device("cpu"))
    rule = parts["learning_rule"].build(run.model)
    schedule = parts["schedule"].build(params.steps)
    return Config(run.params, parts, run, rule, schedule)


def _in_pieces(config: Config) -> bool:
    """Whether a step is more than one call for the whole batch."""
    own = type(config.rule).accumulate_gradients is not LearningRule.accumulate_gradients
    return own or config.params.gradient_accumulation > 1


def _gradients(config: Config, draws_noise: bool) -> str:
    """The lines of the loop in which the rule fills the gradients."""
    keyed, call = (
        "noise_keyed(SEED, step, 'piece', 0)",
        "assign_gradients(model, tokens_BT, targets_BT)",
    )
    lines = []
    if _in_pieces(config):
        count = config.params.gradient_accumulation
        lines.append(f"pieces = list(zip(tokens_BT.chunk({count}), targets_BT.chunk({count})))")
        keyed, call = "noise_keyed(SEED, step)", "accumulate_gradients(model, pieces)"
    if draws_noise:
        lines += [f"with {keyed}:", f"    loss = rule.{call}"]
    else:
        lines.append(f"loss = rule.{call}")
    return "\n        ".join(lines)


def _cannot(key: str, value: object, instead: object) -> UserError:
    return UserError(
        f"params.yaml: train.{key}: {value} cannot be ejected; set it to"
        f" {json.dumps(instead).strip(chr(34))}"
    )


def _data(shards: Shards, tokenizer: Tokenizer, corpus: Path) -> dict[str, Any]:
    """The texts of both splits, or their ids for a tokenizer that the file does not hold."""
    content: dict[str, Any] = {
        "row_groups": [group.length for group in shards.row_groups("train")],
        "tokens": [token.decode("utf-8", "replace") for token in tokenizer.token_bytes],
    }
    for split in ("train", "validation"):
        if type(tokenizer).__name__ in ENCODERS:
            content[split] = list(_texts(corpus / f"{split}.parquet"))
        else:
            content[split] = shards.stream(split).tolist()
    if isinstance(tokenizer, Character):
        content["characters"] = [*tokenizer.characters, "", "", *tokenizer.later]
    return content


def _texts(file: Path) -> Iterator[str]:
    """The documents of a split."""
    text = ""
    for _, part, piece in documents.read_parts(file):
        if part == 0 and text:
            yield text
            text = ""
        text += piece
    if text:
        yield text


def _code(config: Config, shards: Shards, data: str) -> str:
    run, parts = config.run, config.parts
    objects = [*run.model.modules(), *config.rule.modules(), run.optimizer, config.schedule]
    roots = {
        "noise": [],
        "model": [*_definitions(parts["model"]), _definition(type(run.model))],
        "loss": [Definition("lmlab.model.models.base", "next_token_loss")],
        "rule": [*_definitions(parts["learning_rule"]), _definition(type(config.rule))],
        "groups": [Definition("lmlab.training.optimizers.base", "parameter_groups")],
        "optimizer": [*_options(parts["optimizer"]), _definition(type(run.optimizer))],
        "schedule": [*_options(parts["schedule"]), _definition(type(config.schedule))],
    }
    asked_for = list(ASKED_FOR)
    averages = isinstance(run.optimizer, Averaging)
    if averages:
        asked_for.append("averages")
        roots["optimizer"].append(Definition("lmlab.training.optimizers.base", EVALUATION_WEIGHTS))
    if _in_pieces(config):
        asked_for.append("accumulate_gradients")
    if any(True for _ in config.rule.parameters()):
        asked_for.append("own_groups")
        roots["groups"].append(Definition("lmlab.training.optimizers.base", "joined"))
    gathering = _gathered(objects, asked_for, config, roots)
    draws_noise = any(each.module == "lmlab.model.noise" for each in gathering.pieces)
    drops = any(isinstance(each, Dropout) and each.p for each in run.model.modules())
    if draws_noise:
        roots["noise"] = [Definition("lmlab.model.noise", "keyed")]
        if drops:
            roots["noise"].append(Definition("lmlab.model.noise", "name_sites"))
        gathering = _gathered(objects, asked_for, config, roots)
    done: set[Definition] = set()
    writer = _Writer(gathering)
    sections = {}
    for key, definitions in roots.items():
        pieces = [piece for root in definitions for piece in gathering.written(root, done)]
        sections[key] = writer.text(iter(pieces))
    values = {
        "DATA": data,
        "IMPORTS": _imports(gathering.outside),
        **{key.upper(): text for key, text in sections.items()},
        **_numbers(config, shards, writer, draws_noise),
        "EVALUATION": _evaluation(averages),
        "SITES": "noise_name_sites(model)\n" if drops else "",
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"«{key}»", str(value))
    return text


def _evaluation(averages: bool) -> str:
    """The last lines; an optimizer that trains at other weights is asked for those to use."""
    lines = ['print("validation", evaluate("validation"))', "print(sample(200))"]
    if averages:
        return f"    with {EVALUATION_WEIGHTS}(optimizer):\n" + "".join(
            f"        {line}\n" for line in lines
        )
    return "".join(f"    {line}\n" for line in lines)


def _encoder(tokenizer: Tokenizer) -> str:
    """How text becomes ids in the file."""
    encoder = ENCODERS.get(type(tokenizer).__name__)
    return f"{encoder}{STREAM}" if encoder else STREAM_OF_IDS


def _numbers(
    config: Config, shards: Shards, writer: "_Writer", draws_noise: bool
) -> dict[str, Any]:
    """What the template says of the run, as source."""
    params, run, parts = config.params, config.run, config.parts
    own = any(True for _ in config.rule.parameters())
    groups = "parameter_groups(model)"
    return {
        "CHOICE": writer.choice(parts["model"], "vocabulary_size=VOCABULARY, context=CONTEXT"),
        "RULE_CHOICE": writer.choice(parts["learning_rule"], "model"),
        "OPTIMIZER_CHOICE": writer.choice(parts["optimizer"], "groups"),
        "SCHEDULE_CHOICE": writer.choice(parts["schedule"], "STEPS"),
        "VOCABULARY": shards.vocabulary_size,
        "CONTEXT_LENGTH": params.context,
        "BATCH": params.batch,
        "STEPS": params.steps,
        "SEED": params.seed,
        "ORDER_SEED": params.order_seed,
        "POOL": int(params.pool_megatokens * 1e6),
        "CLIP": params.clip,
        "THREADS": params.threads,
        "LOG_EVERY": params.log_every,
        "BOS": shards.bos,
        "GROUP_CHOICE": f"joined({groups}, rule.own_groups(model))" if own else groups,
        "PEAKS": repr([group["lr"] for group in run.optimizer.param_groups]),
        "GRADIENTS": _gradients(config, draws_noise),
    }


def _gathered(
    objects: list[Any],
    asked_for: list[str],
    config: Config,
    roots: Mapping[str, list[Definition]],
) -> Gathering:
    gathering = Gathering(objects, asked_for, _facts(config))
    gathering.add(root for each in roots.values() for root in each)
    return gathering


def _options(choice: Choice) -> list[Definition]:
    """The class that gives a part's options their methods, if there is one."""
    for base in type(choice.options).__mro__:
        if base is Params or not base.__module__.startswith("lmlab."):
            return []
        members = [member for name, member in vars(base).items() if not name.startswith("_")]
        if any(isinstance(member, FunctionType) for member in members):
            return [_definition(base)]
    return []


def _facts(config: Config) -> Facts:
    parts = {key: choice for key, choice in config.parts.items() if key not in KEYS}
    options = {
        choice.part.__module__: _option_values(choice.options)
        for part in parts.values()
        for choice in _all_choices(part)
    }
    of_optimizer = options[config.parts["optimizer"].part.__module__]
    residuals = [module for module in options if ".layers.residual." in module]
    absent = {"cache"}
    if not any(module.endswith(".value") for module in residuals):
        absent.add("map_values")
    left_out = set()
    if not of_optimizer.get("cautious"):
        left_out.add("add_caution")
    if not of_optimizer.get("weight_decay"):
        left_out.add("add_decay")
    if not any(isinstance(each, Dropout) and each.p for each in config.run.model.modules()):
        left_out.add("name_sites")
    position = getattr(config.run.model, "position", None)
    give_nothing = {"bias"} if position is not None and position.bias(2, 3, 3) is None else set()
    text = Path(sys.modules[type(config.rule).__module__].__file__ or "").read_text("utf-8")
    forward_mode = "jvp" in text or "vmap" in text or "forward_ad" in text
    if not forward_mode:
        left_out.add("save_for_forward")
    return Facts(options, absent, left_out, give_nothing, forward_mode)


def _all_choices(choice: Choice) -> Iterator[Choice]:
    yield choice
    for inner in choice.inner.values():
        yield from _all_choices(inner)


def _definitions(choice: Choice) -> list[Definition]:
    """The classes of the parts that a part is built from, innermost first."""
    found = []
    for inner in choice.inner.values():
        found += [*_definitions(inner), _definition(inner.part)]
    return found


def _imports(statements: Iterable[str]) -> str:
    """The imports beyond those of the template, those from one module in one line."""
    plain: list[str] = []
    by_module: dict[str, list[str]] = {}
    for statement in sorted(statements):
        words = statement.split(maxsplit=3)
        if words[0] == "import" and statement not in TEMPLATE_IMPORTS:
            plain.append(statement)
        elif words[0] == "from" and statement not in TEMPLATE_IMPORTS:
            by_module.setdefault(words[1], []).append(words[3])
    lines = [f"from {module} import {', '.join(names)}" for module, names in by_module.items()]
    return "\n".join([*plain, *lines])


def _definition(cls: type) -> Definition:
    return Definition(cls.__module__, cls.__name__)


class _Writer:
    """Writes pieces as source."""

    def __init__(self, gathering: Gathering) -> None:
        self.gathering = gathering
        self.names = gathering.names()
        self.introduced: set[str] = set()

    def text(self, pieces: Iterator[Piece]) -> str:
        return "\n\n\n".join(text for piece in pieces if (text := self._piece(piece)))

    def _piece(self, piece: Piece) -> str:
        module = piece.definition.module
        node = piece.node
        if isinstance(node, ast.ClassDef):
            members = self.gathering.live(piece)
            if not members and not self._is_mentioned(piece.definition):
                return ""
            docstring = _first_paragraph(node)
            body = [*([docstring] if docstring else []), *members]
            bases = [base for each in node.bases for base in self._base(module, each)]
            node = copy(node)
            node.name, node.bases = self.names[piece.definition], bases
            node.body = body or [ast.Pass()]
        for part in ast.walk(node):
            if isinstance(part, ast.FunctionDef):
                _shorten_docstring(part)
        renaming = self._renaming(module)
        if isinstance(node, ast.ClassDef):
            node.body = [
                Rename(renaming, local_names(member)).visit(member)
                if isinstance(member, ast.FunctionDef)
                else Rename(renaming, set()).visit(member)
                for member in node.body
            ]
        elif isinstance(node, ast.FunctionDef):
            node.name = self.names[piece.definition]
            node = Rename(renaming, local_names(node)).visit(node)
        else:
            node = Rename(renaming, set()).visit(node)
        return self._comment(piece) + ast.unparse(ast.fix_missing_locations(node))

    def _comment(self, piece: Piece) -> str:
        """What the lab says of a constant, or of a part in its module's docstring."""
        parsed = source(piece.definition.module)
        text = parsed.notes.get(piece.definition.name, "")
        is_part = piece.definition.name.lower() == parsed.module.rpartition(".")[2].replace("_", "")
        if is_part and piece.definition.module not in self.introduced:
            self.introduced.add(piece.definition.module)
            text = parsed.docstring.split("\n\n")[0]
        lines = textwrap.wrap(" ".join(text.split()), 98)
        return "".join(f"# {line}\n" for line in lines)

    def _base(self, module: str, base: ast.expr) -> list[ast.expr]:
        """A base class; for one of which nothing is left, its own bases."""
        if isinstance(base, ast.Name):
            stands_for = meaning(module, base.id)
            if isinstance(stands_for, Definition):
                piece = self.gathering.pieces[stands_for]
                assert isinstance(piece.node, ast.ClassDef)
                if not self.gathering.live(piece) and not self._is_mentioned(stands_for):
                    return [
                        inner
                        for each in piece.node.bases
                        for inner in self._base(stands_for.module, each)
                    ]
                return [ast.Name(self.names[stands_for], ast.Load())]
        return [base]

    @cache  # noqa: B019
    def _is_mentioned(self, definition: Definition) -> bool:
        """Whether a class is named elsewhere than as a base."""
        for piece in self.gathering.pieces.values():
            if piece.definition == definition:
                continue
            for statement in self.gathering.live(piece):
                for part in ast.walk(statement):
                    if (
                        isinstance(part, ast.Name)
                        and meaning(piece.definition.module, part.id) == definition
                    ):
                        return True
        return False

    def _renaming(self, module: str) -> Any:
        def renamed(name: str, attribute: str) -> str | None:
            stands_for = meaning(module, name)
            if isinstance(stands_for, WholeModule):
                if not attribute:
                    return None
                stands_for = meaning(stands_for.module, attribute)
                return self.names.get(stands_for) if isinstance(stands_for, Definition) else None
            if attribute or not isinstance(stands_for, Definition):
                if attribute and isinstance(stands_for, Definition):
                    return None
                return None
            return self.names.get(stands_for)

        return renamed

    def choice(self, choice: Choice, arguments: str) -> str:
        """The call that builds a part."""
        return f"{self._class(choice)}({self._options(choice)}, {arguments}{self._inner(choice)})"

    def _class(self, choice: Choice) -> str:
        return self.names[_definition(choice.part)]

    def _options(self, choice: Choice) -> str:
        values = _option_values(choice.options)
        values = {key: value for key, value in values.items() if key in self.gathering.mentioned}
        words = ", ".join(f"{key}={value!r}" for key, value in values.items())
        own = [self.names[each] for each in _options(choice) if each in self.names]
        return f"{own[0] if own else 'SimpleNamespace'}({words})"

    def _inner(self, choice: Choice) -> str:
        text = ""
        for key, inner in choice.inner.items():
            text += (
                f", {key}=partial({self._class(inner)}, {self._options(inner)}{self._inner(inner)})"
            )
        return text


def _option_values(options: Params) -> dict[str, Any]:
    """An options object's fields, and what its properties come to."""
    values = options.model_dump()
    for cls in type(options).__mro__:
        if cls.__module__.startswith("lmlab."):
            for name, member in vars(cls).items():
                if isinstance(member, property):
                    values[name] = getattr(options, name)
    return values


ONLY_IN_THE_LAB = re.compile(r"cache|watched|`pattern`|params\\.yaml|by default")


def _first_paragraph(node: ast.ClassDef | ast.FunctionDef) -> ast.stmt | None:
    """The docstring's first paragraph, without clauses on what only the lab has."""
    text = (ast.get_docstring(node) or "").split("\n\n")[0]
    clauses = re.split(r"(?<=[.;,]) ", " ".join(text.split()))
    kept = [clause for clause in clauses if not ONLY_IN_THE_LAB.search(clause)]
    if not kept:
        return None
    words = " ".join(kept).rstrip(";, ")
    if not words:
        return None
    indent = 4 if isinstance(node, ast.ClassDef) else 8
    lines = textwrap.wrap(words if words.endswith(".") else f"{words}.", 96 - indent)
    return ast.Expr(ast.Constant(f"\n{' ' * indent}".join(lines)))


def _shorten_docstring(node: ast.FunctionDef) -> None:
    if ast.get_docstring(node):
        docstring = _first_paragraph(node)
        node.body = [*([docstring] if docstring else []), *node.body[1:]] or [ast.Pass()]


def _without_parentheses(code: str) -> str:
    """`x, y = a, b` and `return a, b`, around which unparsing puts parentheses."""
    lines = []
    for line in code.splitlines():
        bare = re.sub(r"^(\s*(?:[\w., \[\]\"']+ = |return ))\((.*)\)$", r"\1\2", line)
        lines.append(bare if bare != line and _same(bare, line) else line)
    return "\n".join(lines)


def _same(one: str, other: str) -> bool:
    try:
        trees = [ast.parse(f"def f():\n    {line.strip()}") for line in (one, other)]
    except SyntaxError:
        return False
    return ast.dump(trees[0]) == ast.dump(trees[1])


def _formatted(code: str) -> str:
    """The code as ruff formats it."""
    command = [sys.executable, "-m", "ruff", "format", "--line-length", "100", "-"]
    done = subprocess.run(
        command, input=_without_parentheses(code), capture_output=True, text=True, check=True
    )
    return done.stdout
