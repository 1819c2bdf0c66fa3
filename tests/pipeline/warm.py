"""A `python` that need not load torch: it runs a stage in a fork of a process that has it loaded.

To load torch, pandas and their like takes longer than most stages of a small project, and these
tests run hundreds. The stand-in on PATH sends its folder, environment, words and streams to the
server, and ends as the fork does. The project's own code is loaded by each fork anew, so it is
always that of the folder it runs in.
"""

import atexit
import contextlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

LOADED = (
    "altair jinja2 pandas pyarrow.parquet pydantic ruamel.yaml safetensors.torch scipy.stats torch"
    " typer vl_convert"
)
"""What the server loads: packages of others alone."""
STAND_IN = """#!{python} -IS
import json, os, socket, sys
words = sys.argv[1:]
if words[:1] != ["-m"] or not words[1:2] or not words[1].startswith("pipeline."):
    os.execv({python!r}, [{python!r}, *words])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    order = json.dumps([os.getcwd(), dict(os.environ), words[1:]]).encode()
    socket.send_fds(server, [len(order).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(order)
    sys.exit(int.from_bytes(server.recv(1) or b"\\x01", "big"))
"""


def start(folder: Path) -> Path:
    """Start a server that ends with this process; returns the folder for PATH."""
    address = str(folder / "socket")
    stand_in = folder / "bin" / "python"
    stand_in.parent.mkdir(parents=True)
    stand_in.write_text(STAND_IN.format(python=sys.executable, address=address))
    stand_in.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, __file__, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    atexit.register(server.kill)
    assert server.stdout
    assert server.stdout.readline() == b"ready\n"
    return stand_in.parent


def serve(address: str) -> None:
    """Answer each call by a process of its own, until whoever started this is gone."""
    for name in LOADED.split():
        __import__(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # answered calls leave nothing behind
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            readable, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in readable:
                return
            call, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                answer(call)
            call.close()


def answer(call: socket.socket) -> None:
    """Run what was asked for, tell its exit code, and end; kill it when whoever asked is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, streams, _, _ = socket.recv_fds(call, 4, 3)
    order = b""
    while len(order) < int.from_bytes(size, "big"):
        order += call.recv(1 << 16)
    ended, held_by_child = os.pipe()
    child = os.fork()
    if child == 0:
        call.close()
        stage(streams, *json.loads(order))
    for stream in (*streams, held_by_child):
        os.close(stream)
    readable, _, _ = select.select([ended, call], [], [])
    if ended not in readable:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):
        call.sendall(bytes([code if code >= 0 else 128 - code]))
    os._exit(0)


def stage(streams: list[int], folder: str, environment: dict[str, str], words: list[str]) -> None:
    """What `python -m` with these words does."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8") for number in (1, 2))  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[0] = folder
    sys.argv = words
    code = 0
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        code = 1
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
