"""Errors that a user can fix, in one line: `UserError` has the message, `one_line` prints it and
sets the exit code.
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
    """A mistake the user can fix: the message names the key or file, what is wrong, and what to
    do.
    """


def explain(error: BaseException) -> tuple[str, int] | None:
    """A one-line message and an exit code for an error that is not a bug; None for a bug."""
    if isinstance(error, UserError):
        return f"error: {printable(error)}", 2
    if isinstance(error, KeyboardInterrupt):
        return "interrupted: nothing is lost, run the same command again to resume", 130
    if _is_disk_full(error):
        return (
            "error: the disk is full; free some space and run the same command again, finished"
            " work is kept",
            2,
        )
    if isinstance(error, PermissionError):
        path = _path_of(error)
        return f"error: {path}: permission denied; make it readable and writable for you", 2
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        reason = os.strerror(error.errno).lower()
        advice = _ADVICE.get(error.errno, "fix it or name another, and run the same command again")
        return f"error: {_path_of(error)}: {reason}; {advice}", 2
    if _is_out_of_memory(error):
        return (
            "error: this machine has too little memory for that; make it smaller, in params.yaml or"
            " in the command",
            2,
        )
    return None


_ADVICE = {
    errno.ENOENT: "it is missing; run from the project's top folder, or create it first",
    errno.EISDIR: "a file should be there; move the folder away or name another",
    errno.ENOTDIR: "a folder should be there; move the file away or name another",
    errno.EEXIST: "a folder should be there; move the file away or name another",
    errno.EROFS: "nothing can be written there; work in a folder where you may write",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "links lead in a circle; fix them or name another",
}
"""What to do about an error of the operating system, by its number."""


def _is_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return True
    # safetensors and pyarrow pass the system's error on as text, without its number
    return "No space left on device" in str(error)


def _is_out_of_memory(error: BaseException) -> bool:
    # torch's CPU allocator raises a plain RuntimeError: only the text sets it apart
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _path_of(error: OSError) -> str:
    """The file that an error is about; of two, as in renaming, the one being written."""
    path = error.filename2 if error.filename2 is not None else error.filename
    if isinstance(path, str | bytes | os.PathLike):
        path = os.fsdecode(path)
    return printable(path)


def printable(value: object) -> str:
    """`str(value)` with everything unprintable escaped, such as line breaks, so that it fits on one
    line.
    """
    return "".join(map(_escaped, str(value)))


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A `sys.excepthook`: one line and an exit code for what the user can fix, a traceback for the
    rest.
    """
    explanation = explain(error)
    if explanation is None:
        sys.__excepthook__(kind, error, trace)
        return
    line, code = explanation
    sys.stdout.flush()
    print(line, file=sys.stderr, flush=True)
    os._exit(code)  # an excepthook has no other way to choose the exit code


def take_over() -> None:
    """Report errors and Ctrl-C in one line from now on, for the whole process; an ignored Ctrl-C
    stays ignored.

    A character that the terminal or the output file cannot encode is printed as `?`.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # with `2>&-` there is none
            stream.reconfigure(errors="replace")
    sys.excepthook = report
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Handle Ctrl-C: raise KeyboardInterrupt; within an import exit at once, since a half-imported
    module misbehaves.
    """
    caller = frame
    while caller is not None:
        if caller.f_code.co_filename.startswith("<frozen importlib"):
            report(KeyboardInterrupt, KeyboardInterrupt(), None)
        caller = caller.f_back
    raise KeyboardInterrupt


def one_line(command: Callable[P, R]) -> Callable[P, R]:
    """Decorate a command to end in one line and an exit code where `explain` knows one: 2 for a
    mistake, 130 for Ctrl-C.
    """

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except BaseException as error:
            explanation = explain(error)
            if explanation is None:
                raise
            line, code = explanation
            sys.stdout.flush()
            print(line, file=sys.stderr, flush=True)
            raise SystemExit(code) from None

    return guarded
