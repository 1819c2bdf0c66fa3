"""Git and DVC as commands, run as a person would run them in the project's folder, and what they
know of params.yaml.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from lmlab.core.errors import UserError
from lmlab.core.params import Tree


def git(*words: str) -> str:
    """What Git prints. Raises UserError with what it says if it refuses."""
    done = subprocess.run(
        ["git", *words], capture_output=True, text=True, encoding="utf-8", check=False
    )
    if done.returncode:
        raise UserError(
            f"git {' '.join(words)}: {' '.join(done.stderr.split()) or done.returncode}"
        )
    return done.stdout


def experiment(name: str) -> str | None:
    """The Git reference of a finished experiment; None if there is none of that name."""
    refs = git("for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
    return next(
        (ref for ref in refs if re.fullmatch(rf"refs/exps/\w{{2}}/\w+/{re.escape(name)}", ref)),
        None,
    )


def params_of(commit: str) -> Tree:
    """A commit's params.yaml."""
    return YAML(typ="safe", pure=True).load(git("show", f"{commit}:params.yaml"))


def leaves(tree: Any, before: str = "") -> dict[str, Any]:
    """All that is no block, by dotted key."""
    if not isinstance(tree, dict):
        return {before: tree}
    inner = [
        leaves(value, f"{before}.{key}" if before else str(key)) for key, value in tree.items()
    ]
    return {key: value for some in inner for key, value in some.items()}


def literal(value: Any) -> str:
    """A value as DVC reads it after `-S key=`. In its quoted text a backslash escapes quotes, and
    itself before them.
    """
    if isinstance(value, list):
        return f"[{','.join(map(literal, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    escaped = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), value)
    return f'"{escaped}"'


def dvc_command(*words: str) -> list[str]:
    """DVC of this Python's environment."""
    return [sys.executable, "-m", "dvc", *words]


def dvc_environment() -> dict[str, str]:
    """The environment with this Python first on PATH, since that is what DVC's stages run."""
    return os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    }


def dvc(*words: str) -> str:
    """What DVC prints. Raises UserError with its last line if it refuses."""
    done = subprocess.run(
        dvc_command(*words),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env=dvc_environment(),
    )
    if done.returncode:
        said = [
            line.removeprefix("ERROR: ")
            for line in done.stderr.splitlines()
            if line.startswith("ERROR: ")
        ]
        raise UserError(
            f"dvc {' '.join(words[:2])}: {(said or [f'exit code {done.returncode}'])[0]}"
        )
    return done.stdout
