"""Percentiles, agreement and interaction on numbers that can be checked by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from sqtool.speculate.client import Answer
from sqtool.speculate.compare import acceptance_change, agreements, interaction
from sqtool.speculate.counters import Counters, Speculation
from sqtool.speculate.summary import ArmResult, BlockResult, kind_speculation, percentiles, summarize


def answer(name: str, text: str, *, kind: str = "k", e2e: float = 0.1, error: str = "") -> Answer:
    if error:
        return Answer(name, kind, 0, 0.0, error=error)
    return Answer(
        name, kind, 0, 0.0, ttft_s=0.02, tpot_s=0.01, e2e_s=e2e, itl_s=[0.01, 0.03], prompt_tokens=5,
        completion_tokens=9, finish_reason="stop", text=text,
    )  # fmt: skip


def arm(name: str, texts: list[str], *, speculation: Speculation | None = None, kind: str | None = None) -> ArmResult:
    result = ArmResult(name, Path("m"), speculation is not None)
    result.answers = [answer(f"r{i}", text) for i, text in enumerate(texts)]
    result.blocks = [BlockResult(2.0, Counters(speculation, {"engine_steps": 7.0}, 0.0), kind)]
    return result


def test_percentiles() -> None:
    result = percentiles([i / 1000 for i in range(1, 101)])
    assert result == pytest.approx({"p50": 50.5, "p90": 90.1, "p95": 95.05, "p99": 99.01, "mean": 50.5, "n": 100})
    assert percentiles([]) is None


def test_summary() -> None:
    result = arm("baseline", ["a", "b", "c"])
    result.answers.append(answer("r3", "", error="HTTP 500: no"))
    summary = summarize(result)
    assert summary["failures"] == {"count": 1, "examples": [{"id": "r3", "error": "HTTP 500: no"}]}
    assert (summary["output_tokens"], summary["output_tokens_per_s"], summary["requests_per_s"]) == (27, 13.5, 1.5)
    assert summary["latency"]["itl_ms"]["n"] == 6
    assert summary["latency"]["itl_ms"]["p50"] == pytest.approx(20)
    assert summary["speculation"] is None
    assert summary["counters"] == {"engine_steps": 7}
    assert summary["kinds"]["k"]["requests"] == 4
    assert summary["kinds"]["k"]["failures"] == 1


def test_a_measure_that_is_missing_says_why() -> None:
    result = arm("both", ["a"], speculation=Speculation(5, 20, 9, (4, 3, 1, 1)))
    summary = summarize(result)
    assert summary["speculation"]["source"] == "metrics"
    assert summary["speculation"]["cross_check"] == {"per_request_reports": False}
    assert "missing" in summary["kinds"]["k"]["speculation"]
    nothing = arm("both", ["a"])
    nothing.speculates = True
    assert "missing" in summarize(nothing)["speculation"]


def test_kinds_from_single_kind_blocks() -> None:
    counts = Speculation(5, 20, 9, (4, 3, 1, 1))
    assert kind_speculation(arm("both", ["a"], speculation=counts, kind="k"), "k") == counts
    assert kind_speculation(arm("both", ["a"], speculation=counts, kind="other"), "k") is None


def test_agreement() -> None:
    arms = {
        "baseline": arm("baseline", ["a", "b", "c"]),
        "quantized": arm("quantized", ["a", "x", "c"]),
        "speculative": arm("speculative", ["a", "b", "c"]),
        "both": arm("both", ["a", "x", "y"]),
    }
    arms["both"].answers[0] = answer("r0", "", error="lost")
    result = agreements(arms)
    assert result["baseline"] == []
    assert [(e["with"], e["identical"], e["of"]) for e in result["quantized"]] == [("baseline", 2, 3)]
    assert [(e["with"], e["identical"], e["of"]) for e in result["speculative"]] == [("baseline", 3, 3)]
    assert [(e["with"], e["identical"], e["of"]) for e in result["both"]] == [("baseline", 0, 2), ("quantized", 1, 2)]
    assert result["both"][1]["different"] == ["r2"]


def test_tool_calls_count_in_agreement() -> None:
    one, two = arm("baseline", ["", ""]), arm("quantized", ["", ""])
    one.answers[0].tool_calls = [{"name": "f", "arguments": '{"a":1}'}]
    two.answers[0].tool_calls = [{"name": "f", "arguments": '{"a":2}'}]
    assert agreements({"baseline": one, "quantized": two})["quantized"][0]["identical"] == 1


def test_interaction() -> None:
    times = {"baseline": 0.4, "quantized": 0.2, "speculative": 0.25, "both": 0.16}
    summaries = {}
    for name, e2e in times.items():
        result = arm(name, ["a"])
        result.answers[0].e2e_s = e2e
        summaries[name] = summarize(result)
    gains = interaction(summaries)["e2e_p50"]
    assert gains == pytest.approx(
        {"quantization": 2.0, "speculation": 1.6, "both": 2.5, "product": 3.2, "ratio": 2.5 / 3.2}
    )
    assert interaction({"baseline": summaries["baseline"]})["e2e_p50"]["ratio"] is None


def test_acceptance_change() -> None:
    full = arm("speculative", ["a"], speculation=Speculation(10, 40, 20, (10, 6, 3, 1)), kind="k")
    quantized = arm("both", ["a"], speculation=Speculation(10, 40, 16, (9, 4, 2, 1)), kind="k")
    change = acceptance_change({"speculative": full, "both": quantized})
    assert change is not None
    assert change["overall"]["acceptance_rate"] == pytest.approx(-0.1)
    assert change["overall"]["mean_acceptance_length"] == pytest.approx(-0.4)
    assert change["overall"]["per_position_rate"] == pytest.approx([-0.1, -0.2, -0.1, 0.0])
    assert change["kinds"]["k"] == change["overall"]
    assert acceptance_change({"speculative": full}) is None
