"""Where the stages' outputs lie: the one place that knows the names of these folders."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """The folders that stages read and write."""

    start: Path
    """The run that training goes on from: its model, tokenizer and state."""
    corpus: Path
    """Documents, split into train, validation and test, with a manifest."""
    tokenizer: Path
    shards: Path
    """Token ids of each split in Parquet, with a manifest."""
    model: Path
    """Weights and model.json."""
    training: Path
    """The training log."""
    snapshots: Path
    """What the run was at a few of its steps, for probes."""
    state: Path
    """What a run that goes on from this one needs beside the model."""
    probes: Path
    results: Path
    """What is kept in Git: metrics, measures, samples, curves."""

    @classmethod
    def below(cls, data: Path = Path("data"), results: Path | None = None) -> "Layout":
        """The project's own layout in a folder; without `results` these lie in it as well."""
        return cls(
            start=data / "start",
            corpus=data / "corpus",
            tokenizer=data / "tokenizer",
            shards=data / "shards",
            model=data / "model",
            training=data / "training",
            snapshots=data / "snapshots",
            state=data / "state",
            probes=data / "probes",
            results=results or data / "results",
        )

    @property
    def tokenizer_file(self) -> Path:
        """The fitted tokenizer."""
        return self.tokenizer / "tokenizer.json"

    @property
    def log(self) -> Path:
        """A line of JSON for each step that was logged, validated or sampled at."""
        return self.training / "log.jsonl"
