"""Whom the server answers: a browser on this machine, on a page of this server. Pure ASGI, around every answer."""

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "::1")
HEADERS = {
    # Plotly writes styles into its elements and draws icons out of `data:` and `blob:`; it evaluates no script.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """Refuses a request whose `Host` or `Origin` names another machine than `names`; whichever port it names.

    A page of a stranger that has its own name point to 127.0.0.1 (DNS rebinding) sends that name.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] = ()) -> None:
        """`names`: as `name_in` gives them."""
        self._app = app
        self._names = {*LOOPBACK, *names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        refusal = self._refusal(scope["path"], Headers(scope=scope))
        answer = self._app if refusal is None else JSONResponse({"error": refusal[1]}, refusal[0])
        await answer(scope, receive, send_with_headers)

    def _refusal(self, path: str, headers: Headers) -> tuple[int, str] | None:
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or (host := name_in(f"//{hosts[0]}")) is None:
            return 400, "expected one Host header that names this server"
        if host not in self._names:
            return 403, f"this server does not answer to the name {host[:100]!r}: --allow-host {host[:100]} lets it"
        for origin in origins:
            asking = name_in(origin) if origin.startswith(("http://", "https://")) else None
            if asking not in self._names:
                return 403, f"pages of {origin[:100]!r} may not ask this server"
        if headers.get("sec-fetch-site") == "cross-site" and path.startswith("/api/"):
            return 403, "other pages may link to this one, and ask it nothing"
        return None


def name_in(address: str) -> str | None:
    """The name in an address like `//Host:8000`, in small letters, without port; None for what is none."""
    try:
        parts = urlsplit(address)
        _ = parts.port  # a number up to 65535, or ValueError
    except ValueError:
        return None
    if parts.username is not None or parts.path or parts.query or parts.fragment or not parts.hostname:
        return None
    return parts.hostname.rstrip(".")
