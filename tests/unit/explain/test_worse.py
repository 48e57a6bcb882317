from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqtool.explain.worse import AFTER, BEFORE, change, first_difference, said
from sqtool.gate.records import load, pair

Write = Callable[..., Path]
N = 120


def paired(write: Write, left: list[float], right: list[float], **other: Any) -> Any:
    sides = [write(side, {"m": scores}, **other) for side, scores in (("baseline", left), ("candidate", right))]
    return pair(*(load(folder / "recall.jsonl", with_fields=True) for folder in sides))


def annotate(folder: Path, **columns: Callable[[int], Any]) -> None:
    path = folder / "recall.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for n, record in enumerate(records):
        record.update({name: value(n) for name, value in columns.items()})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_counts_kinds_and_failures(write_records: Write, tmp_path: Path) -> None:
    left, right = [1.0] * N, [float(n >= 30) for n in range(N)]
    left[100] = 0.0
    task = paired(write_records, left, right, kinds=["a" if n < 40 else "b" for n in range(N)])
    annotate(task.candidate.path.parent, failure=lambda n: "wrong_arguments" if n < 20 else "wrong_tool")
    found = change(task, "recall.m")
    assert (found.items, found.worse, found.better) == (N, 30, 1)
    assert [(k.value, k.worse, k.items) for k in found.kinds] == [("a", 30, 40), ("b", 0, 80)]
    assert found.failures == (("wrong_arguments", 20), ("wrong_tool", 10))
    assert [(e.id, e.at) for e in found.examples] == [("recall-00000", 0), ("recall-00001", 0), ("recall-00002", 0)]


def test_a_metric_that_should_be_low_is_turned_round(write_records: Write) -> None:
    task = paired(write_records, [0.0] * N, [1.0] * 5 + [0.0] * (N - 5))
    assert change(task, "recall.m", lower_is_better=True).worse == 5
    assert change(task, "recall.m").better == 5


def test_the_worst_come_first_and_records_are_matched_by_id(write_records: Write) -> None:
    left, right = [1.0] * N, [1.0] * N
    right[7], right[50] = 0.5, 0.0
    order = list(reversed(range(N)))
    baseline = write_records("baseline", {"m": left})
    candidate = write_records("candidate", {"m": right}, order=order)
    task = pair(*(load(f / "recall.jsonl", with_fields=True) for f in (baseline, candidate)))
    found = change(task, "recall.m")
    assert [(e.id, e.baseline, e.candidate) for e in found.examples] == [
        ("recall-00050", "baseline says 50", "candidate says 50"),
        ("recall-00007", "baseline says 7", "candidate says 7"),
    ]


def test_parts_are_found_in_fields_and_numbers_are_cut_at_quartiles(write_records: Write) -> None:
    left, right = [1.0] * N, [float(n < 90) for n in range(N)]
    fields = [{"length": n, "tool": "x" if n % 2 else "y", "name": f"unique {n}", "rare": n == 119} for n in range(N)]
    found = change(paired(write_records, left, right, fields=fields), "recall.m")
    best = found.parts[0]
    assert (best.field, best.value, best.items, best.worse) == ("length", "90 to 119", 30, 30)
    assert {p.field for p in found.parts} == {"length", "rare", "tool"}
    # four quartiles, two tools, `rare: false`; not unique names, not a part of one item, not the whole
    assert found.looked_at == 7


def test_nothing_changed(write_records: Write) -> None:
    found = change(paired(write_records, [1.0] * N, [1.0] * N), "recall.m")
    assert (found.worse, found.better, found.failures, found.parts, found.examples) == (0, 0, (), (), ())


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("same", "same", (None, "same", "same")),
        ("abc", "abd", (2, "abc", "abd")),
        ("abc", "abcd", (3, "abc", "abcd")),
        ("", "x", (0, "", "x")),
        ("x" * 100 + "a", "x" * 100 + "b", (100, "..." + "x" * BEFORE + "a", "..." + "x" * BEFORE + "b")),
        ("a" + "x" * 100, "b" + "x" * 100, (0, "a" + "x" * (AFTER - 1) + "...", "b" + "x" * (AFTER - 1) + "...")),
    ],
)
def test_first_difference(left: str, right: str, expected: tuple[int | None, str, str]) -> None:
    assert first_difference(left, right) == expected


@given(st.text(max_size=200), st.text(max_size=200))
def test_up_to_the_first_difference_the_texts_are_equal(left: str, right: str) -> None:
    at, shown, other = first_difference(left, right)
    if at is None:
        assert left == right
        return
    assert left[:at] == right[:at]
    assert left[at : at + 1] != right[at : at + 1]
    assert max(len(shown), len(other)) <= BEFORE + AFTER + 6


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (None, ""),
        ({}, ""),
        ({"text": "hi", "tool_calls": []}, "hi"),
        ({"text": "", "tool_calls": [{"name": "f", "arguments": '{"a": 1}'}]}, 'f {"a": 1}'),
        ({"tool_calls": [{"odd": 1}, {"name": "g", "arguments": {}}]}, '{"odd": 1}; g {}'),
        ("plain", "plain"),
    ],
)
def test_what_was_said(output: Any, text: str) -> None:
    assert said(output) == text
