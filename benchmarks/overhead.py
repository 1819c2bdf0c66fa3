"""What DVC itself costs an experiment that changes `evaluate` alone, and what of the graph costs
it.

    python benchmarks/overhead.py

The miniature of pipeline.py, its stages' commands replaced by copies of what they wrote, so that
only DVC's own work is left. That is timed on the project's graph and on graphs that lack some of
it, down to the same seven stages with nothing in them; in processor seconds, which say less about
what else the machine does. Each graph is timed in turn, beside the bare one. Writes
benchmarks/results/overhead.csv.
"""

import resource
import shutil
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from common import RESULTS, show, write
from miniature import STAGES, Miniature
from ruamel.yaml import YAML

EVALUATE = {"evaluate": {"temperature": 0.8}}
"""The params of the bare graph."""
GRAPHS = {
    "the project's": (),
    "no code": ("code",),
    "no code, no plots": ("code", "plots"),
    "params alone: no deps, no outs": ("code", "plots", "deps", "outs", "metrics"),
    "params.yaml beside bare stages": ("code", "plots", "deps", "outs", "metrics", "params"),
}
"""What each graph lacks. Without `params` it has those of `evaluate` alone."""


def main(
    repeats: Annotated[int, typer.Option(help="Times that each is done; medians are shown.")] = 3,
    out: Annotated[Path, typer.Option(help="Where to write the table.")] = RESULTS / "overhead.csv",
) -> None:
    """Print and write processor seconds, and how many times those of the bare graph."""
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as made:
        project = Miniature(Path(made))
        made_by_stages = Path(made) / "kept"
        whole = _read(project.folder)
        _keep_outputs(whole, project.folder, made_by_stages)
        bare = _bare(project, Path(made) / "bare")
        for name, without in GRAPHS.items():
            _write(project.folder, _reduced(whole, without, made_by_stages))
            (project.folder / "dvc.lock").unlink()
            project.seconds("git", "checkout", "--quiet", "params.yaml")
            project.seconds("dvc", "repro")
            project.seconds("git", "commit", "--quiet", "--all", "--allow-empty", "-m", name)
            spent, spent_on_bare = [], []
            for number in range(1, 1 + repeats):
                project.seconds("git", "checkout", "--quiet", ".")
                spent.append(_experiment(project, project.folder, number))
                spent_on_bare.append(_experiment(project, bare, number))
            lock = (project.folder / "dvc.lock").read_text(encoding="utf-8")
            rows.append(
                {
                    "graph": name,
                    "lock_lines": len(lock.splitlines()),
                    "cpu_seconds": median(spent),
                    "bare_cpu_seconds": median(spent_on_bare),
                    "times_bare": median(spent) / median(spent_on_bare),
                }
            )
            show(rows[-1:])
    write(rows, out)


def _experiment(project: Miniature, folder: Path, number: int) -> float:
    """Processor seconds of an experiment in which only `evaluate` has changed."""
    before = _spent()
    setting = f"evaluate.temperature={number / 10}"
    project.seconds("dvc", "exp", "run", "-S", setting, folder=folder)
    return _spent() - before


def _spent() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _bare(project: Miniature, folder: Path) -> Path:
    """A project of its own: the same stages with nothing in them."""
    folder.mkdir()
    project.seconds("git", "init", "--quiet", folder=folder)
    project.seconds("dvc", "init", "--quiet", folder=folder)
    YAML().dump(EVALUATE, folder / "params.yaml")
    _write(folder, {"stages": {stage: _without_anything(stage) for stage in STAGES}})
    project.seconds("dvc", "repro", folder=folder)
    project.seconds("git", "add", "--all", folder=folder)
    project.seconds("git", "commit", "--quiet", "-m", "Bare stages", folder=folder)
    return folder


def _without_anything(stage: str) -> dict[str, Any]:
    return {"cmd": "true", **({"params": ["evaluate"]} if stage == "evaluate" else {})}


def _keep_outputs(whole: Mapping[str, Any], folder: Path, kept: Path) -> None:
    for stage in whole["stages"].values():
        for path in _outputs(stage):
            (kept / path).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (folder / path).is_dir() else shutil.copy
            copy(folder / path, kept / path)


def _outputs(stage: Mapping[str, Any]) -> list[str]:
    """The paths of a stage's outputs, some of which have options."""
    listed = [entry for key in ("outs", "metrics", "plots") for entry in stage.get(key, [])]
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in listed]


def _reduced(whole: Mapping[str, Any], without: tuple[str, ...], kept: Path) -> dict[str, Any]:
    """The project's graph without some of it, its commands copies of what they wrote."""
    stages = {}
    for name, stage in whole["stages"].items():
        left = {key: value for key, value in stage.items() if key not in without}
        if "code" in without and "deps" in left:
            left["deps"] = [path for path in left["deps"] if not _is_code(path)]
        if "params" in without:
            left |= _without_anything(name)
        copies = [
            f"mkdir -p $(dirname {path}) && cp -r {kept / path} {path}" for path in _outputs(left)
        ]
        left["cmd"] = " && ".join(copies) or "true"
        stages[name] = {key: value for key, value in left.items() if value}
    plots = {} if "plots" in without else {"plots": whole["plots"]}
    return {"stages": stages, **plots}


def _is_code(path: str) -> bool:
    return path.startswith(("src/", "pipeline/"))


def _read(folder: Path) -> dict[str, Any]:
    graph: dict[str, Any] = YAML(typ="safe").load(folder / "dvc.yaml")
    return graph


def _write(folder: Path, graph: Mapping[str, Any]) -> None:
    YAML(typ="safe").dump(graph, folder / "dvc.yaml")


if __name__ == "__main__":
    typer.run(main)
