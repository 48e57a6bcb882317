"""`report` in every format and `explain`, on runs of the real gate and on one that failed before it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sqtool.pipeline import Job
from tests.cli.conftest import Sqtool
from tests.pipeline.fakes import FakeSpec
from tests.unit.ci.conftest import Ended, ended
from tests.unit.report.conftest import make_run

__all__ = ["ended", "make_run"]

HOSTILE = "\x1b[31m::error::no\n::set-output name=x::y\r\u202e<script>"


@pytest.fixture(autouse=True)
def _no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)


def test_the_formats_of_a_refused_run_all_exit_0(sqtool_: Sqtool, ended: Ended, tmp_path: Path) -> None:
    folder = ended("refused", wrong=80)
    said = {form: sqtool_("report", "demo", "--format", form) for form in ("text", "md", "json", "junit", "comment")}
    assert {s.code for s in said.values()} == {0}
    assert said["text"].out.startswith("REFUSED: demo")
    assert said["md"].out == (folder / "report.md").read_text() == sqtool_("report", "demo", "--markdown").out
    assert said["json"].json["headline"] == sqtool_("report", "demo", "--json").json["headline"] == "REFUSED"
    assert ElementTree.fromstring(said["junit"].out).attrib["failures"] == "2"
    assert said["comment"].out.startswith("<!-- sqtool:demo -->\n## REFUSED: demo")
    for form in ("md", "json", "junit", "comment"):
        file = tmp_path / f"out.{form}"
        written = sqtool_("report", "demo", "--format", form, "--output", str(file))
        assert (written.code, written.out, written.err) == (0, "", "")
        assert file.read_text() == said[form].out


def test_github(sqtool_: Sqtool, ended: Ended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended("inconclusive", wrong=4)
    said = sqtool_("report", "demo", "--format", "github")
    assert said.code == 0
    assert [line.partition(" title=")[0] for line in said.out.splitlines()] == ["::error", "::error"]
    assert said.err == "GITHUB_STEP_SUMMARY and GITHUB_OUTPUT: not set, so nothing is written there\n"
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"):
        monkeypatch.setenv(name, str(tmp_path / name))
    assert sqtool_("report", "demo", "--format", "github").err == ""
    assert "outcome=inconclusive\nverdict=INCONCLUSIVE\nexit_code=3\n" in (tmp_path / "GITHUB_OUTPUT").read_text()
    assert (tmp_path / "GITHUB_STEP_SUMMARY").read_text().startswith("## INCONCLUSIVE: demo")
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "no/such/folder"))
    said = sqtool_("report", "demo", "--format", "github")
    assert (said.code, "cannot write" in said.err) == (2, True)


@pytest.mark.parametrize(
    "args",
    [
        ("--format", "junit", "--json"),
        ("--markdown", "--json"),
        ("--format", "md", "--format", "nothing"),
        ("--output", "x.txt"),
        ("--format", "github", "--output", "x.txt"),
        ("--format", "junit", "--output", "no/such/folder/x.xml"),
    ],
)
def test_wrong_usage(sqtool_: Sqtool, ended: Ended, args: tuple[str, ...]) -> None:
    ended()
    said = sqtool_("report", "demo", *args)
    assert (said.code, said.out) == (2, "")
    assert "Error: " in said.err


def test_a_run_that_failed_before_the_gate(sqtool_: Sqtool, fake_job: Callable[..., Job]) -> None:
    fake_job(evaluate=FakeSpec(fail="engine"))
    assert sqtool_("quantize", "demo").code == 4
    root = ElementTree.fromstring(sqtool_("report", "demo", "--format", "junit").out)
    (error,) = root.iter("error")
    assert (error.get("message"), error.get("type")) == ("the engine died", "EngineError")
    assert "- stopped in the stage `evaluate`\n" in sqtool_("report", "demo", "--format", "comment").out
    assert sqtool_("report", "demo", "--format", "github").out.startswith("::error title=sqtool FAILED%3A demo::")
    said = sqtool_("explain", "demo")
    assert said.code == 0
    assert said.out.splitlines()[:3] == [
        "FAILED: demo",
        "  the engine died",
        "  note: there is no verdict: the run stopped in the stage evaluate",
    ]
    assert "  - Look at its log." in said.out
    assert sqtool_("explain", "demo", "--json").json["verdict"] == ""


def test_explain_a_regression(sqtool_: Sqtool, ended: Ended) -> None:
    folder = ended("refused", wrong=80, gate={"slices": ["kind"]})
    (folder / "evaluate/layers.jsonl").write_text('{"name": "model.layers.3.mlp", "relative_error": 0.125}\n')
    lines = sqtool_("explain", "demo").out.splitlines()
    assert lines[:4] == [
        "REFUSED: demo",
        "",
        "Verdict",
        "  REGRESSED: the candidate is worse than the baseline by the margin or more.",
    ]
    assert "  recall.exact_match: 80 of 400 items got worse, none better; all of kind early" in lines
    assert "    item recall-0 (early): answers differ from character 0" in lines
    assert "      baseline:  'right'" in lines
    assert "      candidate: 'wrong'" in lines
    assert "  model.layers.3.mlp: relative error 0.125" in lines
    assert any(
        line.startswith("    fell most (exploratory: found among 3 parts, not judged): kind=early") for line in lines
    )


def test_what_models_said_cannot_steer_a_terminal_or_a_runner(sqtool_: Sqtool, ended: Ended) -> None:
    folder = ended("refused", wrong=80, said=HOSTILE, item=HOSTILE)
    for side in ("baseline", "evaluate"):
        path = folder / side / "records/recall.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text(
            "".join(json.dumps({**r, "kind": HOSTILE, "failure": HOSTILE, "detail": HOSTILE}) + "\n" for r in records)
        )
    for args in (("explain", "demo"), ("report", "demo"), ("report", "demo", "--format", "github")):
        out = sqtool_(*args).out
        assert not any((ord(c) < 32 and c != "\n") or c == "\u202e" for c in out)
        commands = [line for line in out.splitlines() if line.lstrip().startswith("::")]
        own = ("::error title=sqtool REFUSED", "::error title=REGRESSED")
        assert all(line.startswith(own) for line in commands)
        assert bool(commands) == ("github" in args)


def test_explain_suggests_a_run(sqtool_: Sqtool, ended: Ended) -> None:
    ended()
    said = sqtool_("explain", "dmo")
    assert (said.code, "Did you mean 'demo'?" in said.err) == (2, True)
