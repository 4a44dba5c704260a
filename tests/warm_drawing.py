"""Drawing processes without their start-up cost: forks of a process that has imported matplotlib and laid out a chart.

`python -m viz.charts.renderer` needs more than a second before its first chart, the rest of a short run half a second.
A fork is the same worker on the same pipes. `tests/viz/charts/test_renderer.py` starts one as a run does.
"""

import atexit
import functools
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

from tests.conftest import PROJECT

if TYPE_CHECKING:
    from viz.charts.figure import Chart
    from viz.views.run_view import View

_MOST = 1 << 16  # bytes of a request


class _Fork:
    """As much of `subprocess.Popen` as `viz.charts.render_process` uses."""

    pid: int
    _process: int | None

    def _start(
        self,
        server: socket.socket,
        command: Sequence[str],
        *,
        stderr: IO[bytes],
        cwd: Path,
        env: Mapping[str, str],
        **options: Any,
    ) -> None:
        assert command[:3] == [sys.executable, "-m", "viz.charts.renderer"] and options["start_new_session"]
        (given, write), (read, answer) = os.pipe(), os.pipe()
        request = {"words": command[3:], "cwd": str(cwd), "env": dict(env)}
        socket.send_fds(server, [json.dumps(request).encode()], [given, answer, stderr.fileno()])
        for ours in (given, answer):
            os.close(ours)
        self.pid = int(server.recv(_MOST))
        self.stdin, self.stdout = os.fdopen(write, "wb", buffering=0), os.fdopen(read, "rb", buffering=0)
        try:
            self._process = os.pidfd_open(self.pid)
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


class Forked(_Fork):
    """A fork of the warm process of this session."""

    chart = "Chart"

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        self._start(_server(self.chart), command, **options)


class Sketching(Forked):
    """For runs whose charts no test looks at: a chart takes a quarter of a second, and such a run no longer."""

    chart = "Sketch"


class Prepared(_Fork):
    """A fork of this process, made before it has threads, that waits until the run needs it.

    Unlike `Forked` it is a child of the run, as a real drawing process is.
    """

    def __init__(self, chart: "Chart", begin: Callable[[], None]) -> None:
        """`begin`: called in the fork before it draws."""
        self._server, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if not os.fork():
            self._server.close()
            os.setsid()
            message, files, *_ = socket.recv_fds(theirs, _MOST, 3)
            if not message:
                os._exit(0)  # the run has ended without a chart
            theirs.send(str(os.getpid()).encode())
            theirs.close()
            _draw(files, chart, begin, **json.loads(message))
        theirs.close()
        self._is_used = False

    def __call__(self, command: Sequence[str], **options: Any) -> Any:
        """Start it like `subprocess.Popen`, which starts any later one."""
        if self._is_used:
            return subprocess.Popen(command, **options)
        self._is_used = True
        self._start(self._server, command, **options)
        return self


@functools.cache
def _server(chart: str) -> socket.socket:
    """The connection to the warm process of this session with such a chart, which ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.warm_drawing", str(theirs.fileno()), chart],
        cwd=PROJECT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is not for it
    )
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait(60)

    atexit.register(end)
    return ours


def serve(requests: socket.socket, kind: str) -> None:
    """The warm process: a fork for each request, whose process id is the answer."""
    from viz.charts.figure import Chart

    chart = Chart() if kind == "Chart" else make_sketch()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # they are not waited for
    while True:
        message, files, *_ = socket.recv_fds(requests, _MOST, 3)
        if not message:
            return
        child = os.fork()
        if not child:
            requests.close()
            os.setsid()
            _draw(files, chart, lambda: None, **json.loads(message))
        for file in files:
            os.close(file)
        requests.send(str(child).encode())


def make_sketch() -> "Chart":
    """Return what draws a small blank image, of another size after each document, instead of a chart."""
    from PIL import Image

    from viz.charts.figure import Chart

    class Sketch(Chart):
        def __init__(self) -> None:
            pass

        def draw(self, view: "View") -> bytes:
            file = io.BytesIO()
            Image.new("L", (1 + view.step // 1000, 1 + view.step % 1000)).save(file, "PNG")
            return file.getvalue()

    return Sketch()


def _draw(
    files: Sequence[int],
    chart: "Chart",
    begin: Callable[[], None],
    words: Sequence[str],
    cwd: str,
    env: Mapping[str, str],
) -> NoReturn:
    """Take a worker's place, and be one."""
    from viz.charts.renderer import main

    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        begin()
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(number, mode, encoding="utf-8", buffering=1) for number, mode in enumerate("rww")
        )
        os.nice = lambda by: by  # else it waits for the tests beside this one, and its run for it
        main(Path(words[0]), int(words[1]), chart)
        code = 0
    except BaseException:  # noqa: BLE001 - as the interpreter itself would end
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
