"""What came out of a run, as a short table: read from the stages' outputs, nothing is computed
anew.
"""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lmlab.core.files import missing, read_json, vouched
from lmlab.data.corpus_manifest import CorpusManifest
from lmlab.experiments import timing
from lmlab.model.record import ModelRecord, read_record
from lmlab.training.status import ADVICE, DIVERGED, how_it_diverged

SAMPLE_LINES = 14


def show(folder: Path = Path()) -> None:
    """Print corpus, model, measures, speeds and a sample; of a run that diverged, that it did and
    what to try.

    Raises UserError naming the stage whose output is missing.
    """
    corpus = CorpusManifest.read(folder / "data/corpus")
    model = read_record(folder / "data/model")
    found = read_json(folder / "results/measures.json", made_by="evaluate")
    console = Console(highlight=False)
    console.print(_facts(corpus, model, found, timing.last(folder)))
    if diverged := how_it_diverged(found):
        said = f"THIS RUN {diverged.replace(DIVERGED, DIVERGED.upper(), 1)}"
        console.print(f"\n{said}", style="bold red", markup=False, soft_wrap=True)
        console.print(_AFTER_DIVERGING, markup=False, soft_wrap=True)
        return
    console.print(_measures(found))
    _show_sample(console, folder)
    console.print(_NEXT, markup=False, soft_wrap=True)


def _show_sample(console: Console, folder: Path) -> None:
    """Print the beginning of the first sample, if there is one."""
    samples = vouched(folder / "results/samples.md", made_by="evaluate")
    if not samples.is_file():
        raise missing(samples, made_by="evaluate")
    pieces = samples.read_text(encoding="utf-8", errors="replace").split("~~~~~~")
    if len(pieces) < 2:
        return
    lines = pieces[1].removeprefix("text\n").strip().splitlines()[:SAMPLE_LINES]
    console.print("A sample (more in results/samples.md):\n", style="bold")
    console.print("\n".join(f"  {line}" for line in lines) + "\n", markup=False)


_AFTER_DIVERGING = f"""Its loss became NaN or infinite: there is no model to score. What to do:
  {ADVICE}
  results/training.csv, results/report.html    the loss and the gradient's norm on the way there
  dvc exp run -S KEY=VALUE                     try another value; only what it affects runs again"""
_NEXT = """Next, with the environment active (`source .venv/bin/activate`):
  lmlab sample "ROMEO:" --tokens 300           let the model continue your words
  dvc exp run -S train.steps=300               try a variant; only what it affects runs again
  dvc exp show --only-changed --drop '.*/'     compare what you have tried
  lmlab parts                                  everything that can be swapped
  results/report.html                          all of it in pictures; open it in a browser
  lmlab final workspace                        the test split, once all is decided; it is counted
  docs/tour.md                                 what else there is, step by step"""


def _facts(corpus: CorpusManifest, model: ModelRecord, found: Any, took: dict[str, Any]) -> Table:
    size = sum(split.bytes for split in corpus.splits.values())
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("corpus", f"{corpus.corpus} ({size:,} bytes; {corpus.source})")
    table.add_row(
        "model",
        f"{model.model['name']}, {model.parameters:,} parameters, context {model.context}",
    )
    table.add_row("trained on", f"{model.tokens:,} tokens in {model.steps:,} steps")
    if model.earlier:
        before = model.earlier[-1]
        table.add_row("of these", f"{before.tokens:,} in the runs before it ({before.recipe})")
    if train := took.get("train"):
        table.add_row(
            "speed",
            f"{train['tokens_per_second']:,.0f} tokens/s ({train['training_seconds']:.0f} s of"
            " training steps)",
        )
    if took:
        table.add_row(
            "seconds", ", ".join(f"{stage} {facts['seconds']:.1f}" for stage, facts in took.items())
        )
    if not how_it_diverged(found):
        table.add_row(
            "evaluated",
            f"all of validation, windows of {found['window']} tokens every {found['stride']}",
        )
    return table


def _measures(found: Any) -> Table:
    table = Table(title_justify="left")
    splits = [split for split in ("validation", "test") if split in found]
    table.add_column("")
    for split in splits:
        table.add_column(f"{split}\nbits/byte", justify="right")
        table.add_column(f"{split}\nnats/token", justify="right")
    references = found["references"]
    model = [
        f"{found[split][key]:.4f}"
        for split in splits
        for key in ("bits_per_byte", "nats_per_token")
    ]
    table.add_row("this model", *model, style="bold")
    names = {
        "kneser_ney": f"Kneser-Ney {references['kneser_ney_order']}-gram",
        "unigram": "unigram",
        "uniform": "uniform",
    }
    for key, title in names.items():
        cells = []
        for split in splits:
            bits, nats = found[split]["bits_per_byte"], found[split]["nats_per_token"]
            per_token = f"{references[split][key] * nats / bits:.4f}" if bits else ""
            cells += [f"{references[split][key]:.4f}", per_token]
        table.add_row(title, *cells)
    if "source_entropy" in references:
        cells = [f"{references['source_entropy']:.4f}", ""] * len(splits)
        table.add_row("entropy of the source", *cells)
    return table
