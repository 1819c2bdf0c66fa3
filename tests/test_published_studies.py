"""What the studies' READMEs say: their figures stand in their tables, and no arm is ranked that no
verdict tells apart.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import small
from typer.testing import CliRunner

from lmlab import cli
from lmlab.experiments.studies import scaling

STUDIES = sorted(path.parent.name for path in small.PROJECT.glob("studies/*/points"))
VERDICTS = sorted(small.PROJECT.glob("studies/*/verdicts*.csv"))
every_study = pytest.mark.parametrize("name", STUDIES)
FIGURE = re.compile(r"(?<![\w.,])-?\d+\.\d{3,}")
"""A number with three decimals or more; fewer are a way of speaking."""
RANKING = re.compile(
    r"\b(better|worse|worst|beats?|beaten|loses?|lost|wins?|won|outperforms?|superior|inferior|ahead|behind"
    r"|comes? (out )?first)\b"
)
FEWEST_PAIRS = 6
"""With which flipping signs can give a p of 0.05: 2 / 2^6 is below it, 2 / 2^5 is not."""
ELSEWHERE = {
    "learning_rules": [
        (1 + 107_073 / 8) ** -0.5
    ],  # the cosine that theory gives for K = 8 directions and d = 107,072
    "optimizers": [0.016],  # Muon's other rate, which was not swept
    "scaling": [0.004, scaling.DELTA, *scaling.KAPLAN.values()]
    + [
        value
        for law in scaling.PUBLISHED.values()
        for value in (*vars(law).values(), law.size_exponent)
    ],
}
"""Figures that are no results."""


def leaves(tree: Any) -> Iterator[float]:
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        for value in tree:
            yield from leaves(value)
    elif isinstance(tree, int | float):
        yield float(tree)


def figures_by_arm(folder: Path) -> dict[str, list[float]]:
    """What a README may say of each arm: values swept, means over seeds and how far these differ,
    and the summary's row.
    """
    results, summary = pd.read_csv(folder / "results.csv"), pd.read_csv(folder / "summary.csv")
    found: dict[str, list[float]] = {arm: [] for arm in results["arm"].unique()}
    swept = [column for column in results if "." in column]
    numbers = ["validation_bits_per_byte", "validation_nats_per_token", "bytes_per_token"]
    if "reported" not in results:  # points from before did not tell them from the sweep
        results["reported"] = False
    groups = results.groupby(["arm", "reported", *swept], dropna=False)
    for (arm, _, *at), runs in groups:
        spread = runs[numbers].max() - runs[numbers].min()
        found[arm] += [*(value for value in at if pd.notna(value)), *runs[numbers].mean(), *spread]
    for row in summary.to_dict("records"):
        found[row["arm"]] += leaves(row)
        points = json.loads((folder / "points" / f"{row['arm']}.json").read_text())
        at_best = [point for point in points["points"] if point["at"] == points["best"]]
        if angles := [point["angle"][-1][1] for point in at_best if "angle" in point]:
            found[row["arm"]].append(sum(angles) / len(angles))
    return found


def of_the_study(folder: Path) -> list[float]:
    """What a README may say of no arm in particular."""
    found = list(ELSEWHERE.get(folder.name, []))
    for path in (folder / "fit" / "fit.json", folder / "prediction.json"):
        found += leaves(json.loads(path.read_text())) if path.exists() else []
    for path in folder.glob("*_options.csv"):
        tried = pd.read_csv(path)
        options = [column for column in tried if "." in column]
        found += [
            *tried["validation_bits_per_byte"],
            *tried.groupby(options)["validation_bits_per_byte"].mean(),
        ]
    return found


def of_verdicts(folder: Path) -> list[float]:
    """The differences and intervals that `lmlab compare` gave between arms of the study."""
    tables = [pd.read_csv(path) for path in folder.glob("verdicts*.csv")]
    columns = ["difference", "low", "high"]
    return [value for table in tables for value in table[columns].to_numpy().ravel().tolist()]


def is_among(figure: str, values: list[float]) -> bool:
    """Whether a value rounds to the figure, to either side where it lies half-way."""
    decimals = len(figure.partition(".")[2])
    return any(abs(value - float(figure)) <= 0.5000001 * 10**-decimals for value in values)


def rows(text: str) -> Iterator[tuple[list[str], str]]:
    """The rows of a text's tables: what the first two cells say, the first from above where it is
    empty; and the row.
    """
    above = ""
    for line in text.splitlines():
        if line.startswith("|"):
            cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
            above = cells[0] or above
            yield [above, cells[1]], line


def arms_of(label: list[str], results: pd.DataFrame) -> list[str]:
    """The arms that a row is of, by their names, the ends of these, or their parameters; empty
    where it is of none.
    """
    named = {label[0], "-".join(label)}
    size = label[0].replace(",", "")
    of_size = results["parameters"] == int(size) if size.isdigit() else results["arm"] == ""
    by_name = results["arm"].map(lambda arm: arm in named or arm.rpartition("-")[2] == label[0])
    return list(results[of_size | by_name]["arm"].unique())


@every_study
def test_every_figure_of_a_study_stands_in_its_tables(name: str) -> None:
    folder = small.PROJECT / "studies" / name
    text, results = (folder / "README.md").read_text(), pd.read_csv(folder / "results.csv")
    by_arm, general = figures_by_arm(folder), of_the_study(folder) + of_verdicts(folder)
    whole = general + [value for values in by_arm.values() for value in values]
    in_tables = 0
    for label, row in rows(text):
        arms = arms_of(label, results)
        values = (
            [
                *ELSEWHERE.get(name, []),
                *of_verdicts(folder),
                *(value for arm in arms for value in by_arm[arm]),
            ]
            if arms
            else whole
        )
        in_tables += len(FIGURE.findall(row))
        wrong = [figure for figure in FIGURE.findall(row) if not is_among(figure, values)]
        assert not wrong, f"{label}: {wrong}"
    assert in_tables >= 10
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("|"))
    assert [figure for figure in FIGURE.findall(prose) if not is_among(figure, whole)] == []


def paragraphs(text: str) -> list[str]:
    """What a README says was found, in paragraphs and points of lists, without its tables."""
    found = text[text.index("**Found.**") : text.index("**Not shown.**")]
    prose = "\n".join(line for line in found.splitlines() if not line.startswith(("|", "!")))
    return [" ".join(piece.split()) for piece in re.split(r"\n\n|\n- ", prose) if piece.strip()]


@every_study
def test_no_arm_is_called_better_or_worse_that_is_not_told_apart(name: str) -> None:
    folder = small.PROJECT / "studies" / name
    seeds = pd.read_csv(folder / "summary.csv")["seeds"]
    for paragraph in paragraphs((folder / "README.md").read_text()):
        if ranked := RANKING.search(paragraph):
            assert "told apart" in paragraph, f"“{ranked[0]}” without a verdict: {paragraph}"
            if (seeds >= FEWEST_PAIRS).sum() < 2:
                assert "not told apart" in paragraph, (
                    f"too few seeds for “{ranked[0]}”: {paragraph}"
                )


@pytest.mark.parametrize("path", VERDICTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_published_verdicts_are_those_that_the_command_gives(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The README shows the command, which compares the baseline with the variants of the file."""
    monkeypatch.chdir(small.PROJECT)
    published = pd.read_csv(path)
    names = [published["baseline"][0], *published["variant"]]
    command = ["compare", *names, "--measure", "validation.bits_per_byte", "--csv"]
    assert f"lmlab {' '.join(command)}" in (path.parent / "README.md").read_text()
    shown = CliRunner().invoke(cli.app, command)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout == path.read_text()


@pytest.mark.parametrize(
    "said",
    [
        "Forward-forward loses to the frozen control.",
        "SOAP is ahead of AdamW by 0.2.",
        "It comes out first.",
    ],
)
def test_a_ranking_is_seen(said: str) -> None:
    assert [
        RANKING.search(piece) is None
        for piece in paragraphs(f"**Found.** Text.\n\n- {said}\n\n**Not shown.**")
    ] == [True, False]
