"""A model from elsewhere as a commit, so that a run can go on from it as from any other.

The commit holds nothing but a dvc.lock and the params that are known; what the model consists of
lies in DVC's cache. No branch leads to it. The same model always becomes the same commit.
"""

import json
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from lmlab.core.params import Values
from lmlab.experiments import git
from lmlab.experiments.compare import dvc_cache
from lmlab.experiments.compare.lock import md5_of

STAGES = {"tokenizer": ("tokenizer",), "train": ("model", "state")}
"""The stages that would have written a run's folders below data/."""
WHO = "lmlab <lmlab@localhost> 0 +0000"


def adopt(folder: Path, made_with: Values, message: str, root: Path) -> str:
    """The commit of a run whose `model`, `tokenizer` and `state` lie in a folder."""
    lock = {
        "schema": "2.0",
        "stages": {
            stage: _stage(stage, [_cached(folder / out, root) for out in outs], made_with)
            for stage, outs in STAGES.items()
        },
    }
    files = {"dvc.lock": _yaml(lock), "params.yaml": _yaml(_nested(made_with))}
    entries = [f"100644 blob {_object('blob', text, root)}\t{name}" for name, text in files.items()]
    tree = _printed(root, "mktree", stdin="\n".join(entries) + "\n")
    commit = f"tree {tree}\nauthor {WHO}\ncommitter {WHO}\n\n{message}\n"
    return _object("commit", commit, root)


def _stage(name: str, outs: list[dict[str, Any]], made_with: Values) -> dict[str, Any]:
    stage: dict[str, Any] = {"cmd": f"python -m pipeline.{name}", "outs": outs}
    if name == "train" and made_with:
        stage["params"] = {"params.yaml": made_with}
    return stage


def _cached(folder: Path, root: Path) -> dict[str, Any]:
    """A folder put into DVC's cache, as dvc.lock names it."""
    listing = []
    for file in sorted(folder.iterdir()):
        md5 = md5_of(file.read_bytes())
        listing.append({"md5": md5, "relpath": file.name})
        dvc_cache.put(file, dvc_cache.place(root, md5))
    text = json.dumps(listing)
    md5 = f"{md5_of(text.encode())}.dir"
    written = folder.with_name(f"{folder.name}.dir")
    written.write_text(text, encoding="utf-8")
    dvc_cache.put(written, dvc_cache.place(root, md5))
    size = sum(file.stat().st_size for file in folder.iterdir())
    named = {"path": f"data/{folder.name}", "hash": "md5", "md5": md5}
    return {**named, "size": size, "nfiles": len(listing)}


def _nested(values: Values) -> dict[str, Any]:
    """Values by dotted key as a tree."""
    tree: dict[str, Any] = {}
    for dotted, value in sorted(values.items()):
        *path, key = dotted.split(".")
        block = tree
        for name in path:
            block = block.setdefault(name, {})
        block[key] = value
    return tree


def _yaml(value: Mapping[str, Any]) -> str:
    text = StringIO()
    yaml = YAML(pure=True)
    yaml.default_flow_style = False
    yaml.width = 1_000_000
    yaml.dump(value, text)
    return text.getvalue()


def _object(kind: str, content: str, root: Path) -> str:
    """The name of a Git object that holds this."""
    return _printed(root, "hash-object", "-t", kind, "-w", "--stdin", stdin=content)


def _printed(root: Path, *words: str, stdin: str) -> str:
    printed = git.printed(*words, root=root, stdin=stdin.encode())
    if printed is None:
        raise git.GitError(f"git {' '.join(words)} failed; is this a Git repository?")
    return printed.decode().strip()
