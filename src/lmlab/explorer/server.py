"""The page's server: on this machine alone, for this page alone, and it writes nothing.

It listens on 127.0.0.1. A request whose Host names anything else is refused (a page elsewhere could
have its own name lead here: DNS rebinding), and so is one that says it comes from another origin.
The model computes in one thread, request by request, as one set of weights serves all.
"""

import contextlib
import json
import socket
import webbrowser
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import uvicorn
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from lmlab.core.errors import UserError
from lmlab.explorer import generate, look, units
from lmlab.explorer.changes import Change
from lmlab.explorer.subject import LAST, Subject
from lmlab.model.truncation import Truncation

HOST = "127.0.0.1"
PAGE = Path(__file__).with_name("page")
FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
        " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
MOST_BYTES = 2_000_000
"""Of a request."""


class _Asked(BaseModel):
    """A request of the page: of which run, at which of its moments, for which text."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    run: int = Field(default=0, ge=0)
    moment: int = Field(default=LAST, ge=LAST)
    text: str = ""
    changes: list[Change] = []


class _AskedWindow(_Asked):
    window: int = Field(default=0, ge=0)


class _AskedToken(_Asked):
    token: int = Field(ge=0)


class _AskedUnit(_Asked):
    place: str
    unit: int = Field(ge=0)


class _AskedNext(_Asked):
    temperature: float = Field(default=1.0, ge=0, le=100)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, le=1)
    seed: int = Field(default=0, ge=0, lt=2**63)


class OwnOrigin:
    """Refuses requests that were not made by a page of this server or typed by hand."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self.app = app
        self.hosts = {f"{HOST}:{port}", f"localhost:{port}"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (reason := self._refused(Request(scope))):
            await JSONResponse({"error": reason}, 403, HEADERS)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _refused(self, request: Request) -> str:
        host = request.headers.get("host", "")
        origin = request.headers.get("origin")
        if host not in self.hosts:
            return f"this server answers to {HOST} alone"
        if origin is not None and origin.removeprefix("http://") not in self.hosts:
            return "this server answers its own page alone"
        if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return "this server answers its own page alone"
        kind = request.headers.get("content-type", "")
        if request.method == "POST" and kind.partition(";")[0].strip() != "application/json":
            return "requests are JSON"
        return ""


class Explorer:
    """What the page can ask for, by its address."""

    def __init__(self, subjects: Sequence[Subject], held_out: Sequence[str]) -> None:
        self.subjects, self.held_out = subjects, held_out
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    def app(self, port: int) -> Starlette:
        """The application that answers on a port."""
        routes = [
            *(Route(path, self._file(name, kind)) for path, (name, kind) in FILES.items()),
            Route("/api/about", self._about),
            Route("/api/window", self._answer(_AskedWindow, self.window), methods=["POST"]),
            Route("/api/token", self._answer(_AskedToken, self.token), methods=["POST"]),
            Route("/api/unit", self._answer(_AskedUnit, self.unit), methods=["POST"]),
            Route("/api/next", self._answer(_AskedNext, self.next), methods=["POST"]),
        ]
        return Starlette(routes=routes, middleware=[Middleware(OwnOrigin, port=port)])

    def _file(self, name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            return FileResponse(PAGE / name, media_type=kind, headers=HEADERS)

        return answer

    async def _about(self, request: Request) -> Response:
        runs = [subject.about() for subject in self.subjects]
        return JSONResponse({"runs": runs, "held_out": list(self.held_out)}, headers=HEADERS)

    def _answer(
        self, kind: type[Any], compute: Callable[[Any], Mapping[str, Any]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            body = b""
            async for piece in request.stream():
                body += piece
                if len(body) > MOST_BYTES:
                    return _error("that is too much text", 413)
            try:
                asked = kind.model_validate_json(body)
                if asked.run >= len(self.subjects):
                    raise UserError(f"there is no run {asked.run}")
                found = await anyio.to_thread.run_sync(
                    lambda: self.thread.submit(compute, asked).result()
                )
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                return _error(f"{where}: {first['msg']}", 400)
            except UserError as error:
                return _error(str(error), 400)
            return Response(
                json.dumps(found, separators=(",", ":")),
                media_type="application/json",
                headers=HEADERS,
            )

        return answer

    def _of(self, asked: _Asked) -> Subject:
        subject = self.subjects[asked.run]
        if asked.moment >= len(subject.moments):
            raise UserError(f"{subject.name} has no moment {asked.moment}")
        return subject

    def window(self, asked: _AskedWindow) -> dict[str, Any]:
        """The tokens that a window scores."""
        subject = self._of(asked)
        return look.read_window(subject, asked.moment, asked.text, asked.window, asked.changes)

    def token(self, asked: _AskedToken) -> dict[str, Any]:
        """What was computed where a token was predicted."""
        subject = self._of(asked)
        return look.look_at(subject, asked.moment, asked.text, asked.token, asked.changes)

    def unit(self, asked: _AskedUnit) -> dict[str, Any]:
        """On which held-out text a unit is most active."""
        subject = self._of(asked)
        text = asked.text or "\n".join(self.held_out)
        found = units.texts_of(subject, asked.moment, asked.place, asked.unit, text)
        return {"texts": found}

    def next(self, asked: _AskedNext) -> dict[str, Any]:
        """How the text may go on."""
        truncation = Truncation(asked.top_k, asked.top_p, asked.min_p)
        return generate.next_token(
            self._of(asked),
            asked.moment,
            asked.text,
            asked.changes,
            asked.temperature,
            truncation,
            asked.seed,
        )


def _error(message: str, status: int) -> Response:
    return JSONResponse({"error": message}, status, HEADERS)


def serve(subjects: Sequence[Subject], held_out: Sequence[str], port: int, opens: bool) -> None:
    """Serve the page until it is interrupted. `port` 0 takes a free one.

    Raises UserError where the port is taken.
    """
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
            listening.listen()  # so that whoever reads the address can ask at once
        except OSError:
            raise UserError(
                f"port {port} is taken; choose another, or none for a free one"
            ) from None
        address = f"http://{HOST}:{listening.getsockname()[1]}/"
        app = Explorer(subjects, held_out).app(listening.getsockname()[1])
        print(f"explore: {address} (Ctrl-C ends it)", flush=True)
        if opens:
            webbrowser.open(address)
        config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off")
        with contextlib.suppress(KeyboardInterrupt):  # how it is ended
            uvicorn.Server(config).run(sockets=[listening])
