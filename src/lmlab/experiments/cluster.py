"""The workers that wait at the scheduler of a Dask cluster, on this machine or others.

A worker is a process in a clone of its own. What it is asked to do it does only if it is like its
caller, which each kind of work checks for itself.
"""

import logging
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, wait
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import lmlab
from lmlab.core.errors import UserError
from lmlab.core.files import sha256

SECONDS_TO_ANSWER = 10
"""Within which a scheduler has to answer."""
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_ALONE = 30.0
"""Without any worker, until work ends: one that is restarted may come back."""
KEPT = "what is finished is kept, so run the same command again once that is mended"
ROOMS = ("core", "data")
"""Whose code encodes text."""


@contextmanager
def reached(address: str) -> Iterator[Any]:
    """A client of the scheduler at an address. Raises UserError where nobody answers there, or no
    worker waits.
    """
    if find_spec("distributed") is None:
        raise UserError(
            "--cluster needs Dask's distributed: pip install 'lmlab[cluster]' (in a copy of the"
            " project: pip install -e '.[cluster]')"
        )
    # what it has to say on its own is said below, in a line
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    client = _connected(address)
    try:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            raise UserError(
                f"--cluster: no worker waits at {address}; start one in a clone of this commit:"
                f" `dask worker {address} --nthreads 1`"
            )
        yield client
    finally:
        client.close()


def _connected(address: str) -> Any:
    """A client of the scheduler at an address."""
    import distributed

    client: Any = distributed.Client  # its types say nothing
    if not _is_address(address):
        raise UserError(
            f"--cluster: {address!r} is no address of a scheduler; it looks like"
            " tcp://127.0.0.1:8786"
        )
    if address.startswith("tls://"):
        _check_certificates()
    try:
        return client(address, timeout=SECONDS_TO_ANSWER, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"--cluster: no scheduler answers at {address} ({reason}); start one: `dask scheduler"
            " --host 127.0.0.1 --port 8786 --dashboard-address 127.0.0.1:8787`"
        ) from None


def _is_address(text: str) -> bool:
    """Whether it is tcp://HOST:PORT or tls://HOST:PORT."""
    try:
        parts = urlsplit(text)
        return parts.scheme in ("tcp", "tls") and bool(parts.hostname) and bool(parts.port)
    except ValueError:  # the port is no number, or too large
        return False


def _check_certificates() -> None:
    """Raise UserError where Dask's settings name no certificates, or none that can be read."""
    import distributed

    certificates: Any = distributed.Security  # its types say nothing
    where = "distributed.comm.tls in Dask's settings (docs/machines.md)"
    try:
        context = certificates().get_connection_args("client")["ssl_context"]
    except OSError as error:  # of which those of ssl are some
        raise UserError(f"--cluster: {where}: a certificate cannot be read: {error}") from None
    if context is None:
        raise UserError(f"--cluster: a tls:// address needs certificates; name them in {where}")


def awaited(future: "Future[Any]", client: Any, address: str) -> Any:
    """What a worker has found. Raises UserError where nobody is left who could find it."""
    from distributed import KilledWorker

    last_seen = time.monotonic()
    while not future.done():
        wait([future], timeout=SECONDS_BETWEEN_LOOKS)
        if client.status != "running":
            raise UserError(f"--cluster: the scheduler at {address} is gone; {KEPT}")
        if client.scheduler_info(n_workers=-1)["workers"]:
            last_seen = time.monotonic()
        elif time.monotonic() - last_seen > SECONDS_ALONE:
            raise UserError(f"--cluster: no worker is left at {address}; {KEPT}")
    try:
        return future.result()
    except CancelledError:
        raise UserError(f"--cluster: the scheduler at {address} is gone; {KEPT}") from None
    except KilledWorker:
        raise UserError(
            "--cluster: a piece of work ended several workers, one after the other; see their"
            f" output, or do it without --cluster; {KEPT}"
        ) from None


class Workers(Executor):
    """The workers at an address, as far as `facts` says of them what it says of the caller.

    By default that is what decides how text is encoded.
    """

    def __init__(
        self, client: Any, address: str, facts: Callable[[], dict[str, str]] | None = None
    ) -> None:
        self._client, self._address = client, address
        self._pool = client.get_executor(pure=False)
        self._facts = facts or of_encoding
        self._expected = self._facts()

    def submit(  # type: ignore[override]
        self, function: Callable[..., Any], /, *arguments: Any
    ) -> "Future[Any]":
        """A worker's call of the function. Its result raises UserError as `awaited` does, and where
        the worker is not like the caller.
        """
        inner = self._pool.submit(_call_if_alike, self._facts, self._expected, function, *arguments)
        return _Result(inner, self._client, self._address)


class _Result(Future[Any]):
    """The result of a worker's call, waited for with a look at the cluster now and then."""

    def __init__(self, inner: "Future[Any]", client: Any, address: str) -> None:
        super().__init__()
        self._inner, self._client, self._address = inner, client, address

    def cancel(self) -> bool:
        """Wait for it no longer. A call that a worker has begun goes on there."""
        return self._inner.cancel()

    def result(self, timeout: float | None = None) -> Any:
        return awaited(self._inner, self._client, self._address)


def of_encoding() -> dict[str, str]:
    """What decides how text is encoded: code and versions."""
    package = Path(lmlab.__file__).parent
    files = [path for room in ROOMS for path in sorted((package / room).rglob("*.py"))]
    return {
        **{str(path.relative_to(package)): sha256(path) for path in files},
        **{name: version(name) for name in ("numpy", "pyarrow", "regex")},
        "Python": platform.python_version(),
    }


def _call_if_alike(
    facts: Callable[[], dict[str, str]],
    expected: dict[str, str],
    function: Callable[..., Any],
    *args: Any,
) -> Any:
    """The call, on a worker. Raises UserError where it is not like its caller."""
    here = facts()
    unlike = [name for name in {**expected, **here} if expected.get(name) != here.get(name)]
    if unlike:
        raise UserError(
            f"a worker in {Path().resolve()} is not like this project: {', '.join(unlike[:3])};"
            " check out this commit there and run `make setup`"
        )
    return function(*args)
