"""A drawing process for each run without half a second of imports: a warm process has done them, and forks.

`python -m viz.charts.renderer` costs a second of a core, and a run of twenty documents costs half of one. The fork
is the same worker on the same pipes, with a process id to kill. That the worker starts on its own, from any folder, is
tested in `tests/viz/charts/test_renderer.py` and `tests/viz/charts/test_render_process.py`.
"""

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from tests.conftest import PROJECT

_MOST = 1 << 16  # bytes of a request


class Forked:
    """`DrawingOptions(start=Forked)`: as much of `subprocess.Popen` as is used, for a fork of the warm process."""

    def __init__(
        self, command: Sequence[str], *, stderr: IO[bytes], cwd: Path, env: Mapping[str, str], **options: Any
    ) -> None:
        assert command[:3] == [sys.executable, "-m", "viz.charts.renderer"] and options["start_new_session"]
        (given, write), (read, answer) = os.pipe(), os.pipe()
        request = {"words": command[3:], "cwd": str(cwd), "env": dict(env)}
        server = _server()
        socket.send_fds(server, [json.dumps(request).encode()], [given, answer, stderr.fileno()])
        for ours in (given, answer):
            os.close(ours)
        self.pid = int(server.recv(_MOST))
        self.stdin, self.stdout = os.fdopen(write, "wb", buffering=0), os.fdopen(read, "rb", buffering=0)
        try:
            self._process: int | None = os.pidfd_open(self.pid)
        except ProcessLookupError:
            self._process = None  # it has ended already

    def kill(self) -> None:
        if self._process is not None:
            signal.pidfd_send_signal(self._process, signal.SIGKILL)

    def wait(self, seconds: float) -> None:
        if self._process is not None:
            if not select.select([self._process], [], [], seconds)[0]:
                raise subprocess.TimeoutExpired("viz.charts.renderer", seconds)
            os.close(self._process)
            self._process = None


forking = types.SimpleNamespace(Popen=Forked, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired)
"""What stands for the module `subprocess` in `viz.charts.render_process`."""


@functools.cache
def _server() -> socket.socket:
    """The connection to the warm process of this session, which ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.warm_drawing", str(theirs.fileno())],
        cwd=PROJECT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait(60)

    atexit.register(end)
    return ours


def serve(requests: socket.socket) -> None:
    """The warm process: a fork for each request, whose process id is the answer."""
    import viz.charts.renderer  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # they are not waited for
    while True:
        message, files, *_ = socket.recv_fds(requests, _MOST, 3)
        if not message:
            return
        child = os.fork()
        if not child:
            requests.close()
            _draw(files, **json.loads(message))
        for file in files:
            os.close(file)
        requests.send(str(child).encode())


def _draw(files: Sequence[int], words: Sequence[str], cwd: str, env: Mapping[str, str]) -> NoReturn:
    """Take a worker's place, and be one."""
    from viz.charts.renderer import main

    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(number, mode, encoding="utf-8", buffering=1) for number, mode in enumerate("rww")
        )
        os.nice = lambda by: by  # else it waits for the tests beside this one, and its run for it
        main(Path(words[0]), int(words[1]))
        code = 0
    except BaseException:  # noqa: BLE001 - as the interpreter itself would end
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
