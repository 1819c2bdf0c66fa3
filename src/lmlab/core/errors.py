"""What a person can get wrong, told in one line: `UserError` says it, `one_line` prints it and sets
the exit code.
"""

import errno
import functools
import io
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class UserError(Exception):
    """A mistake the person at the keyboard can mend: the message names the key or file, what is
    wrong, and what to do.
    """


def explain(error: BaseException) -> tuple[str, int] | None:
    """One line and an exit code for errors that are not faults of the program; None for those that
    are.
    """
    text = str(error)
    if isinstance(error, UserError):
        return f"error: {_on_one_line(text)}", 2
    if isinstance(error, KeyboardInterrupt):
        return "interrupted: nothing is lost, run the same command again to go on", 130
    if (
        isinstance(error, OSError) and error.errno == errno.ENOSPC
    ) or "No space left on device" in text:
        return (
            "error: the disk is full; free some space and run the same command again, finished"
            " work is kept",
            2,
        )
    if isinstance(error, PermissionError):
        return (
            f"error: {_named(error)}: permission denied; make it readable and writable for you",
            2,
        )
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        advice = _ADVICE.get(error.errno, "mend it or name another, and run the same command again")
        return f"error: {_named(error)}: {os.strerror(error.errno).lower()}; {advice}", 2
    if (
        isinstance(error, MemoryError) or "can't allocate memory" in text
    ):  # torch has no class for the latter
        return (
            "error: the memory of this machine is not enough for that; make it smaller:"
            " params.yaml or the command",
            2,
        )
    return None


_ADVICE = {
    errno.ENOENT: "it is missing; run from the project's top folder, or make it first",
    errno.EISDIR: "a file should be there; move the folder away or name another",
    errno.ENOTDIR: "a folder should be there; move the file away or name another",
    errno.EEXIST: "a folder should be there; move the file away or name another",
    errno.EROFS: "nothing can be written there; work in a folder where you may write",
    errno.ENAMETOOLONG: "name it shorter",
    errno.ELOOP: "links lead in a circle; mend them or name another",
}
"""What to do about an error of the operating system, by its number."""


def _named(error: OSError) -> str:
    """The file that an error is about, on one line; of two, as in renaming, the one that something
    is written to.
    """
    name = error.filename2 if error.filename2 is not None else error.filename
    return _on_one_line(
        os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else str(name)
    )


def _on_one_line(text: str) -> str:
    """The same with all that is no sign, such as the ends of lines that names and keys may hold,
    escaped.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A `sys.excepthook`: what the user can mend becomes one line and an exit code, anything else a
    traceback.
    """
    told = explain(error)
    if told is None:
        sys.__excepthook__(kind, error, trace)
        return
    line, code = told
    sys.stdout.flush()
    print(line, file=sys.stderr, flush=True)
    os._exit(code)  # an excepthook has no other way to choose the exit code


def take_over() -> None:
    """Tell errors and Ctrl-C in one line from now on, for the whole process; a Ctrl-C that is
    ignored stays ignored.

    What the terminal, or the file that is written to instead, has no sign for is printed as `?`.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # with `2>&-` there is none
            stream.reconfigure(errors="replace")
    sys.excepthook = report
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C: a KeyboardInterrupt, but in the middle of an import the end at once, since modules
    cut short go astray.
    """
    at = frame
    while at is not None:
        if at.f_code.co_filename.startswith("<frozen importlib"):
            report(KeyboardInterrupt, KeyboardInterrupt(), None)
        at = at.f_back
    raise KeyboardInterrupt


def one_line(command: Callable[P, R]) -> Callable[P, R]:
    """A command that ends in one line and an exit code where `explain` knows one: 2 for a mistake,
    130 for Ctrl-C.
    """

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except BaseException as error:
            told = explain(error)
            if told is None:
                raise
            line, code = told
            sys.stdout.flush()
            print(line, file=sys.stderr, flush=True)
            raise SystemExit(code) from None

    return guarded
