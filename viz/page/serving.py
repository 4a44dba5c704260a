"""The server of the page as a process, and when it ends.

`python -m viz serve` runs it until Ctrl-C. The training command starts it as `python -m viz.page.serving`, by
`viz/page/process.py`; then it ends with its parent.
"""

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn

from viz.page.api import Service
from viz.page.http import application


def serve(
    folder: Path,
    others: Sequence[Path],
    listening: socket.socket,
    names: Sequence[str] = (),
    *,
    ready: Callable[[int], None],
    parent_is_gone: Callable[[], None] | None = None,
) -> None:
    """Answer until SIGINT or SIGTERM, or until `parent_is_gone` returns.

    `ready`: called with the port once requests are answered.
    """
    service = Service.of(folder, others)
    config = uvicorn.Config(
        application(service, names), log_level="warning", access_log=False, lifespan="off", server_header=False,
        proxy_headers=False, timeout_graceful_shutdown=2, http="h11",
    )  # fmt: skip
    server = uvicorn.Server(config)

    async def run() -> None:
        task = asyncio.create_task(server.serve([listening]))
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        if server.started:
            ready(listening.getsockname()[1])
        await task

    def end() -> None:
        if parent_is_gone is not None:
            parent_is_gone()
        server.should_exit = True

    threading.Thread(target=service.read_ahead, name="read-ahead", daemon=True).start()
    if parent_is_gone is not None:
        threading.Thread(target=end, name="parent", daemon=True).start()
    # uvicorn stops first and then raises the signal again: what the search keeps on disk has to go before that ends us.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        asyncio.run(run())
    finally:
        service.close()


def _input_ends() -> None:
    sys.stdin.read()


def main(folder: Path, descriptor: int) -> None:
    """Answer on a socket that the parent has made listen, until standard input ends."""
    os.nice(10)
    listening = socket.socket(fileno=descriptor)
    serve(folder, (), listening, ready=lambda port: None, parent_is_gone=_input_ends)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
