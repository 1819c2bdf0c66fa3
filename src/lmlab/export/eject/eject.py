"""Any configuration as one plain Python file that needs nothing of lmlab.

The file is made of the lab's own source, of the parts that were chosen alone; `loop.py.txt` is what
stands around them. Run, it prints the lab's losses bit for bit.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.core.files import whole_file
from lmlab.core.params import Tree, section
from lmlab.core.registry import Choice
from lmlab.data.shards import Shards
from lmlab.data.start import StartParams
from lmlab.data.tokenizers.base import Tokenizer
from lmlab.export.eject.gather import Facts, Gathering
from lmlab.export.eject.source import Definition
from lmlab.export.eject.text import content, encoder, windows
from lmlab.export.eject.write import (
    Writer,
    definition_of,
    formatted,
    imports,
    option_values,
    options_class,
)
from lmlab.model.noise import Dropout
from lmlab.training.interventions.base import KEYS
from lmlab.training.interventions.identity import Identity
from lmlab.training.learning_rules.base import LearningRule
from lmlab.training.optimizers.base import Averaging, joined, parameter_groups
from lmlab.training.step import Run, TrainParams, begin

OPTIMIZERS, NOISE = "lmlab.training.optimizers.base", "lmlab.model.noise"
EVALUATION_WEIGHTS = "evaluation_weights"
OWN_CLIPPED = """parameters += [p for p in rule.parameters() if p.grad is not None]
            """
TEMPLATE = Path(__file__).with_name("loop.py.txt")
ASKED_FOR = ("forward", "assign_gradients", "factor", "step")
"""What the template asks of the parts."""


@dataclass(frozen=True)
class Config:
    """A run that can be ejected, built."""

    params: TrainParams
    parts: dict[str, Choice]
    run: Run
    rule: Any
    schedule: Any


def eject(tree: Tree, shards: Shards, tokenizer: Tokenizer, corpus: Path, out: Path) -> list[Path]:
    """Write the run that params describe as `out` and the data it reads as JSON beside it.

    Raises UserError, naming it, for a part that cannot be ejected or an `out` that is no .py file.
    """
    if out.suffix != ".py":
        raise UserError(
            f"--out: {out} does not end in .py; name a Python file, its data go beside it as .json"
        )
    config = _configured(tree, shards)
    data = out.with_suffix(".json")
    code = formatted(_code(config, shards, tokenizer, data.name))
    text_read = json.dumps(content(shards, tokenizer, corpus), ensure_ascii=False)
    for file, text in ((data, text_read), (out, code)):
        with whole_file(file) as partial:
            partial.write_text(text, encoding="utf-8")
    return [out, data]


def _configured(tree: Tree, shards: Shards) -> Config:
    if section(tree, "start", StartParams).commit:
        raise UserError(
            "params.yaml: start.commit cannot be ejected, since the file begins from scratch; run"
            " `lmlab start` without a name first"
        )
    params = section(tree, "train", TrainParams)
    parts = registry.choices(tree, "train", params)
    for key, value, instead in (
        ("parametrisation", parts["parametrisation"].name, "standard"),
        ("device", params.device, "cpu"),
        ("compile", params.compile, False),
        ("step_in_backward", params.step_in_backward, False),
        ("patience", params.patience, 0),
        ("keep", params.keep, "last"),
    ):
        if value != instead:
            raise _cannot(key, value, instead)
    if params.precision == "bfloat16":
        raise _cannot("precision", params.precision, "float32")
    _check_interventions(parts)
    run = begin(params, parts, shards.vocabulary_size, torch.device("cpu"))
    if run.params.precision != "float32":  # what auto has come to
        raise _cannot("precision", f"auto, here {run.params.precision},", "float32")
    parts["optimizer"] = _at_its_rates(run, parts)
    rule = run.rule
    while isinstance(rule, Identity):
        rule = rule.rule
    schedule = parts["schedule"].build(params.steps)
    return Config(run.params, parts, run, rule, schedule)


def _check_interventions(parts: Mapping[str, Choice]) -> None:
    """Raise UserError where one stands twice: each would need a noise site of its own."""
    keys: dict[str, str] = {}
    for key in KEYS:
        name = parts[key].name
        if name in keys and name != "identity":
            raise UserError(
                f"params.yaml: train.{key}: {name} stands twice, here and in train.{keys[name]},"
                " and an ejected file has room for one; set either to identity"
            )
        keys[name] = key


def _at_its_rates(run: Run, parts: Mapping[str, Choice]) -> Choice:
    """The optimizer with the learning rates that it has at the model's width.

    Raises UserError for a rule that has learning rates of its own.
    """
    choice = parts["optimizer"]
    factor = parts["parametrisation"].build().rate_factor(run.model.width, 1.0)
    rates = {
        key: value * factor
        for key, value in choice.options.model_dump().items()
        if key == "learning_rate" or key.endswith("_learning_rate")
    }
    scaled = replace(choice, options=choice.options.model_copy(update=rates))
    groups = joined(parameter_groups(run.model), run.rule.own_groups(run.model))
    plain = scaled.build({name: members for name, members in groups.items() if members})
    if _rates(plain) != _rates(run.optimizer):
        for key in KEYS:
            if parts[key].name == "layer_rates":
                raise _cannot(key, parts[key].name, "identity")
        raise _cannot("learning_rule", parts["learning_rule"].name, "backprop")
    return scaled


def _rates(optimizer: torch.optim.Optimizer) -> list[tuple[str, float]]:
    return [(group["name"], group["lr"]) for group in optimizer.param_groups]


def _in_pieces(config: Config) -> bool:
    """Whether a step is more than one call for the whole batch."""
    own = type(config.rule).accumulate_gradients is not LearningRule.accumulate_gradients
    return own or config.params.gradient_accumulation > 1


def _gradients(config: Config, draws_noise: bool) -> str:
    """The lines of the loop in which the rule fills the gradients."""
    lines = []
    keyed = "noise_keyed(SEED, step, 'piece', 0)"
    call = "assign_gradients(model, tokens_BT, targets_BT)"
    if _in_pieces(config):
        count = config.params.gradient_accumulation
        lines.append(f"pieces = list(zip(tokens_BT.chunk({count}), targets_BT.chunk({count})))")
        keyed, call = "noise_keyed(SEED, step)", "accumulate_gradients(model, pieces)"
    if draws_noise:
        lines += [f"with {keyed}:", f"    loss = rule.{call}"]
    else:
        lines.append(f"loss = rule.{call}")
    return "\n        ".join(lines)


def _cannot(key: str, value: str | bool | int, instead: str | bool | int) -> UserError:
    is_now, should_be = (json.dumps(each).strip('"') for each in (value, instead))  # YAML's words
    return UserError(f"params.yaml: train.{key}: {is_now} cannot be ejected; set it to {should_be}")


def _code(config: Config, shards: Shards, tokenizer: Tokenizer, data: str) -> str:
    """The file's text, not yet formatted."""
    run = config.run
    gathering, sections = _gathered(config)
    writer = Writer(gathering)
    done: set[Definition] = set()
    texts = {}
    for key, definitions in sections.items():
        pieces = [piece for root in definitions for piece in gathering.written(root, done)]
        texts[key] = writer.text(pieces)
    encode, needed = encoder(tokenizer)
    values = {
        "DATA": repr(data),
        "IMPORTS": imports({*gathering.outside, *needed}),
        "TOKENIZER": encode,
        **texts,
        **_numbers(config, shards, writer),
        "WINDOWS": windows(shards, config.params.context, config.params.pool_megatokens),
        "GRADIENTS": _gradients(config, draws_noise=bool(sections["NOISE"])),
        "EVALUATION": _evaluation(isinstance(run.optimizer, Averaging)),
        "SITES": "noise_name_sites(model)\n" if _drops(config) else "",
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    return re.sub("«([A-Z_]+)»", lambda place: str(values[place[1]]), text)


def _gathered(config: Config) -> tuple[Gathering, dict[str, list[Definition]]]:
    """All definitions that the run uses, and the roots of each section of the file."""
    run, parts = config.run, config.parts
    sections = {
        "NOISE": [],
        "MODEL": [*definitions(parts["model"]), definition_of(type(run.model))],
        "LOSS": [Definition("lmlab.model.models.base", "next_token_loss")],
        "RULE": [
            root
            for each in _rules(parts)
            for root in [*definitions(each), definition_of(each.part)]
        ],
        "GROUPS": [Definition(OPTIMIZERS, "parameter_groups")],
        "OPTIMIZER": [*options_class(parts["optimizer"]), definition_of(type(run.optimizer))],
        "SCHEDULE": [*options_class(parts["schedule"]), definition_of(type(config.schedule))],
    }
    asked_for = list(ASKED_FOR)
    if isinstance(run.optimizer, Averaging):
        asked_for.append("averages")
        sections["OPTIMIZER"].append(Definition(OPTIMIZERS, EVALUATION_WEIGHTS))
    if _in_pieces(config):
        asked_for.append("accumulate_gradients")
    if _has_parameters(config.rule):
        asked_for.append("own_groups")
        sections["GROUPS"].append(Definition(OPTIMIZERS, "joined"))
    objects = [*run.model.modules(), *config.rule.modules(), run.optimizer, config.schedule]
    gathering = Gathering(objects, asked_for, _facts(config))
    gathering.add(root for roots in sections.values() for root in roots)
    if any(each.module == NOISE for each in gathering.pieces):
        names = ["keyed", "name_sites"] if _drops(config) else ["keyed"]
        sections["NOISE"] = [Definition(NOISE, name) for name in names]
        gathering = Gathering(objects, asked_for, _facts(config))
        gathering.add(root for roots in sections.values() for root in roots)
    return gathering, sections


def _rules(parts: Mapping[str, Choice]) -> list[Choice]:
    """The learning rule and the interventions around it, from the inside out.

    An `identity` within another one stays, since noise is keyed by names that it is a part of.
    """
    chosen = [number for number, key in enumerate(KEYS, 1) if parts[key].name != "identity"]
    around = KEYS[: max(chosen, default=0)]
    return [parts["learning_rule"], *(parts[key] for key in around)]


def _nested(writer: Writer, parts: Mapping[str, Choice]) -> str:
    """The call that builds the rule within its interventions."""
    rule, *around = _rules(parts)
    text = writer.choice(rule, "model")
    for choice in around:
        text = writer.choice(choice, f"model, {text}")
    return text


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _drops(config: Config) -> bool:
    """Whether dropout drops anything."""
    return any(isinstance(each, Dropout) and each.p for each in config.run.model.modules())


def _evaluation(averages: bool) -> str:
    """The last lines; an optimizer that trains at other weights is asked for those to use."""
    lines = ['print("validation", evaluate("validation"))', "print(sample(200))"]
    if averages:
        return f"    with {EVALUATION_WEIGHTS}(optimizer):\n" + "".join(
            f"        {line}\n" for line in lines
        )
    return "".join(f"    {line}\n" for line in lines)


def _numbers(config: Config, shards: Shards, writer: Writer) -> dict[str, Any]:
    """What the template says of the run, as source."""
    params, parts = config.params, config.parts
    own = _has_parameters(config.rule)
    groups = "parameter_groups(model)"
    return {
        "CHOICE": writer.choice(parts["model"], "vocabulary_size=VOCABULARY, context=CONTEXT"),
        "RULE_CHOICE": _nested(writer, parts),
        "OPTIMIZER_CHOICE": writer.choice(parts["optimizer"], "groups"),
        "SCHEDULE_CHOICE": writer.choice(parts["schedule"], "STEPS"),
        "VOCABULARY": shards.vocabulary_size,
        "CONTEXT_LENGTH": params.context,
        "BATCH": params.batch,
        "STEPS": params.steps,
        "SEED": params.seed,
        "ORDER_SEED": params.order_seed,
        "CLIP": params.clip,
        "THREADS": params.threads,
        "LOG_EVERY": params.log_every,
        "BOS": shards.bos,
        "OWN_CLIPPED": OWN_CLIPPED if own else "",
        "GROUP_CHOICE": f"joined({groups}, rule.own_groups(model))" if own else groups,
    }


def _facts(config: Config) -> Facts:
    parts = {key: choice for key, choice in config.parts.items() if key not in KEYS}
    parts |= {choice.name: choice for choice in _rules(config.parts)}
    options = {
        choice.part.__module__: option_values(choice.options)
        for part in parts.values()
        for choice in all_choices(part)
    }
    of_optimizer = options[config.parts["optimizer"].part.__module__]
    residuals = [module for module in options if ".layers.residual." in module]
    absent = {"cache", "closure"}
    if not any(module.endswith(".value") for module in residuals):
        absent.add("map_values")
    left_out = set()
    if not of_optimizer.get("cautious"):
        left_out.add("add_caution")
    if not of_optimizer.get("weight_decay"):
        left_out.add("add_decay")
    if not _drops(config):
        left_out.add("name_sites")
    position = getattr(config.run.model, "position", None)
    give_nothing = {"bias"} if position is not None and position.bias(2, 3, 3) is None else set()
    sources = [
        registry.file(each.kind, each.name).read_text("utf-8") for each in _rules(config.parts)
    ]
    forward_mode = any(word in text for text in sources for word in ("jvp", "vmap", "forward_ad"))
    if not forward_mode:
        left_out.add("save_for_forward")
    return Facts(options, absent, left_out, give_nothing, forward_mode)


def all_choices(choice: Choice) -> Iterator[Choice]:
    """A part and all that it is built from."""
    yield choice
    for inner in choice.inner.values():
        yield from all_choices(inner)


def definitions(choice: Choice) -> list[Definition]:
    """The classes of the parts that a part is built from, innermost first."""
    found = []
    for inner in choice.inner.values():
        found += [*definitions(inner), definition_of(inner.part)]
    return found
