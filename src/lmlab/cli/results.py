"""What runs gave, and which is better."""

from pathlib import Path
from typing import Annotated

import typer

from lmlab.cli.front import app, note_faults
from lmlab.core import errors

PANEL = "What runs gave"
"""Above these commands in `lmlab --help`."""


@app.command(rich_help_panel=PANEL)
@errors.one_line
def summary() -> None:
    """Show what the last run gave: corpus, model, measures beside references, speed, a sample."""
    from lmlab.experiments import summary as library

    library.show()
    note_faults()


@app.command(rich_help_panel=PANEL)
@errors.one_line
def compare(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Experiments (or patterns: 'wide-*'), commits, workspace, studies (or"
            " studies/x:arm); none: HEAD's."
        ),
    ] = None,
    baseline: Annotated[
        str,
        typer.Option(help="What the others are compared with; by default HEAD or the first named."),
    ] = "",
    measure: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare this, such as validation.bits_per_byte, or all; may be given several"
            " times."
        ),
    ] = None,
    alpha: Annotated[
        float, typer.Option(help="How often equal variants may be told apart.")
    ] = 0.05,
    anytime: Annotated[
        bool,
        typer.Option(
            "--anytime",
            help="Take a test that holds however often you look and add seeds; it needs more.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Say which of the runs you have made is better: paired by seed, with intervals, corrected for
    how many are compared.
    """
    from lmlab.experiments.compare import comparing, rendering

    if not 0 < alpha < 1:
        raise errors.UserError(f"--alpha should lie between 0 and 1, such as 0.05, not {alpha:g}")
    if as_json and as_csv:
        raise errors.UserError("--json and --csv exclude each other; give one of them")
    found = comparing.compare(names or [], baseline, measure or [], alpha, anytime=anytime)
    if as_json:
        typer.echo(rendering.as_json(found))
    elif as_csv:
        typer.echo(rendering.as_csv(found), nl=False)
        for note in found.notes:
            typer.echo(f"note: {note}", err=True)
    else:
        rendering.show(found)


@app.command(rich_help_panel=PANEL)
@errors.one_line
def report(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="As for `compare`: experiments (or patterns), commits, workspace, studies; none:"
            " HEAD's."
        ),
    ] = None,
    baseline: Annotated[str, typer.Option(help="What the others are held against.")] = "",
    out: Annotated[Path, typer.Option(help="Where to write the page.")] = Path("report.html"),
) -> None:
    """Write one page that shows runs side by side: curves, verdicts, samples, probes. It works
    without a network.
    """
    from lmlab.core.files import output
    from lmlab.experiments import openings
    from lmlab.experiments.compare import comparing, history, variants, verdicts
    from lmlab.experiments.report import report as library
    from lmlab.experiments.wording import quantity

    target = output(out, ".html")
    found, notes = history.gather([*([baseline] if baseline else []), *names] if names else [])
    there, _ = variants.group(found)
    judged = (
        comparing.compare(names or [], baseline, [], verdicts.ALPHA) if len(there) > 1 else None
    )
    if judged:
        there = [judged.baseline, *judged.others]
        notes = judged.notes
    shown = [run for variant in there for run in variant.runs]
    judgement = judged.verdicts if judged else ()
    unfair = judged.unfair if judged else {}
    library.write(shown, target, judgement, notes, unfair, openings.known())
    typer.echo(f"{out}: {quantity(len(shown), 'run')}; open it in any browser")


@app.command(rich_help_panel=PANEL)
@errors.one_line
def final(
    name: Annotated[
        str, typer.Argument(help="One run: an experiment, a branch, a commit or `workspace`.")
    ],
) -> None:
    """Open the sealed test split for one run, once all is decided. Each time is counted, in
    results/final.csv, in Git.
    """
    from lmlab.experiments import final as library

    for line in library.lines(library.final(name)):
        typer.echo(line)


@app.command(rich_help_panel=PANEL)
@errors.one_line
def interpolate(
    first: Annotated[str, typer.Argument(help="A run: an experiment, branch or commit.")],
    second: Annotated[str, typer.Argument(help="Another one, of the same model and tokenizer.")],
    points: Annotated[
        int, typer.Option(min=2, max=1000, help="Places to look at, the two runs included.")
    ] = 5,
    out: Annotated[
        Path | None, typer.Option(help="Where to write all that was found, as JSON.")
    ] = None,
) -> None:
    """Score the weights between two runs on the validation text: their average may be better than
    either, or a barrier may lie between them.
    """
    from lmlab.core import params
    from lmlab.core.files import output, write_json
    from lmlab.experiments import interpolating
    from lmlab.experiments.stages.layout import Layout

    target = output(out, ".json") if out else None
    outcome = interpolating.interpolate(params.read(), Layout.below(), (first, second), points)
    for line in interpolating.lines(outcome):
        typer.echo(line)
    if target:
        write_json(target, outcome)
