"""Refuses a params.yaml that cannot work, before any stage starts: all sections, whichever stage is
about to run.

It can only refuse, never change what a stage writes; so it is not among the dependencies of any
stage in dvc.yaml, and the stages load it by name.
"""

import ast
from collections.abc import Mapping
from pathlib import Path

import torch

from lmlab.core import params, registry
from lmlab.core.errors import UserError
from lmlab.core.params import Params, Tree
from lmlab.core.registry import Choice
from lmlab.data.collect import DownloadParams
from lmlab.data.shard import ShardParams
from lmlab.data.start import StartParams
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import TokenizerParams
from lmlab.evaluation import probe as probing
from lmlab.evaluation.evaluate import EvaluateParams, check_metrics
from lmlab.evaluation.measures import base as measures
from lmlab.evaluation.probe import ProbeParams
from lmlab.experiments import starting
from lmlab.experiments.stages.layout import Layout
from lmlab.model.models import base as models
from lmlab.model.record import check_parts
from lmlab.training import growing, outline
from lmlab.training.growing import Shape
from lmlab.training.step import TrainParams, chosen_rule

SECTIONS: dict[str, type[Params]] = {
    "start": StartParams,
    "download": DownloadParams,
    "tokenizer": TokenizerParams,
    "shard": ShardParams,
    "train": TrainParams,
    "evaluate": EvaluateParams,
    "probe": ProbeParams,
}
SOME_VOCABULARY = 256


def check(tree: Tree, run: bool = True, has_start: bool = False) -> None:
    """Raise UserError naming the first key that is wrong, or the first combination that is
    impossible.

    Without `run` that a model and its learning rule can be built together, and in this machine's
    memory, is left out. With `has_start` there will be a run to go on from, also where the section
    `start` names none.
    """
    kinds = registry.kinds()
    _check_names(tree, "", [*SECTIONS, *kinds])
    for kind in kinds:
        known = registry.names(kind)
        for name in params.block(tree, kind):
            if name not in known:
                raise UserError(
                    f"params.yaml: {kind}.{name} is no part of lmlab;"
                    f" {params.nearest(str(name), known)}; if its file is new, `git commit` it:"
                    " experiments run what Git holds"
                )
    sections = {name: params.section(tree, name, model) for name, model in SECTIONS.items()}
    try:
        chosen = {name: registry.choices(tree, name, section) for name, section in sections.items()}
    except (TypeError, SyntaxError):
        _check_modules()
        raise
    for choices in chosen.values():
        for choice in choices.values():
            _check_base(choice)
    for choice in chosen["train"].values():
        _check_followed(choice)
    chosen["download"]["corpus"].build()
    assert isinstance(sections["tokenizer"], TokenizerParams)
    try:
        tokenizers.load_chosen(sections["tokenizer"], chosen["tokenizer"]["name"])
    except (OSError, ValueError) as error:  # a name that no file can have
        raise UserError(
            "params.yaml: tokenizer.from cannot name a file:"
            f" {getattr(error, 'strerror', None) or error}"
        ) from None
    train, evaluate, probe = sections["train"], sections["evaluate"], sections["probe"]
    assert isinstance(train, TrainParams)
    assert isinstance(evaluate, EvaluateParams)
    assert isinstance(probe, ProbeParams)
    for choice in [
        *probing.chosen(tree, probe).values(),
        *measures.chosen(tree, evaluate.measures).values(),
    ]:
        choice.build()
    check_metrics(evaluate)
    _check_start(tree, sections["start"], sections["tokenizer"], chosen, has_start)
    if run:
        _check_run(train, chosen["train"])
    if evaluate.stride > train.context:
        raise UserError(
            f"params.yaml: evaluate.stride ({evaluate.stride}) is larger than train.context"
            f" ({train.context}), so some"
            f" tokens would never be scored; set it to {train.context} or less"
        )


def _check_start(
    tree: Tree,
    section: Params,
    tokenizer: Params,
    chosen: Mapping[str, Mapping[str, Choice]],
    has_start: bool,
) -> None:
    assert isinstance(section, StartParams)
    assert isinstance(tokenizer, TokenizerParams)
    if not section.has_another_tokenizer and tokenizer.file:
        raise UserError(
            "params.yaml: tokenizer.from: a run that goes on has the tokenizer of its start; set it"
            f" to {tokenizers.FITTED}, or start.migration to how rows of new tokens come about"
        )
    of_tokenizer, model = chosen["tokenizer"]["name"], chosen["train"]["model"]
    growths = growing.chosen(tree, section.growth)
    rule = chosen["train"]["learning_rule"]
    if not (section.commit or has_start) and rule.part.needs_teacher:
        raise UserError(
            f"params.yaml: train.learning_rule: {rule.name} learns from the model that training"
            " goes on from, and there is none; `lmlab start NAME` names one, or choose another"
            " rule"
        )
    saved = starting.check(section, of_tokenizer, starting.project(), Layout.below().start)
    if saved and growths:
        growing.check(registry.recall("models", saved.model), model, growths, Shape.of(saved))
    elif saved:
        check_parts(saved, model)


