"""Exact match of a text answer after normalisation."""

from __future__ import annotations

import re
import unicodedata
from typing import ClassVar

from pydantic import Field

from evals.items import Item
from evals.scorers import Answer, Score
from evals.scorers.base import NO_TEXT, Generating, missing_text, no_text

_ARTICLES = re.compile(r"\b(?:a|an|the)\b", re.IGNORECASE)
# What is punctuation to SQuAD (string.punctuation) and a symbol to Unicode.
_ASCII_SYMBOLS = frozenset("$+<=>^`|~")


def _is_punctuation(character: str) -> bool:
    return character in _ASCII_SYMBOLS or unicodedata.category(character).startswith("P")


def normalise(
    text: str,
    *,
    ignore_case: bool = False,
    ignore_accents: bool = False,
    ignore_punctuation: bool = False,
    ignore_articles: bool = False,
) -> str:
    """Strip both ends and make every run of whitespace (Unicode's) one space; nothing else, unless told.

    The steps are in the order of SQuAD's evaluation script (arXiv:1606.05250): case, punctuation, articles, whitespace.
    """
    if ignore_accents:
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    if ignore_case:
        text = text.casefold()
    if ignore_punctuation:
        text = "".join(c for c in text if not _is_punctuation(c))
    if ignore_articles:
        text = _ARTICLES.sub(" ", text)
    return " ".join(text.split())


class ExactMatch(Generating):
    """exact_match is 1 when the normalised answer equals the normalised expected text or one of its aliases, else 0.

    Failure layers: `truncated` (the token limit ended the answer), `called_tool` (a tool call instead of a text),
    `empty`, `wrong_text`.
    """

    metrics: ClassVar[tuple[str, ...]] = ("exact_match",)
    failures: ClassVar[tuple[str, ...]] = (*NO_TEXT, "wrong_text")

    ignore_case: bool = Field(default=False, description="Compare without regard to upper and lower case.")
    ignore_accents: bool = Field(default=False, description="Compare letters without their accents.")
    ignore_punctuation: bool = Field(default=False, description="Leave out punctuation, as SQuAD does.")
    ignore_articles: bool = Field(default=False, description="Leave out a, an and the, as SQuAD does.")

    def _normal(self, text: str) -> str:
        return normalise(text, **self.model_dump())

    def check(self, item: Item) -> tuple[str, str] | None:
        problem = missing_text(item, "exact_match")
        if problem is not None:
            return problem
        assert item.expected is not None
        for place, text in enumerate(item.expected.texts()):
            if not self._normal(text):
                field = "expected.text" if place == 0 else f"expected.aliases.{place - 1}"
                return field, "empty (after normalisation): a model that says nothing would be right"
        return None

    def score(self, item: Item, answer: Answer) -> Score:
        assert item.expected is not None
        said = self._normal(answer.text)
        if not answer.tool_calls and said in {self._normal(text) for text in item.expected.texts()}:
            return Score({"exact_match": 1.0})
        return Score({"exact_match": 0.0}, no_text(answer) or "wrong_text")
