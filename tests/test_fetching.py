import hashlib
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lmlab.core.errors import UserError
from lmlab.data import fetching

BODY = bytes(range(256)) * 4000
DIGEST = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves BODY; `cut` bytes into an answer the connection closes, once."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.ranges, self.cut, self.status = BODY, True, 0, 200
        self.asked: list[str | None] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        if start and start >= len(self.server.body):
            self.send_error(416)
            return
        body = self.server.body[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.cut:
            body, self.server.cut = body[: self.server.cut], 0
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as running:
        thread = threading.Thread(
            target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        thread.start()
        yield running
        running.shutdown()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_file_is_fetched_once(server: Server, cache: Path) -> None:
    path = fetching.url(server.address, DIGEST, "file.bin")
    assert path == cache / "file.bin"
    assert path.read_bytes() == BODY
    assert fetching.url(server.address, DIGEST, "file.bin") == path
    assert server.asked == [None]
    assert not (cache / "file.bin.part").exists()


def test_an_interrupted_download_goes_on_where_it_stopped(server: Server, cache: Path) -> None:
    server.cut = 300_000
    with pytest.raises(UserError, match="what has arrived is kept") as caught:
        fetching.url(server.address, DIGEST, "file.bin")
    assert server.address in str(caught.value)
    arrived = (cache / "file.bin.part").stat().st_size
    assert 0 < arrived <= 300_000
    assert not (cache / "file.bin").exists()
    assert fetching.url(server.address, DIGEST, "file.bin").read_bytes() == BODY
    assert server.asked == [None, f"bytes={arrived}-"]


def test_a_server_that_cannot_resume_is_asked_for_all_of_it(server: Server, cache: Path) -> None:
    server.ranges = False
    cache.mkdir()
    (cache / "file.bin.part").write_bytes(BODY[:1000])
    assert fetching.url(server.address, DIGEST, "file.bin").read_bytes() == BODY


def test_a_download_that_had_arrived_whole_is_only_verified(server: Server, cache: Path) -> None:
    cache.mkdir()
    (cache / "file.bin.part").write_bytes(BODY)
    assert fetching.url(server.address, DIGEST, "file.bin").read_bytes() == BODY


def test_another_hash_is_refused_with_both_and_nothing_is_kept(server: Server, cache: Path) -> None:
    server.body = b"something else"
    found = hashlib.sha256(server.body).hexdigest()
    with pytest.raises(UserError) as caught:
        fetching.url(server.address, DIGEST, "file.bin")
    assert found in str(caught.value)
    assert DIGEST in str(caught.value)
    assert not (cache / "file.bin").exists()
    assert not (cache / "file.bin.part").exists()
    server.body = BODY
    assert fetching.url(server.address, DIGEST, "file.bin").read_bytes() == BODY


def test_a_spoilt_file_in_the_cache_is_fetched_again(server: Server, cache: Path) -> None:
    path = fetching.url(server.address, DIGEST, "file.bin")
    path.write_bytes(BODY[:-1])
    assert fetching.url(server.address, DIGEST, "file.bin").read_bytes() == BODY


def test_nobody_there_keeps_what_has_arrived(server: Server, cache: Path) -> None:
    address = server.address
    server.shutdown()
    server.server_close()
    cache.mkdir()
    (cache / "file.bin.part").write_bytes(BODY[:1000])
    with pytest.raises(UserError, match="connect to the network") as caught:
        fetching.url(address, DIGEST, "file.bin")
    assert "\n" not in str(caught.value)
    assert (cache / "file.bin.part").read_bytes() == BODY[:1000]


def test_a_refusal_names_its_status(server: Server, cache: Path) -> None:
    server.status = 404
    with pytest.raises(UserError, match="HTTP status 404"):
        fetching.url(server.address, DIGEST, "file.bin")


def test_two_at_once_do_not_spoil_each_others_download(server: Server, cache: Path) -> None:
    paths: list[Path] = []
    threads = [
        threading.Thread(
            target=lambda: paths.append(fetching.url(server.address, DIGEST, "file.bin"))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() == BODY for path in paths] == [True] * 4
    assert len(server.asked) == 1


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A package index that is a folder with one wheel."""
    index = tmp_path / "index"
    index.mkdir()
    path = index / "some_text-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("some_text/play.md", "To be, or not to be")
        archive.writestr(
            "some_text-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: some-text\nVersion: 1.0\n",
        )
        archive.writestr(
            "some_text-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("some_text-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_package_is_fetched_verified_and_kept(wheel: tuple[Path, str], cache: Path) -> None:
    path, digest = wheel
    kept = fetching.package("some-text", "1.0", digest)
    assert kept.read_bytes() == path.read_bytes()
    path.unlink()
    assert fetching.package("some-text", "1.0", digest) == kept


def test_a_package_with_another_hash_is_refused_with_both(
    wheel: tuple[Path, str], cache: Path
) -> None:
    _, digest = wheel
    with pytest.raises(UserError) as caught:
        fetching.package("some-text", "1.0", DIGEST)
    assert digest in str(caught.value)
    assert DIGEST in str(caught.value)
    assert list(cache.iterdir()) == []


def test_a_package_that_is_not_there_is_told_in_one_line(
    wheel: tuple[Path, str], cache: Path
) -> None:
    with pytest.raises(UserError, match=r"other==1\.0 could not be fetched .*markov") as caught:
        fetching.package("other", "1.0", DIGEST)
    assert "\n" not in str(caught.value)
