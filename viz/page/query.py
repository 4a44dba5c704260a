"""Validation of request parameters: whole numbers within bounds, words from a list, texts of limited length."""

from collections.abc import Collection, Mapping

GREATEST = 2**53
"""Whole numbers up to this one are exact in JavaScript and fit into SQLite."""


class BadQuery(ValueError):
    """An invalid request. The message is one line."""


class NotThere(Exception):
    """The requested object does not exist. The message is one line."""


def whole_number(text: str, name: str, low: int = 0, high: int = GREATEST) -> int:
    """Parse a whole number from `low` to `high`. Raises BadQuery."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 16 else -1
    if not low <= number <= high:
        raise BadQuery(f"{name}: expected a whole number from {low} to {high}, found {text[:40]!r}")
    return number


class Query:
    """The parameters of a request. Unknown ones are an error; every method raises BadQuery for an invalid value."""

    def __init__(self, given: Mapping[str, str], known: Collection[str]) -> None:
        """Raises BadQuery for a parameter that is not in `known`."""
        for name in given:
            if name not in known:
                there = ", ".join(known) or "none"
                raise BadQuery(f"unknown parameter {name[:40]!r}; known: {there}")
        self._given = given

    def number(self, name: str, default: int, low: int = 0, high: int = GREATEST) -> int:
        """Return a whole number, or `default` if the parameter is missing or empty."""
        found = self.optional(name, low, high)
        return default if found is None else found

    def optional(self, name: str, low: int = 0, high: int = GREATEST) -> int | None:
        """Return a whole number, or None if the parameter is missing or empty."""
        text = self._given.get(name, "")
        return whole_number(text, name, low, high) if text else None

    def word(self, name: str, words: Collection[str], default: str) -> str:
        """Return one of `words`."""
        text = self._given.get(name, default)
        if text not in words:
            raise BadQuery(f"{name}: expected {' or '.join(words)}, found {text[:40]!r}")
        return text

    def text(self, name: str, longest: int = 1000) -> str | None:
        """Return a text, or None if missing. A lone surrogate, which SQLite can't store, becomes `?`."""
        text = self._given.get(name)
        if text is not None and len(text) > longest:
            raise BadQuery(f"{name}: expected at most {longest} characters, found {len(text)}")
        return None if text is None else text.encode("utf-8", "replace").decode("utf-8")
