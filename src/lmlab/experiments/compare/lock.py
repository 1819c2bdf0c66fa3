"""params.yaml and dvc.lock of a run: the params it ran with, and the hashes of what its stages read
and wrote.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from lmlab.core.params import Tree, Values
from lmlab.experiments import git
from lmlab.experiments.commands import leaves
from lmlab.experiments.compare.run import METRICS


def params_at(commit: str) -> Tree:
    """The params.yaml of a commit. Raises UserError where there is none."""
    return YAML(typ="safe", pure=True).load(git.output("show", f"{commit}:params.yaml"))


def read_params(content: bytes) -> Values:
    """The params of a params.yaml, by dotted key. Raises ValueError or YAMLError where damaged."""
    return leaves(_parse(content.decode()))


def _parse(text: str) -> dict[str, Any]:
    """A file of blocks as `params.read` reads it.

    It is read block by block, since most blocks of thirty experiments are the same.
    """
    blocks = re.split(r"^(?=[A-Za-z_])", text, flags=re.MULTILINE)
    try:
        tree: dict[str, Any] = {}
        for block in blocks:
            tree |= _parse_block(block) or {}
        return tree
    except (YAMLError, TypeError):  # a text over several lines may begin in the first column
        whole = _parse_block(text)
        if not isinstance(whole, dict):
            raise ValueError("not a file of blocks") from None
        return whole


@cache
def _parse_block(text: str) -> Any:
    return YAML(typ="safe").load(text)


@dataclass(frozen=True)
class LockedStage:
    """What dvc.lock records of one stage."""

    reads: dict[str, str]
    """MD5 by path."""
    writes: dict[str, str]
    params: Values
    """By dotted key."""


def read_stages(text: str) -> dict[str, LockedStage]:
    """The stages of a dvc.lock by name.

    DVC writes the file in one shape, so the hashes are read line by line: a YAML parser takes half
    a second for each file.
    """
    blocks = re.findall(r"^  (\w+):\n((?:    .*\n)+)", text, flags=re.MULTILINE)
    return {
        name: LockedStage(_hashes(block, "deps"), _hashes(block, "outs"), _params(block))
        for name, block in blocks
    }


def _hashes(block: str, part: str) -> dict[str, str]:
    """The MD5 of each path in the `deps` or `outs` of a stage."""
    match = re.search(rf"^    {part}:\n((?:    [- ] .*\n)+)", block, flags=re.MULTILINE)
    if not match:
        return {}
    return dict(re.findall(r"- path: (.+)\n(?:      (?!md5).*\n)*      md5: (\S+)", match[1]))


def _params(block: str) -> Values:
    pattern = r"^    params:\n      params\.yaml:\n((?: {8}.*\n)+)"
    match = re.search(pattern, block, flags=re.MULTILINE)
    if not match:
        return {}
    lines = match[1].splitlines(keepends=True)
    return leaves(_parse("".join(line[8:] for line in lines)))


class Lock:
    """The stages of a dvc.lock that lead to a run's results."""

    def __init__(self, text: str, results: str = METRICS) -> None:
        self.results = results
        self._all = read_stages(text)
        self._written: dict[str, str] = {}
        for stage in self._all.values():
            self._written |= stage.writes
        self.stages = {name: self._all[name] for name in self._leading_to(results)}

    def _leading_to(self, path: str) -> list[str]:
        names: list[str] = []
        pending = [path]
        while pending:
            path = pending.pop()
            for name, stage in self._all.items():
                if name not in names and _is_in(path, stage.writes):
                    names.append(name)
                    pending += stage.reads
        return names

    @property
    def params(self) -> Values:
        """The params that the stages ran with, by dotted key."""
        params: Values = {}
        for stage in self.stages.values():
            params |= stage.params
        return params

    @property
    def made_with(self) -> dict[str, str]:
        """MD5 of the code and of the shards that training and evaluation used, by path."""
        used: dict[str, str] = {}
        for name in ("train", "evaluate"):
            if name in self.stages:
                used |= self.stages[name].reads
        return {
            path: md5
            for path, md5 in used.items()
            if not path.startswith("data/") or path == "data/shards"
        }

    def differs(self, path: str, content: bytes) -> bool:
        """Whether a stage wrote this file, and wrote something else into it."""
        return self._written.get(path) not in (None, md5_of(content))

    def why_stale(self, metrics: bytes) -> str:
        """Why these results are not those of the locked run; empty where they are."""
        if not self.stages:
            return f"its dvc.lock knows nothing of {self.results}"
        if self._written.get(self.results) != md5_of(metrics):
            return f"its {self.results} is not the one that dvc.lock records"
        for name, stage in self.stages.items():
            for path, md5 in stage.reads.items():
                if path in self._written and self._written[path] != md5:
                    return f"{path} has changed since the stage {name} ran"
        return ""


def _is_in(path: str, outs: dict[str, str]) -> bool:
    """Whether a path is one of a stage's outs or lies inside one."""
    return any(path == out or path.startswith(f"{out}/") for out in outs)


def md5_of(content: bytes) -> str:
    """A file's MD5 as DVC writes it."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
