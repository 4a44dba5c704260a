import time

import pytest

from trainer.observe.terminal import Progress
from trainer.observe.totals import Tally


def test_plain_lines_come_every_ten_seconds_then_every_sixty(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress, tally = Progress(400), Tally()
    progress.start(0)
    spoken = []
    for second in range(1, 301):
        now = 1000.0 + second
        tally.add([1, 2, 3], 8, 2.5, 0.25, seconds=1.0, waited=0.0)
        progress.show(second, tally, 1e-3, seconds=1.0)
        if capsys.readouterr().out:
            spoken.append(second)
    assert spoken == [10, 20, 30, 40, 50, 60, 120, 180, 240, 300]


def test_a_plain_line_says_what_the_bar_would(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress, tally = Progress(100), Tally()
    progress.start(0)
    tally.add([1, 2, 3], 8, 2.34561, 0.283, seconds=0.1, waited=0.0)
    monkeypatch.setattr(time, "monotonic", lambda clock=time.monotonic: clock() + 11)
    progress.show(1, tally, 1e-3, seconds=2268.0 / 99)
    assert capsys.readouterr().out == ("1 of 100 documents, loss 2.3456, acc 28.3%, tps 20.0, lr 1.00e-03, eta 37.8m\n")
