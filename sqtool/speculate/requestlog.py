"""Reading the requests of a log, in any of four forms; every line of a file may have its own.

    sqtool       {"id": ..., "kind": ..., "messages": [...], "tools": [...], "max_tokens": 64, "expected": {...}}
    OpenAI chat  {"messages": [...], "tools": [...], "max_tokens": 64, "timestamp": ...}    (the body of a request)
    OpenAI batch {"custom_id": ..., "body": {the body of a request}}
    gateway      {"request": {the body of a request}, "timestamp": ..., "id": ...}

`timestamp` is optional: seconds or milliseconds (since 1970 or since anything), or ISO 8601. Every form may have `kind`
and `expected`; without `kind` a request of a log is `tools` or `chat`, by whether it offers tools.

Of a request's body the messages, tools and tool_choice, the token limit, stop texts and the response format are kept.
Sampling parameters are not: all arms answer greedily, or nothing could be compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from sqtool.errors import DataError
from sqtool.files import read_jsonl
from sqtool.speculate import scoring
from sqtool.speculate.traffic import Request

if TYPE_CHECKING:
    from evals.spec import EvaluateSpec

KEPT = ("tools", "tool_choice", "stop", "response_format")
MILLISECONDS = 1e11
"""A timestamp above this is one in milliseconds: as seconds it would be in the year 5138."""
LATEST = 1e15
"""In milliseconds the year 33658; the difference of two such times is still exact to the millisecond."""
MOST_TOKENS = 10_000_000
LONGEST_KIND = 200
OTHER_CALLS = ("prompt", "input")
"""A body with one of these and no messages was sent to another address of the API: completions, embeddings."""


def load_requests(path: Path, max_tokens: int) -> list[Request]:
    """The chat requests of a log. A conversation that ends with the assistant's answer is cut before it; lines of other
    calls (completions, embeddings) are left out. Raises `DataError` with file, line and field."""
    requests: list[Request] = []
    seen: set[str] = set()
    for number, line in read_jsonl(path):
        body, name = _body(path, number, line)
        if "messages" not in body and any(key in body for key in OTHER_CALLS):
            continue
        if not isinstance(name, str) or not name:
            raise DataError(path, "must be a text", line=number, field="id")
        if name in seen:
            raise DataError(path, f"{name!r} occurs twice", line=number, field="id")
        seen.add(name)
        requests.append(_request(path, number, line, body, name, max_tokens))
    if not requests:
        raise DataError(path, "holds no requests")
    first = min((request.arrival_s for request in requests if request.arrival_s is not None), default=0.0)
    return [r if r.arrival_s is None else replace(r, arrival_s=r.arrival_s - first) for r in requests]


def _body(path: Path, number: int, line: Mapping[str, Any]) -> tuple[Mapping[str, Any], Any]:
    """A line's chat request, and its id (made of the line's number where there is none)."""
    default = f"line-{number}"
    for key, id_keys in (("request", ("id", "request_id")), ("body", ("custom_id", "id"))):
        if key in line and "messages" not in line:
            body = line[key]
            if isinstance(body, str):  # some gateways keep the body as the text that was sent
                try:
                    body = json.loads(body)
                except (ValueError, RecursionError):
                    raise DataError(path, "neither an object nor JSON text", line=number, field=key) from None
            if not isinstance(body, dict):
                raise DataError(path, "must be the JSON object of a chat request", line=number, field=key)
            return body, next((line[name] for name in id_keys if name in line), default)
    return line, line.get("id", default)


def _request(
    path: Path, number: int, line: Mapping[str, Any], body: Mapping[str, Any], name: str, max_tokens: int
) -> Request:
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise DataError(path, "must be a list of chat messages", line=number, field="messages")
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise DataError(path, "holds nothing to answer", line=number, field="messages")
    for message in messages:
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list) or not all(
            isinstance(c, dict) and isinstance(c.get("function"), dict) for c in calls
        ):
            message = 'a call is {"type": "function", "function": {...}}'
            raise DataError(path, message, line=number, field="messages.tool_calls")
    if not isinstance(body.get("tools") or [], list):
        raise DataError(path, "must be a list of tools", line=number, field="tools")
    field = "max_tokens" if body.get("max_tokens") is not None else "max_completion_tokens"
    limit = body.get(field)
    limit = max_tokens if limit is None else limit
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MOST_TOKENS:
        raise DataError(path, f"must be a positive whole number, at most {MOST_TOKENS:,}", line=number, field=field)
    sent = {"messages": [_openai_message(m) for m in messages], "max_tokens": limit}
    sent |= {key: body[key] for key in KEPT if body.get(key)}
    expected = line.get("expected")
    if expected is not None and not isinstance(expected, dict):
        raise DataError(path, "must be an object", line=number, field="expected")
    scorer, options = scoring.infer(expected)
    logged = body is not line or "id" not in line
    kind = line.get("kind") or (("tools" if sent.get("tools") else "chat") if logged else "all")
    if not str(kind).isprintable() or len(str(kind)) > LONGEST_KIND:
        raise DataError(path, f"must be at most {LONGEST_KIND} printable characters", line=number, field="kind")
    request = Request(
        name, str(kind), sent, arrival_s=_seconds(path, number, line, body), scorer=scorer, options=options,
        expected=expected,
    )  # fmt: skip
    try:
        wrong = scoring.problem(request)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        wrong = where or "expected", first["msg"].removeprefix("Value error, ")
    if wrong is not None:
        raise DataError(path, wrong[1], line=number, field=wrong[0])
    try:
        # It is frozen as UTF-8 JSON and sent as such: what neither can hold is this line's fault, not a later stage's.
        json.dumps(request.to_dict(0), ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        message = "holds half a surrogate pair, NaN or infinity, or is nested too deeply"
        raise DataError(path, message, line=number, field="messages") from None
    return request


def _seconds(path: Path, number: int, line: Mapping[str, Any], body: Mapping[str, Any]) -> float | None:
    value = line.get("timestamp", body.get("timestamp"))
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= LATEST:  # NaN is not, either
            raise DataError(path, f"expected a time of at most {LATEST:g}", line=number, field="timestamp")
        return value / 1000 if value > MILLISECONDS else float(value)
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        message = f"expected seconds, milliseconds or an ISO 8601 time, found {value!r}"
        raise DataError(path, message, line=number, field="timestamp") from None
    # One log is in one zone; which one it is changes no distance.
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _openai_message(message: dict[str, Any]) -> dict[str, Any]:
    """The message with tool-call arguments as text, as the API wants them (pools keep them as objects)."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for number, call in enumerate(message["tool_calls"]):
        function = dict(call["function"])
        if not isinstance(function.get("arguments"), str):
            function["arguments"] = json.dumps(function.get("arguments") or {}, ensure_ascii=False)
        calls.append({"id": f"call_{number}", "type": "function", **call, "function": function})
    return {**message, "tool_calls": calls}


def task_requests(evaluate: EvaluateSpec, root: Path, max_tokens: int) -> list[Request]:
    """The items of the evaluation's tasks as traffic, each with its task's scorer. Tasks that ask for probabilities
    instead of answers are left out; `DataError` when none is left."""
    from evals.tasks import load_tasks

    requests = []
    for task in load_tasks(evaluate, root):
        if task.scorer.asks != "generate":
            continue
        for item in task.items:
            limit = item.max_tokens or task.spec.generation.max_tokens or max_tokens
            body: dict[str, Any] = {"messages": item.wire_messages(), "max_tokens": limit}
            if item.tools:
                body |= {"tools": list(item.tools), "tool_choice": item.tool_choice}
            requests.append(
                Request(
                    f"{task.name}/{item.id}",
                    item.kind or task.name,
                    body,
                    scorer=task.spec.scorer.name,
                    options=task.spec.scorer.options,
                    expected=item.expected.model_dump(mode="json", exclude_none=True) if item.expected else None,
                )
            )
    if not requests:
        raise DataError("evaluate.tasks", "no task generates answers, so there is nothing for `traffic: tasks`")
    return requests
