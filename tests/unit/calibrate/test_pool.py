from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from calibrate.pool import KEPT_OF_A_KIND, Pool, read_pool
from calibrate.spec import CalibrateSpec, SourceSpec
from sqtool.errors import DataError

from .conftest import item

USER = {"role": "user", "content": "hello"}


def read(*paths: Path, seed: int = 0, **settings: Any) -> Pool:
    sources = [SourceSpec(path=str(path)) for path in paths]
    return read_pool(CalibrateSpec.model_validate(settings), sources, Path(), BytesIO(), seed=seed)


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
        read(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert caught.value.field == field
    assert said in str(caught.value)


def test_files_that_are_none(write: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such calibration file"):
        read(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match="no file here ends in"):
        read(tmp_path)
    with pytest.raises(DataError, match="is empty"):
        read(write("", name="empty.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"messages": "\xe9"}\n')
    with pytest.raises(DataError, match=r"latin\.jsonl:1: not UTF-8 text"):
        read(tmp_path / "latin.jsonl")


def test_bad_lines_are_skipped_and_counted_when_asked(write: Callable[..., Path]) -> None:
    path = write(item(1, "a"), "{", {"messages": []}, item(2, "a"))
    with pytest.raises(DataError) as caught:
        read(path)
    assert "on_bad_line: skip" in caught.value.remedy
    pool = read(path, on_bad_line="skip")
    assert (len(pool), pool.counts.read, pool.counts.bad_lines) == (2, 4, 2)
    assert [shown.partition(": ")[0] for shown in pool.counts.shown] == [f"{path}:2", f"{path}:3"]


def test_a_large_source_is_drawn_from_evenly_and_by_the_seed(write: Callable[..., Path]) -> None:
    path = write(*[item(n, "common") for n in range(900)], *[item(n, "rare") for n in range(900, 905)])
    limits: dict[str, Any] = {"pool_limit": 200, "num_calibration_samples": 10}
    pool, again, other = read(path, **limits), read(path, **limits), read(path, seed=1, **limits)
    lines = [[e.line for e in p.all()] for p in (pool, again, other)]
    assert lines[0] == lines[1] != lines[2]
    assert lines[0] == sorted(lines[0])
    kept = Counter(e.kind for e in pool.all())
    assert kept["rare"] == 5, "a few of every kind are kept, however rare"
    assert 195 <= kept["common"] <= 200
    assert pool.kinds == (Counter({"common": 900, "rare": 5}),), "shares are those of the whole source"
    # An even draw takes from everywhere: with 200 of 905, 100 from each half within five standard deviations.
    assert abs(sum(line <= 452 for line in lines[0]) - len(lines[0]) / 2) < 32


def test_a_draw_without_shuffle_is_the_first_ones(write: Callable[..., Path]) -> None:
    path = write(*[item(n, "common") for n in range(300)], *[item(n, "rare") for n in range(300, 400)])
    pool = read(path, pool_limit=50, num_calibration_samples=10, shuffle=False)
    assert [e.line for e in pool.all()] == [*range(1, 51), *range(51, 65), *range(301, 301 + KEPT_OF_A_KIND)]


def test_repeated_records_are_counted_even_when_they_are_not_kept(write: Callable[..., Path]) -> None:
    path = write(*[item(n % 300, "a") for n in range(900)])
    pool = read(path, pool_limit=100, num_calibration_samples=10)
    assert pool.duplicates == 600
    assert len(pool) == 100
    assert len({tuple(m["content"] for m in r["messages"]) for r in pool.read(pool.all())}) == 100


def test_kinds_that_are_ids_are_an_error(write: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="more than 4096 different kinds"):
        read(write(*[item(n, f"kind-{n}") for n in range(4097)]))


def test_duplicates_are_left_out_across_sources(write: Callable[..., Path]) -> None:
    first = write(item(1, "a"), item(2, "a"), item(1, "a"), name="one.jsonl")
    # Another id and kind, the same conversation.
    second = write({**item(2, "b"), "messages": item(2, "a")["messages"]}, item(3, "b"), name="two.jsonl")
    pool = read(first, second)
    assert (len(pool), pool.duplicates) == (3, 2)
    assert [e.line for e in pool.entries[1]] == [2]


def test_records_come_back_as_they_are_written(write: Callable[..., Path]) -> None:
    records = [item(n, "a", text="Größe 日本") for n in range(5)]
    pool = read(write(*records))
    wanted = [pool.entries[0][n] for n in (3, 0, 4)]
    assert pool.read(wanted) == [records[3], records[0], records[4]]
