"""The page and its JSON API over HTTP: a Starlette application that only reads, and the guard in front of it."""

import gzip
import json
import traceback
from collections.abc import Callable, Collection, Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from viz.page.api import QUERIES, Service
from viz.page.live_run import NoRun
from viz.page.query import BadQuery, NotThere, Query, whole_number
from viz.page.static import PAGE, PLOTLY, page_files

LOOPBACK = ("localhost", "127.0.0.1", "::1")
HEADERS = {
    # Plotly sets inline styles and uses `data:` and `blob:` images; it needs no script evaluation.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """Refuses requests from other sites and to other names, and adds the security headers to every response.

    Starlette's `TrustedHostMiddleware` checks the `Host`: a site that points its own name at 127.0.0.1 (DNS rebinding)
    sends that name. A missing or repeated `Host` is already refused by uvicorn's h11.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] = ()) -> None:
        """`names`: accepted besides the loopback names, as `name_in` returns them."""
        self._app = app
        self._names = {*LOOPBACK, *names}
        hosts = [f"[{name}]" if ":" in name else name for name in self._names]
        self._hosts = [*hosts, *(f"{host}." for host in hosts)]  # the same names, fully qualified

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        async def answer(scope: Scope, receive: Receive, _: Send) -> None:
            refusal = self._cross_site(scope["path"], headers)
            app = self._app if refusal is None else _error(403, refusal)
            await app(scope, receive, send_with_headers)

        async def refuse(message: Message) -> None:
            """Replace Starlette's "Invalid host header" with what to do about it."""
            if message["type"] == "http.response.start":
                host = headers.get("host", "")[:100]
                refusal = f"host {host!r} is not accepted: to accept it, start the server with --allow-host NAME"
                await _error(403, refusal)(scope, receive, send_with_headers)

        await TrustedHostMiddleware(answer, self._hosts, www_redirect=False)(scope, receive, refuse)

    def _cross_site(self, path: str, headers: Headers) -> str | None:
        """Why a request of another site is refused; None if it is not."""
        for origin in headers.getlist("origin"):
            asking = name_in(origin) if origin.startswith(("http://", "https://")) else None
            if asking not in self._names:
                return f"requests from the origin {origin[:100]!r} are not allowed"
        if headers.get("sec-fetch-site") == "cross-site" and path.startswith("/api/"):
            return "cross-site API requests are not allowed"
        return None


def name_in(address: str) -> str | None:
    """Return the host name in an address such as `//Host:8000`, in lower case and without port; None if invalid."""
    try:
        parts = urlsplit(address)
        _ = parts.port  # raises ValueError unless it is a number up to 65535
    except ValueError:
        return None
    if parts.username is not None or parts.path or parts.query or parts.fragment or not parts.hostname:
        return None
    name = parts.hostname.rstrip(".")
    return None if "*" in name else name  # to `TrustedHostMiddleware`, `*` stands for any name


REASONS = {404: "not found", 405: "only GET and HEAD are allowed"}


class StrictJSON(JSONResponse):
    """JSON without NaN, which JavaScript can't parse: it raises ValueError instead."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def application(service: Service, names: Sequence[str] = ()) -> ASGIApp:
    """Return the guarded application. `names`: host names that it accepts besides the loopback names."""
    return Guard(unguarded(service), names)  # outermost, so that it also covers Starlette's own error responses


def unguarded(service: Service) -> Starlette:
    """Return the application without the guard."""
    printed: set[str] = set()  # errors whose traceback was printed
    routes = [Route(f"/api/{name}", _question(printed, service, name)) for name in QUERIES]
    for name, answer in (("documents", service.answers.document), ("probes", service.answers.probe)):
        routes.append(Route(f"/api/{name}/{{step}}", _of_step(printed, answer)))
    for name, (content, kind) in page_files().items():
        routes.append(Route("/" if name == PAGE else f"/{name}", _file(content, kind, permanent=name == PLOTLY)))
    app = Starlette(
        routes=routes,
        middleware=[Middleware(GZipMiddleware, minimum_size=1000, compresslevel=3)],
        exception_handlers={HTTPException: _refuse},
    )
    app.router.redirect_slashes = False
    return app


def _question(printed: set[str], service: Service, name: str) -> Callable[[Request], Response]:
    answer, known = QUERIES[name]
    return lambda request: _json(printed, lambda: answer(service, _query(request, known)))


def _of_step(printed: set[str], answer: Callable[[int], dict[str, Any]]) -> Callable[[Request], Response]:
    def asked(request: Request) -> dict[str, Any]:
        _query(request, ())
        return answer(whole_number(request.path_params["step"], "step"))

    return lambda request: _json(printed, lambda: asked(request))


def _query(request: Request, known: Sequence[str]) -> Query:
    given = request.query_params.multi_items()
    if len(dict(given)) < len(given):
        raise BadQuery("a parameter is given twice")
    return Query(dict(given), known)


def _json(printed: set[str], answer: Callable[[], dict[str, Any]]) -> Response:
    try:
        return StrictJSON(answer(), headers={"cache-control": "no-store"})
    except BadQuery as error:
        return _error(400, str(error))
    except NotThere as error:
        return _error(404, str(error))
    except NoRun as error:
        return _error(503, str(error), state=error.state)
    except Exception as error:  # noqa: BLE001  # a damaged record may contain anything; the traceback shows a bug of ours
        _print_once(printed, error)
        return _error(503, f"the record can't be read ({type(error).__name__}: {error})", state="unreadable")


def _print_once(printed: set[str], error: Exception) -> None:
    """Print the traceback, but not at every request: the page polls every second."""
    kind = repr(error)
    if kind not in printed and len(printed) < 20:
        printed.add(kind)
        traceback.print_exception(error)


def _error(status: int, reason: str, **more: str) -> Response:
    return StrictJSON({"error": reason, **more}, status, headers={"cache-control": "no-store"})


def _refuse(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    answer = _error(status, REASONS.get(status, "the request can't be answered"))
    answer.headers.update(getattr(error, "headers", None) or {})
    return answer


def _file(content: bytes, kind: str, *, permanent: bool) -> Callable[[Request], Response]:
    packed = gzip.compress(content, 6)  # once, not at every request
    age = "public, max-age=31536000, immutable" if permanent else "no-cache"

    def answer(request: Request) -> Response:
        headers = {"cache-control": age, "vary": "accept-encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(packed, media_type=kind, headers=headers | {"content-encoding": "gzip"})
        return Response(content, media_type=kind, headers=headers)

    return answer
