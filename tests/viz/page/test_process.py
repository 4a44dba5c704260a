"""The server process: where it listens, what it prints, and that it leaves nothing behind when it ends."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.viz.conftest import run_python, start_python, write_store
from tests.viz.page.test_guard import ask
from tests.viz.small_tokenizers import MODELS
from viz.__main__ import main
from viz.page.process import PORT, TRIES, PageProcess, listen


@pytest.fixture
def record(tmp_path: Path) -> Path:
    calls = ({"step": step, "loss": 2.0, "token_ids": [265, 266]} for step in range(5))
    return write_store(tmp_path / "record", calls, run_id="r1", tokenizer=MODELS["ours"])


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """The folder for temporary files of a server, such as the search index."""
    (tmp_path / "temporary").mkdir()
    return tmp_path / "temporary"


@pytest.fixture
def taken() -> Iterator[int]:
    with listen(0) as listening:
        yield listening.getsockname()[1]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The error of `python -m viz serve` for an invalid command: one line, exit code 2."""
    try:
        code = main(["serve", *map(str, arguments)])
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "0"], ["--port", "65536"], ["--port", "-1"], ["--port", "http"], ["--port"], ["--allow-host"],
        ["--allow-host", "*"], ["--allow-host", "*.example"], ["--host", "0.0.0.0"], ["training_viz", "no-such-folder"],
    ],
)  # fmt: skip
def test_an_invalid_command_is_a_one_line_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    refusal(capsys, *arguments)


def test_a_port_in_use_is_a_one_line_error(record: Path, taken: int, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, record, "--port", taken)
    assert f"port {taken} is not available" in said and "--port" in said


def test_the_default_is_the_first_free_port() -> None:
    with listen(None) as first, listen(None) as second:
        ports = [one.getsockname() for one in (first, second)]
    assert {address for address, _ in ports} == {"127.0.0.1"}  # not reachable from other machines
    assert PORT <= ports[0][1] < ports[1][1] < PORT + TRIES


def test_a_port_is_refused_while_it_is_in_use(taken: int) -> None:
    for refused in (lambda: listen(taken), lambda: listen(None, first=taken, tries=1)):  # the last one is named
        with pytest.raises(OSError, match=f"port {taken} is not available"):
            refused()
    with listen(0) as other:
        port = other.getsockname()[1]
    listen(port).close()


def test_the_training_process_does_not_import_the_server() -> None:
    listed = "import sys, viz.page.process; print(*(name.partition('.')[0] for name in sys.modules))"
    assert {"viz"} == {"viz", "uvicorn", "starlette"} & set(run_python("-c", listed).stdout.split())


def started(arguments: list[str], temporary: Path) -> tuple["subprocess.Popen[str]", list[str]]:
    """Start the server; returns the process and the lines that it printed."""
    environment = {**os.environ, "TMPDIR": str(temporary), "USER": "ada", "PYTHONUNBUFFERED": "1"}
    process = start_python("-m", "viz", "serve", *arguments, stderr=subprocess.PIPE, env=environment)
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if "Ctrl-C" in line:
            break
    return process, lines


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.full)])
def test_it_prints_its_address_and_leaves_nothing_behind(record: Path, temporary: Path, number: signal.Signals) -> None:
    with listen(0) as free:
        port = free.getsockname()[1]
    process, lines = started([str(record), "--port", str(port)], temporary)
    with process:
        assert lines[0] == f"The page: http://127.0.0.1:{port}"
        assert f"ssh -L {port}:127.0.0.1:{port} ada@" in lines[1]
        assert ask(port, "/api/search?q=one").status == 200
        assert [path.name.startswith("viz-search-") for path in temporary.iterdir()] == [True]
        with socket.create_connection(("127.0.0.1", port)):  # a browser that keeps its connection open
            process.send_signal(number)
            out, err = process.communicate(timeout=20)
    assert process.returncode in ((0, 130) if number == signal.SIGINT else (0, 128 + number, -number))
    assert "Traceback" not in out + err and err == ""
    assert list(temporary.iterdir()) == []
    with pytest.raises(ConnectionRefusedError):
        ask(port)


def test_it_waits_for_a_run_in_an_empty_folder(tmp_path: Path, temporary: Path, taken: int) -> None:
    process, lines = started([str(tmp_path / "later")], temporary)
    with process:
        assert "the page waits for a run" in lines[0] and str(tmp_path / "later") in lines[0]
        assert lines[1].startswith("The page: ")
        process.terminate()
        process.communicate(timeout=20)


def closes(port: int, seconds: float = 15) -> bool:
    """Whether the port is closed within so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except ConnectionRefusedError:
            return True
        except OSError:
            pass
        time.sleep(0.05)
    return False


def test_the_page_process_stops_on_request(record: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(temporary))
    page = PageProcess(record, listen(0))
    answer = ask(page.port, "/api/search?q=one")  # sent before the server is ready: it waits
    assert answer.status == 200
    began = time.monotonic()
    assert page.stop() == ""
    assert time.monotonic() - began < 4
    assert closes(page.port, 1)
    assert list(temporary.iterdir()) == []


def test_stop_reports_an_earlier_end(record: Path) -> None:
    page = PageProcess(record, listen(0))
    assert ask(page.port).status == 200
    page._process.kill()
    page._process.wait()
    assert page.stop() == "exit code -9"


PARENT = """
import sys, time
from pathlib import Path
from viz.__main__ import main
from viz.page.process import PageProcess, listen
page = PageProcess(Path(sys.argv[1]), listen(0))
print(page.port, flush=True)
time.sleep(600)
"""


def test_the_page_process_ends_with_a_killed_parent(record: Path) -> None:
    with start_python("-c", PARENT, record) as process:
        port = int(process.stdout.readline())
        assert ask(port).json["steps"] == 5
        assert not closes(port, 0.3)  # control: it runs while its parent does
        process.kill()
    assert closes(port)
