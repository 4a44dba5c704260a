"""The server as a process: its port on loopback, what it says in the terminal, and when it ends.

`python -m viz serve` runs it until Ctrl-C; the training command starts it as `python -m viz.serving` (see
`ServerProcess` in `viz/page_process.py`), where it ends with its parent.
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

from viz.server import application
from viz.service import Service

PORT = 8000
TRIES = 50
"""Ports that are tried from `PORT` on, where none is named."""


def listen(port: int | None) -> socket.socket:
    """A socket on 127.0.0.1 that listens: on `port`, or on the first free one from `PORT` on.

    Raises OSError where that port, or each of them, is taken.
    """
    failure: OSError | None = None
    for number in [port] if port is not None else range(PORT, PORT + TRIES):
        found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(("127.0.0.1", number))
            found.listen(128)
            return found
        except OSError as error:
            found.close()
            failure = OSError(error.errno, f"port {number} can't be had ({error.strerror})")
    assert failure is not None
    raise failure


def opening_lines(port: int) -> list[str]:
    """Where the page is, on this machine and from another."""
    there = f"ssh -L {port}:localhost:{port} {os.environ.get('USER', 'user')}@{socket.gethostname()}"
    return [
        f"The page: http://localhost:{port}",
        f"From another machine: {there}, then open the same address there",
    ]


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

    if parent_is_gone is not None:
        threading.Thread(target=end, name="parent", daemon=True).start()
    try:
        asyncio.run(run())
    finally:
        service.search.close()


def _input_ends() -> None:
    sys.stdin.read()


def main(arguments: Sequence[str]) -> int:
    """`FOLDER [PORT]`: serve until standard input ends. The first line of standard output is the port, or why not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's, which ends us
    os.nice(10)
    try:
        listening = listen(int(arguments[1]) if len(arguments) > 1 else None)
    except OSError as error:
        print(error.strerror, flush=True)
        return 1
    serve(
        Path(arguments[0]), (), listening,
        ready=lambda port: print(port, flush=True),
        parent_is_gone=_input_ends,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
