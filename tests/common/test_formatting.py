import pytest

from common.formatting import format_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (45, "45s"), (130, "2m 10s"), (2100, "35m"), (11_100, "3h 05m"), (180_000, "2d 2h"), (59.7, "1m 00s")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
