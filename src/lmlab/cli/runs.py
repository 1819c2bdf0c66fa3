"""Making runs: experiments, studies, searches."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmlab.cli.front import LARGEST, app
from lmlab.core import errors

if TYPE_CHECKING:
    from lmlab.core.params import Values

PANEL = "Making runs"
"""Above these commands in `lmlab --help`."""


def _is_export(name: str) -> bool:
    """Whether it is a folder that an export wrote, or one for transformers."""
    files = ("config.json", "lmlab.json")
    return bool(name) and any(Path(name, file).is_file() for file in files)


def _start_from_elsewhere(folder: Path) -> "Values":
    """The params that begin with a model in a folder for transformers, which becomes a commit."""
    import tempfile

    from lmlab.core import params
    from lmlab.experiments import adopting, starting
    from lmlab.export.huggingface import read

    with tempfile.TemporaryDirectory() as scratch:
        brought = read.bring(folder, Path(scratch), params.read())
        message = f"A model from {folder.resolve().name}"
        commit = adopting.adopt(Path(scratch), brought.made_with, message, Path())
    for line in brought.lines:
        typer.echo(line, err=True)
    anew = {"start.optimizer_state": "anew"}
    return {**brought.choice, **starting.resolve(commit, Path()), **anew}


@app.command(rich_help_panel=PANEL)
@errors.one_line
def start(
    name: Annotated[
        str,
        typer.Argument(
            help="An experiment, branch, commit, another clone's folder, or a folder for"
            " transformers; none: from scratch."
        ),
    ] = "",
    options: Annotated[
        bool, typer.Option("--options", help="Print options for `dvc exp run`; write nothing.")
    ] = False,
) -> None:
    """Let the next run go on from a finished one: write its commit and its model into params.yaml,
    and take out what was to change of another start; or for one experiment,
    `dvc exp run $(lmlab start NAME --options)`.
    """
    from lmlab.data.start import FROM_SCRATCH
    from lmlab.experiments import recipes, starting

    values = _start_from_elsewhere(Path(name)) if _is_export(name) else {}
    if not values:
        values = starting.resolve(name, Path()) if name else FROM_SCRATCH
    if options:
        for option in recipes.as_options(values):
            typer.echo(option)
        return
    as_asked = "names this start" if name else "begins from scratch"
    for line in recipes.write(values) or [f"params.yaml {as_asked} already"]:
        typer.echo(line)


@app.command(rich_help_panel=PANEL)
@errors.one_line
def study(
    name: Annotated[
        str, typer.Argument(help="A folder of studies/, or a path to one; with --check none: all.")
    ] = "",
    arm: Annotated[
        list[str] | None, typer.Option(help="Only this arm; may be given several times.")
    ] = None,
    quick: Annotated[
        bool, typer.Option(help="At the budget of the study's section `quick`, into STUDY/tried.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="List what is missing or stale; run nothing.")
    ] = False,
    fit: Annotated[
        bool, typer.Option("--fit", help="Fit the study's scaling law to its points.")
    ] = False,
    cluster: Annotated[
        str, typer.Option(help="Address of a Dask scheduler whose workers make the runs.")
    ] = "",
) -> None:
    """Run what a study lacks, or what its points are no longer true of; write its table and
    charts.
    """
    from lmlab.experiments.studies import publish

    if check:
        stale = publish.check(name, quick)
        for line in stale:
            typer.echo(line)
        if stale:
            raise typer.Exit(1)
        typer.echo("every point is what a run would give now")
        return
    folder = publish.find(name)
    if fit:
        lines = publish.fit_lines(folder, quick)
    else:
        publish.run(folder, arm or [], quick, cluster)
        lines = publish.table_lines(folder, arm or [], quick)
    for line in lines:
        typer.echo(line)


@app.command(rich_help_panel=PANEL)
@errors.one_line
def shard(
    cluster: Annotated[
        str, typer.Option(help="Address of a Dask scheduler whose workers see this folder.")
    ],
) -> None:
    """Encode the corpus into shards by the workers of a cluster; `dvc commit shard` keeps them."""
    from lmlab.core import params
    from lmlab.experiments import cluster as clusters
    from lmlab.experiments.stages import shard as stage
    from lmlab.experiments.stages.layout import Layout

    with clusters.reached(cluster) as client:
        stage.shard(params.read(), Layout.below(), clusters.Workers(client, cluster))
    typer.echo("shard: `dvc commit --force shard` makes these the stage's results")


@app.command(rich_help_panel=PANEL)
@errors.one_line
def search(
    key: Annotated[
        list[str],
        typer.Option(
            help="KEY=a,b,c or KEY=low..high or KEY=low..high/step or KEY=log:low..high; once for"
            " each key."
        ),
    ],
    name: Annotated[
        str, typer.Option(help="Trials are experiments of this name and a number.")
    ] = "search",
    trials: Annotated[
        int,
        typer.Option(min=1, max=LARGEST, help="How many in all, those of earlier calls included."),
    ] = 20,
    measure: Annotated[
        str, typer.Option(help="A number of results/measures.json.")
    ] = "validation.bits_per_byte",
    maximise: Annotated[
        bool, typer.Option(help="Look for the largest; without it for the smallest.")
    ] = False,
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST, help="Another seed tries other points.")
    ] = 0,
    at_a_time: Annotated[
        int, typer.Option(min=1, max=256, help="Trials that run at once; other points are tried.")
    ] = 1,
    cluster: Annotated[
        str, typer.Option(help="Address of a Dask scheduler whose workers make the trials.")
    ] = "",
) -> None:
    """Try values that Optuna chooses, each as a DVC experiment. Stopped at any moment, the same
    command goes on.
    """
    from lmlab.core import params
    from lmlab.core.scratch import scratch_folder
    from lmlab.experiments import preflight, surroundings
    from lmlab.experiments.search import searching
    from lmlab.experiments.search import trials as making

    tree = params.read()
    preflight.check(tree)
    surroundings.check_experiments()
    wanted = searching.read(name, key, measure, maximise, seed, tree, at_a_time)
    folder = scratch_folder("search")
    with making.made_here_or_at(cluster, making.Experiments(measure, tree, folder / name)) as made:
        storage = folder / f"{name}.db"
        done = searching.run(wanted, trials, storage, made.run, typer.echo, made.stop)
    for line in searching.lines(wanted, done, tree):
        typer.echo(line)


@app.command(rich_help_panel=PANEL)
@errors.one_line
def requeue(
    names: Annotated[
        list[str] | None, typer.Argument(help="Tasks by name; none named: all of them.")
    ] = None,
) -> None:
    """Put DVC's queue right: queue tasks again that failed, or that a crash left `Running` with
    nobody at them.
    """
    from lmlab.core import params
    from lmlab.experiments import surroundings
    from lmlab.experiments.search import queueing

    surroundings.check_experiments()
    for line in queueing.requeue(names or [], params.read()):
        typer.echo(line)


@app.command(rich_help_panel=PANEL)
@errors.one_line
def wait() -> None:
    """Wait, with a bar, until nothing is queued or running; Ctrl-C leaves the queue at work."""
    from lmlab.experiments.search import waiting

    typer.echo(waiting.summary(*waiting.wait()))


@app.command(rich_help_panel=PANEL)
@errors.one_line
def adapt(
    to: Annotated[
        str,
        typer.Option(
            help="The corpus to go on with; none: the same text, its tokens under other ids."
        ),
    ] = "",
    steps: Annotated[int, typer.Option(min=1, max=LARGEST, help="Updates after the change.")] = 400,
    every: Annotated[
        int, typer.Option(min=1, max=LARGEST, help="Updates between validations.")
    ] = 50,
    within: Annotated[
        float,
        typer.Option(
            min=0, max=100, help="Bits per byte above the old level that count as recovered."
        ),
    ] = 0.1,
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST, help="Another seed gives the tokens other ids.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Where to write all that was found, as JSON.")
    ] = None,
) -> None:
    """Change the corpus under the trained model and see how soon it recovers, beside the same
    training from scratch.
    """
    from lmlab.core import params
    from lmlab.core.files import output, write_json
    from lmlab.experiments import adapting
    from lmlab.experiments.stages.layout import Layout

    target = output(out, ".json") if out else None
    change = adapting.Change(to, seed)
    outcome = adapting.adapt(params.read(), Layout.below(), change, steps, every, within)
    for line in adapting.lines(outcome):
        typer.echo(line)
    if target:
        write_json(target, outcome)
