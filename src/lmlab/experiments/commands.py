"""DVC as a command, run as a person would run it in the project's folder, and values of params.yaml
as its command line takes them.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from lmlab.core.errors import UserError
from lmlab.core.params import Values


def leaves(tree: Any, prefix: str = "") -> Values:
    """The values of nested blocks by dotted key."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    values: Values = {}
    for key, value in tree.items():
        values |= leaves(value, f"{prefix}.{key}" if prefix else str(key))
    return values


def literal(value: Any) -> str:
    """A value as DVC reads it after `-S key=`.

    Inside quotes a backslash escapes a quote, and itself where it stands before one.
    """
    if isinstance(value, list):
        return f"[{','.join(map(literal, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    return f'"{re.sub(_QUOTED_OR_AT_END, _escape, value)}"'


_QUOTED_OR_AT_END = r'(\\*)("|$)'
"""Backslashes before a quote or before the end, where the closing quote will stand."""


def _escape(match: re.Match[str]) -> str:
    backslashes = match[1] * 2
    return backslashes + '\\"' if match[2] else backslashes


def dvc_command(*words: str) -> list[str]:
    """The command line of DVC from this Python's environment."""
    return [sys.executable, "-m", "dvc", *words]


def dvc_environment() -> dict[str, str]:
    """The environment with this Python first on PATH, as DVC's stages run whatever comes first."""
    path = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    return os.environ | {"PATH": os.pathsep.join(path)}


def dvc(*words: str) -> str:
    """What DVC prints. Raises UserError with its first line of error where it fails."""
    completed = subprocess.run(
        dvc_command(*words),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env=dvc_environment(),
    )
    if completed.returncode:
        lines = completed.stderr.splitlines()
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        complaint = errors[0] if errors else f"exit code {completed.returncode}"
        raise UserError(f"dvc {' '.join(words[:2])}: {complaint}")
    return completed.stdout
