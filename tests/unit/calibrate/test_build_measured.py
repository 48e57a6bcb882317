"""A set that is measured: against traffic, against test items, and mended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sqtool.errors import CoverageError, DataError
from tests.unit.calibrate.building import Notes, Write, chosen_of, make, pool

from .conftest import item

__all__ = ["pool"]


TEST_ITEM = {"id": "t1", "messages": [{"role": "user", "content": "question 17?"}], "expected": {"text": "Answer 17"}}


@pytest.fixture
def evals(write: Write) -> dict[str, Path]:
    """A task whose only item is one of the pool's conversations, spelt differently."""
    return {"exam": write(TEST_ITEM, name="exam.jsonl")}


def test_a_test_item_in_the_set_is_an_error_that_names_both(
    model: Path, pool: Path, evals: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        make(model, tmp_path / "out", pool, evals=evals, num_calibration_samples=40)
    assert "pool.jsonl:18 and exam: t1 share question ('question 17')" in str(caught.value)
    assert "contamination: drop" in caught.value.remedy
    report = json.loads((tmp_path / "out" / "coverage.json").read_text())
    assert report["contamination"]["verdict"] == "CONTAMINATED"
    assert not (tmp_path / "out" / "tokens.safetensors").exists()


def test_a_test_item_that_was_not_chosen_harms_nobody(
    model: Path, pool: Path, evals: dict[str, Path], tmp_path: Path
) -> None:
    summary = make(model, tmp_path / "out", pool, evals=evals, num_calibration_samples=3, shuffle=False,
                   coverage={"refuse": "never"})  # fmt: skip
    assert (summary["contamination"], summary["contaminated"]) == ("CLEAN", 1)


def test_test_items_may_be_left_out_warned_of_or_not_looked_for(
    model: Path, pool: Path, evals: dict[str, Path], tmp_path: Path
) -> None:
    dropped = make(model, tmp_path / "drop", pool, evals=evals, num_calibration_samples=40, contamination="drop")
    assert (dropped["samples"], dropped["contaminated"], dropped["contamination"]) == (39, 1, "CLEAN")
    assert all(r["messages"][0]["content"] != "Question 17?" for r in chosen_of(tmp_path / "drop"))
    progress = Notes()
    make(model, tmp_path / "warn", pool, progress, evals=evals, num_calibration_samples=40, contamination="warn")
    assert any("share text with test items" in note for note in progress.notes)
    off = make(model, tmp_path / "off", pool, evals=evals, num_calibration_samples=40, contamination="off")
    assert off["contamination"] == "not checked"


def test_the_set_is_measured_against_traffic_and_test_items(
    model: Path, pool: Path, write: Write, tmp_path: Path
) -> None:
    traffic = write(
        *[item(n, "plain") for n in range(100, 108)], item(1, "greek", text="Καλημέρα σε όλους"), name="t.jsonl"
    )
    exam = write(item(1, "plain", text="Exam"), item(2, "tool", tool="tool_0", text="Exam"), name="exam.jsonl")
    settings = {"match": str(traffic), "coverage": {"min_score": {"scripts": 0.95}}}
    with pytest.raises(CoverageError) as caught:
        make(model, tmp_path / "out", pool, evals={"exam": exam}, num_calibration_samples=20, **settings)
    assert "scripts" in str(caught.value)
    assert "Greek" in str(caught.value)
    assert "too few of Greek" in caught.value.remedy or "Greek" in caught.value.remedy
    text = json.loads((tmp_path / "out" / "coverage.json").read_text())["text"]
    assert set(text["scripts"]["against"]) == {"traffic", "evals"}
    assert text["scripts"]["missing"][0]["in_pool"] == 0
    summary = make(model, tmp_path / "never", pool, num_calibration_samples=20, match=str(traffic),
                   coverage={"refuse": "never"})  # fmt: skip
    assert summary["coverage"] != "COVERED"


def test_uncovered_may_be_told_from_thin(model: Path, pool: Path, write: Write, tmp_path: Path) -> None:
    traffic = write(*[item(n, "plain" if n % 5 else "other") for n in range(10)], name="t.jsonl")
    thin = {"match": str(traffic), "coverage": {"refuse": "uncovered", "min_score": {"kinds": 0.9}}}
    assert make(model, tmp_path / "thin", pool, **thin)["coverage"] == "THIN"
    refused = {"match": str(traffic), "coverage": {"refuse": "thin", "min_score": {"kinds": 0.9}}}
    with pytest.raises(CoverageError, match=r"kinds 0\.80 of 0\.90 \(missing: other, 20 % of the traffic\)"):
        make(model, tmp_path / "refused", pool, **refused)


def test_fix_adds_what_the_sources_have(model: Path, write: Write, tmp_path: Path) -> None:
    plain = [item(n, "plain") for n in range(60)]
    path = write(
        *plain, item(1, "greek", text="Καλημέρα σε όλους"), item(2, "greek", text="Καλημέρα"), item(3, "tool", tool="f")
    )
    traffic = write(*plain[:20], item(5, "greek", text="Γεια σας"), item(6, "tool", tool="f"), name="t.jsonl")
    settings: dict[str, Any] = {
        "match": str(traffic),
        "selection": "random",
        "num_calibration_samples": 4,
        "shuffle": False,
        "coverage": {"min_per_kind": 1, "min_score": {"scripts": 1.0, "tools": 1.0}},
    }
    with pytest.raises(CoverageError) as caught:
        make(model, tmp_path / "thin", path, **settings)
    assert "--fix" in caught.value.remedy
    missing = json.loads((tmp_path / "thin" / "coverage.json").read_text())["text"]["scripts"]["missing"]
    assert missing[0]["items"] == ["pool.jsonl:61", "pool.jsonl:62"]
    settings["coverage"] |= {"fix": True}
    progress = Notes()
    summary = make(model, tmp_path / "fixed", path, progress, **settings)
    assert summary["coverage"] == "COVERED"
    assert 2 <= summary["added"] <= 6, "the few that are needed, not the whole pool"
    assert summary["samples"] == 4 + summary["added"]
    assert {"greek", "tool"} <= {r["kind"] for r in chosen_of(tmp_path / "fixed")}


def test_fix_adds_no_test_item(model: Path, write: Write, tmp_path: Path) -> None:
    plain = [item(n, "plain") for n in range(20)]
    tested, other = (item(n, "greek", text=text) for n, text in ((1, "Καλημέρα σε"), (2, "Γεια σας από")))
    path = write(*plain, tested, other)
    exam = write({"id": "t", "messages": tested["messages"][:1], "expected": {"text": "Answer 1"}}, name="exam.jsonl")
    coverage = {"fix": True, "min_per_kind": 1, "min_score": {"scripts": 1.0}}
    settings: dict[str, Any] = {"num_calibration_samples": 4, "selection": "random", "shuffle": False}
    make(model, tmp_path / "out", path, evals={"exam": exam}, coverage=coverage, **settings)
    said = [record["messages"][0]["content"] for record in chosen_of(tmp_path / "out")]
    assert other["messages"][0]["content"] in said
    assert tested["messages"][0]["content"] not in said


def test_traffic_that_cannot_be_read_names_its_line(model: Path, pool: Path, write: Write, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t\.jsonl:2: messages: expected a list"):
        make(model, tmp_path / "out", pool, match=str(write(item(1, "a"), {"messages": 3}, name="t.jsonl")))
    with pytest.raises(DataError, match=r"calibrate\.match: is empty"):
        make(model, tmp_path / "out", pool, match=str(write(name="empty.jsonl")))


def test_test_items_that_are_no_conversation_are_left_aside(
    model: Path, pool: Path, write: Write, tmp_path: Path
) -> None:
    exam = write(
        {"id": "x", "context": "other kinds of task"},
        TEST_ITEM | {"id": "y", "messages": [{"role": "user", "content": "new"}]},
        name="e.jsonl",
    )
    make(model, tmp_path / "out", pool, evals={"exam": exam}, coverage={"refuse": "never"})
    report = json.loads((tmp_path / "out" / "coverage.json").read_text())
    assert (report["contamination"]["items"], report["contamination"]["unusable_items"]) == (1, 1)
