"""A trained model: watching it, using it, taking it away, giving it more tokens."""

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmlab.cli.front import LARGEST, app
from lmlab.core import errors

if TYPE_CHECKING:
    from lmlab.data.corpora.base import Corpus

PANEL = "A trained model"
"""Above these commands in `lmlab --help`."""


@app.command(rich_help_panel=PANEL)
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


@app.command(rich_help_panel=PANEL)
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


class ExportFormat(StrEnum):
    """What `lmlab export` writes."""

    huggingface = "huggingface"
    gguf = "gguf"
    onnx = "onnx"


@app.command(rich_help_panel=PANEL)
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


@app.command(rich_help_panel=PANEL)
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


@app.command(rich_help_panel=PANEL)
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
