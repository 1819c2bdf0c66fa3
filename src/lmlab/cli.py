"""`lmlab`: what is not a stage of the pipeline. Heavy imports wait until a command needs them, so
`--help` is quick.
"""

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmlab.core import errors

if TYPE_CHECKING:
    from lmlab.core.params import Values
    from lmlab.data.corpora.base import Corpus

LARGEST = 2**63 - 1
"""Of whole numbers: that of params.py, which is not imported here as it takes a while."""

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="A laboratory for small language models built from scratch. The pipeline itself runs"
    " with `dvc repro`.",
)


@app.callback()
@errors.one_line
def _before_all() -> None:
    from lmlab.experiments import surroundings

    if note := surroundings.other_project():
        typer.echo(note, err=True)


@app.command()
@errors.one_line
def parts() -> None:
    """List every kind of part and every part of it, one line each."""
    from lmlab.experiments import catalogue

    for kind, members in catalogue.parts().items():
        typer.echo(typer.style(kind, bold=True))
        width = max(map(len, members), default=0)
        for name, line in members.items():
            typer.echo(f"  {name:<{width}}  {line}")


@app.command()
@errors.one_line
def check() -> None:
    """Check params.yaml as every stage does before it starts, without running anything."""
    from lmlab.core import params
    from lmlab.experiments import preflight, remarks

    tree = params.read()
    preflight.check(tree)
    remarks.say(tree)
    typer.echo("params.yaml is fine")
    _note_faults()


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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
    from lmlab.experiments import preflight, surroundings
    from lmlab.experiments.search import searching
    from lmlab.experiments.search import trials as making

    tree = params.read()
    preflight.check(tree)
    surroundings.check_experiments()
    wanted = searching.read(name, key, measure, maximise, seed, tree, at_a_time)
    folder = Path(".scratch") / "search"
    with making.made_here_or_at(cluster, making.Experiments(measure, tree, folder / name)) as run:
        done = searching.run(wanted, trials, folder / f"{name}.db", run, typer.echo)
    for line in searching.lines(wanted, done, tree):
        typer.echo(line)


@app.command()
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


@app.command()
@errors.one_line
def wait() -> None:
    """Wait, with a bar, until nothing is queued or running; Ctrl-C leaves the queue at work."""
    from lmlab.experiments.search import waiting

    typer.echo(waiting.summary(*waiting.wait()))


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
@errors.one_line
def eject(
    out: Annotated[Path, typer.Option(help="The file to write; its data go beside it.")] = Path(
        "ejected.py"
    ),
    data: Annotated[Path, typer.Option(help="The folder of the stages' outputs.")] = Path("data"),
) -> None:
    """Write what params.yaml says as one plain file of Python that needs torch and numpy, and
    nothing of lmlab: text, tokenizer, model, rule, optimizer, training, sampling. It prints the
    lab's losses, bit for bit.
    """
    from lmlab.core import params
    from lmlab.data.shards import open_shards
    from lmlab.data.tokenizers import base as tokenizers
    from lmlab.experiments import preflight
    from lmlab.export.eject import eject as library

    tree = params.read()
    preflight.check(tree, run=False)
    tokenizer = data / "tokenizer" / "tokenizer.json"
    shards = open_shards(data / "shards", tokenizer)
    code, text = library.eject(tree, shards, tokenizers.load(tokenizer), data / "corpus", out)
    lines = len(code.read_text(encoding="utf-8").splitlines())
    typer.echo(f"{code}: {lines:,} lines; it reads {text.name} beside it: `python {code}`")


class ExportFormat(StrEnum):
    """What `lmlab export` writes."""

    huggingface = "huggingface"
    gguf = "gguf"
    onnx = "onnx"


