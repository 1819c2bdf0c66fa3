"""What came out of a run, as a short table: read from the stages' outputs, nothing is computed anew."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lmlab import timing
from lmlab.files import missing, read_json, vouched

SAMPLE_LINES = 14


def show(folder: Path = Path()) -> None:
    """Print corpus, model, measures, speeds and a sample. Raises UserError naming the stage whose output is missing."""
    corpus = read_json(folder / "data/corpus/manifest.json", made_by="download")
    model = read_json(folder / "data/model/model.json", made_by="train")
    metrics = read_json(folder / "results/metrics.json", made_by="evaluate")
    console = Console(highlight=False)
    console.print(_facts(corpus, model, metrics, timing.last(folder)))
    console.print(_measures(metrics))
    samples = vouched(folder / "results/samples.md", made_by="evaluate")
    if not samples.is_file():
        raise missing(samples, made_by="evaluate")
    sample = samples.read_text(encoding="utf-8", errors="replace").split("~~~~~~")
    if len(sample) > 1:
        lines = sample[1].removeprefix("text\n").strip().splitlines()[:SAMPLE_LINES]
        console.print("A sample (more in results/samples.md):\n", style="bold")
        console.print("\n".join(f"  {line}" for line in lines) + "\n", markup=False)
    console.print(_NEXT, markup=False, soft_wrap=True)


_NEXT = """Next, with the environment active (`source .venv/bin/activate`):
  lmlab sample "ROMEO:" --tokens 300           let the model go on from your words
  dvc exp run -S train.steps=300               try a variant; only what it affects runs again
  dvc exp show --only-changed                  compare what you have tried
  lmlab parts                                  everything that can be swapped
  results/report.html                          all of it in pictures; open it in a browser
  README.md                                    a five-minute tour"""


def _facts(corpus: Any, model: Any, metrics: Any, took: dict[str, Any]) -> Table:
    size = sum(split["bytes"] for split in corpus["splits"].values())
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("corpus", f"{corpus['corpus']} ({size:,} bytes; {corpus['source']})")
    table.add_row("model", f"{model['model']['name']}, {model['parameters']:,} parameters, context {model['context']}")
    table.add_row("trained on", f"{model['tokens']:,} tokens in {model['steps']:,} steps")
    if train := took.get("train"):
        table.add_row(
            "speed", f"{train['tokens_per_second']:,.0f} tokens/s ({train['training_seconds']:.0f} s of training steps)"
        )
    if took:
        table.add_row("seconds", ", ".join(f"{stage} {facts['seconds']:.1f}" for stage, facts in took.items()))
    table.add_row("evaluated", f"whole splits, windows of {metrics['window']} tokens every {metrics['stride']}")
    return table


def _measures(metrics: Any) -> Table:
    table = Table(title_justify="left")
    splits = [split for split in ("validation", "test") if split in metrics]
    table.add_column("")
    for split in splits:
        table.add_column(f"{split}\nbits/byte", justify="right")
        table.add_column(f"{split}\nnats/token", justify="right")
    references = metrics["references"]
    model = [f"{metrics[split][key]:.4f}" for split in splits for key in ("bits_per_byte", "nats_per_token")]
    table.add_row("this model", *model, style="bold")
    names = {
        "kneser_ney": f"Kneser-Ney {references['kneser_ney_order']}-gram",
        "unigram": "unigram",
        "uniform": "uniform",
    }
    for key, title in names.items():
        cells = []
        for split in splits:
            nats = metrics[split]["nats_per_token"] / metrics[split]["bits_per_byte"] * references[split][key]
            cells += [f"{references[split][key]:.4f}", f"{nats:.4f}"]
        table.add_row(title, *cells)
    if "source_entropy" in references:
        cells = [f"{references['source_entropy']:.4f}", ""] * len(splits)
        table.add_row("entropy of the source", *cells)
    return table
