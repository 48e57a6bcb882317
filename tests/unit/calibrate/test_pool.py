from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calibrate.pool import read_pool
from sqtool.errors import DataError

from .conftest import item

USER = {"role": "user", "content": "hello"}


def call(function: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}]}


@pytest.mark.parametrize(
    ("bad", "field", "said"),
    [
        ("{", "", "not JSON"),
        ("[1]", "", "expected a JSON object"),
        ({}, "messages", "at least one"),
        ({"messages": []}, "messages", "at least one"),
        ({"messages": ["hi"]}, "messages[0]", "expected an object"),
        ({"messages": [{"role": "human", "content": "x"}]}, "messages[0].role", "'human'"),
        ({"messages": [USER, {"role": "user", "content": 3}]}, "messages[1].content", "expected text"),
        ({"messages": [USER, {"role": "assistant"}]}, "messages[1].content", "is missing"),
        (call({}), "messages[1].tool_calls[0].function.name", "named function"),
        (call({"name": "f", "arguments": "{"}), "messages[1].tool_calls[0].function.arguments", "not JSON"),
        (call({"name": "f", "arguments": [1]}), "messages[1].tool_calls[0].function.arguments", "expected an object"),
        ({"messages": [USER], "tools": {}}, "tools", "expected a list"),
        ({"messages": [USER], "tools": [{"name": "f"}]}, "tools[0].function.name", "named function"),
        ({"messages": [USER], "kind": 3}, "kind", "expected text"),
    ],
)
def test_a_bad_line_is_named_with_file_line_and_field(
    write: Callable[..., Path], bad: Any, field: str, said: str
) -> None:
    path = write(item(1, "a"), "", bad)
    with pytest.raises(DataError) as caught:
        read_pool([path])
    assert str(caught.value).startswith(f"{path}:3: ")
    assert caught.value.field == field
    assert said in str(caught.value)


def test_files_that_are_none(write: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_pool([tmp_path / "nowhere.jsonl"])
    with pytest.raises(DataError, match="is a folder"):
        read_pool([tmp_path])
    with pytest.raises(DataError, match="is empty"):
        read_pool([write("", name="empty.jsonl")])
    (tmp_path / "latin.jsonl").write_bytes(b'{"messages": "\xe9"}\n')
    with pytest.raises(DataError, match="UTF-8"):
        read_pool([tmp_path / "latin.jsonl"])


def test_duplicates_are_left_out_across_sources(write: Callable[..., Path]) -> None:
    first = write(item(1, "a"), item(2, "a"), item(1, "a"), name="one.jsonl")
    # Another id and kind, the same conversation.
    second = write({**item(2, "b"), "messages": item(2, "a")["messages"]}, item(3, "b"), name="two.jsonl")
    pool = read_pool([first, second])
    assert (len(pool), pool.duplicates) == (3, 2)
    assert [e.line for e in pool.entries[1]] == [2]


def test_records_come_back_as_they_are_written(write: Callable[..., Path]) -> None:
    records = [item(n, "a", text="Größe 日本") for n in range(5)]
    pool = read_pool([write(*records)])
    wanted = [pool.entries[0][n] for n in (3, 0, 4)]
    assert pool.read(wanted) == [records[3], records[0], records[4]]
