"""Records that do not pair, or are no records, are errors that say where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sqtool.errors import DataError
from sqtool.gate.records import load, pair, paired_metric, task_files

Write = Callable[..., Path]


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


GOOD = '{"id": "a", "scores": {"m": 1.0}}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "b", "scores": {"m": NaN}}', "NaN or null is not a score"),
        ('{"id": "b", "scores": {"m": null}}', "NaN or null is not a score"),
        ('{"id": "b", "scores": {"m": 1.01}}', r"1.01 is outside \[0, 1\]"),
        ('{"id": "b", "scores": {"m": -0.1}}', r"-0.1 is outside \[0, 1\]"),
        ('{"id": "b", "scores": {"m": "yes"}}', "not a record"),
        ('{"id": "b"}', "missing required field `scores`"),
        ('{"scores": {"m": 1}}', "missing required field `id`"),
        ('{"id": "b", "scores"', "not a JSON record"),
        ('["b"]', "not a record"),
        ('{"id": "a", "scores": {"m": 0}}', "item 'a' occurs 2 times"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = write_lines(tmp_path / "t.jsonl", GOOD, "", line)
    with pytest.raises(DataError, match=message) as caught:
        load(path)
    assert caught.value.line == 3
    assert caught.value.exit_code == 2


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(GOOD.encode() + b'\n{"id": "\xff", "scores": {"m": 1}}\n')
    with pytest.raises(DataError) as caught:
        load(path)
    assert caught.value.line == 2


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_zero_items(tmp_path: Path, content: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match="no items"):
        load(path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "t.jsonl")
    with pytest.raises(DataError, match="no such records folder"):
        task_files(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no <task>\.jsonl"):
        task_files(tmp_path)


def test_folders_and_files(write_records: Write) -> None:
    folder = write_records("a", {"m": [1.0]})
    expected = {"recall": folder / "recall.jsonl"}
    assert task_files(folder) == task_files(folder.parent) == task_files(folder / "recall.jsonl") == expected


def test_missing_items_name_the_side(write_records: Write) -> None:
    full = load(write_records("a", {"m": [1.0, 1.0, 0.0]}) / "recall.jsonl")
    part = load(write_records("b", {"m": [1.0, 1.0]}) / "recall.jsonl")
    with pytest.raises(DataError, match=r"1 items of .* are missing on the candidate's side, such as 'recall-00002'"):
        pair(full, part)
    with pytest.raises(DataError, match="missing on the baseline's side"):
        pair(part, full)


def test_other_order_pairs_by_id(write_records: Write) -> None:
    left = load(write_records("a", {"m": [1.0, 0.5, 0.0]}) / "recall.jsonl")
    right = load(write_records("b", {"m": [1.0, 0.5, 0.0]}, order=[2, 0, 1]) / "recall.jsonl")
    metric = paired_metric(pair(left, right), "m")
    assert metric.baseline.tolist() == metric.candidate.tolist() == [1.0, 0.5, 0.0]


def test_missing_metric_suggests(write_records: Write) -> None:
    task = pair(*(load(write_records(side, {"exact_match": [1.0]}) / "recall.jsonl") for side in "ab"))
    with pytest.raises(DataError, match="no metric 'exact_mach'") as caught:
        paired_metric(task, "exact_mach")
    assert caught.value.remedy == "did you mean 'exact_match'?"


def test_scored_on_one_side_only(write_records: Write) -> None:
    left = load(write_records("a", {"m": [1.0, None, 1.0], "k": [1.0, 1.0, 1.0]}) / "recall.jsonl")
    right = load(write_records("b", {"m": [1.0, 1.0, 1.0], "k": [1.0, 1.0, 1.0]}) / "recall.jsonl")
    with pytest.raises(DataError, match="1 items have 'm' on one side only, such as 'recall-00001'"):
        paired_metric(pair(left, right), "m")


def test_partly_scored_metric_uses_its_items(write_records: Write) -> None:
    columns = {"m": [1.0, None, 0.0], "k": [1.0, 1.0, 1.0]}
    task = pair(*(load(write_records(side, columns) / "recall.jsonl") for side in "ab"))
    metric = paired_metric(task, "m")
    assert metric.baseline.tolist() == [1.0, 0.0]
    assert metric.rows.tolist() == [0, 2]


def test_clusters(write_records: Write) -> None:
    names = ["x", "x", None, None]
    columns = {"m": [1.0] * 4}
    task = pair(*(load(write_records(s, columns, clusters=names) / "recall.jsonl") for s in "ab"))
    assert task.codes is not None
    assert task.codes.tolist() == [0, 0, 1, 2]
    alone = pair(*(load(write_records(s, columns, clusters=list("abcd")) / "recall.jsonl") for s in "ab"))
    assert alone.codes is None
    other = load(write_records("b", columns, clusters=["x", "y", None, None]) / "recall.jsonl")
    with pytest.raises(DataError, match="is in cluster 'y' here and in 'x'"):
        pair(load(write_records("a", columns, clusters=names) / "recall.jsonl"), other)


def test_whole_reads_single_records(write_records: Write) -> None:
    records = load(write_records("a", {"m": [1.0] * 5}) / "recall.jsonl")
    assert {at: record["id"] for at, record in records.whole([3, 1]).items()} == {1: "recall-00001", 3: "recall-00003"}
