"""Imports point one way, and nothing imports what stands above it."""

import ast
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1] / "src" / "lmlab"
# From the ground up: a module may import what stands on its own line or above it in this list.
ORDER = [
    [
        "errors",
        "lifeline",
        "files",
        "params",
        "parts",
        "progress",
        "noise",
        "device",
        "compiling",
        "status",
        "timing",
        "runcache",
    ],
    ["fetching", "globs", "columns", "text_files", "surroundings"],
    ["cleaning", "corpora", "documents", "overlap", "corpus_summary", "collecting"],
    ["pretokens", "tokenizers"],
    ["shards", "sharding", "batches"],
    ["layers", "models"],
    ["widths"],
    ["optimizers", "cutting", "perturbing", "perturbing_nodes", "relaxing"],
    ["learning_rules", "interventions", "schedules", "parametrisations", "sizing"],
    ["generation", "evaluation", "measures", "checkpoint", "snapshots", "probes", "closeup"],
    ["stepping"],
    ["training", "probing"],
    ["adapting"],
    ["outline"],
    ["catalogue", "summary", "preflight", "remarks", "recipes"],
    ["experiments"],
    ["cli"],
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}


def top(path: Path) -> str:
    return path.relative_to(SOURCES).parts[0].removesuffix(".py")


def test_every_module_has_its_place() -> None:
    assert {top(path) for path in SOURCES.rglob("*.py")} - {"__init__"} == set(LEVEL)


def test_imports_point_one_way() -> None:
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lmlab":
                modules = [node.module] if "." in node.module else [f"lmlab.{alias.name}" for alias in node.names]
                for module in modules:
                    wanted = module.split(".")[1]
                    assert LEVEL[wanted] <= LEVEL.get(top(path), -1), f"{path.name} imports {module}"
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path.name}: relative imports hide direction"


def test_nothing_reads_pickles() -> None:
    for path in SOURCES.rglob("*.py"):
        text = path.read_text()
        assert "pickle" not in text, path.name
        assert "torch.load" not in text, path.name
