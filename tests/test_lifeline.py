import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

CHILD = """
import pathlib, sys, time
from lmlab.core import lifeline
lifeline.stop_with_parent()
pathlib.Path(sys.argv[1]).write_text(str(__import__("os").getpid()))
time.sleep(120)
"""
# `; true` keeps the shell from putting the child in its own place
PARENT = """
import subprocess, sys
command = [sys.executable, *sys.argv[2:]]
if sys.argv[1] == "shell":
    import shlex
    command = ["/bin/sh", "-c", shlex.join(command) + "; true"]
subprocess.run(command)
"""


@pytest.mark.parametrize("started_by", ["shell", "parent"])
def test_a_child_stops_when_its_parent_is_killed(tmp_path: Path, started_by: str) -> None:
    pid_file, script = tmp_path / "pid", tmp_path / "child.py"
    script.write_text(CHILD)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, started_by, str(script), str(pid_file)],
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while not (pid_file.exists() and pid_file.read_text()):
        assert time.monotonic() < deadline, "the child never started"
        assert parent.poll() is None
        time.sleep(0.02)
    child = psutil.Process(int(pid_file.read_text()))
    assert (child.ppid() == parent.pid) == (started_by == "parent")
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs([child], timeout=10)
    for process in alive:
        process.kill()
    assert not alive
