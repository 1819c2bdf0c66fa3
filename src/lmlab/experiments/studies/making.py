"""What a study's points were made with, so that results are only compared with their like.

A point says all params that it used, its text, every file of code that a run of it uses, and the
versions and the processor that it ran on. Where any of these is no longer so, the point is stale.
"""

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lmlab.core import params, registry
from lmlab.core.files import sha256
from lmlab.core.params import Tree
from lmlab.data.shard import ShardParams
from lmlab.data.start import StartParams
from lmlab.data.tokenizers.base import TokenizerParams
from lmlab.experiments import dependencies
from lmlab.experiments.studies.records import Making
from lmlab.experiments.studies.study import FIRST
from lmlab.training.step import TrainParams

POINT = "lmlab.experiments.studies.point"
"""The module that makes a point: what it imports, and the parts it loads, is the code of a run."""
PROBES = ("lmlab.evaluation.probes.cost", "lmlab.evaluation.probes.gradient_angle")
"""Modules that a point loads by name."""
SPLITS = ("train", "validation")
VARYING = ("train.seed", "train.data_seed")
"""Keys in which the points of one arm differ beside what it sweeps."""
WHICH = ("start.commit", "start.model")
"""Keys that say which run a run goes on from, which here is said by that run's params."""
NO_EFFECT = ("train.checkpoint_seconds", "shard.processes")
"""Keys that decide nothing about a result."""
DIGITS = 12
"""Of a file's SHA-256 that are kept."""


def making(
    tree: Tree, swept: set[str], flops: float, corpus: Path, first: Tree | None = None
) -> Making:
    """What points with these params are made with, here and now; `first` are the params of the run
    that they go on from.
    """
    left_out = {*swept, *VARYING, *NO_EFFECT}
    used = {key: value for key, value in _used(tree) if key not in left_out}
    code = _code(tree)
    if first is not None:
        start = params.section(tree, "start", StartParams)
        used |= {key: value for key, value in _leaves(tree, "start", start) if key not in WHICH}
        used |= {f"{FIRST}{key}": value for key, value in _used(first) if key not in left_out}
        code |= _code(first)
    texts = {split: corpus / f"{split}.parquet" for split in SPLITS}
    given = params.section(tree, "tokenizer", TokenizerParams).file
    if given is not None:
        texts["tokenizer"] = given
    return Making(
        params=dict(sorted(used.items())),
        flops=flops,
        corpus={name: sha256(path) for name, path in texts.items() if path.is_file()},
        code=dict(sorted(code.items())),
        versions=versions(),
        processor=processor(),
    )


def differences(before: Making, now: Making) -> list[str]:
    """In what two makings differ, in words; the processor is left out, and a text that is not
    here. A file that is no longer used counts for nothing: whatever used it has changed.
    """
    lines = [*_changed_params(before.params, now.params)]
    if before.flops != now.flops:
        lines.append(f"flops: {before.flops:g}, now {now.flops:g}")
    if now.corpus and before.corpus != now.corpus:
        lines.append("the text is another one")
    changed = sorted(path for path in now.code if before.code.get(path) != now.code[path])
    if changed:
        more = f" and {len(changed) - 3} more files" if len(changed) > 3 else ""
        lines.append(f"code: {', '.join(changed[:3])}{more}")
    for name in now.versions:
        if before.versions.get(name) != now.versions[name]:
            lines.append(
                f"{name} {before.versions.get(name, '(unknown)')}, now {now.versions[name]}"
            )
    return lines


def disagreements(one: Making, other: Making, own_keys: set[str]) -> list[str]:
    """In what two arms' makings differ beyond what the arms are allowed to: their own keys, and
    the options and code of parts that only one of them uses.
    """
    keys = sorted((one.params.keys() & other.params.keys()) - own_keys)
    paths = one.code.keys() & other.code.keys()
    lines = [
        f"params: {name} is {one.params[name]} for one and {other.params[name]} for the other"
        for name in keys
        if one.params[name] != other.params[name]
    ]
    lines += [f"code: {path}" for path in sorted(paths) if one.code[path] != other.code[path]]
    for name in ("flops", "corpus", "versions", "processor"):
        if getattr(one, name) != getattr(other, name):
            lines.append(name)
    return lines


def key(made: Making, values: Mapping[str, Any], seed: int) -> str:
    """A name for the result of one run, by all that decides it."""
    decides = {**made.model_dump(), "values": values, "seed": seed}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:20]


def versions() -> dict[str, str]:
    """Of what computes."""
    packages = {name: version(name) for name in ("torch", "numpy")}
    return {"python": ".".join(platform.python_version_tuple()[:2]), **packages}


def processor() -> str:
    """The processor's name and the instructions that torch uses on it."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = next(iter(models), name)
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def _changed_params(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(before.keys() | now.keys()):
        if name not in now:
            yield f"params: {name} is no longer used"
        elif name not in before:
            yield f"params: {name} is new"
        elif before[name] != now[name]:
            yield f"params: {name} was {before[name]}, is {now[name]}"


def _used(tree: Tree) -> Iterator[tuple[str, Any]]:
    """The params that a run uses: its sections, and the options of the parts they choose."""
    for name, section in (("tokenizer", TokenizerParams), ("shard", ShardParams)):
        yield from _leaves(tree, name, params.section(tree, name, section))
    yield from _leaves(tree, "train", params.section(tree, "train", TrainParams))


def _leaves(tree: Tree, name: str, section: params.Params) -> Iterator[tuple[str, Any]]:
    for key_, value in params.block(tree, name).items():
        yield f"{name}.{key_}", value
    for choice in registry.choices(tree, name, section).values():
        yield from _options(choice)


def _options(choice: registry.Choice) -> Iterator[tuple[str, Any]]:
    for key_, value in choice.options.model_dump().items():
        yield f"{choice.kind}.{choice.name}.{key_}", value
    for inner in choice.inner.values():
        yield from _options(inner)


def _code(tree: Tree) -> dict[str, str]:
    files = dependencies.used([POINT, *PROBES], dependencies.KINDS["train"], tree)
    names = [path.relative_to(dependencies.ROOT).as_posix() for path in files]
    return {name: sha256(path)[:DIGITS] for name, path in zip(names, files, strict=True)}
