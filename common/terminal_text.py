"""Make text of unknown origin safe to print on a terminal: it can't contain control sequences."""

import unicodedata

_UNSAFE = ("Cc", "Cf", "Cs", "Co", "Cn")


def harmless(text: str) -> str:
    """Return the text with U+FFFD `�` for every control, format and unassigned character except newline and tab."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in _UNSAFE else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def one_line(text: str) -> str:
    """Return `harmless` text with newlines and tabs escaped as in Python."""
    return harmless(text).replace("\n", "\\n").replace("\t", "\\t")
