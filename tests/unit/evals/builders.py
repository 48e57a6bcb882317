"""Short ways to write items, tools and answers in tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from evals.items import Item
from evals.scorers import Answer, ToolCall


def tool(name: str, properties: dict[str, Any] | None = None, required: Sequence[str] = ()) -> dict[str, Any]:
    """An OpenAI tool object."""
    schema = {"type": "object", "properties": properties or {}, "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": schema}}


WEATHER = tool("weather", {"city": {"type": "string"}, "days": {"type": "integer"}}, ["city"])
TIMER = tool("timer", {"seconds": {"type": "number"}}, ["seconds"])


def tool_row(calls: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """An item for the tool_calls scorer, as it stands in a file."""
    row = {
        "id": "t1",
        "kind": "tool_simple",
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [WEATHER, TIMER],
        "expected": {"calls": list(calls)},
    }
    return {**row, **more}


def tool_item(*calls: tuple[str, dict[str, Any]], **more: Any) -> Item:
    """The same as an item; calls as (name, arguments)."""
    return Item.model_validate(tool_row([{"name": n, "arguments": a} for n, a in calls], **more))


def text_row(number: int, text: str, **more: Any) -> dict[str, Any]:
    """An item for exact_match whose right answer is what the fake server says to it."""
    row = {
        "id": f"i{number}",
        "kind": "recall",
        "messages": [{"role": "user", "content": f"say {text}"}],
        "expected": {"text": text},
    }
    return {**row, **more}


def called(*calls: tuple[str, Any], text: str = "", finish: str = "tool_calls") -> Answer:
    """An answer with parsed calls; arguments as values or as text."""
    parsed = tuple(ToolCall(n, a if isinstance(a, str) else json.dumps(a)) for n, a in calls)
    return Answer(text, parsed, finish)
