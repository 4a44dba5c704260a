import signal
import subprocess
import sys

from tests.conftest import PROJECT
from trainer.base.signals import NOTHING_TRAINED, StopSignals

SCRIPT = """
import contextlib, os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)  # as in a background job of a script
signal.signal(signal.SIGHUP, signal.SIG_IGN if "nohup" in sys.argv else signal.SIG_DFL)
from trainer.base.signals import StopSignals
with StopSignals() as stop:
    if not {"early", "compiling"} & {*sys.argv}:
        stop.hold()
    with stop.at_once() if "compiling" in sys.argv else contextlib.nullcontext():
        for number in map(int, filter(str.isdigit, sys.argv[1:])):
            os.kill(os.getpid(), number)
    print(stop.is_set(), stop.exit_code, flush=True)
"""


def run(*signals: int, words: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, *(str(int(number)) for number in signals), *words]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)


def test_the_first_signal_sets_a_flag() -> None:
    assert run(signal.SIGINT).stdout == "True 130\n"
    assert run(signal.SIGTERM).stdout == "True 143\n"
    assert run(signal.SIGHUP).stdout == "True 129\n"
    assert "Stopping after this step" in run(signal.SIGINT).stderr
    assert run().stdout.startswith("False")
    assert run(signal.SIGHUP, words=("nohup",)).stdout.startswith("False")


def test_the_first_signal_ends_the_process_while_there_is_nothing_to_save_or_torch_compiles() -> None:
    done = run(signal.SIGTERM, words=("early",))
    assert "KeyboardInterrupt" in done.stderr and done.stdout == ""
    done = run(signal.SIGTERM, words=("compiling",))
    assert (done.returncode, done.stdout, done.stderr) == (143, "", f"\n{NOTHING_TRAINED}\n")


def test_the_second_signal_ends_the_process_immediately() -> None:
    done = run(signal.SIGINT, signal.SIGINT)
    assert (done.returncode, done.stdout) == (130, "")
    assert run(signal.SIGINT, signal.SIGTERM).returncode == 143


def test_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignals():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before
