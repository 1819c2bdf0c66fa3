"""Find files by pattern: each file once, however many names it has, and a count of what was
skipped.

A pattern is a file, a folder (meaning all files with the wanted suffixes in it, at any depth) or a
glob, in which `**` matches folders at any depth. Links are followed, but no folder is entered
twice, so cycles of links end.
"""

import fnmatch
import glob
import os
import stat
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lmlab.core.errors import UserError, printable

FOLDER_AGAIN = "links to folders that were read under another name"
FILE_AGAIN = "other names of files that are read once"
NO_MATCH = "patterns that match nothing"
NAMED_AS_FILES = "folders that are named like files"


class Matches(NamedTuple):
    """The files that the patterns match."""

    files: list[Path]
    """Each file once, sorted by path; of its names the one that needs no link, then the
    shortest.
    """
    passed_over: Counter[str]
    """How many matches are not read, by reason."""


def find(patterns: Sequence[str], suffixes: Sequence[str], key: str) -> Matches:
    """The files that the patterns match; of a folder, those whose names end in one of the suffixes.

    Raises UserError, naming `key`, for a file matched by name or glob that ends in none of them,
    for a broken link and for what is neither file nor folder.
    """
    passed_over: Counter[str] = Counter()
    names_of_file: dict[tuple[int, int], list[Path]] = {}
    for path in _matches(patterns, suffixes, passed_over, key):
        state = _state(path, key)
        if stat.S_ISDIR(state.st_mode):
            passed_over[NAMED_AS_FILES] += has_suffix(path, suffixes)
            continue
        if not stat.S_ISREG(state.st_mode):
            raise UserError(
                f"{printable(path)} is neither file nor folder, but a pipe or a device; narrow"
                f" {key}"
            )
        if not has_suffix(path, suffixes):
            raise UserError(
                f"{printable(path)}: only files that end in {', '.join(suffixes)} can be read;"
                f" narrow {key}"
            )
        names_of_file.setdefault((state.st_dev, state.st_ino), []).append(path)
    files = []
    for paths in names_of_file.values():
        names = sorted(set(paths))
        files.append(min(names, key=_indirectness) if len(names) > 1 else names[0])
        passed_over[FILE_AGAIN] += len(names) - 1
    return Matches(sorted(files), +passed_over)


def has_suffix(path: Path, suffixes: Iterable[str]) -> bool:
    """Whether the file's name ends in one of the suffixes, in upper or lower case."""
    return path.name.lower().endswith(tuple(suffixes))


def _matches(
    patterns: Sequence[str], suffixes: Sequence[str], passed_over: Counter[str], key: str
) -> Iterator[Path]:
    """Everything that the patterns match, files or not, possibly repeated."""
    for pattern in filter(None, patterns):
        path = Path(os.path.expanduser(pattern))
        try:
            if os.path.isdir(path):
                entries = _entries_below(path, passed_over)
                yield from _with_suffix(entries, suffixes, passed_over)
            elif os.path.lexists(path):  # before globbing: a file's name may hold `*` or `[`
                yield path
            else:
                parts = path.parts[1:] if path.anchor else path.parts
                matches = list(_expanded(Path(path.anchor), parts, passed_over))
                passed_over[NO_MATCH] += not matches
                yield from matches
        except PermissionError:
            raise  # `errors.explain` has a line for it
        except OSError as error:
            name = printable(error.filename or path)
            raise UserError(f"{name} cannot be read: {error.strerror}; fix {key}") from None


def _with_suffix(
    paths: Iterable[Path], suffixes: Sequence[str], passed_over: Counter[str]
) -> Iterator[Path]:
    """The paths with one of the suffixes; other files are counted by their suffix."""
    for path in paths:
        if has_suffix(path, suffixes):
            yield path
        elif not os.path.isdir(path):
            suffix = ascii(path.suffix.lower())[1:-1]
            reason = f"files that end in {suffix}" if suffix else "files without a suffix"
            passed_over[reason] += 1


def _entries_below(folder: Path, passed_over: Counter[str]) -> Iterator[Path]:
    for subfolder in _folders(folder, passed_over):
        yield from _entries(subfolder)


def _expanded(base: Path, parts: Sequence[str], passed_over: Counter[str]) -> Iterator[Path]:
    """What the parts of a glob match, starting from the folder `base`."""
    if not parts:
        yield base
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        folders = _folders(base, passed_over) if os.path.isdir(base) else ()
        for folder in folders:
            yield from _expanded(folder, rest or ["*"], passed_over)
    elif not glob.has_magic(part):
        if os.path.lexists(base / part):
            yield from _expanded(base / part, rest, passed_over)
    elif os.path.isdir(base):
        for path in _entries(base, hidden=part.startswith(".")):
            if fnmatch.fnmatch(path.name, part):
                yield from _expanded(path, rest, passed_over)


def _folders(start: Path, passed_over: Counter[str]) -> Iterator[Path]:
    """A folder and all folders below it, each once, under its own name rather than a link's."""
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
            subfolders = [path for path in _entries(folder) if os.path.isdir(path)]
            links.extend(path for path in subfolders if path.is_symlink())
            pending.extend(path for path in reversed(subfolders) if not path.is_symlink())


def _entries(folder: Path, hidden: bool = False) -> list[Path]:
    """A folder's entries, sorted by name; hidden ones, which begin with a dot, only on request."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    return [folder / name for name in names if hidden or not name.startswith(".")]


def _state(path: Path, key: str) -> os.stat_result:
    try:
        return path.stat()
    except PermissionError:
        raise
    except OSError:
        if path.is_symlink():
            raise UserError(
                f"{printable(path)} is a link to nowhere; fix it, delete it or narrow {key}"
            ) from None
        raise UserError(f"{printable(path)} cannot be read; narrow {key}") from None


def _indirectness(path: Path) -> tuple[bool, int, str]:
    """A sort key for the names of a file: whether it goes through a link, its depth, the name."""
    is_linked = path.resolve() != Path(os.path.abspath(path))
    return is_linked, len(path.parts), str(path)
