"""One conversation, whatever shape it was kept in, and what can be asked of it.

A record is `{"id", "kind", "messages": [...], "tools": [...]}`; messages are OpenAI's and end with the assistant's
answer, tools are OpenAI tool objects. A plain document is `{"id", "kind", "text"}`. `as_record` makes either from:

- the record itself; an evaluation item, whose expected answer becomes the last message;
- a line of a request log: `{"request": {...}, "response": {...}}` or `{"messages": ..., "choices": ...}`, bodies as
  objects or as JSON text, within `body` or not (the batch API's form), content as text or as parts of type text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")
NO_KIND = "unspecified"
Record = dict[str, Any]
_KEPT = ("role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content")
HTTP_OK = range(200, 300)


class NoConversation(ValueError):  # noqa: N818 - says what is wrong, as NoAnswer does
    """Not a conversation: `field` is what is wrong, the text says how."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class NoAnswer(Exception):  # noqa: N818 - nothing is wrong with the log: that request failed
    """A logged request that got no answer."""


def as_record(value: Mapping[str, Any], kind: str | None = None) -> Record:
    """The record in `value`, checked; `kind` where it names none itself.

    Raises NoConversation with the field, NoAnswer for a logged request that failed.
    """
    body, answer = _bodies(value)
    record = dict(value) if body is value and answer is None else _logged(value, body, answer)
    expected = record.get("expected")
    if isinstance(expected, Mapping) and isinstance(record.get("messages"), list):
        record["messages"] = [*record["messages"], *_expected(expected)]
    if isinstance(record.get("messages"), list):
        record["messages"] = [_flat(message) for message in record["messages"]]
    if kind is not None and not record.get("kind"):
        record["kind"] = kind
    check_record(record)
    return record


