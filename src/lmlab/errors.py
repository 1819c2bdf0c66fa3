"""What a person can get wrong, told in one line: `UserError` says it, `one_line` prints it and sets the exit code."""

import errno
import functools
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class UserError(Exception):
    """A mistake the person at the keyboard can mend: the message names the key or file, what is wrong, and what to do."""


def explain(error: BaseException) -> tuple[str, int] | None:
    """One line and an exit code for errors that are not faults of the program; None for those that are."""
    if isinstance(error, UserError):
        return f"error: {error}", 2
    if isinstance(error, KeyboardInterrupt):
        return "interrupted: nothing is lost, run the same command again to go on", 130
    text = str(error)
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left on device" in text:
        return "error: the disk is full; free some space and run the same command again, finished work is kept", 2
    if isinstance(error, PermissionError):
        return f"error: {error.filename}: permission denied; make it readable and writable for you", 2
    return None


def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A `sys.excepthook`: what the user can mend becomes one line and an exit code, anything else a traceback."""
    told = explain(error)
    if told is None:
        sys.__excepthook__(kind, error, trace)
        return
    line, code = told
    sys.stdout.flush()
    print(line, file=sys.stderr, flush=True)
    os._exit(code)  # an excepthook has no other way to choose the exit code


def take_over() -> None:
    """Tell errors and Ctrl-C in one line from now on, for the whole process; a Ctrl-C that is ignored stays ignored."""
    sys.excepthook = report
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C: a KeyboardInterrupt, but in the middle of an import the end at once, since modules cut short go astray."""
    at = frame
    while at is not None:
        if at.f_code.co_filename.startswith("<frozen importlib"):
            report(KeyboardInterrupt, KeyboardInterrupt(), None)
        at = at.f_back
    raise KeyboardInterrupt


def one_line(command: Callable[P, R]) -> Callable[P, R]:
    """A command that ends in one line and an exit code where `explain` knows one: 2 for a mistake, 130 for Ctrl-C."""

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
