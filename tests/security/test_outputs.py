"""What models said, on its way to reports, comments, JUnit, terminals and logs: shown as text, obeyed by nobody."""

from __future__ import annotations

import json
import logging
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqtool.ci import comment, junit, read_run
from sqtool.ci.github import annotation
from sqtool.cli.options import Settings
from sqtool.cli.terminal import Terminal, show_error
from sqtool.errors import EngineError, Problem, RecipeError
from sqtool.files import read_json, write_json
from sqtool.hygiene import LogFormatter, clean, terminal_json
from sqtool.report import collect, render
from tests.unit.ci.conftest import Ended
from tests.unit.report.test_markdown import READER

HOSTILE = (
    "<script>alert(1)</script> <img src=x onerror=alert(1)> [click](javascript:alert(1)) ![](http://evil/x.png) "
    "@everyone #1 | a | b | \x1b]0;owned\x07\x1b[2J\x1b[31m \x9b31m \u202egnp.exe\u2066 \x00\x08 ```\n# heading\n"
    "- list\n"
    "<!-- --> ://evil https://evil.example www.evil.example &lt;b&gt; \r\nfake line ::error::owned ]]> \ufffe\ud83d"
)
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
Folder = Path


def _poison(folder: Path) -> Path:
    """A refused run in which everything that a model or a data set says is hostile."""
    path = folder / "gate/verdict.json"
    verdict = read_json(path)
    text = HOSTILE.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    for metric in verdict["metrics"]:
        for item in metric.get("worst") or ():
            for key in ("id", "kind"):
                item[key] = text
            for side in ("baseline", "candidate", "expected"):
                item[side] = {"text": text, "output": {"text": text}, "failure": text, "detail": text}
    write_json(path, verdict)
    state = read_json(folder / "run.json")
    state["error"] = {"type": "EngineError", "message": text, "remedy": text, "exit_code": 1}
    write_json(folder / "run.json", state)
    return folder


def test_the_report_and_the_comment(ended: Ended) -> None:
    folder = _poison(ended("refused", wrong=80))
    for text in (render(collect(folder)), comment(read_run(folder))):
        assert "alert(1)" in text, "the attack is in it, as text"
        assert not CONTROL.search(text)
        html = READER.render(text)
        assert "<script" not in html
        assert "<img src=x" not in html
        assert 'href="javascript' not in html
        assert 'evil/x.png"' not in html.replace("&quot;", "")
        assert "<h1>heading" not in html


def test_a_comment_mentions_nobody(ended: Ended) -> None:
    text = comment(read_run(_poison(ended("refused", wrong=80))))
    outside = re.sub(r"(`{3,}).*?\1", "", text, flags=re.DOTALL)
    rendered = re.sub(r"\\(?=[@#])", "", outside)
    assert not re.search(r"@everyone|(?<![\w&])#1\b", rendered)


def test_junit_stays_well_formed(ended: Ended) -> None:
    text = junit(read_run(_poison(ended("refused", wrong=80))))
    root = ElementTree.fromstring(text)
    assert len(list(root.iter("testcase"))) >= 2
    assert not CONTROL.search(text)


def test_an_annotation_is_one_command() -> None:
    line = annotation("error", HOSTILE, HOSTILE)
    assert "\n" not in line
    assert "\r" not in line
    assert line.startswith("::error title=")
    assert not CONTROL.search(line)


def test_a_terminal_is_told_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    # Without the lone surrogate, which stands in the log that pytest keeps, and which pytest-xdist cannot send.
    hostile = HOSTILE.removesuffix("\ud83d")
    with Terminal(Settings()) as terminal:
        terminal.say(hostile)
        terminal.table((hostile,), ((hostile,),))
        terminal.progress.note(hostile)
        with terminal.progress.task(hostile, 3) as task:
            task.describe(hostile)
    show_error(EngineError(hostile, remedy=hostile), hostile)
    show_error(RecipeError("x.yaml", [Problem(hostile, 1, hostile, hostile)]))
    said = capsys.readouterr()
    assert "alert(1)" in said.out
    assert "alert(1)" in said.err
    for text in (said.out, said.err):
        assert not CONTROL.search(text), ascii(CONTROL.findall(text))


def test_half_a_character_is_no_end_of_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal(Settings()) as terminal:
        terminal.say(HOSTILE)
        terminal.table((HOSTILE,), ((HOSTILE,),))
    show_error(EngineError(HOSTILE, remedy=HOSTILE), HOSTILE)
    said = capsys.readouterr()
    assert [ascii(CONTROL.findall(text)) for text in (said.out, said.err)] == ["[]", "[]"]


def test_json_for_machines_obeys_nothing_and_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"text": HOSTILE.encode("utf-8", "replace").decode()}
    with Terminal(Settings(json=True)) as terminal:
        terminal.json(value)
    text = capsys.readouterr().out
    assert not CONTROL.search(text)
    assert json.loads(text) == value


@given(st.text())
def test_any_text_as_json(text: str) -> None:
    assert json.loads(terminal_json([text])) == [text]


@given(st.text())
def test_cleaned_text_has_no_control_characters(text: str) -> None:
    assert not CONTROL.search(clean(text))


def test_a_log_line_cannot_pass_for_another() -> None:
    record = logging.LogRecord("sqtool", logging.INFO, "x", 1, "before\n2026-01-01 ERROR forged\x1b[2J", None, None)
    first, *rest = LogFormatter().format(record).split("\n")
    assert first.endswith("INFO before")
    assert rest
    assert all(line.startswith("    ") for line in rest)
    assert not CONTROL.search("".join(rest))
