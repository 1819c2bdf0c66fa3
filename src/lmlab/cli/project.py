"""The project: its parts and its params."""

from pathlib import Path
from typing import Annotated

import typer

from lmlab.cli.front import app, note_faults
from lmlab.core import errors

PANEL = "The project"
"""Above these commands in `lmlab --help`."""


@app.command(rich_help_panel=PANEL)
@errors.one_line
def parts() -> None:
    """List every kind of part and every part of it, one line each."""
    from lmlab.experiments import catalogue

    for kind, members in catalogue.parts().items():
        typer.echo(typer.style(kind, bold=True))
        width = max(map(len, members), default=0)
        for name, line in members.items():
            typer.echo(f"  {name:<{width}}  {line}")


@app.command(rich_help_panel=PANEL)
@errors.one_line
def check() -> None:
    """Check params.yaml as every stage does before it starts, without running anything."""
    from lmlab.core import params
    from lmlab.experiments import preflight, remarks

    tree = params.read()
    preflight.check(tree)
    remarks.say(tree)
    typer.echo("params.yaml is fine")
    note_faults()


@app.command(rich_help_panel=PANEL)
@errors.one_line
def deps(
    write: Annotated[bool, typer.Option("--write", help="Put them into dvc.yaml.")] = False,
) -> None:
    """Whether dvc.yaml lists the code and params that each stage uses, as its imports say."""
    from lmlab.experiments import dependencies

    stale = dependencies.stale(Path("dvc.yaml"))
    if write:
        dependencies.write(Path("dvc.yaml"))
    for stage in stale:
        typer.echo(f"dvc.yaml: {stage}: {'written' if write else 'run `lmlab deps --write`'}")
    if not stale:
        typer.echo("dvc.yaml lists what the stages depend on")
    elif not write:
        raise typer.Exit(1)


@app.command(rich_help_panel=PANEL)
@errors.one_line
def recipe(
    name: Annotated[str, typer.Argument(help="A recipe; none: list them.")] = "",
    write: Annotated[
        bool, typer.Option("--write", help="Put its values into params.yaml.")
    ] = False,
) -> None:
    """Values for params.yaml that go together: for one experiment, `dvc exp run $(lmlab recipe
    fast)`; or written there.
    """
    from lmlab.core import params
    from lmlab.experiments import preflight, recipes

    if not name:
        for known in recipes.names():
            typer.echo(f"{known:<12}  {recipes.purpose(known)}")
        return
    values = recipes.read(name)
    preflight.check(params.changed(params.read(), values))
    if not write:
        for option in recipes.as_options(values):
            typer.echo(option)
        return
    changes = recipes.write(values)
    for line in changes or [f"params.yaml has all values of {name} already"]:
        typer.echo(line)


@app.command(rich_help_panel=PANEL)
@errors.one_line
def size(
    vocabulary_size: Annotated[
        int,
        typer.Option(
            min=0, max=2**31, help="How many ids there are; 0: as many as the tokenizer has."
        ),
    ] = 0,
    tokenizer: Annotated[Path, typer.Option(help="The tokenizer's folder.")] = Path(
        "data/tokenizer"
    ),
) -> None:
    """Show what params.yaml comes to: what is derived, parameters by part, FLOPs and memory.
    Nothing is trained.
    """
    from lmlab.core import params, registry
    from lmlab.data.tokenizers import base as tokenizers
    from lmlab.experiments import preflight
    from lmlab.training import cost as sizing
    from lmlab.training import outline
    from lmlab.training import step as stepping

    tree = params.read()
    preflight.check(tree, run=False)
    train = params.section(tree, "train", stepping.TrainParams)
    vocabulary_size = (
        vocabulary_size or tokenizers.load(tokenizer / "tokenizer.json").vocabulary_size
    )
    described = outline.describe(train, registry.choices(tree, "train", train), vocabulary_size)
    for line in [
        *sizing.lines(described),
        *filter(None, [sizing.too_large(described, train.device)]),
    ]:
        typer.echo(line)


@app.command(rich_help_panel=PANEL)
@errors.one_line
def draw(
    what: Annotated[str, typer.Argument(help="`pipeline`, `model` or `rule`.")],
    name: Annotated[
        str, typer.Argument(help="Of the model or learning rule; none: the one in params.yaml.")
    ] = "",
    vocabulary_size: Annotated[
        int,
        typer.Option(
            min=0,
            max=2**31,
            help="Of the model, also of that in which a rule is watched; 0: as many ids as the"
            " fitted tokenizer has (for a rule without one, 64).",
        ),
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(help="The file to write; by default in data/drawings.")
    ] = None,
) -> None:
    """Draw the pipeline, a model, or what a learning rule sends where, as it is observed (SVG)."""
    from lmlab.experiments.drawing import draw as library

    typer.echo(f"{library.draw(what, name, vocabulary_size, out)}: open it in any browser")
