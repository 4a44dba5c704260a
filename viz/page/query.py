"""What a request asks for, checked: whole numbers within bounds, words of a list, texts of a length."""

from collections.abc import Collection, Mapping

GREATEST = 2**53
"""Whole numbers up to here are exact in JavaScript, and fit into SQLite."""


class BadQuery(ValueError):
    """A request that can't be answered as it stands, in one line."""


class NotThere(Exception):
    """What was asked for does not exist, in one line."""


def whole_number(text: str, name: str, low: int = 0, high: int = GREATEST) -> int:
    """Raises BadQuery."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 16 else -1
    if not low <= number <= high:
        raise BadQuery(f"{name}: expected a whole number from {low} to {high}, found {text[:40]!r}")
    return number


class Query:
    """The parameters of a request, each of which must be asked for here or it is refused."""

    def __init__(self, given: Mapping[str, str], known: Collection[str]) -> None:
        """Raises BadQuery for a parameter that is not known."""
        for name in given:
            if name not in known:
                there = ", ".join(known) or "there are none"
                raise BadQuery(f"unknown parameter {name[:40]!r}; known: {there}")
        self._given = given

    def number(self, name: str, default: int, low: int = 0, high: int = GREATEST) -> int:
        """Raises BadQuery, as all of these do."""
        found = self.optional(name, low, high)
        return default if found is None else found

    def optional(self, name: str, low: int = 0, high: int = GREATEST) -> int | None:
        """None where it is not given, or empty."""
        text = self._given.get(name, "")
        return whole_number(text, name, low, high) if text else None

    def word(self, name: str, words: Collection[str], default: str) -> str:
        text = self._given.get(name, default)
        if text not in words:
            raise BadQuery(f"{name}: expected {' or '.join(words)}, found {text[:40]!r}")
        return text

    def text(self, name: str, longest: int = 1000) -> str | None:
        """None where it is not given. A lone surrogate, which no text in a store can hold, becomes `?`."""
        text = self._given.get(name)
        if text is not None and len(text) > longest:
            raise BadQuery(f"{name}: at most {longest} characters, found {len(text)}")
        return None if text is None else text.encode("utf-8", "replace").decode("utf-8")
