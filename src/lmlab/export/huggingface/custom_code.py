"""A model that no architecture of transformers has, as one short file that they run
(`trust_remote_code`): the lab's own source of the parts that it has, and a class around them.
"""

from dataclasses import replace
from pathlib import Path

from lmlab.core.registry import Choice
from lmlab.export.eject.eject import all_choices, definitions
from lmlab.export.eject.gather import Facts, Gathering
from lmlab.export.eject.source import Definition
from lmlab.export.eject.write import Writer, definition_of, formatted, imports, option_values
from lmlab.model.layers.attention.base import Attention
from lmlab.model.models import base as models
from lmlab.model.models.base import LanguageModel
from lmlab.training.outline import without_storage

TEMPLATE = Path(__file__).with_name("custom_code.py.txt")
MODULE = "modeling_lmlab"
MENTIONED = {
    "partial": "from functools import partial",
    "SimpleNamespace": "from types import SimpleNamespace",
}
"""Imports that are needed where a name occurs, which `imports` takes for granted."""
CONFIG, MODEL = "LmlabConfig", "LmlabForCausalLM"


def custom_code(model: LanguageModel) -> str:
    """The file that builds a model and reads with it."""
    choice = without_dropout(model.choice)
    with without_storage():
        same = models.build(choice, model.vocabulary_size, model.context)
    gathering = Gathering(list(same.modules()), ["forward"], _facts(same))
    roots = [*definitions(choice), definition_of(type(same))]
    gathering.add(roots)
    writer = Writer(gathering)
    sizes = f"vocabulary_size={model.vocabulary_size}, context={model.context}"
    call = writer.choice(choice, sizes)
    done: set[Definition] = set()
    pieces = [piece for root in roots for piece in gathering.written(root, done)]
    text = TEMPLATE.read_text(encoding="utf-8")
    code = writer.text(pieces)
    mentioned = [line for name, line in MENTIONED.items() if name in code + call]
    values = {
        "IMPORTS": "\n".join([*mentioned, imports(gathering.outside)]),
        "DEFINITIONS": code,
        "CALL": call,
        "LONGEST": str(longest(model)),
    }
    for name, value in values.items():
        text = text.replace(f"«{name}»", value)
    return formatted(text)


def without_dropout(choice: Choice) -> Choice:
    """The same part for reading only."""
    drops = "dropout" in type(choice.options).model_fields
    options = choice.options.model_copy(update={"dropout": 0.0}) if drops else choice.options
    inner = {key: without_dropout(each) for key, each in choice.inner.items()}
    return replace(choice, options=options, inner=inner)


def longest(model: LanguageModel) -> int | None:
    """How many tokens at most are read at once in generation; None where reading on costs nothing
    in quality: attention to everything was trained on `context` tokens.
    """
    sees_all = any(
        isinstance(module, Attention) and module.lookback is None for module in model.modules()
    )
    return model.context if sees_all else None


def _facts(model: LanguageModel) -> Facts:
    """What is known of a model that reads a whole text at once."""
    options = {
        choice.part.__module__: option_values(choice.options)
        for choice in all_choices(model.choice)
    }
    absent = {"cache"}
    if not any(module.endswith(".residual.value") for module in options):
        absent.add("map_values")
    position = getattr(model, "position", None)
    gives_no_bias = position is not None and position.bias(2, 3, 3) is None
    return Facts(
        options=options,
        absent=absent,
        left_out={"name_sites", "save_for_forward"},
        give_nothing={"bias"} if gives_no_bias else set(),
        forward_mode=False,
    )
