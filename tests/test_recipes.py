"""Recipes: each works, says what for, reaches DVC as it is, and is written with no other line of
params.yaml touched.
"""

import os
import shutil
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides
from small import PROJECT
from typer.testing import CliRunner

from lmlab.cli import app
from lmlab.core import params
from lmlab.core.errors import UserError
from lmlab.experiments import preflight, recipes

FOLDER = PROJECT / "recipes"
NAMES = recipes.names(FOLDER)


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the project's params.yaml and recipes, in which the test works; its
    params.yaml.
    """
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    shutil.copytree(FOLDER, tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "params.yaml"


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_says_what_it_is_for_and_is_one_that_can_be_run(
    name: str, tree: params.Tree
) -> None:
    assert len(recipes.purpose(name, FOLDER).split()) > 5
    preflight.check(params.changed(tree, recipes.read(name, FOLDER)))


@pytest.mark.parametrize("name", NAMES)
def test_dvc_makes_of_the_options_what_the_recipe_says(name: str, at: Path) -> None:
    wanted = params.changed(params.read(at), recipes.read(name))
    options = " ".join(recipes.as_options(recipes.read(name))).split()
    assert options[::2] == ["-S"] * (len(options) // 2)
    apply_overrides(at, options[1::2])
    assert params.read(at) == wanted


def test_every_kind_of_value_reaches_dvc_and_the_file_as_it_is(at: Path) -> None:
    values = {
        "train.steps": 7,
        "train.clip": 0.00000025,
        "train.compile": True,
        "train.device": "cuda",
        "probe.text": "",
        "evaluate.measures": ["induction", "novelty"],
        "measures.learning_curve.targets": [3.0, 0.5],
        "evaluate.prompts": ["on", "a:b", "1e3"],
        "corpora.local.files": "texts/**/*.md",
    }
    wanted = params.changed(params.read(at), values)
    before = at.read_text()
    apply_overrides(at, " ".join(recipes.as_options(values)).split()[1::2])
    assert params.read(at) == wanted
    at.write_text(before)
    recipes.write(values)
    assert params.read(at) == wanted


def test_writing_a_recipe_touches_the_lines_of_its_values_alone(at: Path) -> None:
    before = at.read_text().splitlines()
    said = recipes.write(recipes.read("sprint"))
    after = at.read_text().splitlines()
    touched = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(touched) == len(said) > 5
    for old, new in touched:
        assert old.partition(":")[0] == new.partition(":")[0]  # the same key
        assert old.partition("#")[2] == new.partition("#")[2]  # the same comment
    assert "train.steps: " in said[[line.startswith("train.steps") for line in said].index(True)]
    assert recipes.write(recipes.read("sprint")) == []
    assert at.read_text().splitlines() == after


def test_a_recipe_that_cannot_be_is_refused_and_nothing_written(at: Path) -> None:
    before = at.read_text()
    (at.parent / "recipes" / "mine.yaml").write_text("# Mine.\ntrain.steps: 5\ntrain.stepz: 5\n")
    with pytest.raises(UserError, match=r"^params.yaml has no train.stepz; did you mean steps\?"):
        recipes.write(recipes.read("mine"))
    with pytest.raises(UserError, match=r"^there is no recipe 'fats'; did you mean fast\?"):
        recipes.read("fats")
    with pytest.raises(UserError, match=r"^probe.text holds a space"):
        list(recipes.as_options({"train.steps": 5, "probe.text": "two words"}))
    (at.parent / "recipes" / "mine.yaml").write_text("# Mine.\ntrain.steps: 5\ntrain.context: 2\n")
    done = CliRunner().invoke(app, ["recipe", "mine", "--write"])
    assert done.exit_code == 2
    assert at.read_text() == before


def test_the_command_lists_shows_and_writes(at: Path) -> None:
    assert os.getcwd() == str(at.parent)
    listed = CliRunner().invoke(app, ["recipe"]).stdout.splitlines()
    assert [line.split()[0] for line in listed] == NAMES
    shown = CliRunner().invoke(app, ["recipe", "fast"]).stdout.splitlines()
    assert shown == list(recipes.as_options(recipes.read("fast")))
    written = CliRunner().invoke(app, ["recipe", "fast", "--write"]).stdout.splitlines()
    assert any("models.transformer.embedding: token -> n_gram" in line for line in written)
    assert (
        CliRunner().invoke(app, ["recipe", "fast", "--write"]).stdout
        == "params.yaml has all values of fast already\n"
    )
