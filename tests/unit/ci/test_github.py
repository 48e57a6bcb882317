from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqtool.ci import read_run
from sqtool.ci.github import OUTPUT, SUMMARY, annotate, annotation, escape_data, escape_property, outputs, publish
from sqtool.files import read_json
from tests.unit.ci.conftest import Ended, change_verdict


def unescape(text: str) -> str:
    """What the runner does with a value."""
    for code, character in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(code, character)
    return text


def test_escapes() -> None:
    assert escape_data("50 %\r\nnext: a, b") == "50 %25%0D%0Anext: a, b"
    assert escape_property("50 %\nnext: a, b") == "50 %25%0Anext%3A a%2C b"


@given(st.text(max_size=60))
def test_an_annotation_is_one_command_in_one_line(text: str) -> None:
    line = annotation("error", text, text)
    assert len(line.splitlines()) <= 1
    head, _, _ = line.removeprefix("::error title=").partition("::")
    assert not set(head) & {":", ",", "\n"}


@given(st.text(max_size=60))
def test_the_runner_reads_back_what_was_said(text: str) -> None:
    assert unescape(escape_property(text)) == text


def test_a_refused_run_is_an_error_for_the_run_and_each_metric(ended: Ended) -> None:
    lines = annotate(read_run(ended("refused", wrong=80, gate={"slices": ["kind"]})))
    assert lines[0] == "::error title=sqtool REFUSED%3A demo::it regressed%0ALook."
    assert lines[1].startswith("::error title=REGRESSED%3A recall.exact_match::100.00 %25 -> 80.00 %25, change -20.00")
    assert lines[2].startswith("::error title=REGRESSED%3A recall.exact_match [kind=early]::")
    assert len(lines) == 3, "a slice that is not judged is no error"


def test_a_released_run_is_a_notice(ended: Ended) -> None:
    (line,) = annotate(read_run(ended()))
    assert line.startswith("::notice title=sqtool RELEASED%3A demo::every gated metric held its margin")


def test_allowed_inconclusive_is_a_warning(ended: Ended) -> None:
    lines = annotate(read_run(ended("released", wrong=4, gate={"inconclusive": "allow"})))
    assert [line.partition(" ")[0] for line in lines] == ["::notice", "::warning"]


def test_no_more_than_github_shows(ended: Ended) -> None:
    folder = ended("refused", wrong=80)
    (metric,) = read_json(folder / "gate/verdict.json")["metrics"]
    change_verdict(folder, slices=[{**metric, "slice_field": "n", "slice_value": str(n)} for n in range(50)])
    assert len(annotate(read_run(folder))) == 10


def test_outputs_are_one_line_each(ended: Ended) -> None:
    folder = ended()
    found = outputs(read_run(folder), folder / "report.md")
    assert found == {
        "name": "demo",
        "outcome": "released",
        "verdict": "PASS",
        "exit_code": "0",
        "report": str(folder / "report.md"),
        "release": "artifacts/releases/demo/2026-01-01-abc",
        "speculation": "approved (num_speculative_tokens 4)",
    }
    result = read_json(folder / "release/result.json")
    result["summary"]["path"] = "x\noutcome=released\u2028y"
    (folder / "release/result.json").write_text(json.dumps(result))
    assert outputs(read_run(folder), folder)["release"] == "x outcome=released\ufffdy"


def test_publish_appends(ended: Ended, tmp_path: Path) -> None:
    run = read_run(ended("refused", wrong=80))
    files = {name: str(tmp_path / name) for name in (SUMMARY, OUTPUT)}
    (tmp_path / OUTPUT).write_text("before=1\n")
    assert publish(run, Path("report.md"), files) == []
    assert publish(run, Path("report.md"), files) == []
    assert (tmp_path / OUTPUT).read_text().splitlines()[:5] == [
        "before=1", "name=demo", "outcome=refused", "verdict=REGRESSED", "exit_code=1",
    ]  # fmt: skip
    summary = (tmp_path / SUMMARY).read_text()
    assert summary.count("## REFUSED: demo") == 2
    assert "<!--" not in summary


@pytest.mark.parametrize("names", [(), (SUMMARY,)])
def test_publish_says_what_is_missing(ended: Ended, tmp_path: Path, names: tuple[str, ...]) -> None:
    files = {name: str(tmp_path / name) for name in names}
    assert publish(read_run(ended()), Path("r"), files) == [n for n in (SUMMARY, OUTPUT) if n not in names]
