"""Slices: numbers sorted into bins, the fields that need no entry, and fields that nobody has."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sqtool.errors import DataError
from sqtool.gate.judge import judge
from sqtool.gate.records import PairedTask, TaskRecords, load, metric_slices, pair, paired_metric, slice_values
from sqtool.gate.spec import GateSpec, SliceRule

Write = Callable[..., Path]


def rule(field: str, bins: Sequence[float] | None = None) -> SliceRule:
    return SliceRule.model_validate({"field": field, "bins": bins})


def task_of(values: Sequence[Any], ids: Sequence[str] | None = None) -> PairedTask:
    n = len(values)
    names = list(ids or (f"i{k:04d}" for k in range(n)))
    fields = [{} if value is None else {"n": value} for value in values]
    records = TaskRecords(Path("t.jsonl"), "", names, [None] * n, [None] * n, fields, {"m": np.ones(n)})
    return pair(records, records)


def test_names_of_bins() -> None:
    assert rule("n", [1, 4]).bin_names() == ["up to 1", "over 1, up to 4", "over 4"]
    assert rule("n", [0.5, 2.0]).bin_names() == ["up to 0.5", "over 0.5, up to 2", "over 2"]
    assert rule("n", [1_000_000]).bin_names() == ["up to 1000000", "over 1000000"]
    assert rule("n").bin_names() == []


def test_an_interval_contains_its_upper_end() -> None:
    values = slice_values(task_of([0, 1, 1.5, 4, 5, None]), rule("n", [1, 4]))
    assert values == ["up to 1", "up to 1", "over 1, up to 4", "over 1, up to 4", "over 4", ""]


numbers = st.integers(-1000, 1000) | st.floats(-1e6, 1e6, allow_nan=False)
ends = st.lists(numbers, min_size=1, max_size=6, unique_by=float).map(sorted)


@given(ends, st.lists(numbers, min_size=1, max_size=40))
def test_every_number_falls_into_exactly_one_bin(bins: list[float], values: list[float]) -> None:
    binned = slice_values(task_of(values), rule("n", bins))
    lows, highs = [-np.inf, *bins], [*bins, np.inf]
    for value, name in zip(values, binned, strict=True):
        holding = [at for at, (low, high) in enumerate(zip(lows, highs, strict=True)) if low < value <= high]
        assert [name] == [rule("n", bins).bin_names()[at] for at in holding]
    task = task_of(values)
    parts = dict(metric_slices(task, paired_metric(task, "m"), rule("n", bins)))
    rows = sorted(int(row) for part in parts.values() for row in part.rows)
    assert rows == list(range(len(values))), "the slices together are the items, each once"
    assert list(parts) == [name for name in rule("n", bins).bin_names() if name in parts], "from low to high"


@given(ends, st.lists(numbers | st.none(), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_bins_do_not_depend_on_the_order_of_items(bins: list[float], values: list[Any], rng: Any) -> None:
    if all(value is None for value in values):
        return
    order = list(range(len(values)))
    rng.shuffle(order)
    task = task_of(values)
    shuffled = task_of([values[k] for k in order], [f"i{k:04d}" for k in order])
    assert slice_values(task, rule("n", bins)) == slice_values(shuffled, rule("n", bins))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"field": "n", "bins": []}, "at least 1 item"),
        ({"field": "n", "bins": [1, 1]}, "bins must increase strictly: 1 follows 1"),
        ({"field": "n", "bins": [2, 1]}, "bins must increase strictly: 1 follows 2"),
        ({"field": "n", "bins": [float("nan")]}, "finite"),
        ({"field": "n", "bins": ["many"]}, "valid integer"),
        ({"field": "n", "bins": 4}, "valid tuple"),
        ({"field": "kind", "bins": [1]}, "kind is a text"),
    ],
)
def test_bins_that_are_none(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GateSpec.model_validate({"metrics": {"a.x": 0.02}, "slices": [section]})


def test_bins_survive_the_verdict_file() -> None:
    spec = GateSpec.model_validate({"metrics": {"a.x": 0.02}, "slices": [{"field": "n", "bins": [1, 2.5]}]})
    assert GateSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize("value", ["many", True, [1]])
def test_what_is_no_number_has_no_bin(value: Any) -> None:
    with pytest.raises(DataError, match=r"fields.n: item 'i0001' has .*, and gate.slices sorts numbers into bins"):
        slice_values(task_of([1, value]), rule("n", [1]))


def test_a_field_that_nobody_has_gets_a_near_name() -> None:
    with pytest.raises(DataError, match=r"m: is in gate\.slices, and no item that is scored has it") as caught:
        slice_values(task_of([1, 2]), rule("m"))
    assert caught.value.remedy == "expected one of: kind, n"
    records = task_of([1]).baseline
    for each in records.fields or ():
        each["language"] = "en"
    with pytest.raises(DataError) as caught:
        slice_values(pair(records, records), rule("langauge", [1]))
    assert caught.value.remedy == "did you mean 'language'?"


def lines(path: Path, *records: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"scores": {"m": 1}, **record}) + "\n" for record in records))
    return path


def test_prompt_tokens_come_from_the_output(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "t.jsonl",
        {"id": "a", "output": {"text": "x", "prompt_tokens": 12}},
        {"id": "b", "output": {"text": "x", "prompt_tokens": 300}, "fields": {"prompt_tokens": 5}},
        {"id": "c", "output": "a text alone"},
        {"id": "d", "output": {}},
        {"id": "e"},
        {"id": "f", "output": None, "fields": None},
    )
    records = load(path, with_fields=True)
    assert slice_values(pair(records, records), rule("prompt_tokens", [8])) == ["over 8", "up to 8", "", "", "", ""]


@pytest.mark.parametrize("output", [["a"], 1, 1.5, True, "text", {"prompt_tokens": None}])
def test_any_output_can_be_read(tmp_path: Path, output: Any) -> None:
    records = load(lines(tmp_path / "t.jsonl", {"id": "a", "output": output, "fields": {"n": 1}}), with_fields=True)
    assert records.fields == [{"n": 1}]


def test_the_verdict_judges_bins(write_records: Write) -> None:
    fields = [{"n_tools": 1 + i % 8} for i in range(2000)]
    fine = [1.0] * 2000
    broken = [0.0 if f["n_tools"] == 8 and i % 3 == 0 else 1.0 for i, f in enumerate(fields)]
    left = write_records("a", {"m": fine}, fields=fields)
    right = write_records("b", {"m": broken}, fields=fields)
    spec = GateSpec.model_validate(
        {"metrics": {"recall.m": 0.1}, "slices": [{"field": "n_tools", "bins": [1, 4, 7], "require": "pass"}]}
    )
    verdict = judge(spec, left, right)
    assert [(part.name, part.items, part.outcome, part.require) for part in verdict.slices] == [
        ("recall.m[n_tools=up to 1]", 250, "PASS", "pass"),
        ("recall.m[n_tools=over 1, up to 4]", 750, "PASS", "pass"),
        ("recall.m[n_tools=over 4, up to 7]", 750, "PASS", "pass"),
        ("recall.m[n_tools=over 7]", 250, "REGRESSED", "pass"),
    ]
    assert verdict.metric("recall.m").outcome == "PASS"
    assert verdict.outcome == "REGRESSED"
    with pytest.raises(DataError) as caught:
        judge(GateSpec.model_validate({"metrics": {"recall.m": 0.1}, "slices": ["n_tool"]}), left, right)
    assert caught.value.remedy == "did you mean 'n_tools'?"
