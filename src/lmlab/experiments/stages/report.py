"""Stage `report`: one page that shows what the run came to."""

from dataclasses import replace

from lmlab.core.params import Tree
from lmlab.experiments.compare.run import workspace_run
from lmlab.experiments.report import report as page
from lmlab.experiments.stages.layout import Layout


def report(tree: Tree, layout: Layout) -> None:
    """Write report.html into `layout.results` from what the other stages left."""
    run = replace(workspace_run(), name="this run")
    page.write([run], layout.results / "report.html")
