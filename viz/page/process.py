"""The process that serves the page: `python -m viz serve`, or a child of the training process (`--serve`).

The training process imports this module, so uvicorn and Starlette are imported only in `serve`.
"""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from common.child_process import FOLDER, environment

PORT = 8000
TRIES = 50
"""How many ports from `PORT` on are tried if none is given."""


def listen(port: int | None, first: int = PORT, tries: int = TRIES) -> socket.socket:
    """Return a listening socket on 127.0.0.1: on `port`, or on the first free one of the `tries` ports from `first`.

    Raises OSError if that port, or each of them, is taken.
    """
    failure: OSError | None = None
    for number in [port] if port is not None else range(first, first + tries):
        found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if sys.platform == "linux":  # reuse a port just closed; on other systems this would allow one in use
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(("127.0.0.1", number))
            found.listen(128)
            return found
        except OSError as error:
            found.close()
            failure = OSError(error.errno, f"port {number} is not available ({error.strerror})")
    assert failure is not None
    raise failure


def opening_lines(port: int) -> list[str]:
    """Return the lines that name the page's address, on this machine and from another."""
    there = f"ssh -L {port}:127.0.0.1:{port} {os.environ.get('USER', 'user')}@{socket.gethostname()}"
    return [
        f"The page: http://127.0.0.1:{port}",  # not localhost, which may be another server's ::1
        f"From another machine: run {there}, then open the same address there",
    ]


@contextmanager
def page_beside(folder: Path, listening: socket.socket, report: Callable[[str], None]) -> Iterator[None]:
    """Serve the page while this process trains. If the page's process can't start, print why and train without it."""
    try:
        page = PageProcess(folder, listening)
    except OSError as error:
        listening.close()
        report(f"No page for this run: its process could not be started ({error})")
        yield
        return
    report("\n".join(opening_lines(page.port)))
    try:
        yield
    finally:
        failure = page.stop()
        report(f"The page stopped early ({failure})" if failure else "The page stopped with the run")


class PageProcess:
    """`python -m viz.page.process` for a folder. It ends with this process, even if this one is killed."""

    def __init__(self, folder: Path, listening: socket.socket) -> None:
        """Start the process and hand it the socket `listening`, where early requests wait until it answers."""
        self.port: int = listening.getsockname()[1]
        # Its errors must not be printed into the progress bar.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "viz.page.process", str(folder.resolve()), str(listening.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            pass_fds=[listening.fileno()],
            cwd=FOLDER,
            env=environment(),
            start_new_session=True,  # Ctrl-C signals the whole group; the trainer stops this process
        )
        listening.close()

    def stop(self) -> str:
        """End the process. Returns one line that says why it had already ended, or an empty string."""
        ended_before = self._process.poll() is not None
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        self._errors.close()
        return (lines[-1] if lines else f"exit code {self._process.returncode}") if ended_before else ""


def serve(
    folder: Path,
    others: Sequence[Path],
    listening: socket.socket,
    names: Sequence[str] = (),
    *,
    ready: Callable[[int], None],
    parent_is_gone: Callable[[], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, or until `parent_is_gone` returns.

    `names`: host names to accept besides the loopback names. `ready`: called with the port once requests are answered.
    """
    import uvicorn

    from viz.page.api import Service
    from viz.page.http import application

    service = Service.of(folder, others)
    config = uvicorn.Config(
        application(service, names), log_level="warning", access_log=False, lifespan="off", server_header=False,
        proxy_headers=False, timeout_graceful_shutdown=2, http="h11",
    )  # fmt: skip
    # Whoever stops the server knows that answers in progress end with it: uvicorn calls that an error.
    logging.getLogger("uvicorn.error").addFilter(lambda record: "timeout graceful shutdown" not in str(record.msg))
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
    # uvicorn shuts down and then raises the signal again; exiting here instead lets `finally` delete the search index.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        asyncio.run(run())
    finally:
        service.close()


def _wait_for_end_of_input() -> None:
    sys.stdin.read()


def main(folder: Path, descriptor: int) -> None:
    """Serve on the listening socket `descriptor`, inherited from the parent, until standard input ends."""
    os.nice(10)
    listening = socket.socket(fileno=descriptor)
    serve(folder, (), listening, ready=lambda port: None, parent_is_gone=_wait_for_end_of_input)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
