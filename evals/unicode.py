"""Texts that files can hold."""

from __future__ import annotations


def whole_text(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair that stands alone: JSON can say one, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
