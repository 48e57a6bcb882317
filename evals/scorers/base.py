"""What scorers have in common."""

from __future__ import annotations

from typing import ClassVar

from evals.items import Item
from evals.scorers import Answer
from sqtool.spec import Spec

NO_TEXT = ("truncated", "called_tool", "empty")
"""Failure layers of an answer that is no complete text."""


class Generating(Spec):
    """A scorer of generated answers, all of whose metrics apply to every item."""

    asks: ClassVar[str] = "generate"
    metrics: ClassVar[tuple[str, ...]]

    def continuations(self, _item: Item) -> tuple[str, ...]:
        return ()

    def applies(self, _item: Item) -> tuple[str, ...]:
        return self.metrics


def no_text(answer: Answer) -> str | None:
    """The layer at which an answer fails before its text is looked at, or None."""
    if answer.finish_reason == "length":
        return "truncated"
    if answer.tool_calls:
        return "called_tool"
    return None if answer.text.strip() else "empty"


def missing_text(item: Item, scorer: str) -> tuple[str, str] | None:
    """(field, what is wrong) where a scorer needs an expected text and there is none."""
    if item.expected is None or item.expected.text is None:
        return "expected.text", f"missing, and the scorer {scorer} needs it"
    return None