@app.command()
@errors.one_line
def export(
    format: Annotated[
        ExportFormat,
        typer.Argument(
            help="huggingface: for transformers; gguf: for llama.cpp; onnx: for ONNX Runtime."
        ),
    ],
    run: Annotated[
        str,
        typer.Argument(help="Experiment, branch, commit or clone; empty: the workspace's run."),
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="The folder to write.", show_default="exports/FORMAT")
    ] = None,
    types: Annotated[
        str, typer.Option(help="gguf: number types, a file each.")
    ] = "f32,f16,q8_0,q4_0",
    nearest_tokenizer: Annotated[
        bool,
        typer.Option(
            "--nearest-tokenizer",
            help="gguf: where llama.cpp splits text otherwise, write what is nearest and count.",
        ),
    ] = False,
) -> None:
    """Write a trained model as a folder for the tools that others use. What was written is loaded
    with those tools and compared with the lab's model first.
    """
    from lmlab.experiments.named_runs import laid_out
    from lmlab.export import taking

    folder = out or Path("exports", format.value)
    with laid_out([run] if run else [], taking.OUTS, taking.WHERE_KEPT) as named:
        ((name, made),) = named.items()
        changes = made.changes_since()
        folders = taking.Folders(
            model=made.layout.model,
            tokenizer_file=made.layout.tokenizer_file,
            corpus=made.layout.corpus if made.layout.corpus.is_dir() else None,
            made_with=made.made_with,
            measures=made.measures,
            commit=made.commit,
        )
        opened = taking.Run.open(name, folders)
        if format is ExportFormat.gguf:
            lines = taking.gguf(opened, folder, types, nearest_tokenizer)
        elif format is ExportFormat.onnx:
            lines = taking.onnx(opened, folder)
        else:
            lines = taking.huggingface(opened, folder)
        for line in [*lines, *changes]:
            typer.echo(line)


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
@errors.one_line
def explore(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Runs to look at: experiments, branches or commits; none: the workspace's."
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page.")] = True,
    out: Annotated[
        Path | None,
        typer.Option(help="Serve nothing; write the page into this .html file, weights included."),
    ] = None,
) -> None:
    """Watch a model read, reach into it and see what changes: a page in the browser, served to this
    machine alone.
    """
    from lmlab.core import params
    from lmlab.experiments.named_runs import laid_out
    from lmlab.experiments.stages.layout import Layout
    from lmlab.explorer import opening
    from lmlab.explorer.subject import Folders
    from lmlab.model.device import use_device
    from lmlab.training.step import TrainParams

    tree = params.read()
    use_device("cpu", params.section(tree, "train", TrainParams).threads)
    corpus = Layout.below().corpus
    with laid_out(runs or [], opening.OUTS) as named:
        layouts = {name: run.layout for name, run in named.items()}
        folders = {
            name: Folders(layout.model, layout.tokenizer_file, layout.snapshots)
            for name, layout in layouts.items()
        }
        if out is None:
            opening.serve(folders, corpus, tree, port, browser)
        else:
            typer.echo(opening.write(folders, corpus, out))


@app.command()
@errors.one_line
def summary() -> None:
    """Show what the last run gave: corpus, model, measures beside references, speed, a sample."""
    from lmlab.experiments import summary as library

    library.show()
    _note_faults()


def _note_faults() -> None:
    from lmlab.experiments import surroundings

    for fault in surroundings.faults():
        typer.echo(f"note: {fault}", err=True)


