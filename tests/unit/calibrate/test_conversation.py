"""Whatever a conversation was kept in, the same record comes out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from calibrate.conversation import (
    NoAnswer,
    NoConversation,
    as_record,
    length_bin,
    prompt_chars,
    spoken,
    tools_called,
)

USER = {"role": "user", "content": "hello"}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"n": 5}'}}
ANSWER = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [CALL]}
REQUEST = {"model": "m", "messages": [USER], "tools": TOOLS}
RESPONSE = {"id": "r1", "choices": [{"index": 0, "message": ANSWER, "finish_reason": "tool_calls"}]}
WANTED = [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}]


@pytest.mark.parametrize(
    "line",
    [
        {"request": REQUEST, "response": RESPONSE},
        {"request": json.dumps(REQUEST), "response": json.dumps(RESPONSE)},
        {"request": {"body": REQUEST}, "response": {"status_code": 200, "body": RESPONSE}},
        {"custom_id": "r1", "method": "POST", "body": REQUEST, "response": {"body": RESPONSE}},
        {**REQUEST, **RESPONSE},
    ],
)
def test_a_logged_request_becomes_a_conversation(line: dict[str, Any]) -> None:
    record = as_record(line)
    assert record["messages"] == WANTED
    assert record["tools"] == TOOLS
    assert record["id"] == "r1"
    assert tools_called(record) == ("f",)


def test_what_gateways_add_is_kept_apart() -> None:
    line = {"id": 7, "kind": "search", "request": {**REQUEST, "metadata": {"kind": "other"}}, "response": RESPONSE}
    record = as_record(line)
    assert (record["id"], record["kind"]) == ("7", "search")
    assert set(record) == {"id", "kind", "messages", "tools"}


@pytest.mark.parametrize(
    "response",
    [
        None,
        {"status_code": 500, "body": {"error": {"message": "no"}}},
        {"error": {"message": "no"}},
        {"choices": []},
    ],
)
def test_a_request_that_failed_has_no_answer(response: Any) -> None:
    with pytest.raises(NoAnswer):
        as_record({"request": REQUEST, "response": response})


def test_a_request_alone_is_a_conversation_without_its_answer() -> None:
    assert as_record({"custom_id": "a", "body": REQUEST})["messages"] == [USER]
    assert as_record({"request": REQUEST})["messages"] == [USER]


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ({"request": "{", "response": RESPONSE}, "request"),
        ({"request": 3, "response": RESPONSE}, "request"),
        ({"request": {"messages": "x"}, "response": RESPONSE}, "messages"),
        ({"request": REQUEST, "response": {"choices": [{"delta": {"content": "x"}}]}}, "choices[0].message"),
        ({"text": "  "}, "text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content"),
    ],
)
def test_what_is_none_is_named_by_its_field(line: dict[str, Any], field: str) -> None:
    with pytest.raises(NoConversation) as caught:
        as_record(line)
    assert caught.value.field == field


def test_content_in_parts_of_text_is_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert as_record({"messages": [{"role": "user", "content": parts}]})["messages"][0]["content"] == "ab"


def test_an_evaluation_item_ends_with_the_answer_that_is_expected() -> None:
    text = as_record({"messages": [USER], "expected": {"text": "hi"}})
    assert text["messages"][-1] == {"role": "assistant", "content": "hi"}
    called = as_record({"messages": [USER], "expected": {"calls": [{"name": "f", "arguments": {"n": 5}}]}})
    assert tools_called(called) == ("f",)
    assert as_record({"messages": [USER], "expected": {"calls": []}})["messages"] == [USER]


def test_completions_and_documents_are_plain_text() -> None:
    assert as_record({"prompt": "a ", "choices": [{"text": "b"}]})["text"] == "a b"
    assert as_record({"text": "a document"}, "prose") == {"text": "a document", "kind": "prose"}


def test_what_is_said_leaves_schemas_out_and_calls_in() -> None:
    record = as_record({"request": REQUEST, "response": RESPONSE})
    assert spoken(record) == ["hello", 'f {"n": 5}']
    assert spoken(record, "user") == ["hello"]
    assert spoken({"text": "doc"}) == ["doc"]


def test_a_prompt_is_as_long_as_what_comes_before_the_answer() -> None:
    record = as_record({"request": REQUEST, "response": RESPONSE})
    assert prompt_chars(record) == len("hello") + len(json.dumps(TOOLS))
    assert [length_bin(n) for n in (0, 1, 2, 3, 4, 7, 8, 1000)] == [
        "0", "1", "2-3", "2-3", "4-7", "4-7", "8-15", "512-1023",
    ]  # fmt: skip