def _bodies(value: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """(the request's body, the response's body or None when `value` is no line of a log)."""
    if "choices" in value:
        return value, value
    name = "request" if "request" in value else "body"
    if name not in value or "messages" in value:
        return value, None
    # Without any response it is a request alone, which is enough for a sample of the traffic.
    return _body(value, name), _body(value, "response") if "response" in value else None


def _body(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name)
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except json.JSONDecodeError:
            raise NoConversation(name, "is text that is not JSON") from None
    if found is None and name == "response":
        raise NoAnswer("no response was logged")
    if not isinstance(found, Mapping):
        raise NoConversation(name, f"expected an object, found {type(found).__name__}")
    status = found.get("status_code")
    if isinstance(status, int) and status not in HTTP_OK:
        raise NoAnswer(f"status {status}")
    return _body(found, "body") if "body" in found else found


def _logged(value: Mapping[str, Any], body: Mapping[str, Any], answer: Mapping[str, Any] | None) -> Record:
    name = value.get("id") or value.get("custom_id") or (answer or {}).get("id")
    record: Record = {} if name is None else {"id": str(name)}
    for place in (value, body.get("metadata")):
        if isinstance(place, Mapping) and "kind" not in record and isinstance(place.get("kind"), str):
            record["kind"] = place["kind"]
    first = {} if answer is None else _choice(answer)
    if isinstance(body.get("prompt"), str) and "messages" not in body:
        return {**record, "text": body["prompt"] + (first.get("text") or "")}
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise NoConversation("messages", "expected a list of messages with at least one in it")
    if first:
        message = first.get("message")
        if not isinstance(message, Mapping):
            raise NoConversation("choices[0].message", "expected an object (streamed chunks must be joined first)")
        answered = {key: message[key] for key in _KEPT if message.get(key) is not None}
        messages = [*messages, {"role": "assistant", "content": "", **answered}]
    record["messages"] = messages
    if body.get("tools"):
        record["tools"] = body["tools"]
    return record


def _choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = answer.get("choices")
    if answer.get("error") or not choices:
        raise NoAnswer("the response has no choices")
    if not isinstance(choices, list) or not isinstance(choices[0], Mapping):
        raise NoConversation("choices", "expected a list of objects")
    first: Mapping[str, Any] = choices[0]
    return first


def _expected(expected: Mapping[str, Any]) -> list[dict[str, Any]]:
    if isinstance(expected.get("text"), str):
        return [{"role": "assistant", "content": expected["text"]}]
    if expected.get("calls"):
        calls = [{"type": "function", "function": call} for call in expected["calls"]]
        return [{"role": "assistant", "content": "", "tool_calls": calls}]
    return []


def _flat(message: Any) -> Any:
    """The message with content in parts of type text as one text; anything else as it is."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        return {**message, "content": "".join(part["text"] for part in content)}
    return message


def check_record(record: Mapping[str, Any]) -> None:
    """Raises NoConversation that names the field when `record` is no conversation and no document."""
    if not isinstance(record.get("kind"), str | None):
        raise NoConversation("kind", "expected text")
    if "messages" not in record and "text" in record:
        if not isinstance(record["text"], str) or not record["text"].strip():
            raise NoConversation("text", "expected text that is not empty")
        return
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        raise NoConversation("messages", "expected a list of messages with at least one in it")
    for place, message in enumerate(messages):
        _check_message(message, f"messages[{place}]")
    tools = record.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise NoConversation("tools", "expected a list of OpenAI tool objects")
    for place, tool in enumerate(tools or []):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise NoConversation(f"tools[{place}].function.name", "expected a tool object with a named function")


def _check_message(message: Any, field: str) -> None:
    if not isinstance(message, dict):
        raise NoConversation(field, "expected an object with role and content")
    if message.get("role") not in ROLES:
        raise NoConversation(f"{field}.role", f"expected one of {', '.join(ROLES)}, found {message.get('role')!r}")
    if not isinstance(message.get("content"), str | None):
        raise NoConversation(f"{field}.content", "expected text")
    calls = message.get("tool_calls")
    if message.get("content") is None and not calls:
        raise NoConversation(f"{field}.content", "is missing, and there are no tool_calls")
    if not isinstance(calls, list | None):
        raise NoConversation(f"{field}.tool_calls", "expected a list")
    for number, call in enumerate(calls or []):
        place = f"{field}.tool_calls[{number}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise NoConversation(f"{place}.function.name", "expected a call of a named function")
        try:
            given = arguments(function)
        except json.JSONDecodeError:
            raise NoConversation(f"{place}.function.arguments", "is text that is not JSON") from None
        if not isinstance(given, dict):
            raise NoConversation(f"{place}.function.arguments", "expected an object")


def arguments(function: Mapping[str, Any]) -> Any:
    """A call's arguments as an object: a request log keeps them as they went over the wire, as JSON text."""
    given = function.get("arguments", {})
    return json.loads(given) if isinstance(given, str) else given


def messages_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages; none of a plain document."""
    found: list[dict[str, Any]] = record.get("messages") or []
    return found


def calls(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every function that an assistant's message calls, with name and arguments."""
    for message in messages_of(record):
        for call in message.get("tool_calls") or ():
            yield call["function"]


def tools_called(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the tools that the conversation's assistant calls, sorted, each once."""
    return tuple(sorted({function["name"] for function in calls(record)}))


def tools_offered(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the tools that the conversation offers, sorted, each once."""
    return tuple(sorted({tool["function"]["name"] for tool in record.get("tools") or []}))


def spoken(record: Mapping[str, Any], *roles: str) -> list[str]:
    """What was said by `roles` (everybody without any), one text a message: content, then calls as name and arguments.

    Schemas of tools are not spoken; a plain document is spoken by nobody in particular.
    """
    texts = [record["text"]] if "text" in record and "messages" not in record else []
    for message in messages_of(record):
        if roles and message["role"] not in roles:
            continue
        made = [message.get("content") or ""]
        called = [call["function"] for call in message.get("tool_calls") or ()]
        made += [f"{function['name']} {json.dumps(arguments(function), ensure_ascii=False)}" for function in called]
        texts.append(" ".join(part for part in made if part))
    return [text for text in texts if text]


def prompt_chars(record: Mapping[str, Any]) -> int:
    """About how long the prompt is, in characters: everything before the last answer, and the tools' schemas."""
    if "messages" not in record:
        return len(record["text"])
    messages = messages_of(record)
    before = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    tools = record.get("tools")
    return sum(len(m.get("content") or "") for m in before) + (len(json.dumps(tools)) if tools else 0)


def length_bin(length: int) -> str:
    """The power of two that `length` falls into, as `128-255`."""
    low = 1 << max(0, length.bit_length() - 1)
    return f"{low}-{2 * low - 1}" if length > 1 else str(length)
