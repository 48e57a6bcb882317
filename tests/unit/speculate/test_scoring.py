"""Which answers are accepted."""

from __future__ import annotations

from typing import Any

import pytest

from sqtool.speculate.client import Answer
from sqtool.speculate.scoring import score
from sqtool.speculate.traffic import Request

TOOL = {"type": "function", "function": {"name": "turn", "parameters": {"type": "object", "properties": {"x": {}}}}}


def request(scorer: str | None, expected: dict[str, Any] | None, **body: Any) -> Request:
    messages = [{"role": "user", "content": "q"}]
    return Request("a", "k", {"messages": messages, "max_tokens": 9, **body}, scorer=scorer, expected=expected)


def answer(text: str = "", calls: list[dict[str, str]] | None = None, error: str = "") -> Answer:
    reason = "tool_calls" if calls else "stop"
    return Answer("a", "k", 0, 0.0, error=error, text=text, tool_calls=calls or [], finish_reason=reason)


CALLS = request("tool_calls", {"calls": [{"name": "turn", "arguments": {"x": 1}}]}, tools=[TOOL])
TEXT = request("exact_match", {"text": "yes"})


@pytest.mark.parametrize(
    ("asked", "given", "accepted"),
    [
        (TEXT, answer(" yes "), True),
        (TEXT, answer("no"), False),
        (TEXT, answer("yes", error="HTTP 500"), False),
        # The call's arguments decide, and not only that it is a valid call of an offered tool.
        (CALLS, answer(calls=[{"name": "turn", "arguments": '{"x": 1}'}]), True),
        (CALLS, answer(calls=[{"name": "turn", "arguments": '{"x": 2}'}]), False),
        (request("json_schema", {"json_schema": {"type": "object"}}), answer("{}"), True),
        (request("json_schema", {"json_schema": {"type": "object"}}), answer("[]"), False),
        (request(None, None), answer("anything"), None),
    ],
)
def test_accepted(asked: Request, given: Answer, accepted: bool | None) -> None:
    score(asked, given)
    assert given.accepted is accepted
    assert given.score == (None if accepted is None else float(accepted))
