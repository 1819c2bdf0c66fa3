"""Files by pattern: every real file once, however many names lead to it, and a count of all that
was passed over.

A pattern is a file, a folder (then all files of the kinds asked for, at any depth) or a glob, in
which `**` stands for folders at any depth. Links are followed, but a folder is never entered twice,
so links that lead back end.
"""

import fnmatch
import glob
import os
import stat
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lmlab.core.errors import UserError

FOLDER_AGAIN = "links to folders that were read under another name"
FILE_AGAIN = "other names of files that are read once"
NO_MATCH = "patterns that match nothing"
NAMED_AS_FILES = "folders that are named like files"


class Matches(NamedTuple):
    """What the patterns lead to."""

    files: list[Path]
    """Every file once, in the order of their paths; of several names the one that takes no link,
    then the shortest.
    """
    passed_over: Counter[str]
    """What was matched but is no file to read, by reason, how often."""


def find(patterns: Sequence[str], suffixes: Sequence[str], key: str) -> Matches:
    """The files that the patterns name. In a folder only those that end in one of the suffixes
    count.

    Raises UserError, naming `key`, for a file named by a pattern that ends in none of them, for a
    link to nowhere and for what is neither file nor folder.
    """
    passed_over: Counter[str] = Counter()
    names: dict[tuple[int, int], list[Path]] = {}
    for path in _matches(patterns, suffixes, passed_over, key):
        state = _state(path, key)
        if stat.S_ISDIR(state.st_mode):
            passed_over[NAMED_AS_FILES] += has_suffix(path, suffixes)
            continue
        if not stat.S_ISREG(state.st_mode):
            raise UserError(
                f"{shown(path)} is neither file nor folder, but a pipe or a device; narrow {key}"
            )
        if not has_suffix(path, suffixes):
            raise UserError(
                f"{shown(path)}: only files that end in {', '.join(suffixes)} can be read; narrow"
                f" {key}"
            )
        names.setdefault((state.st_dev, state.st_ino), []).append(path)
    files = []
    for of_one_file in names.values():
        different = sorted(set(of_one_file))
        files.append(min(different, key=_indirectness) if len(different) > 1 else different[0])
        passed_over[FILE_AGAIN] += len(different) - 1
    return Matches(sorted(files), +passed_over)


def has_suffix(path: Path, suffixes: Iterable[str]) -> bool:
    """Whether the file's name ends in one of the suffixes, in whatever case."""
    return path.name.lower().endswith(tuple(suffixes))


def shown(name: Path | str) -> str:
    """A name as it can be printed on one line: of what names of files and keys may hold, all that
    is no sign is escaped.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(name)
    )


def _matches(
    patterns: Sequence[str], suffixes: Sequence[str], passed_over: Counter[str], key: str
) -> Iterator[Path]:
    """Whatever a pattern names, files or not, perhaps more than once."""
    for pattern in patterns:
        path = Path(os.path.expanduser(pattern))
        try:
            if not pattern:
                continue
            if os.path.isdir(path):
                yield from _of_kind(_everything_below(path, passed_over), suffixes, passed_over)
            elif os.path.lexists(path):  # first, since a name may hold the signs of a pattern
                yield path
            else:
                start = Path(path.anchor)
                found = list(_expanded(start, path.parts[bool(path.anchor) :], passed_over))
                passed_over[NO_MATCH] += not found
                yield from found
        except PermissionError:
            raise  # told in one line wherever it happens
        except OSError as error:
            raise UserError(
                f"{shown(error.filename or path)} cannot be read: {error.strerror}; mend {key}"
            ) from None


def _of_kind(
    paths: Iterable[Path], suffixes: Sequence[str], passed_over: Counter[str]
) -> Iterator[Path]:
    """Those with one of the suffixes; files of other kinds are counted by their own."""
    for path in paths:
        if has_suffix(path, suffixes):
            yield path
        elif not os.path.isdir(path):
            suffix = ascii(path.suffix.lower())[1:-1]
            passed_over[f"files that end in {suffix}" if suffix else "files without a suffix"] += 1


def _everything_below(folder: Path, passed_over: Counter[str]) -> Iterator[Path]:
    for each in _folders(folder, passed_over):
        yield from _entries(each)


def _expanded(base: Path, parts: Sequence[str], passed_over: Counter[str]) -> Iterator[Path]:
    """What a glob's parts lead to, from a folder on."""
    if not parts:
        yield base
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        for folder in _folders(base, passed_over) if os.path.isdir(base) else ():
            yield from _expanded(folder, rest or ["*"], passed_over)
    elif not glob.has_magic(part):
        if os.path.lexists(base / part):
            yield from _expanded(base / part, rest, passed_over)
    elif os.path.isdir(base):
        for path in _entries(base, hidden=part.startswith(".")):
            if fnmatch.fnmatch(path.name, part):
                yield from _expanded(path, rest, passed_over)


def _folders(start: Path, passed_over: Counter[str]) -> Iterator[Path]:
    """A folder and those below it, each once: by its own name where it has one here, else by that
    of a link.
    """
    entered: set[tuple[int, int]] = set()
    links = deque([start])
    while links:
        pending = [links.popleft()]
        while pending:
            folder = pending.pop()
            state = folder.stat()
            if (state.st_dev, state.st_ino) in entered:
                passed_over[FOLDER_AGAIN] += 1
                continue
            entered.add((state.st_dev, state.st_ino))
            yield folder
            inside = [path for path in _entries(folder) if os.path.isdir(path)]
            links.extend(path for path in inside if path.is_symlink())
            pending.extend(path for path in reversed(inside) if not path.is_symlink())


def _entries(folder: Path, hidden: bool = False) -> list[Path]:
    """What a folder holds, by name; hidden names, those that begin with a dot, only where asked
    for.
    """
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if hidden or not entry.name.startswith("."))
    return [folder / name for name in names]


def _state(path: Path, key: str) -> os.stat_result:
    try:
        return path.stat()
    except PermissionError:
        raise
    except OSError:
        if path.is_symlink():
            raise UserError(
                f"{shown(path)} is a link to nowhere; mend it, delete it or narrow {key}"
            ) from None
        raise UserError(f"{shown(path)} cannot be read; narrow {key}") from None


def _indirectness(path: Path) -> tuple[bool, int, str]:
    """How far a name is from being the file's own: whether it takes a link, how deep it is, then
    the name itself.
    """
    return path.resolve() != Path(os.path.abspath(path)), len(path.parts), str(path)
