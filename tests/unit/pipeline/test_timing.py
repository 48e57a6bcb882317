from __future__ import annotations

from pathlib import Path

from sqtool.pipeline.timing import FILE, Timings
from sqtool.stages.contract import Estimate


def test_same_work_then_rule_then_scaled(tmp_path: Path) -> None:
    timings = Timings(tmp_path)
    assert timings.guess("evaluate", Estimate(None, work=100)).seconds is None
    ruled = timings.guess("evaluate", Estimate(42.0, work=100, rule="18 items/s"))
    assert (ruled.seconds, ruled.source) == (42.0, "18 items/s")
    timings.add("evaluate", 100, 10.0)
    timings.add("evaluate", 100, 20.0)
    timings.add("evaluate", 100, 30.0)
    again = Timings(tmp_path)
    same = again.guess("evaluate", Estimate(42.0, work=101))
    assert (same.seconds, same.source) == (20.0, "3 earlier runs here")
    assert again.guess("evaluate", Estimate(42.0, work=200)).seconds == 42.0
    assert again.guess("evaluate", Estimate(None, work=200)).seconds == 40.0
    assert again.guess("gate", Estimate(None)).seconds is None


def test_broken_lines_and_other_machines_do_not_count(tmp_path: Path) -> None:
    Timings(tmp_path).add("gate", 1, 5.0)
    line = (tmp_path / FILE).read_text()
    other = line.replace('"machine": "', '"machine": "other-')
    (tmp_path / FILE).write_text("{broken\n[]\n" + other + line + line.replace("5.0", '"x"'))
    guess = Timings(tmp_path).guess("gate", Estimate(None))
    assert (guess.seconds, guess.source) == (5.0, "1 earlier run here")
