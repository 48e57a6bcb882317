from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sqtool.errors import DataError
from sqtool.report import collect, write_report

Make = Callable[..., Path]
REFUSED = {"message": "the candidate regressed: recall", "remedy": "Look at the items."}


def test_released_says_it_first_then_why_and_how_to_serve(make_run: Make) -> None:
    text = write_report(make_run()).read_text()
    lines = text.splitlines()
    assert lines[0] == "# RELEASED: demo"
    assert lines[2] == "- every gated metric held its margin; published as artifacts/releases/demo/2026-01-01-abc"
    assert "- weights 29.1 MB, now 10.5 MB, 64 % smaller" in lines
    assert "vllm serve artifacts/releases/demo/2026-01-01-abc --tool-call-parser hermes" in lines
    assert "| recall.exact_match | 100.00 % | 100.00 % | 0.00 | -0.67 to +0.67 | 2.00 | 400 | 0/0 | PASS |" in lines


def test_the_four_arms(make_run: Make) -> None:
    facts = collect(make_run())
    assert facts.arms is not None
    rows = {row[0]: row[1:] for row in facts.arms.rows}
    assert list(rows) == ["baseline", "quantized only", "speculation only", "both", "baseline again (A/A)"]
    assert rows["baseline"][:2] == ("-", "-")
    cells = dict(zip(facts.arms.headers[1:], rows["both"], strict=True))
    assert cells["gain"] == "1.70 [1.60, 1.80]"
    assert cells["accepted length"] == "3.75"
    assert cells["cost per accepted answer"] == "0.0941 device-s"
    assert cells["same answers"] == "127/128 of quantized", "compared with the same weights without speculation"
    assert facts.speculation_status == "speculation: approved (num_speculative_tokens 4)"
    assert facts.speculation[0] == facts.speculation_status
    assert facts.unreadable == []


def test_refused_names_metric_drop_interval_margin_and_shows_items(make_run: Make) -> None:
    folder = make_run("refused", wrong=80, drop=("speculate", "approve", "release"), error=REFUSED)
    facts = collect(folder)
    assert facts.headline == "REFUSED"
    assert facts.why == ["the candidate regressed: recall"]
    assert facts.metrics is not None
    (row,) = facts.metrics.rows
    assert row[:4] == ("recall.exact_match", "100.00 %", "80.00 %", "-20.00")
    assert row[-1].startswith("REGRESSED: ")
    assert facts.arms is None
    assert not facts.serve
    assert len(facts.worse) == 6
    assert (facts.worse[0].expected, facts.worse[0].baseline, facts.worse[0].candidate) == ("right", "right", "wrong")
    text = write_report(folder).read_text()
    assert "**What to do:** Look at the items." in text
    assert "vllm serve" not in text


def test_weights_served_in_another_form_are_said_at_the_top(make_run: Make) -> None:
    folder = make_run()
    assert collect(folder).caveats == []
    path = folder / "evaluate/result.json"
    result = json.loads(path.read_text())
    result["summary"]["engine"]["weights"] = "unpacked to 16 bits: no kernel"
    path.write_text(json.dumps(result))
    line = write_report(folder).read_text().splitlines()[3]
    assert line.startswith("- **Note:** the candidate was served unpacked to 16 bits: no kernel.")


def test_a_stage_of_an_older_recipe_does_not_count(make_run: Make) -> None:
    folder = make_run()
    state = json.loads((folder / "run.json").read_text())
    for record in state["stages"]:
        if record["name"] == "release":
            record["digest"] = "another"
    (folder / "run.json").write_text(json.dumps(state))
    facts = collect(folder)
    assert not facts.serve
    assert facts.arms is not None


def test_every_early_end_can_be_reported(make_run: Make) -> None:
    names = ("calibrate", "quantize", "baseline", "evaluate", "gate", "speculate", "approve", "release")
    folder = make_run("failed", drop=names, error={"message": "no such file: a*b", "remedy": ""})
    text = write_report(folder).read_text()
    assert text.startswith("# FAILED: demo\n\n- no such file: a\\*b\n")
    assert "| release | not reached |" in text


def test_thin_coverage_is_shown_from_what_the_failed_stage_left(make_run: Make) -> None:
    names = ("calibrate", "quantize", "baseline", "evaluate", "gate", "speculate", "approve", "release")
    folder = make_run("refused", drop=names, error={"message": "too thin", "remedy": "Add a source."})
    kept = folder / "failed/calibrate"
    kept.mkdir(parents=True)
    coverage = json.loads((folder / "calibrate/coverage.json").read_text())
    coverage |= {"verdict": "THIN"}
    coverage["below_minimum"]["kinds"] = [{"name": "lookup", "samples": 1, "needed": 8, "in_pool": 1}]
    (kept / "coverage.json").write_text(json.dumps(coverage))
    facts = collect(folder)
    assert facts.coverage[-1] == "too few of kind lookup: 1 of 8"