def _check_base(choice: Choice) -> None:
    """Raise UserError where a part, or one that it is built from, is not of its kind."""
    base = ".".join(["lmlab", *registry.folder(choice.kind).parts, "base"])
    is_of_its_kind = any(cls.__module__ == base for cls in choice.part.__mro__)
    is_torchs_own = choice.kind == "optimizers" and issubclass(choice.part, torch.optim.Optimizer)
    if not is_of_its_kind and not is_torchs_own:
        raise UserError(
            f"{registry.file(choice.kind, choice.name)}: {choice.part.__name__} should derive from"
            " the class in base.py beside it"
        )
    for inner in choice.inner.values():
        _check_base(inner)


def _check_modules() -> None:
    """Raise UserError naming the first part whose module cannot be read, or does not hold what the
    registry looks for.
    """
    for kind in registry.kinds():
        for name in registry.names(kind):
            path = registry.file(kind, name)
            try:
                module = ast.parse(path.read_text(encoding="utf-8"))
            except SyntaxError as error:
                raise UserError(f"{path}, line {error.lineno}: {error.msg}") from None
            classes = [node.name for node in module.body if isinstance(node, ast.ClassDef)]
            expected = name.title().replace("_", "")
            if expected.lower() not in [each.lower() for each in classes]:
                raise UserError(
                    f"{path} should hold a class named like the file, such as {expected}; it holds"
                    f" {', '.join(classes) or 'none'}"
                )
            if "Options" not in classes:
                raise UserError(
                    f"{path} should hold a class Options(Params) beside {expected}, empty if there"
                    " is nothing to choose"
                )


def _check_run(train: TrainParams, chosen: dict[str, Choice]) -> None:
    outline.refuse_endless(chosen["model"], SOME_VOCABULARY, train.context)
    with outline.without_storage():
        model = models.build(chosen["model"], SOME_VOCABULARY, train.context)
        parametrisation = chosen["parametrisation"].build()
        parametrisation.check(model)
        parametrisation.scale_initialisation(model)
        rule = chosen_rule(train, chosen, model)
    if train.processes > 1 and train.device != "cpu":
        raise UserError(
            f"params.yaml: train.processes is {train.processes}, and several processes share a run"
            f" on processors alone so far; set train.device ({train.device}) to cpu, or"
            " train.processes to 1"
        )
    undivided = train.model_copy(update={"gradient_accumulation": 1, "processes": 1})
    windows = undivided.settled(model.width, bfloat16_helps=False).batch
    pieces = train.settled(model.width, False, rule.shares_population).gradient_accumulation
    if not train.batch and pieces > windows:
        among = f" shared by train.processes ({train.processes})" if train.processes > 1 else ""
        raise UserError(
            f"params.yaml: train.gradient_accumulation ({pieces}){among} is more"
            " pieces than the batch that follows from the width"
            f" has windows ({windows}); lower it, or set train.batch"
        )
    outline.refuse_too_large(train, model, rule)


def _check_followed(choice: Choice) -> None:
    """DVC must be told of the parts that a part names, or it would not see them change."""
    pipeline = Path("dvc.yaml")
    listed = pipeline.read_text(encoding="utf-8") if pipeline.exists() else None
    for key, inner in choice.inner.items():
        name = f"{choice.kind}.{choice.name}.{key}"
        folder = registry.folder(inner.kind).as_posix()
        lines = [f"src/lmlab/{folder}/${{{name}}}.py", f"{inner.kind}.${{{name}}}"]
        if listed is not None and any(f"- {line}\n" not in listed for line in lines):
            raise UserError(
                f"dvc.yaml: the stages do not follow the part that {name} names; run"
                " `lmlab deps --write`"
            )
        _check_followed(inner)


def _check_names(tree: Tree, at: str, dotted: list[str]) -> None:
    """Every key down to the kinds of parts is one that something reads."""
    known = {name.split(".")[0] for name in dotted}
    for key, value in tree.items():
        if key not in known:
            raise UserError(
                f"params.yaml: {at}{key} is not a known key; {params.nearest(str(key), known)}"
            )
        deeper = [name.split(".", 1)[1] for name in dotted if name.startswith(f"{key}.")]
        if deeper and isinstance(value, dict):
            _check_names(value, f"{at}{key}.", deeper)
