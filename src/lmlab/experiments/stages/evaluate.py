"""Stage `evaluate`: what the model is worth, on whole splits and beside references."""

from lmlab.core import params
from lmlab.core.params import Tree
from lmlab.data.shards import open_shards
from lmlab.data.tokenizers import base as tokenizers
from lmlab.evaluation import evaluate as evaluation
from lmlab.evaluation.evaluate import EvaluateParams
from lmlab.evaluation.measures import base as measures
from lmlab.experiments.stages.layout import Layout
from lmlab.model import meeting
from lmlab.model.device import use_device
from lmlab.model.models import base as models


def evaluate(tree: Tree, layout: Layout) -> None:
    """Score the model on the validation split; write `layout.results`."""
    section = params.section(tree, "evaluate", EvaluateParams)
    meeting.run("evaluate.processes", section.processes, "gloo", _evaluate, tree, layout)


def _evaluate(tree: Tree, layout: Layout) -> None:
    """`evaluate`, on each of its processes."""
    section = params.section(tree, "evaluate", EvaluateParams)
    tokenizer = tokenizers.load(layout.tokenizer_file)
    shards = open_shards(layout.shards, layout.tokenizer_file)
    model, record = models.load(layout.model, use_device(section.device, section.threads))
    evaluation.check_model_fits(record, shards)
    evaluation.evaluate(
        section,
        measures.chosen(tree, section.measures),
        model,
        record,
        shards,
        tokenizer,
        layout.corpus,
        layout.log,
        layout.results,
    )
