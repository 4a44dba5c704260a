import pytest

from common.formatting import format_bytes, format_duration, format_time


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0s"), (45, "45.0s"), (59.9, "59.9s"), (60, "1.0m"), (2268, "37.8m"), (3600, "1.0h"), (9000, "2.5h")],
)
def test_format_time(seconds: float, text: str) -> None:
    assert format_time(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (45, "45s"), (130, "2m 10s"), (2100, "35m"), (11_100, "3h 05m"), (180_000, "2d 2h"), (59.7, "1m 00s")],
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0.0 kB"), (35_200, "35.2 kB"), (165_400_000, "165.4 MB"), (1_500_000_000, "1.5 GB"), (2 * 10**12, "2.0 TB")],
)
def test_format_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text
