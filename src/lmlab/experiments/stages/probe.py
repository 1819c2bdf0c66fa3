"""Stage `probe`: what the snapshots of a training run show."""

from lmlab.core import params
from lmlab.core.params import Tree
from lmlab.data.shards import open_shards
from lmlab.data.tokenizers import base as tokenizers
from lmlab.evaluation import probe as probing
from lmlab.evaluation.probe import ProbeParams
from lmlab.experiments.drawing.trained import pictures
from lmlab.experiments.stages.layout import Layout
from lmlab.model import meeting


def probe(tree: Tree, layout: Layout) -> dict[str, float]:
    """Look at the snapshots with validation text; write `layout.probes`; return what was timed.

    pictures.json has the pictures of the model and of its rule, for the report.
    """
    section = params.section(tree, "probe", ProbeParams)
    return meeting.run("probe.processes", section.processes, "gloo", _probe, tree, layout)


def _probe(tree: Tree, layout: Layout) -> dict[str, float]:
    """`probe`, on each of its processes."""
    section = params.section(tree, "probe", ProbeParams)
    tokenizer = tokenizers.load(layout.tokenizer_file)
    shards = open_shards(layout.shards, layout.tokenizer_file)
    probes = probing.chosen(tree, section)
    readings = probing.look(
        section,
        probes,
        shards,
        tokenizer,
        layout.snapshots,
        layout.probes,
        {"pictures.json": pictures},
    )
    return readings.timings()
