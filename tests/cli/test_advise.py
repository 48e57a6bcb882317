"""`sqtool advise`: what it prints, and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sqtool.files import write_json
from tests.cli.conftest import Sqtool
from tests.unit.advise.reports import approval
from tests.unit.report.conftest import make_run

__all__ = ["make_run"]


def test_advice_on_a_run(sqtool_: Sqtool, make_run: Callable[..., Path]) -> None:
    make_run()
    said = sqtool_("advise", "demo")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0] == "Serve the quantized checkpoint with speculation (num_speculative_tokens 4)."
    assert "  c16  both (k=4): median request 1.70 times [1.60, 1.80], the A/A arm up to 1.02" in lines
    assert "  1. Speculate: 80% of a request is spent on tokens after the first, and the answers held." in lines
    assert "    to operate: 1 server, 2 models, 1.2 GB of weights, starts in 31 s, 5 knobs" in lines
    assert "Rules, and what each looked at" not in lines
    assert "  prefill_bound: does not apply." in sqtool_("advise", "demo", "--rules").out


def test_advice_as_json(sqtool_: Sqtool, make_run: Callable[..., Path]) -> None:
    folder = make_run()
    write_json(folder / "approve/speculation_verdict.json", approval(approved=False))
    said = sqtool_("advise", str(folder), "--json")
    assert said.code == 0
    assert said.json["schema"] == "sqtool.advice/1"
    assert [load["deploy"] for load in said.json["loads"]] == ["quantized"]
    assert {rule["name"] for rule in said.json["rules"]} >= {"memory_bound", "prefill_bound", "decode_bound"}


def test_a_refused_candidate(sqtool_: Sqtool, make_run: Callable[..., Path]) -> None:
    error = {"message": "it regressed", "remedy": ""}
    make_run("refused", wrong=80, drop=("speculate", "approve", "release"), error=error)
    said = sqtool_("advise", "demo")
    assert said.code == 0
    assert said.out.startswith("Serve the baseline: the gate did not accept the candidate.")
    assert "  quantized: no: the gate did not accept the candidate (REGRESSED)" in said.out


@pytest.mark.parametrize("stage", ["nothing", "everything"])
def test_nothing_to_advise_on(sqtool_: Sqtool, make_run: Callable[..., Path], stage: str) -> None:
    if stage == "everything":
        make_run("failed", drop=("gate", "speculate", "approve", "release"), error={"message": "x", "remedy": ""})
    said = sqtool_("advise", "demo")
    assert said.code == 2
    assert ("no such run: demo" if stage == "nothing" else "nothing to advise on") in said.err
    assert "Traceback" not in said.err
