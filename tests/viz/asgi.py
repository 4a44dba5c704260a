"""Requests to an ASGI application without a socket."""

import asyncio

from starlette.types import ASGIApp, Message


def status_of(application: ASGIApp, address: str, host: bytes = b"localhost") -> int:
    """Return the status of a GET; exceptions of the application propagate."""
    path, _, query = address.partition("?")
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http", "http_version": "1.1", "method": "GET", "scheme": "http", "server": ("127.0.0.1", 1),
        "path": path, "raw_path": path.encode(), "root_path": "", "query_string": query.encode(),
        "headers": [(b"host", host)],
    }  # fmt: skip
    asyncio.run(application(scope, receive, send))
    return int(sent[0]["status"])
