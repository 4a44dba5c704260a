import signal
import subprocess
import sys

from tests.conftest import PROJECT
from trainer.signals import StopSignals

SCRIPT = """
import os, signal, sys
from trainer.signals import StopSignals
with StopSignals() as stop:
    for number in map(int, sys.argv[1:]):
        os.kill(os.getpid(), number)
    print(stop.is_set(), stop.exit_code, flush=True)
"""


def run(*signals: int) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", SCRIPT, *(str(int(number)) for number in signals)]
    return subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, check=False)


def test_the_first_is_a_flag() -> None:
    assert run(signal.SIGINT).stdout == "True 130\n"
    assert run(signal.SIGTERM).stdout == "True 143\n"
    assert run(signal.SIGHUP).stdout == "True 129\n"
    assert "Stopping after this step" in run(signal.SIGINT).stderr
    assert run().stdout == "False 128\n"


def test_the_second_ends_the_process_at_once() -> None:
    done = run(signal.SIGINT, signal.SIGINT)
    assert (done.returncode, done.stdout) == (130, "")
    assert run(signal.SIGINT, signal.SIGTERM).returncode == 143


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignals():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before
