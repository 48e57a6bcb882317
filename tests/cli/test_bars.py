"""Progress where there is no terminal: lines with percent and time left; on one: bars that go away."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from sqtool.cli import bars
from sqtool.cli.options import Settings
from sqtool.cli.terminal import Terminal


class Screen(io.StringIO):
    """A terminal of 100 columns."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [0.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: clock[0])
    return clock


def terminal(stream: io.StringIO, **settings: bool) -> Terminal:
    made = Terminal(Settings(**settings))
    made.err = stream
    return made


def texts(stream: io.StringIO) -> list[str]:
    """Lines without their time of day."""
    return [line.partition(" ")[2] for line in stream.getvalue().splitlines()]


def test_lines_have_percent_and_time_left(now: list[float]) -> None:
    stream = io.StringIO()
    lines = bars.make_progress(terminal(stream))
    with lines.task("evaluate: recall", total=500) as task:
        now[0] = 5.0
        task.advance(50)  # too early for a line
        now[0] = 20.0
        task.advance(50)
        now[0] = 100.0
        task.advance(400)
    lines.note("done\nwith it")
    assert texts(stream)[:4] == [
        "evaluate: recall: 500 to do",
        "evaluate: recall: 20 % (100/500), 1:20 left",
        "evaluate: recall: 100 % (500/500), 0:00 left",
        "evaluate: recall: done, 500 in 1:40",
    ]


def test_unknown_totals_and_descriptions(now: list[float]) -> None:
    stream = io.StringIO()
    with bars.make_progress(terminal(stream)).task("vLLM: start") as task:
        task.describe("vLLM: reading the model")
        task.describe("vLLM: reading the model")
        now[0] = 30.0
        task.advance()
    assert texts(stream) == [
        "vLLM: start",
        "vLLM: reading the model",
        "vLLM: reading the model: 1 done, 0:30 so far",
        "vLLM: reading the model: done in 0:30",
    ]


def test_a_failed_task_is_not_done(now: list[float]) -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError), bars.make_progress(terminal(stream)).task("x", total=2):
        raise ValueError
    assert texts(stream) == ["x: 2 to do"]


def test_quiet_is_silent() -> None:
    stream = io.StringIO()
    progress = bars.make_progress(terminal(stream, quiet=True))
    with progress.task("x", total=1) as task:
        task.advance()
    progress.note("y")
    assert stream.getvalue() == ""


def test_bars_show_text_as_it_is_and_go_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    screen = Screen()
    progress = bars.make_progress(terminal(screen))
    assert isinstance(progress, bars.Bars)
    with progress.task("outer [bold]x[/bold]", total=2) as outer, progress.task("inner") as inner:
        outer.advance()
        inner.describe("[red]now")
        progress.note("a note with [markup]")
    progress.note("after")
    shown = screen.getvalue()
    assert "a note with [markup]\n" in shown
    assert "outer [bold]x[/bold]" in shown
    assert shown.endswith("after\n")
    assert "\x1b[?25h" in shown, "the cursor is back"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [(bars.clock(42.4), "0:42"), (bars.clock(3723), "1:02:03"), (bars.count_of(16_920_100), "16920100"),
     (bars.count_of(0.5), "0.5"), (bars.count_of(123.4), "123")],
)  # fmt: skip
def test_numbers(shown: str, expected: str) -> None:
    assert shown == expected
