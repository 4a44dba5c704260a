import time

import pytest

from trainer.observe.terminal import Progress
from trainer.observe.totals import Tally


def test_lines_without_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One every ten seconds, then one every sixty."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress, tally = Progress(400), Tally()
    progress.start(0)
    printed = {}
    for second in range(1, 301):
        now = 1000.0 + second
        tally.add([1, 2, 3], 8, 2.34561, 0.283, seconds=0.1, waited=0.0)
        progress.show(second, tally, 1e-3, seconds=1.0)
        if line := capsys.readouterr().out:
            printed[second] = line
    assert list(printed) == [10, 20, 30, 40, 50, 60, 120, 180, 240, 300]
    assert printed[60] == "60 of 400 documents, loss 2.3456, acc 28.3%, tps 20.0, lr 1.00e-03, eta 5.7m\n"
