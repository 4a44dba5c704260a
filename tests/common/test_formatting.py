import pytest

from common.formatting import format_duration, format_time


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (45, "45s"), (130, "2m 10s"), (2100, "35m"), (11_100, "3h 05m"), (180_000, "2d 2h"), (59.7, "1m 00s")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0s"), (45, "45.0s"), (59.9, "59.9s"), (60, "1.0m"), (2268, "37.8m"), (3600, "1.0h"), (9000, "2.5h")],
)
def test_format_time(seconds: float, text: str) -> None:
    assert format_time(seconds) == text
