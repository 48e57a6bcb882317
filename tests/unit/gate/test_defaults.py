"""The gate without a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sqtool.errors import DataError
from sqtool.gate.defaults import spec_for
from sqtool.gate.judge import judge

Write = Callable[..., Path]


def test_usual_metrics_and_unknown_tasks(write_records: Write) -> None:
    scores = {"exact_match": [1.0] * 150, "contains": [1.0] * 150}
    for side in "ab":
        write_records(side, scores, task="recall")
        folder = {side: write_records(side, scores, task="mine")}[side]
    left, right = folder.parent.parent / "a/records", folder
    assert spec_for(left, right).gated == ("mine.contains", "mine.exact_match", "recall.exact_match")
    spec = spec_for(left, right, ["recall"], max_drop=0.1, inconclusive="allow")
    assert (spec.gated, spec.inconclusive) == (("recall.exact_match",), "allow")
    assert judge(spec, left, right).outcome == "PASS"
    with pytest.raises(DataError, match="has no records of task 'recal'") as caught:
        spec_for(left, right, ["recal"])
    assert caught.value.remedy == "did you mean 'recall'?"


def test_two_files_of_any_name(write_records: Write, tmp_path: Path) -> None:
    scores = {"m": [1.0] * 150}
    left = write_records("a", scores).joinpath("recall.jsonl").rename(tmp_path / "before.jsonl")
    right = write_records("b", scores).joinpath("recall.jsonl").rename(tmp_path / "after.jsonl")
    spec = spec_for(left, right)
    assert spec.gated == ("before.m",)
    assert judge(spec, left, right).outcome == "PASS"


def test_nothing_in_common(write_records: Write) -> None:
    left = write_records("a", {"m": [1.0]}, task="one")
    write_records("a", {"m": [1.0]}, task="two")
    right = write_records("b", {"m": [1.0]}, task="three")
    with pytest.raises(DataError, match="no task in common"):
        spec_for(left, right)
