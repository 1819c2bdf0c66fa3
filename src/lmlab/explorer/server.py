"""The page's server: on this machine alone, for this page alone, and it writes nothing.

It listens on 127.0.0.1. A request whose Host names anything else is refused (a page elsewhere could
have its own name lead here: DNS rebinding), and so is one that says it comes from another origin.
The model computes in one thread, request by request, as one set of weights serves all.
"""

import asyncio
import contextlib
import json
import math
import socket
import webbrowser
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.core.params import Tree
from lmlab.explorer import drawing, features, generate, heads, history, look, microscope, units
from lmlab.explorer.changes import Change
from lmlab.explorer.microscope import Material, Wish
from lmlab.explorer.subject import LAST, Subject
from lmlab.model.truncation import Truncation

HOST = "127.0.0.1"
PAGE = Path(__file__).with_name("page")
SCRIPTS = ("learning", "features", "drawing", "page")
FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript") for name in SCRIPTS},
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
PATIENCE = 0.25
"""Seconds between two looks whether an answer is still waited for."""
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


class _AskedFeatures(_Asked):
    place: str
    multiple: int = Field(default=4, ge=1, le=64)
    active: int = Field(default=8, ge=1, le=1024)
    steps: int = Field(default=500, ge=1, le=100_000)


class _AskedFeature(_Asked):
    place: str
    feature: int = Field(ge=0)


