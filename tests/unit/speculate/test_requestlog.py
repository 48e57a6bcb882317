"""Logs of requests in every form, and what their lines may get wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqtool.errors import DataError
from sqtool.speculate.requestlog import load_requests
from sqtool.speculate.traffic import Request

TOOL = {"type": "function", "function": {"name": "turn", "parameters": {"type": "object"}}}
HELLO = [{"role": "user", "content": "hello"}]


def load(folder: Path, *lines: dict[str, Any]) -> list[Request]:
    path = folder / "t.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return load_requests(path, 64)


def test_sqtools_own_form(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    conversation = [
        {"role": "user", "content": "do"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "done"},
    ]
    first, second = load(
        tmp_path,
        {"id": "a", "messages": [*HELLO, {"role": "assistant", "content": "cut off"}]},
        {"id": "b", "kind": "tool_simple", "max_tokens": 5, "tools": [TOOL], "messages": conversation},
    )
    assert (first.kind, first.body["max_tokens"], len(first.body["messages"])) == ("all", 64, 1)
    assert second.body["max_tokens"] == 5
    assert second.body["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"x": 1}'
    assert first.arrival_s is None


def test_openai_and_gateway_forms(tmp_path: Path) -> None:
    body = {"model": "m", "messages": HELLO, "temperature": 0.9, "stream": True, "max_completion_tokens": 7}
    chat, batch, gateway, text = load(
        tmp_path,
        {**body, "tools": [TOOL], "tool_choice": "required", "timestamp": 1700000010},
        {"custom_id": "x", "method": "POST", "url": "/v1/chat/completions", "body": body},
        {"request": {**body, "messages": HELLO}, "timestamp": "2023-11-14T22:13:25Z", "id": "g", "status": 200},
        {"request": json.dumps(body), "timestamp": 1700000008500},
    )
    assert (chat.id, chat.kind, batch.id, batch.kind, gateway.id, text.id) == (
        "line-1", "tools", "x", "chat", "g", "line-4",
    )  # fmt: skip
    assert set(chat.body) == {"messages", "max_tokens", "tools", "tool_choice"}  # nothing of how it was sampled
    assert {r.body["max_tokens"] for r in (chat, batch, gateway, text)} == {7}
    assert [r.arrival_s for r in (chat, batch, gateway, text)] == [5.0, None, 0.0, 3.5]


def test_other_calls_of_a_gateway_are_left_out(tmp_path: Path) -> None:
    requests = load(
        tmp_path,
        {"request": {"input": "embed me"}, "id": "e"},
        {"request": {"prompt": "complete me"}, "id": "p"},
        {"request": {"messages": HELLO}, "id": "c"},
    )
    assert [request.id for request in requests] == ["c"]


def test_what_is_expected_says_who_scores(tmp_path: Path) -> None:
    def line(name: str, **more: Any) -> dict[str, Any]:
        return {"id": name, "messages": HELLO, **more}

    requests = load(
        tmp_path,
        line("calls", tools=[TOOL], expected={"calls": [{"name": "turn", "arguments": {}}]}),
        line("possible", tools=[TOOL], expected={"possible_calls": [{"name": "turn", "arguments": {}}]}),
        line("text", expected={"text": "hello", "aliases": ["hi"]}),
        line("pattern", expected={"pattern": "h.*"}),
        line("schema", expected={"json_schema": {"type": "object"}}),
        line("nothing"),
    )
    assert [(request.scorer, dict(request.options)) for request in requests] == [
        ("tool_calls", {}),
        ("tool_calls", {"compare": "bfcl"}),
        ("exact_match", {}),
        ("regex", {}),
        ("json_schema", {}),
        (None, {}),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": 3, "messages": []}', "id: must be a text"),
        ('{"id": "a", "messages": []}', "nothing to answer"),
        ('{"id": "a", "messages": ["hi"]}', "list of chat messages"),
        ('{"id": "a", "messages": [{"role": "user"}], "max_tokens": 0}', "max_tokens: must be a positive whole number"),
        ('{"id": "a", "messages": [{"role": "user"}]}\n{"id": "a", "messages": []}', "occurs twice"),
        ('{"request": "not json", "id": "a"}', "t.jsonl:1: request: neither an object nor JSON text"),
        ('{"request": 3, "id": "a"}', "request: must be the JSON object"),
        ('{"messages": [{"role": "user"}], "timestamp": "noon"}', "timestamp: expected seconds, milliseconds or"),
        ('{"messages": [{"role": "user"}], "expected": "x"}', "expected: must be an object"),
        ('{"messages": [{"role": "user"}], "expected": {"text": "x", "calls": []}}', "give exactly one of"),
        ('{"messages": [{"role": "user"}], "expected": {"calls": []}}', "tools: missing"),
        ('{"request": {"input": "x"}}', "holds no requests"),
        ("", "holds no requests"),
        ("{", "not JSON"),
    ],
)
def test_bad_lines(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        load_requests(path, 64)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
CALL = st.fixed_dictionaries({}, optional={"function": ANYTHING | st.just({"name": "f", "arguments": {}})})
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "nobody"])},
    optional={"content": ANYTHING, "tool_calls": ANYTHING | st.lists(ANYTHING | CALL, max_size=2)},
)
EXPECTED = st.fixed_dictionaries({}, optional={"text": ANYTHING, "calls": ANYTHING, "pattern": ANYTHING})
BODY = st.fixed_dictionaries(
    {"messages": ANYTHING | st.lists(MESSAGE, max_size=3)},
    optional={"tools": ANYTHING | st.just([TOOL]), "max_tokens": ANYTHING, "id": ANYTHING | st.just("a")},
)
ABOUT = {"id": ANYTHING | st.just("a"), "timestamp": ANYTHING, "kind": ANYTHING, "expected": ANYTHING | EXPECTED}
LINE = BODY | st.fixed_dictionaries({"request": ANYTHING | BODY}, optional=ABOUT)


@given(ANYTHING | LINE | st.tuples(BODY, st.fixed_dictionaries({}, optional=ABOUT)).map(lambda two: two[0] | two[1]))
def test_any_line_is_read_or_named(tmp_path_factory: pytest.TempPathFactory, line: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(json.dumps(line) + "\n")
    try:
        load_requests(path, 64)
    except DataError as error:
        assert "any.jsonl" in error.message  # noqa: PT017 - either it is read, or the error says where it fails
