"""What a person can get wrong ends in one line and an exit code, faults of the program in a
traceback.
"""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from lmlab.core.errors import UserError, explain, one_line


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own that has handed its errors over."""
    # as in a terminal: a shell's background jobs, and so what they start, ignore Ctrl-C
    heed = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{heed}\nfrom lmlab.core import errors\nerrors.take_over()\n{code}"
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("wrong"), 2),
        (OSError(errno.ENOSPC, "No space left on device"), 2),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2),
        (PermissionError(errno.EACCES, "Permission denied", "file"), 2),
        (FileExistsError(errno.EEXIST, "File exists", "file"), 2),
        (OSError(errno.EROFS, "Read-only file system", "fi\nle"), 2),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", ".a.partial", None, "a"), 2),
        (MemoryError(), 2),
        (
            RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"
            ),
            2,
        ),
        (UserError("a name\nof two lines\r"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        one_line(fail)()
    assert ended.value.code == code
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    assert explain(ValueError("a bug")) is None
    done = run("raise ValueError('a bug')", tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_an_error_outside_any_command_is_one_line_too(tmp_path: Path) -> None:
    done = run("raise errors.UserError('mend this')", tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: mend this\n")


def test_ctrl_c_within_an_import_ends_at_once_and_elsewhere_can_be_handled(tmp_path: Path) -> None:
    interrupt = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    (tmp_path / "cut_short.py").write_text(interrupt + "\n")
    swallow = "try:\n    {}\nexcept BaseException:\n    print('went on')"
    within = run(swallow.format("import cut_short"), tmp_path)
    assert (within.returncode, within.stdout) == (130, "")
    assert len(within.stderr.splitlines()) == 1
    assert run(swallow.format(interrupt), tmp_path).stdout == "went on\n"


@pytest.mark.parametrize(
    ("what", "said"), [("folder", "a file should be there"), ("none", "it is missing")]
)
def test_what_the_system_refuses_names_the_file_and_what_to_do(
    what: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(SystemExit) as ended:
        one_line((tmp_path / what).read_text)()
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {tmp_path / what}: ")
    assert said in line
    assert explain(OSError(errno.EPIPE, "Broken pipe")) is None  # of no file: told by whoever can


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_a_terminal_cannot_show_is_printed_as_a_question_mark(
    stream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = run(f"import sys; print('caf\\xe9 \\ud800', file=sys.{stream})", tmp_path)
    assert (done.returncode, getattr(done, stream)) == (0, "caf? ?\n")
