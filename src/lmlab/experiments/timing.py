"""How long stages took, and what memory: kept apart from their outputs, since it differs from run
to run.

What is here is no output that DVC knows of, so that the same params and code give the same
dvc.lock. The last run of each stage is in data/timing/<stage>.json; what the stages of one training
run took, also of an experiment in a folder of its own, stays in the project's data/timing/runs/
under the hash of its weights, on the machine that took it.
"""

import json
import os
from pathlib import Path
from typing import Any

from lmlab.core.files import write_json

FOLDER = Path("data/timing")
STAGES = ("start", "download", "tokenizer", "shard", "train", "evaluate", "probe", "report")
MODEL = Path("data/model/model.json")


def note(stage: str, facts: dict[str, Any]) -> None:
    """Keep what a stage took in the present folder, and beside the other stages of the same run."""
    write_json(FOLDER / f"{stage}.json", facts)
    weights = _read(MODEL).get("weights_sha256")
    if not weights or stage not in STAGES[STAGES.index("train") :]:
        return
    path = _of_run(weights, Path(os.environ.get("DVC_ROOT", ".")))
    until_now = STAGES[: STAGES.index(stage) + 1]
    here = {name: facts for name in until_now if (facts := _read(FOLDER / f"{name}.json"))}
    write_json(path, {**_read(path), **here})


def last(root: Path = Path()) -> dict[str, dict[str, Any]]:
    """What the last run of each stage in a folder took, by stage; those never run there are left
    out.
    """
    return {stage: facts for stage in STAGES if (facts := _read(root / FOLDER / f"{stage}.json"))}


def of_run(weights: str, root: Path = Path()) -> dict[str, dict[str, Any]]:
    """What the stages took whose training ended in weights of this hash, by stage; empty where that
    is not known.
    """
    return _read(_of_run(weights, root))


def _of_run(weights: str, root: Path) -> Path:
    return root / FOLDER / "runs" / f"{weights}.json"


def _read(path: Path) -> dict[str, Any]:
    """A JSON file's block; empty where it is missing or damaged, as nothing but a look depends on
    it.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
