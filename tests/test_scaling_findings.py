"""The scaling law of a study whose losses are planted: predictions before and after they are
measured, and what is told.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small

from lmlab.core.errors import UserError
from lmlab.experiments.studies import scaling_findings
from lmlab.experiments.studies import study as studies
from lmlab.experiments.studies.scaling import Fitted, Law

PLANTED = Law(E=1.1, A=30.0, B=200.0, alpha=0.35, beta=0.4)
WIDTHS = {"tiny": 8, "small": 16, "middle": 32, "large": 64, "held": 128}
STEPS = [100, 400, 1600, 6400]
STUDY = {
    "changes": {
        **small.PLAIN,
        "models.transformer.depth": 1,
        "train.batch": 2,
        "train.context": 8,
        "train.threads": 1,
    },
    "flops": 0.0,
    "sweep_seeds": [0, 1],
    "seeds": [],
    "processes": 1,
    "each": "",
    "reference": "",
    "sweep": {"train.steps": STEPS},
}
FIT = {
    "sizes": ["tiny", "small", "middle", "large"],
    "held_out": ["held"],
    "replicates": 40,
    "seed": 0,
    "flops": [1e9, 1e11],
}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> studies.Study:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text((small.PROJECT / "params.yaml").read_text())
    Path("study/points").mkdir(parents=True)
    return written()


def written(**fit: Any) -> studies.Study:
    arms = {
        name: {"changes": {"models.transformer.width": width}} for name, width in WIDTHS.items()
    }
    Path("study/params.yaml").write_text(
        json.dumps({"study": STUDY, "arms": arms, "fit": FIT | fit})
    )
    return studies.read(Path("study"))


MADE = {"params": {}, "flops": 0.0, "corpus": {}, "code": {}, "versions": {}, "processor": "one"}


def measure(name: str, noise: float = 0.002, **more: Any) -> None:
    """Write an arm's points as if it had been run, with the planted law's losses."""
    width, rng = WIDTHS[name], np.random.default_rng(WIDTHS[name])
    parameters = (
        12 * width * width + 3 * width + 2 * 50 * width
    )  # a test below holds this to the model itself
    points = []
    for steps in STEPS:
        for seed in (0, 1):
            tokens = steps * 2 * 8
            nats = float(PLANTED.loss(parameters, tokens)) * float(
                np.exp(noise * rng.standard_normal())
            )
            losses = {"nats_per_token": nats, "bits_per_byte": nats}
            counts = {"vocabulary_size": 50, "parameters": parameters, "tokens": tokens}
            measured = {"validation": losses, "flops": 7.5 * parameters * tokens}
            label = {"at": {"train.steps": steps}, "seed": seed, "reported": False}
            points.append({**label, **counts, **measured})
    made = {"arm": name, "best": {}, "made": MADE, "points": points, **more}
    Path(f"study/points/{name}.json").write_text(json.dumps(made))


def found() -> Any:
    return json.loads(Path("study/fit/fit.json").read_text())


def test_a_held_out_size_is_predicted_without_its_runs_and_then_set_beside_them(
    study: studies.Study,
) -> None:
    for name in FIT["sizes"]:
        measure(name)
    scaling_findings.write(study)
    predicted = Path("study/prediction.json").read_bytes()
    assert "measured" not in found()["held_out"][0]
    assert [row["tokens"] for row in json.loads(predicted)["held_out"]] == [
        16 * steps for steps in STEPS
    ]
    measure("held")
    scaling_findings.write(study)
    assert Path("study/prediction.json").read_bytes() == predicted
    rows = found()["held_out"]
    assert [len(row["measured"]) for row in rows] == [2, 2, 2, 2]
    assert all(row["inside"] and abs(row["off_by"]) < 0.02 for row in rows)
    assert found()["with_held_out"] != found()["law"]
    measure("held", noise=1.0)  # a law that does not hold there
    scaling_findings.write(study)
    assert Path("study/prediction.json").read_bytes() == predicted
    assert not all(row["inside"] for row in found()["held_out"])


def test_sizes_are_those_of_the_models_themselves_counted_with_embeddings_and_without(
    study: studies.Study,
) -> None:
    for name in FIT["sizes"]:
        measure(name)
    scaling_findings.write(study)
    table = pd.read_csv("study/fit/runs.csv")
    assert set(table["arm"]) == set(FIT["sizes"])
    width = table["arm"].map(WIDTHS)
    assert (table["parameters"] - table["non_embedding"] == 2 * 50 * width).all()
    held = json.loads(Path("study/prediction.json").read_text())["held_out"][0]
    assert (
        held["parameters"] == 12 * 128**2 + 3 * 128 + 2 * 50 * 128
    )  # counted from a model that nobody has trained


def test_the_law_and_its_frontier_are_told_with_intervals_and_the_same_each_time(
    study: studies.Study,
) -> None:
    for name in WIDTHS:
        measure(name, noise=0.001)
    scaling_findings.write(study)
    told = found()
    assert (told["runs"], told["cells"], told["replicates"]) == (32, 16, 40)
    for key, (low, high) in told["intervals"].items():
        assert low < told["law"].get(key, told["size_exponent"]) < high, key
    assert told["law"]["alpha"] == pytest.approx(0.35, abs=0.03)
    assert told["law"]["beta"] == pytest.approx(0.4, abs=0.03)
    assert told["flops_over_6ND"] == pytest.approx(dict.fromkeys(FIT["sizes"], 1.25))
    for row in told["frontier"]:
        assert 6 * row["parameters"] * row["tokens"] == pytest.approx(row["flops"])
        assert 7.5 * row["counted"]["parameters"] * row["counted"]["tokens"] == pytest.approx(
            row["flops"]
        )
        assert row["parameters_interval"][0] < row["parameters"] < row["parameters_interval"][1]
    files = {path: path.read_bytes() for path in Path("study").rglob("*") if path.is_file()}
    charts = {path.stem for path in files if path.suffix == ".svg"}
    assert charts == {"loss_by_flops", "fitted_against_measured", "exponents"}
    assert all(b"Kaplan" in text for path, text in files.items() if path.stem == "exponents")
    scaling_findings.write(study)
    assert {path: path.read_bytes() for path in files} == files


@pytest.mark.parametrize(
    ("planted", "what", "more"),
    [
        (Law(E=1.1, A=0.0, B=200.0, alpha=0.35, beta=0.4), "size", "sizes"),
        (Law(E=1.1, A=30.0, B=0.0, alpha=0.35, beta=0.4), "text", "amounts of text"),
    ],
)
@pytest.mark.parametrize("noise", [0.0, 0.0005])
def test_where_a_term_is_missing_that_is_said_in_one_line(
    study: studies.Study,
    monkeypatch: pytest.MonkeyPatch,
    planted: Law,
    what: str,
    more: str,
    noise: float,
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PLANTED", planted)
    for name in WIDTHS:
        measure(name, noise)
    said = (
        rf"^study: the {what} has no effect on the loss that these runs can tell"
        rf" \(\d+ of 40 .*; take {more} farther apart"
    )
    with pytest.raises(UserError, match=said):
        scaling_findings.write(study)
    assert not Path("study/fit").exists()


def test_a_few_resamples_without_a_term_are_left_out_of_intervals_and_counted() -> None:
    laws = [PLANTED] * 199 + [Law(E=1.1, A=30.0, B=200.0, alpha=0.0, beta=0.4)]
    fitted = Fitted(PLANTED, pd.DataFrame(), laws)
    fitted.check_has_an_optimum()
    assert fitted.lacking == 1
    best = PLANTED.optimum(1e12)[0]
    assert fitted.interval(lambda law: law.optimum(1e12)[0]) == pytest.approx((best, best))
    with pytest.raises(UserError, match="the size has no effect"):
        Fitted(PLANTED, pd.DataFrame(), laws[-1:] * 6 + laws[:100]).check_has_an_optimum()


def test_runs_that_diverged_are_left_out_and_named(study: studies.Study) -> None:
    for name in FIT["sizes"]:
        measure(name)
    assert "diverged" not in scaling_findings.write(study)
    path = Path("study/points/large.json")
    made = json.loads(path.read_text())
    made["points"][3] = {
        "at": {"train.steps": 400},
        "seed": 1,
        "diverged": "diverged at step 3: the loss is nan",
    }
    path.write_text(json.dumps(made))
    found = scaling_findings.write(study)
    assert (found["runs"], found["diverged"]) == (31, ["large, train.steps 400, seed 1"])


def test_mistakes_are_told_in_one_line(study: studies.Study) -> None:
    with pytest.raises(UserError, match=r"points/tiny.json is missing or damaged; take it back"):
        scaling_findings.write(study)
    for name in FIT["sizes"]:
        measure(name)
    with pytest.raises(UserError, match="arms has no 'huge'"):
        scaling_findings.write(written(held_out=["huge"]))
    with pytest.raises(UserError, match=r"held_out names large, which fit\.sizes names too"):
        scaling_findings.write(written(held_out=["large"]))
    with pytest.raises(UserError, match="at least 3 different sizes, not 2"):
        scaling_findings.write(written(sizes=["tiny", "small"]))
    measure("tiny", points=[{"at": {}, "seed": 0, "diverged": "training broke down"}])
    with pytest.raises(UserError, match="no run of tiny came to its end"):
        scaling_findings.write(written(sizes=["tiny"]))
