"""A stage's outputs in DVC's run-cache, where DVC itself does not look for them or keep them.

Where a stage's code, params and inputs are those of its dvc.lock, DVC takes the outputs that the
lock names; if they are not in this machine's cache it runs the stage, although its run-cache may
have outputs for just these inputs (DVC 3.67, `StageCache.restore`). So a lock that was written on
another kind of processor, whose weights differ in their last bits, would mean training again after
every `git checkout`. A stage that DVC has started asks here first.

And a stage with an output that Git keeps and that is neither a metric nor a plot, such as a page of
samples, DVC leaves out of its run-cache altogether (`Stage.run`), though it would find it there.
Such a stage keeps itself.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import psutil
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError


def restored() -> bool:
    """Whether the outputs of the stage that DVC has started are in place now, from the
    run-cache.
    """
    stage = os.environ.get("DVC_STAGE", "")
    if not stage or ":" in stage or _forced():  # by hand, or of another dvc.yaml, or forced
        return False
    project = Path(os.environ.get("DVC_ROOT", "."))
    locked = locked_outputs(Path("dvc.lock"), stage)
    if not locked or all(_object(project, md5).is_file() for md5 in locked):
        return False  # DVC has taken the lock's outputs, or has asked its run-cache
    return _from_run_cache(stage)


def keep() -> None:
    """Put what the stage that DVC has started has written into DVC's run-cache, where DVC will not
    do it itself.

    Nothing is lost where that fails: the stage is run again when it might have been looked up.
    """
    stage = os.environ.get("DVC_STAGE", "")
    if (
        not stage or ":" in stage or not is_left_out(Path("dvc.yaml"), stage)
    ):  # by hand, or of another dvc.yaml, or DVC does it
        return
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with _quietly(), suppress(AttributeError, DvcException, OSError), Repo() as repository:
        made = repository.stage.load_one(name=stage)
        made.save_deps()
        made.save_outs()
        repository.stage_cache.save(made)


def is_left_out(pipeline: Path, stage: str) -> bool:
    """Whether a stage of a dvc.yaml has an output that is not cached and neither a metric nor a
    plot.
    """
    try:
        outputs = YAML(typ="safe").load(pipeline)["stages"][stage]["outs"]
    except (OSError, KeyError, TypeError, ValueError, YAMLError):
        return False
    return any(
        isinstance(one, dict) and next(iter(one.values())).get("cache") is False for one in outputs
    )


def _forced() -> bool:
    """Whether DVC was told to run stages again, as `dvc repro --force` does."""
    for ancestor in psutil.Process().parents():
        try:
            words = ancestor.cmdline()
        except psutil.Error:
            continue
        if {"repro", "run"} & {*words} and any(
            word == "--force" or re.fullmatch(r"-[A-Za-z]*f[A-Za-z]*", word) for word in words
        ):
            return True
    return False


def locked_outputs(lock: Path, stage: str) -> list[str]:
    """The MD5 of each output that a dvc.lock names for a stage. It is always written in one shape:
    no parser is needed.
    """
    try:
        text = lock.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    block = re.search(rf"^  {re.escape(stage)}:\n((?:    .*\n?)+)", text, flags=re.MULTILINE)
    outputs = (
        re.search(r"^    outs:\n((?:    [- ] .*\n?)+)", block[1], flags=re.MULTILINE)
        if block
        else None
    )
    return re.findall(r"^      md5: (\S+)", outputs[1], flags=re.MULTILINE) if outputs else []


def _object(project: Path, md5: str) -> Path:
    """Where DVC's cache has what has this MD5."""
    return _cache(project) / "files" / "md5" / md5[:2] / md5[2:]


def _cache(project: Path) -> Path:
    """DVC's cache, which its settings may have moved."""
    settings = project / ".dvc"
    for name in ("config.local", "config"):
        if (settings / name).is_file():
            text = (settings / name).read_text(encoding="utf-8")
            section = re.search(r"^\[cache\]\n((?:(?!\[).*\n?)*)", text, flags=re.MULTILINE)
            moved = (
                re.search(r"^\s*dir\s*=\s*(.+?)\s*$", section[1], flags=re.MULTILINE)
                if section
                else None
            )
            if moved:
                return settings / moved[1]
    return settings / "cache"


@contextmanager
def _quietly() -> Iterator[None]:
    """Inside, a library's progress bars and messages are not shown."""
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
    ):
        yield


def _from_run_cache(name: str) -> bool:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with _quietly(), Repo() as repository:
        stage = repository.stage.load_one(name=name)
        try:
            stage.save_deps()
            entry = repository.stage_cache._load(stage)
            made = repository.stage_cache._create_stage(entry, wdir=stage.wdir) if entry else None
            if made is None or not made.outs_cached():
                return False
            with (
                repository.stage_cache._cache_type_copy()
            ):  # what Git keeps must be no link into the cache
                for output in made.outs:
                    output.checkout(force=True)
        except (
            AttributeError,
            DvcException,
        ):  # another DVC, or a damaged cache: then the stage runs
            return False
    return True
