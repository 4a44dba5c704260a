"""Text of unknown origin on a terminal: it says what it says and steers nothing."""

import unicodedata

_STEERING = ("Cc", "Cf", "Cs", "Co", "Cn")


def harmless(text: str) -> str:
    """The text with every control, format and unassigned character but line breaks and tabs as U+FFFD `�`."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in _STEERING else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def one_line(text: str) -> str:
    """`harmless`, with line breaks and tabs as Python writes them."""
    return harmless(text).replace("\n", "\\n").replace("\t", "\\t")
