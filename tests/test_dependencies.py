"""dvc.yaml lists all the code that each stage imports, and no file that is not there.

The lists are written by `lmlab deps --write`; here they are held against imports found by other
code than that.
"""

import ast
import itertools
from functools import cache
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from lmlab.core import params, registry
from lmlab.experiments import dependencies

PROJECT = Path(__file__).resolve().parents[1]
STAGES = YAML(typ="safe").load(PROJECT / "dvc.yaml")["stages"]
# What may load code by name: parts.py the parts, whose files dvc.yaml names by their params, and
# the stages' wrapper the check of params.yaml, which can refuse a run but never change what it
# writes.
LOADS_BY_NAME = {"src/lmlab/core/registry.py", "pipeline/__init__.py"}


CHOOSES_NONE = {"start", "report"}
"""Stages that use no part that params.yaml names."""


def source(module: str) -> Path | None:
    """The file of a first-party module, None for any other name."""
    base = PROJECT.joinpath("src" if module.startswith("lmlab") else "", *module.split("."))
    return next(
        (path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None
    )


@cache
def imported(path: Path) -> set[str]:
    """Every first-party module a file imports anywhere in it, with the packages around it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
    packages = {
        ".".join(name.split(".")[:depth])
        for name in found
        for depth in range(1, name.count(".") + 2)
    }
    return {
        name for name in packages if name.split(".")[0] in ("lmlab", "pipeline") and source(name)
    }


def does_something(path: Path) -> bool:
    """Whether it is code: an `__init__.py` that holds only a docstring is none."""
    return path.name != "__init__.py" or len(ast.parse(path.read_text()).body) > 1


def closure(modules: set[str]) -> set[str]:
    """The files that importing these modules reads."""
    seen: set[str] = set()
    pending = set(modules)
    while pending:
        module = pending.pop()
        path = source(module)
        if path and str(path.relative_to(PROJECT)) not in seen:
            seen.add(str(path.relative_to(PROJECT)))
            pending |= imported(path)
    return {name for name in seen if does_something(PROJECT / name)}


def resolved(stage: str, chosen: bool = True) -> set[str]:
    """A stage's dependencies, folders of code replaced by their files, and `${...}` by the values
    in params.yaml, or these lines left out.
    """
    tree = params.read(PROJECT / "params.yaml")
    answers = set()
    for dependency in STAGES[stage]["deps"]:
        if "${" in dependency and not chosen:
            continue
        while "${" in dependency:
            before, _, rest = dependency.partition("${")
            key, _, after = rest.partition("}")
            block, _, name = key.rpartition(".")
            dependency = before + params.block(tree, block)[name] + after
        folder = PROJECT / dependency
        in_folder = (
            folder.rglob("*.py") if dependency.startswith("src/") and folder.is_dir() else ()
        )
        answers |= {
            str(path.relative_to(PROJECT)) for path in in_folder if does_something(path)
        } or {dependency}
    return answers


def chosen_modules(stage: str) -> set[str]:
    """The parts that a stage's dependencies name: each is loaded by name and brings imports of its
    own.
    """
    names = {dep for dep in STAGES[stage]["deps"] if "${" in dep}
    files = {dep for dep in resolved(stage) if dep.startswith("src/lmlab/")}
    modules = {dep.removeprefix("src/").removesuffix(".py").replace("/", ".") for dep in files}
    assert names or stage in CHOOSES_NONE
    return modules


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_exactly_the_code_it_imports(stage: str) -> None:
    listed = {dep for dep in resolved(stage) if dep.endswith(".py")}
    needed = closure({f"pipeline.{stage}"} | chosen_modules(stage))
    assert needed - listed == set(), (
        "imported, but not among the stage's deps: an edit would go unnoticed"
    )
    assert {dep for dep in listed if not (PROJECT / dep).is_file()} == set()
    kind_files = {dep for dep in STAGES[stage]["deps"] if "${" in dep}
    direct = closure({f"pipeline.{stage}"} | choosable_modules(stage))
    always_whole = {
        str(path.relative_to(PROJECT)) for path in (PROJECT / "src/lmlab/core").glob("*.py")
    }
    assert listed - direct - always_whole == set(), (
        "listed, but imported by no part there is: an edit would rerun the stage for nothing"
    )
    assert kind_files or stage in CHOOSES_NONE


def module(kind: str, name: str) -> str:
    return ".".join(["lmlab", *registry.folder(kind).parts, name])


def choosable_modules(stage: str) -> set[str]:
    """Every part of the kinds of which a stage's dependencies name one, or all: what any of them
    imports is to be listed.
    """
    folders = {dep.removeprefix("src/lmlab/").partition("/${")[0] for dep in STAGES[stage]["deps"]}
    kinds = [kind for kind in registry.kinds() if registry.folder(kind).as_posix() in folders]
    return {module(kind, name) for kind in kinds for name in registry.names(kind)}


@pytest.mark.parametrize("stage", STAGES)
def test_every_part_a_stage_may_choose_has_its_imports_listed(stage: str) -> None:
    """Another part of the same kind must not need code that the stage does not list."""
    always = {dep for dep in resolved(stage, chosen=False) if dep.endswith(".py")}
    for dependency in (dep for dep in STAGES[stage]["deps"] if "${" in dep):
        folder = dependency.removeprefix("src/lmlab/").partition("/${")[0]
        kind = next(
            (kind for kind in registry.kinds() if registry.folder(kind).as_posix() == folder), None
        )
        for name in registry.names(kind) if kind else ():
            own = f"src/lmlab/{folder}/{name}.py"
            assert closure({module(kind, name)}) - {own} <= always, f"{kind}.{name} in {stage}"


def test_code_is_loaded_by_name_in_two_places_only() -> None:
    for path in itertools.chain(
        (PROJECT / "src").rglob("*.py"), (PROJECT / "pipeline").rglob("*.py")
    ):
        name = str(path.relative_to(PROJECT))
        text = path.read_text()
        assert ("import_module(" in text or "__import__(" in text) == (name in LOADS_BY_NAME), name


@pytest.mark.parametrize("stage", STAGES)
def test_the_command_runs_the_copy_of_the_code_it_stands_in(stage: str) -> None:
    assert STAGES[stage]["cmd"] == f"python -m pipeline.{stage}"


@pytest.mark.parametrize("stage", STAGES)
def test_stage_scripts_are_thin(stage: str) -> None:
    assert len((PROJECT / "pipeline" / f"{stage}.py").read_text().splitlines()) <= 45


@pytest.mark.parametrize(
    "file", sorted(PROJECT.glob("studies/*/dvc*.yaml")), ids=lambda file: f"{file.parent.name}"
)
def test_a_clone_can_check_out_all_that_studies_write(file: Path) -> None:
    """Nobody has a study's outputs in DVC's cache: with one that is kept there `dvc checkout` fails
    in every fresh clone.
    """
    for stage in YAML(typ="safe").load(file)["stages"].values():
        for out in stage.get("do", stage)["outs"]:
            assert isinstance(out, dict), out
            assert [facts["cache"] for facts in out.values()] == [False], out


def test_the_lists_are_those_that_the_command_writes(tmp_path: Path) -> None:
    """And it leaves everything else as it is: outputs, plots, comments."""
    assert dependencies.stale(PROJECT / "dvc.yaml") == []
    text = (PROJECT / "dvc.yaml").read_text()
    damaged = tmp_path / "dvc.yaml"
    damaged.write_text(text.replace("    - src/lmlab/core\n", "    - src/lmlab/cli/runs.py\n", 1))
    assert dependencies.stale(damaged) == ["start"]
    dependencies.write(damaged)
    assert damaged.read_text() == text


def test_a_folder_is_listed_only_where_the_stage_uses_all_of_it() -> None:
    listed = {dep for stage in STAGES.values() for dep in stage["deps"]}
    folders = {dep for dep in listed if dep.startswith("src/") and (PROJECT / dep).is_dir()}
    assert folders == {
        "src/lmlab/core",
        "src/lmlab/evaluation/measures",
        "src/lmlab/evaluation/probes",
        "src/lmlab/experiments/report",
        "src/lmlab/training/growths",
    }