def test_scores_of_coverage_are_a_table_and_what_is_missing_is_said(make_run: Make) -> None:
    folder = make_run()
    path = folder / "calibrate/coverage.json"
    coverage = json.loads(path.read_text())
    sides = {"against": {"traffic": 0.71, "evals": 1.0}, "open": False, "missing_count": 2}
    gone = [
        {"name": "Han|*", "share": 0.29, "against": "traffic", "in_pool": 4, "items": ["pool.jsonl:7"]},
        {"name": "Thai", "share": 0.001, "against": "traffic", "in_pool": 0, "items": []},
    ]
    coverage["text"] = {
        "scripts": {"score": 0.71, "threshold": 0.95, "verdict": "THIN", "missing": gone, **sides},
        "tools": {"score": 0.0, "threshold": 0.0, "verdict": "COVERED", "missing": [], **sides, "open": True},
    }
    coverage["model"] = {"kv_range": {"score": 1.0, "threshold": 0.9, "verdict": "COVERED", "missing": []}}
    hit = {"conversation": "pool.jsonl:3", "item": "exam: t1", "how": "question", "text": "what"}
    coverage["contamination"] = {"verdict": "CONTAMINATED", "items": 9, "found": [hit]}
    path.write_text(json.dumps(coverage))
    facts = collect(folder)
    assert facts.coverage_dimensions is not None
    assert facts.coverage_dimensions.rows == (
        ("scripts", "0.710", "0.95", "THIN", "traffic 0.710, evals 1.000"),
        ("tools", "0.000", "0.00", "measured only", "traffic 0.710, evals 1.000"),
        ("kv range", "1.000", "0.90", "COVERED", ""),
    )
    assert "missing of scripts: Han|*, 29.0 % of the traffic; 4 in the sources, e.g. pool.jsonl:7" in facts.coverage
    assert "missing of scripts: Thai, 0.1 % of the traffic; none in the sources" in facts.coverage
    assert "pool.jsonl:3 and exam: t1 share question: what" in facts.coverage
    text = write_report(folder).read_text()
    assert "| scripts | 0.710 |" in text
    assert "Han\\|\\*" in text, "names from data are no markup"


def test_no_state_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        collect(tmp_path)


def _with_tasks(folder: Path, side: str, task: dict[str, object]) -> None:
    path = folder / side / "result.json"
    result = json.loads(path.read_text())
    result["summary"]["tasks"] = {"tool_count": task}
    path.write_text(json.dumps(result))


def _counted(scores: dict[int, float], failures: dict[str, int], n: int = 40) -> dict[str, object]:
    slices = {str(count): {"n": 20, "metrics": {"call_match": score}} for count, score in scores.items()}
    return {"n": n, "metrics": {}, "failures": failures, "slices": {"n_tools": slices}}


def test_failure_layers_and_the_tool_count_cliff(make_run: Make) -> None:
    folder = make_run()
    _with_tasks(folder, "baseline", _counted({1: 1.0, 2: 1.0, 16: 0.95}, {"none": 39, "wrong_arguments": 1}))
    _with_tasks(folder, "evaluate", _counted({16: 0.5, 2: 0.9, 1: 0.95}, {"none": 30, "wrong_tool": 10}))
    facts = collect(folder)
    assert facts.failures is not None
    assert facts.failures.rows == (
        ("tool_count", "wrong_arguments", "1", "0", "40"),
        ("tool_count", "wrong_tool", "0", "10", "40"),
    )
    assert facts.tool_counts is not None
    assert facts.tool_counts.rows[-1] == ("tool_count", "16", "20", "95.00 %", "50.00 %", "-45.00")
    assert [row[1] for row in facts.tool_counts.rows] == ["1", "2", "16"], "by number, not by text"
    assert facts.tool_counts.notes == (
        "tool_count, baseline: call_match falls most from 2 to 16 tools, by 5.00 points.",
        "tool_count, candidate: call_match falls most from 2 to 16 tools, by 40.00 points.",
    )
    text = write_report(folder).read_text()
    assert "## Number of tools on offer" in text
    assert "| tool_count | wrong_tool | 0 | 10 | 40 |" in text


def test_a_task_that_ended_early_is_not_compared_by_layer(make_run: Make) -> None:
    folder = make_run()
    _with_tasks(folder, "baseline", _counted({1: 1.0, 2: 1.0}, {"none": 40}))
    _with_tasks(folder, "evaluate", _counted({1: 0.0, 2: 0.0}, {"wrong_tool": 20}, n=20))
    facts = collect(folder)
    assert (facts.failures, facts.tool_counts) == (None, None)


def test_more_tools_may_cost_nothing(make_run: Make) -> None:
    folder = make_run()
    for side in ("baseline", "evaluate"):
        _with_tasks(folder, side, _counted({1: 1.0, 2: 1.0}, {"none": 40}))
    facts = collect(folder)
    assert facts.tool_counts is not None
    assert facts.tool_counts.notes[0] == "tool_count, baseline: call_match does not fall with more tools."
    assert facts.failures is None


def test_what_the_quantizer_measured(make_run: Make) -> None:
    folder = make_run()
    path = folder / "quantize" / "result.json"
    result = json.loads(path.read_text())
    note = "the KV cache of model.layers.0.self_attn has a scale of 1, as if it was never calibrated"
    result["summary"] |= {
        "layers": {"weight_error": {"mean": 0.11, "worst": [{"name": "model.layers.0.q", "weight_error": 0.2}]}},
        "details": {
            "kv_cache": {
                "saturated_share": {"k": 0.0, "v": 0.0125},
                "worst": {"name": "model.layers.7.self_attn", "saturated_share": 0.5},
            }
        },
        "notes": [note, "something else"],
    }
    path.write_text(json.dumps(result))
    facts = collect(folder)
    assert "relative error of a layer's weights: mean 0.11, most 0.2 in model.layers.0.q" in facts.saves
    (cache,) = [line for line in facts.saves if line.startswith("KV cache in FP8")]
    assert "0.00 % of keys and 1.25 % of values" in cache
    assert "50.00 % in model.layers.7.self_attn" in cache
    assert facts.caveats == [note]