@app.command()
@errors.one_line
def sample(
    prompt: Annotated[
        str, typer.Argument(help="The text to go on from; none starts a new one.")
    ] = "",
    tokens: Annotated[
        int, typer.Option(min=1, max=LARGEST, help="How many tokens to add at most.")
    ] = 300,
    temperature: Annotated[
        float, typer.Option(min=0, help="1: as the model believes; lower: safer; 0: the likeliest.")
    ] = 0.8,
    top_k: Annotated[
        int, typer.Option(min=0, max=LARGEST, help="Draw among the k likeliest; 0: among all.")
    ] = 0,
    top_p: Annotated[
        float,
        typer.Option(min=0, max=1, help="Draw among the fewest that have this probability."),
    ] = 1.0,
    min_p: Annotated[
        float,
        typer.Option(min=0, max=1, help="Draw among those this share as likely as the likeliest."),
    ] = 0.0,
    samples: Annotated[
        int, typer.Option(min=1, max=LARGEST, help="How many, each with the next seed.")
    ] = 1,
    until: Annotated[
        str, typer.Option(help=r"End before this text; \n is the end of a line.")
    ] = "",
    talk: Annotated[
        bool, typer.Option("--talk", help="Answer each line that you type; Ctrl-D ends it.")
    ] = False,
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST, help="Another seed draws another text.")
    ] = 0,
    model: Annotated[Path, typer.Option(help="The trained model's folder.")] = Path("data/model"),
    tokenizer: Annotated[Path, typer.Option(help="Its tokenizer's folder.")] = Path(
        "data/tokenizer"
    ),
) -> None:
    """Let the trained model go on from PROMPT, printing as it generates."""
    from lmlab.experiments import sampling
    from lmlab.model.truncation import Truncation

    if talk and samples > 1:
        raise errors.UserError("--talk gives one answer at a time; leave --samples out")
    voice = sampling.Voice.of(model, tokenizer)
    end = sampling.printable(until).replace("\\n", "\n")
    if talk and not end:
        end = "\n"
    wishes = sampling.Wishes(tokens, temperature, Truncation(top_k, top_p, min_p), end)
    opening = sampling.printable(prompt)
    if talk:
        sampling.talk(voice, opening, wishes, seed)
    else:
        sampling.show(voice, opening, wishes, seed, samples)


@app.command()
@errors.one_line
def grow(
    tokenizer: Annotated[
        Path, typer.Argument(help="The tokenizer to begin from, a tokenizer.json.")
    ],
    texts: Annotated[
        list[str],
        typer.Argument(help="Text to learn from: files, folders or globs, as for corpora.local."),
    ],
    tokens: Annotated[
        int, typer.Option(min=1, max=LARGEST, help="How many tokens to add at most.")
    ],
    out: Annotated[Path, typer.Option(help="Where to write the larger tokenizer.")],
    column: Annotated[
        str, typer.Option(help="The key (JSONL) or column (Parquet) that holds the text.")
    ] = "text",
) -> None:
    """Add tokens learned from TEXTS to a fitted tokenizer; every token it has keeps its number."""
    from lmlab.core.files import output
    from lmlab.data.corpora.local import Local, Options
    from lmlab.data.tokenizers import base as tokenizers

    fitted = tokenizers.load_named(tokenizer, "TOKENIZER")
    target = output(out, ".json")
    if out.exists() and out.samefile(tokenizer):
        raise errors.UserError(
            f"--out {out} is the tokenizer to begin from, which models may need; name another file"
        )
    name = tokenizers.part_name(fitted)
    corpus = Local(Options(files=texts, column=column, skip_missing=False), key="TEXTS")
    grown = fitted.grown(_pieces(corpus), tokens)
    added = grown.vocabulary_size - fitted.vocabulary_size
    if not added:
        raise errors.UserError(
            f"nothing to add: the texts hold nothing new that a {name} tokenizer could give a"
            " token to"
        )
    tokenizers.write(name, grown, target)
    before = tokenizers.report(fitted, _pieces(corpus)).bytes_per_token
    after = tokenizers.report(grown, _pieces(corpus)).bytes_per_token
    typer.echo(
        f"{out}: vocabulary {fitted.vocabulary_size:,} + {added:,} = {grown.vocabulary_size:,}"
    )
    typer.echo(f"bytes per token of these texts: {before:.3f} before, {after:.3f} now")
    typer.echo(f"to train with it: dvc exp run -S tokenizer.from={out} -S tokenizer.name={name}")


def _pieces(corpus: "Corpus") -> Iterator[str]:
    """All text of a corpus as a stream."""
    for document in corpus.documents():
        yield from document.pieces


def main() -> None:
    """The console script."""
    errors.take_over()
    app()
