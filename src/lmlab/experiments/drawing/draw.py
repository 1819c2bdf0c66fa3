"""What `lmlab draw` draws, and where it puts it."""

from pathlib import Path

import torch

from lmlab.core import params, registry
from lmlab.core.errors import UserError
from lmlab.core.files import whole_file
from lmlab.core.params import Tree
from lmlab.core.registry import Choice
from lmlab.data.tokenizers import base as tokenizers
from lmlab.evaluation.signals import signals
from lmlab.experiments.drawing import model, pipeline, rule
from lmlab.experiments.drawing.svg import Picture
from lmlab.model import noise
from lmlab.model.models import base as models
from lmlab.training.outline import refuse_endless, without_storage

FOLDER = Path("data/drawings")
TOKENIZER = Path("data/tokenizer/tokenizer.json")
KINDS = {"model": ("models", "train.model"), "rule": ("learning_rules", "train.learning_rule")}
"""Of the parts that can be drawn, with the key that chooses one."""
WHAT = ("pipeline", *KINDS)
SEQUENCES, TOKENS = 4, 16
"""Of the random batch on which a rule is watched."""
VOCABULARY = 64
"""Of the model in which a rule is watched, where nothing else says how large it is."""
MOST_PARAMETERS = 20_000_000
"""Of a model in which a rule is watched."""


def draw(what: str, name: str, vocabulary_size: int, out: Path | None) -> Path:
    """Write a picture as SVG, and say where.

    `name` is that of a model or of a learning rule; empty stands for the one in params.yaml. A
    `vocabulary_size` of 0 is that of the fitted tokenizer; without one, a rule is watched with
    VOCABULARY ids. Raises UserError for anything else.
    """
    if what not in WHAT:
        raise UserError(f"lmlab draw: {what!r} is none of {', '.join(WHAT)}; name one of them")
    if what == "pipeline" and name:
        raise UserError(f"lmlab draw pipeline: there is only one, so leave out {name!r}")
    if what == "pipeline" and vocabulary_size:
        raise UserError("lmlab draw pipeline: it has no vocabulary; leave out --vocabulary-size")
    _, key = KINDS.get(what, ("", ""))
    tree = params.read()
    if key and name:
        tree = params.changed(tree, {key: name})
    chosen = str(tree["train"][key.removeprefix("train.")]) if key else "pipeline"
    target = out or FOLDER / f"{chosen}.svg"
    picture = _picture(what, tree, chosen, vocabulary_size)
    with whole_file(target) as partial:
        partial.write_text(picture.svg(), encoding="utf-8")
    return target


def _picture(what: str, tree: Tree, name: str, vocabulary_size: int) -> Picture:
    if what == "pipeline":
        return pipeline.draw()
    kind, key = KINDS[what]
    registry.find(kind, name, key)  # told of first, if there is none
    if not vocabulary_size:
        needs_tokenizer = what == "model" or TOKENIZER.is_file()
        fitted = tokenizers.load(TOKENIZER) if needs_tokenizer else None
        vocabulary_size = fitted.vocabulary_size if fitted else VOCABULARY
    of = of_model if what == "model" else of_rule
    return of(tree, name, vocabulary_size)


def of_model(tree: Tree, name: str, vocabulary_size: int) -> Picture:
    """The model `name`, with its options from params.yaml, built without storage."""
    choice = registry.choose(tree, "models", name, "train.model")
    refuse_endless(choice, vocabulary_size, tree["train"]["context"])
    with without_storage():
        return model.drawn(models.build(choice, vocabulary_size, tree["train"]["context"]).eval())


def of_rule(tree: Tree, name: str, vocabulary_size: int) -> Picture:
    """The signals of a rule in the model of params.yaml, both with their options from there.

    It runs once on random tokens, at initial weights and in double precision, so the picture is the
    same on every machine. Raises UserError where the rule does not work with the model.
    """
    choice = registry.choose(tree, "models", tree["train"]["model"], "train.model")
    _refuse_large(choice, vocabulary_size)
    rule_choice = registry.choose(tree, "learning_rules", name, "train.learning_rule")
    with noise.forked(seed=0):
        of_choice = models.build(choice, vocabulary_size, TOKENS).double()
        built = rule_choice.build(of_choice).double()
        tokens = torch.randint(vocabulary_size, (SEQUENCES, TOKENS + 1))
        seen = signals(built, of_choice, tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    when = f"at initial weights, on random tokens of a vocabulary of {vocabulary_size:,}"
    return rule.drawn(built, choice.name, seen, when)


def _refuse_large(choice: Choice, vocabulary_size: int) -> None:
    """Raise UserError for a model that takes long to run, as it must to be watched."""
    refuse_endless(choice, vocabulary_size, TOKENS)
    with without_storage():
        count = models.parameter_count(models.build(choice, vocabulary_size, TOKENS))
    if count > MOST_PARAMETERS:
        raise UserError(
            f"lmlab draw rule: to watch the rule at work the model is run, and {count:,} parameters"
            f" are too many for that; set models.{choice.name} or --vocabulary-size lower (at most"
            f" {MOST_PARAMETERS:,})"
        )
