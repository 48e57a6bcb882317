"""Exact match of a text answer after a small, fixed normalisation."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from evals.items import Item
from evals.scorers import Answer, Score
from sqtool.spec import Spec


def normalise(text: str, *, ignore_case: bool = False) -> str:
    """Strip both ends and make every run of whitespace (Unicode's) one space; nothing else, unless told."""
    text = " ".join(text.split())
    return text.casefold() if ignore_case else text


class ExactMatch(Spec):
    """exact_match is 1 when the normalised answer equals the normalised expected text, else 0.

    Failure layers: `truncated` (the token limit ended the answer), `called_tool` (a tool call instead of a text),
    `empty`, `wrong_text`.
    """

    asks: ClassVar[str] = "generate"
    metrics: ClassVar[tuple[str, ...]] = ("exact_match",)
    failures: ClassVar[tuple[str, ...]] = ("truncated", "called_tool", "empty", "wrong_text")

    ignore_case: bool = Field(default=False, description="Compare without regard to upper and lower case.")

    def continuations(self, _item: Item) -> tuple[str, ...]:
        return ()

    def check(self, item: Item) -> tuple[str, str] | None:
        if item.expected is None or item.expected.text is None:
            return "expected.text", "missing, and the scorer exact_match needs it"
        if not normalise(item.expected.text):
            return "expected.text", "empty: a model that says nothing would be right"
        return None

    def applies(self, _item: Item) -> tuple[str, ...]:
        return self.metrics

    def score(self, item: Item, answer: Answer) -> Score:
        assert item.expected is not None
        assert item.expected.text is not None
        said = normalise(answer.text, ignore_case=self.ignore_case)
        if said == normalise(item.expected.text, ignore_case=self.ignore_case) and not answer.tool_calls:
            return Score({"exact_match": 1.0})
        if answer.finish_reason == "length":
            failure = "truncated"
        elif answer.tool_calls:
            failure = "called_tool"
        else:
            failure = "wrong_text" if said else "empty"
        return Score({"exact_match": 0.0}, failure)
