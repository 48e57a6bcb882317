"""The canonical words of a text, for comparing texts that were written or stored differently."""

from __future__ import annotations

import re
import unicodedata

# Scripts that are written without spaces: each character stands for itself.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
    r"\U00020000-\U0003ffff]|[^\W_]+"
)


def words(text: str) -> list[str]:
    """Words in lower case after compatibility normalization (NFKC); punctuation, spacing and markup are nothing."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
