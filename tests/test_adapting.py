"""A changed corpus: what stays the same under it, and how a model comes back."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import test_training
from test_training import Corpus
from typer.testing import CliRunner

from lmlab import cli
from lmlab.core.errors import UserError
from lmlab.core.files import write_json
from lmlab.data.batches import Batches
from lmlab.evaluation import references
from lmlab.experiments import adapting
from lmlab.experiments.adapting import Change
from lmlab.experiments.stages.layout import Layout

corpus = test_training.corpus  # the fixture
LOWERED = {
    **test_training.BASE,
    "steps": 40,
    "batch": 8,
    "context": 8,
    "documents": 4,
    "sentences": 10,
}


@pytest.fixture
def data(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `data` after a short training run."""
    shards, _ = corpus
    home = shards.folder.parent
    test_training.train(corpus, "run", **LOWERED)
    for name in ("model", "state"):
        Path("run", name).rename(home / name)
    return home


def adapted(
    data: Path, change: Change | None = None, steps: int = 12, within: float = 0.1, **changes: Any
) -> dict[str, Any]:
    return adapting.adapt(
        small.tree(**{**LOWERED, **changes}),
        Layout.below(data),
        change or Change("", 0),
        steps,
        4,
        within,
    )


def test_other_ids_leave_all_statistics_of_the_text_as_they_were(corpus: Corpus) -> None:
    shards, _ = corpus
    changed = adapting.renamed(shards, 0)
    assert sorted(changed.names.tolist()) == list(range(shards.vocabulary_size))
    assert changed.names[shards.bos] == shards.bos
    old, new = (each.stream("train").astype(np.int64) for each in (shards, changed))
    assert (old != new).mean() > 0.5
    assert sorted(np.bincount(old).tolist()) == sorted(np.bincount(new).tolist())
    costs = [
        references.NGram(stream, shards.bos, shards.vocabulary_size, 4).nats(
            each.stream("validation")
        )
        for stream, each in ((old, shards), (new, changed))
    ]
    assert costs[0] == pytest.approx(costs[1])
    assert adapting.renamed(shards, 0).fingerprint == changed.fingerprint != shards.fingerprint
    assert adapting.renamed(shards, 1).fingerprint != changed.fingerprint
    tokens, _ = Batches(changed, 2, 8, 0, 1000).at(3)
    assert (tokens.numpy() == changed.names[Batches(shards, 2, 8, 0, 1000).at(3)[0].numpy()]).all()


def test_a_model_is_thrown_back_and_goes_on_from_its_own_weights(data: Path) -> None:
    found = adapted(data)
    assert found["at_once"] > found["before"] + 0.5
    curve = dict(found["adapted"]["curve"])
    assert list(curve) == [0, 4 * 64, 8 * 64, 12 * 64]
    assert curve[0] == found["at_once"] > curve[12 * 64]
    assert list(dict(found["from_scratch"]["curve"])) == list(curve)[1:]
    assert adapted(data) == found


def test_a_change_that_changes_nothing_is_recovered_from_at_once(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapting, "renamed", lambda shards, seed: shards)
    found = adapted(data, steps=4, within=0.0)
    assert found["at_once"] == found["before"]
    assert found["adapted"]["tokens_to_level"] == 0
    assert found["from_scratch"]["tokens_to_level"] is None


def test_the_control_learns_other_ids_as_fast_as_it_would_the_old_ones(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed = adapted(data, steps=24)["from_scratch"]["curve"]
    monkeypatch.setattr(adapting, "renamed", lambda shards, seed: shards)
    plain = adapted(data, steps=24)["from_scratch"]["curve"]
    assert renamed[-1][1] == pytest.approx(plain[-1][1], abs=0.3)


def test_another_corpus_is_read_in_the_old_tokenizer(data: Path) -> None:
    found = adapted(data, Change("grammar", 0), steps=4)
    assert found["change"] == {"corpus": "grammar", "seed": 0}
    assert found["at_once"] > found["before"]
    with pytest.raises(UserError, match="there is no 'gramar' in corpora; did you mean grammar"):
        adapted(data, Change("gramar", 0))


def test_a_model_that_params_yaml_no_longer_names_is_refused(data: Path) -> None:
    for changes in ({"width": 32}, {"context": 16}):
        with pytest.raises(UserError, match=r"are not those of .*model; run `dvc repro train`"):
            adapted(data, **changes)


def test_the_command_tells_what_became_of_both_and_writes_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    data.rename(home / "data")
    monkeypatch.chdir(home)
    write_json(Path("params.json"), small.tree(**LOWERED))
    Path("params.json").rename("params.yaml")  # JSON is YAML
    result = CliRunner().invoke(
        cli.app, ["adapt", "--steps", "8", "--every", "4", "--out", "found.json"]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(Path("found.json").read_text())
    assert f"before the change {found['before']:.4f} bits/byte" in result.output
    assert "from scratch:" in result.output
    assert not any(Path(".scratch").glob("*"))


def test_a_run_that_diverges_ends_its_curve_there_and_that_is_said(data: Path) -> None:
    found = adapted(
        data, learning_rate=1e38, clip=0.0
    )  # of the optimizer, after the change and from scratch alike
    for name in ("adapted", "from_scratch"):
        assert found[name]["diverged"].startswith("diverged at step ")
        assert found[name]["tokens_to_level"] is None
    assert found["adapted"]["curve"] == [[0, found["at_once"]]]
    assert found["from_scratch"]["curve"] == []
    said = list(adapting.lines(found))
    assert said[-1].startswith("from scratch: ")
    assert said[-1].endswith(found["from_scratch"]["diverged"])


def test_a_model_whose_own_training_diverged_cannot_go_on(corpus: Corpus, data: Path) -> None:
    test_training.train(corpus, "broken", **{**LOWERED, "learning_rate": 1e38, "clip": 0.0})
    shutil.rmtree(data / "model")
    Path("broken/model").rename(data / "model")
    with pytest.raises(
        UserError, match=r"model cannot go on: its training diverged at step \d+: .*; try a lower"
    ):
        adapted(data, learning_rate=1e38, clip=0.0)
