"""Stage `start`: bring the run that training goes on from, or note that there is none."""

from lmlab.core import params
from lmlab.core.params import Tree
from lmlab.data.start import StartParams
from lmlab.experiments import starting
from lmlab.experiments.stages.layout import Layout


def start(tree: Tree, layout: Layout) -> None:
    """Write `layout.start`."""
    section = params.section(tree, "start", StartParams)
    record = starting.bring(section, starting.project(), layout.start)
    if not record.commit:
        print("start: from scratch", flush=True)
        return
    last = record.earlier[-1]
    print(
        f"start: the model of {record.commit}, which has read {last.bytes:,} bytes in"
        f" {last.steps:,} steps",
        flush=True,
    )
