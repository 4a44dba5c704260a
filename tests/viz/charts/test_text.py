import pytest
from hypothesis import given
from hypothesis import strategies as st

from viz.charts.text import printable, wrap


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("$x_1$ \\frac{1}{2} naïve", "$x_1$ \\frac{1}{2} naïve"),
        ("a\tb\r\nc", "a   b\nc"),
        ("bell\x07 null\x00 escape\x1b[31m", "bell� null� escape�[31m"),
        ("\u202eright to left\u200d", "�right to left�"),
        ("😀 日本", "� ��"),
        ("e\u0301 q\u0301", "é q�"),
        ("\ud800", "�"),
    ],
)
def test_only_characters_missing_from_the_font_are_replaced(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(), st.integers(4, 30), st.integers(1, 6))
def test_wrapped_text_fits_and_shows_where_it_was_cut(text: str, columns: int, lines: int) -> None:
    text = printable(text)
    wrapped = wrap(text, columns, lines)
    assert 1 <= len(wrapped) <= lines
    assert max(map(len, wrapped)) <= columns
    shown, whole = ("".join("".join(part).split()) for part in (wrapped, text))
    assert shown == whole or (wrapped[-1].endswith("…") and whole.startswith(shown[:-1]))


def test_lines_break_at_spaces_if_possible() -> None:
    assert wrap("def parse(header): return header", 20, 9) == ["def parse(header):", "return header"]
    assert wrap("x" * 25, 10, 9) == ["x" * 10, "x" * 10, "x" * 5]
    assert wrap("one\n\n\n  two", 10, 9) == ["one", "  two"]
    assert wrap("one two three", 5, 2) == ["one", "two…"]
