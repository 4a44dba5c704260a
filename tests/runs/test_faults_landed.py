"""The faults themselves: each intercepted call is counted, fails if it should, is recorded, and otherwise works."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.faults import Fault, build, read_log

CALLS = {
    "create": "os.open('new', os.O_WRONLY | os.O_CREAT)",
    "create, a folder": "os.mkdir('new')",
    "open": "os.open('file', os.O_WRONLY)",
    "write": "os.write(file, b'four')",
    "write at": "os.pwrite(file, b'four', 2)",
    "write parts": "os.writev(file, [b'fo', b'ur'])",
    "write, buffered": "open('file', 'r+b').write(bytes(1 << 20))",
    "sync": "os.fsync(file)",
    "sync, data": "os.fdatasync(file)",
    "sync, a folder": "os.fsync(os.open('.', os.O_RDONLY))",
    "truncate": "os.ftruncate(file, 3)",
    "rename": "os.rename('file', 'new')",
    "rename in a folder": "os.rename('file', 'new', src_dir_fd=os.open('.', 0), dst_dir_fd=os.open('.', 0))",
    "link": "os.link('file', 'new')",
    "unlink": "os.unlink('file')",
    "unlink in a folder": "os.unlink('file', dir_fd=os.open('.', os.O_RDONLY))",
}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD and /proc")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("library"))


def act(
    library: Path, folder: Path, code: str, fault: Fault, *, below: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python code in its own process with the fault in `folder`; `file` is open before the fault is armed."""
    (folder / "file").write_bytes(b"before")
    log = folder.with_name(f"{folder.name}.log")
    log.unlink(missing_ok=True)
    variables = {"FAULT_LOG": str(log), "FAULT_RECORDS": "1", **fault.environment()}
    armed = f"""
import ctypes, os
file = os.open("file", os.O_RDWR)
os.environ.update({variables!r} | {{"FAULT_FOLDER": {str(below or folder)!r}}})
ctypes.CDLL(None).faults_arm()
{code}
"""
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    return subprocess.run(
        [sys.executable, "-c", armed], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def log_of(folder: Path) -> list[tuple[str, str, str]]:
    return [
        (kind, call.operation, Path(call.path).name) for kind, call in read_log(folder.with_name(f"{folder.name}.log"))
    ]


@pytest.mark.parametrize("call", CALLS)
def test_each_call_lands_and_is_recorded(library: Path, here: Path, tmp_path: Path, call: str) -> None:
    operation = call.split(",")[0].split()[0]
    before = sorted(tmp_path.rglob("*"))
    done = act(library, here, CALLS[call], Fault(operation, "*", error=errno.EIO))
    assert done.returncode == 1 and "[Errno 5]" in done.stderr
    assert (here / "file").read_bytes() == b"before" and set(before) <= set(tmp_path.rglob("*"))
    assert log_of(here)[-1][:2] == ("landed", operation)
    done = act(library, here, CALLS[call], Fault(operation, "*", at=2, error=errno.EIO))
    assert done.returncode == 0, done.stderr
    assert ("call", operation) in [seen[:2] for seen in log_of(here)]
    assert not any(seen[0] == "landed" for seen in log_of(here))


def test_only_calls_in_the_folder_and_at_the_place_count(library: Path, tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    fault = Fault("write", "fil[f]", error=errno.EIO)
    assert act(library, tmp_path / "here", CALLS["write"], fault).returncode == 0
    fault = Fault("write", "file", error=errno.EIO)
    assert act(library, tmp_path / "here", CALLS["write"], fault, below=tmp_path / "there").returncode == 0
    assert act(library, tmp_path / "here", CALLS["write"], fault, below=tmp_path / "her").returncode == 0
    assert act(library, tmp_path / "here", CALLS["write"], fault).returncode == 1


def test_a_fault_happens_once_or_forever(library: Path, here: Path) -> None:
    code = """
for number in range(4):
    try:
        os.write(file, b"x")
        print("written")
    except OSError as error:
        print(error.errno)
"""
    once = act(library, here, code, Fault("write", "file", 2, errno.ENOSPC))
    assert once.stdout.split() == ["written", "28", "written", "written"]
    forever = act(library, here, code, Fault("write", "file", 2, errno.ENOSPC, forever=True))
    assert forever.stdout.split() == ["written", "28", "28", "28"]


@pytest.mark.parametrize(("when", "left"), [("before", b"before"), ("half", b"fofore"), ("after", b"fourre")])
def test_a_kill_comes_before_within_or_after_the_call(library: Path, here: Path, when: str, left: bytes) -> None:
    done = act(library, here, CALLS["write"], Fault("write", "file", when=when))
    assert done.returncode == -signal.SIGKILL
    assert (here / "file").read_bytes() == left
    assert log_of(here)[-1] == ("landed", "write", "file")


def test_another_signal_lets_the_call_happen(library: Path, here: Path) -> None:
    code = "import signal; signal.signal(signal.SIGTERM, lambda *_: print('heard')); os.write(file, b'BEF')"
    done = act(library, here, code, Fault("write", "file", number=signal.SIGTERM))
    assert done.returncode == 0 and done.stdout == "heard\n"
    assert (here / "file").read_bytes() == b"BEFore"


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_the_library_compiles_as_cplusplus(tmp_path: Path) -> None:
    """A machine may have only the C++ compiler that `--compile` needs."""
    command = ["g++", "-x", "c++", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", tmp_path / "faults.so"]
    subprocess.run([*command, PROJECT / "tests" / "faults.c"], check=True)
