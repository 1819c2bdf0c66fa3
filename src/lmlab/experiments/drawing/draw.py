"""What `lmlab draw` draws, and where it puts it."""

from pathlib import Path

from lmlab.core import params, registry
from lmlab.core.errors import UserError
from lmlab.core.files import whole_file
from lmlab.data.tokenizers import base as tokenizers
from lmlab.experiments.drawing import model, pipeline, rule
from lmlab.experiments.drawing.svg import Picture

FOLDER = Path("data/drawings")
TOKENIZER = Path("data/tokenizer/tokenizer.json")
WHAT = ("pipeline", "model", "rule")


def draw(what: str, name: str, vocabulary_size: int, out: Path | None) -> Path:
    """Write a picture as SVG, and say where.

    `name` is that of a model or of a learning rule; empty stands for the one in params.yaml. A
    `vocabulary_size` of 0 is that of the fitted tokenizer. Raises UserError for anything else.
    """
    if what not in WHAT:
        raise UserError(f"lmlab draw: {what!r} is none of {', '.join(WHAT)}; name one of them")
    if what == "pipeline" and name:
        raise UserError(f"lmlab draw pipeline: there is only one, so leave out {name!r}")
    key = {"model": "model", "rule": "learning_rule"}.get(what)
    tree = params.read()
    if key and name:
        tree = params.changed(tree, {f"train.{key}": name})
    chosen = str(tree["train"][key]) if key else "pipeline"
    target = out or FOLDER / f"{chosen}.svg"
    picture = _picture(what, tree, chosen, vocabulary_size)
    with whole_file(target) as partial:
        partial.write_text(picture.svg(), encoding="utf-8")
    return target


def _picture(what: str, tree: params.Tree, name: str, vocabulary_size: int) -> Picture:
    if what == "pipeline":
        return pipeline.draw()
    if what == "rule":
        return rule.draw(tree, name)
    registry.find("models", name, "train.model")  # told of first, if there is none
    if not vocabulary_size:
        vocabulary_size = tokenizers.load(TOKENIZER).vocabulary_size
    return model.draw(tree, name, vocabulary_size)