class _AskedStep(_Asked):
    rule: str = microscope.OWN
    optimizer: str = microscope.OWN
    rate: float = Field(default=1.0, ge=0, le=1e6)
    typed: bool = False
    """Whether the step is taken on `text` and not on training text."""


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

    def __init__(
        self,
        subjects: Sequence[Subject],
        held_out: Sequence[str],
        material: Material,
        tree: Tree,
    ) -> None:
        """`material` is what a step of learning is taken on, and `tree` is params.yaml."""
        self.subjects, self.held_out, self.material = subjects, held_out, material
        self.tree = tree
        self.progress = (0, 0)
        """Of long work: how much is done, of how much."""
        self.is_stopped = self.is_closing = False
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    def app(self, port: int) -> Starlette:
        """The application that answers on a port."""
        routes = [
            *(Route(path, self._file(name, kind)) for path, (name, kind) in FILES.items()),
            Route("/api/about", self._about),
            Route("/api/window", self._answer(_AskedWindow, self.window), methods=["POST"]),
            Route("/api/token", self._answer(_AskedToken, self.token), methods=["POST"]),
            Route("/api/unit", self._answer(_AskedUnit, self.unit), methods=["POST"]),
            Route("/api/features", self._answer(_AskedFeatures, self.features), methods=["POST"]),
            Route("/api/feature", self._answer(_AskedFeature, self.feature), methods=["POST"]),
            Route("/api/progress", self._progress),
            Route("/api/stop", self._stop, methods=["POST"]),
            Route("/api/heads", self._answer(_Asked, self.heads), methods=["POST"]),
            Route("/api/history", self._answer(_AskedToken, self.history), methods=["POST"]),
            Route("/api/next", self._answer(_AskedNext, self.next), methods=["POST"]),
            Route("/api/step", self._answer(_AskedStep, self.step), methods=["POST"]),
            Route("/api/drawing", self._answer(_Asked, self.drawing), methods=["POST"]),
            Route("/api/weights", self._answer(_Asked, self.weights), methods=["POST"]),
        ]
        return Starlette(routes=routes, middleware=[Middleware(OwnOrigin, port=port)])

    def _file(self, name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            return FileResponse(PAGE / name, media_type=kind, headers=HEADERS)

        return answer

    async def _about(self, request: Request) -> Response:
        runs = [subject.about() for subject in self.subjects]
        about = {
            "runs": runs,
            "held_out": list(self.held_out),
            "rules": microscope.rules(),
            "optimizers": registry.names("optimizers"),
        }
        return JSONResponse(about, headers=HEADERS)

    async def _progress(self, request: Request) -> Response:
        done, whole = self.progress
        return JSONResponse({"done": done, "of": whole}, headers=HEADERS)

    async def _stop(self, request: Request) -> Response:
        self.is_stopped = True
        return JSONResponse({}, headers=HEADERS)

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
                if compute == self.features:
                    self.is_stopped = False
                found = await self._computed(request, compute, asked)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                return _error(f"{where}: {first['msg']}", 400)
            except UserError as error:
                return _error(str(error), 400)
            return Response(
                json.dumps(_known(found), separators=(",", ":"), allow_nan=False),
                media_type="application/json",
                headers=HEADERS,
            )

        return answer

    async def _computed(self, request: Request, compute: Callable[[Any], Any], asked: Any) -> Any:
        """What is computed in the model's thread. Where nobody waits for it any more it is not
        begun, and long work is stopped.
        """
        future = self.thread.submit(compute, asked)
        waiting = asyncio.wrap_future(future)
        while not (await asyncio.wait({waiting}, timeout=PATIENCE))[0]:
            if await request.is_disconnected():
                future.cancel()
                self.is_stopped = self.is_stopped or compute == self.features
                raise UserError("nobody waits for the answer")
        return waiting.result()

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

    def features(self, asked: _AskedFeatures) -> dict[str, Any]:
        """What a sparse autoencoder finds at a place; it is trained where that is not known yet."""

        def told(done: int, whole: int) -> None:
            self.progress = done, whole
            if self.is_stopped or self.is_closing:
                raise UserError("stopped; no features were kept")

        subject, texts = self._of(asked), self.material.reading or (asked.text,)
        wish = features.Wish(asked.multiple, asked.active, asked.steps)
        found = features.trained(subject, asked.moment, asked.place, texts, wish, told)
        return features.summary(found)

    def feature(self, asked: _AskedFeature) -> dict[str, Any]:
        """On which text a feature is most active."""
        subject = self._of(asked)
        known = features.known(subject, asked.moment, asked.place)
        return {"texts": features.texts_of(subject, known, asked.feature)}

    def heads(self, asked: _Asked) -> dict[str, Any]:
        """What each head does as a rule, on held-out text."""
        text = asked.text or "\n".join(self.held_out)
        return heads.roles(self._of(asked), asked.moment, text)

    def history(self, asked: _AskedToken) -> dict[str, Any]:
        """One token over the run."""
        found = history.over_training(self._of(asked), asked.text, asked.token, asked.changes)
        return {"moments": found}

    def unit(self, asked: _AskedUnit) -> dict[str, Any]:
        """On which held-out text a unit is most active."""
        subject = self._of(asked)
        text = asked.text or "\n".join(self.held_out)
        found = units.texts_of(subject, asked.moment, asked.place, asked.unit, text)
        return {"texts": found}

    def step(self, asked: _AskedStep) -> dict[str, Any]:
        """One step of learning."""
        material = self.material
        if asked.typed:
            material = replace(material, training=asked.text)
        wish = Wish(asked.rule, asked.optimizer, asked.rate)
        return microscope.one_step(self._of(asked), asked.moment, wish, material, self.tree)

    def drawing(self, asked: _Asked) -> dict[str, Any]:
        """The model as it is built."""
        return drawing.structure(self._of(asked))

    def weights(self, asked: _Asked) -> dict[str, Any]:
        """How large the model's weights are at a moment, and how far they have gone."""
        return drawing.weights(self._of(asked), asked.moment)

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


def _known(value: Any) -> Any:
    """A tree of JSON in which numbers that are not finite, which JSON does not know, are null."""
    if isinstance(value, dict):
        return {key: _known(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_known(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _error(message: str, status: int) -> Response:
    return JSONResponse({"error": message}, status, HEADERS)


class _Server(uvicorn.Server):
    """A server that lets long work end as it is told to end itself."""

    def __init__(self, config: uvicorn.Config, explorer: Explorer) -> None:
        super().__init__(config)
        self.explorer = explorer

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.explorer.is_closing = True
        super().handle_exit(sig, frame)


def serve(explorer: Explorer, port: int, opens: bool) -> None:
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
        app = explorer.app(listening.getsockname()[1])
        print(f"explore: {address} (Ctrl-C ends it)", flush=True)
        if opens:
            webbrowser.open(address)
        config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off")
        with contextlib.suppress(KeyboardInterrupt):  # how it is ended
            _Server(config, explorer).run(sockets=[listening])
