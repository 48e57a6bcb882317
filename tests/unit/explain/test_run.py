from __future__ import annotations

import json
from pathlib import Path

import pytest

from sqtool.errors import DataError
from sqtool.explain import explain_run
from sqtool.files import read_json, write_json
from tests.unit.ci.conftest import STAGES, Ended, change_verdict


def test_a_regression(ended: Ended) -> None:
    folder = ended("refused", wrong=80)
    told = explain_run(folder)
    assert (told.outcome, told.verdict, told.notes) == ("refused", "REGRESSED", [])
    assert told.words.startswith("REGRESSED: the candidate is worse")
    (change,) = told.changes
    assert (change.metric, change.worse, change.items) == ("recall.exact_match", 80, 400)
    assert [k.value for k in change.kinds if k.worse] == ["early"]
    assert (change.examples[0].baseline, change.examples[0].candidate) == ("right", "wrong")
    assert "80 of the 80 items that got worse are of kind early" in told.advice[0]


def test_inconclusive_names_the_number_of_items(ended: Ended) -> None:
    folder = ended("inconclusive", wrong=4)
    needed = read_json(folder / "gate/verdict.json")["metrics"][0]["items_to_decide"]
    told = explain_run(folder)
    assert told.verdict == "INCONCLUSIVE"
    assert f"about {needed:,} would" in told.advice[0]
    assert told.changes[0].worse == 4


def test_a_pass_shows_what_fell_all_the_same(ended: Ended) -> None:
    told = explain_run(ended(wrong=1))
    assert told.verdict == "PASS"
    assert told.changes[0].worse == 1
    assert told.advice[0].startswith("Nothing has to be done. Least room: recall.exact_match")


def test_a_pass_without_any_change_has_nothing_to_show(ended: Ended) -> None:
    assert explain_run(ended()).changes == []


def test_a_regressed_slice_shows_its_metric(ended: Ended) -> None:
    told = explain_run(ended("refused", wrong=12, gate={"metrics": {"recall.exact_match": 0.04}, "slices": ["kind"]}))
    assert told.verdict == "REGRESSED"
    assert [c.metric for c in told.changes] == ["recall.exact_match"]


@pytest.mark.parametrize("outcome", ["failed", "cancelled", "running", "done"])
def test_runs_that_never_got_to_the_gate(ended: Ended, outcome: str) -> None:
    error = {"type": "EngineError", "message": "the vLLM server died", "remedy": "Look at its log."}
    folder = ended(outcome, drop=STAGES[3:], error=error if outcome in ("failed", "cancelled") else None)
    state = read_json(folder / "run.json")
    if outcome != "done":
        state["stages"][3]["state"] = outcome
        (folder / "failed/evaluate").mkdir(parents=True)
    write_json(folder / "run.json", {**state, "until": "baseline"})
    told = explain_run(folder)
    assert (told.verdict, told.words, told.changes) == ("", "", [])
    assert told.why
    if error and outcome in ("failed", "cancelled"):
        assert told.why == ["the vLLM server died"]
        assert told.advice[0] == "Look at its log."
    if outcome != "done":
        assert told.notes == ["there is no verdict: the run stopped in the stage evaluate"]
        assert any("failed/evaluate" in line for line in told.advice)


def test_all_problems_of_a_plan_are_said(ended: Ended) -> None:
    folder = ended("failed", drop=STAGES, error={"message": "one", "remedy": ""})
    state = read_json(folder / "run.json")
    write_json(folder / "run.json", {**state, "problems": [{"message": "one"}, {"message": "two"}]})
    assert explain_run(folder).why == ["one", "two"]


def test_evaluated_but_not_judged(ended: Ended) -> None:
    folder = ended("done", wrong=80, drop=STAGES[4:])
    assert explain_run(folder).verdict == "", "without the recipe there is nothing to judge by"
    write_json(folder / "recipe.json", {"gate": {"metrics": {"recall.exact_match": 0.02}}})
    told = explain_run(folder)
    assert (told.verdict, told.changes[0].worse) == ("REGRESSED", 80)
    assert told.notes == ["judged just now from its records; that is no verdict of the run, and nothing is written"]


def test_a_failure_behind_the_gate_keeps_the_verdict_and_adds_the_remedy(ended: Ended) -> None:
    told = explain_run(ended("failed", drop=("release",), error={"message": "disk full", "remedy": "Free some space."}))
    assert (told.verdict, told.why) == ("PASS", ["disk full"])
    assert told.advice[-1] == "Free some space."


def test_drift_from_the_summary_or_from_its_file(ended: Ended) -> None:
    folder = ended()
    kinds = {k: {"answers": {"kl_mean": kl, "top1_agreement": 0.9}} for k, kl in zip("abcd", (1, 4, 3, 2), strict=True)}
    path = folder / "evaluate/result.json"
    result = read_json(path)
    write_json(path, {**result, "summary": {"drift": {"by_kind": kinds}}})
    assert [d.kind for d in explain_run(folder).drift] == ["b", "c", "d"]
    write_json(path, {**result, "summary": {}})
    assert explain_run(folder).drift == []
    write_json(folder / "evaluate/drift.json", {"by_kind": {**kinds, "odd": {}, "odder": 3}})
    assert [d.kind for d in explain_run(folder).drift] == ["b", "c", "d"]


def test_layers_are_optional_and_bad_lines_are_passed_over(ended: Ended) -> None:
    folder = ended("refused", wrong=80)
    assert explain_run(folder).layers == []
    lines = [json.dumps({"name": f"l{n}", "relative_error": n / 10, "bits": 4}) for n in range(5)]
    lines += ["no json", "[]", '{"name": "x"}', '{"name": "y", "relative_error": NaN}', '{"relative_error": 9}']
    (folder / "evaluate/layers.jsonl").write_text("\n".join(lines))
    told = explain_run(folder)
    assert [layer["name"] for layer in told.layers] == ["l4", "l3", "l2"]
    assert "l4, l3, l2" in told.advice[-1]


def test_records_that_changed_since_are_noted(ended: Ended) -> None:
    folder = ended("refused", wrong=80)
    with (folder / "evaluate/records/recall.jsonl").open("a") as handle:
        handle.write("\n")
    assert explain_run(folder).notes == ["the candidate's records of recall are not those that were judged"]


def test_records_that_are_gone_leave_the_words(ended: Ended) -> None:
    folder = ended("refused", wrong=80)
    (folder / "baseline/records/recall.jsonl").unlink()
    told = explain_run(folder)
    assert told.words
    assert told.changes == []
    assert told.notes[0].startswith("recall.exact_match: its records cannot be read")


def test_an_unsteady_engine_is_nothing_to_allow(ended: Ended) -> None:
    folder = ended("inconclusive", gate={"inconclusive": "allow"})
    change_verdict(folder, outcome="INCONCLUSIVE", reasons=["m: unstable_engine"], control={"stable": False})
    told = explain_run(folder)
    assert told.advice[0] == "The engine does not agree with itself: m: unstable_engine."
    assert "does not cover it" in told.advice[1]


def test_a_later_gates_verdict_is_read_as_far_as_it_goes(ended: Ended) -> None:
    folder = ended("inconclusive")
    metrics = read_json(folder / "gate/verdict.json")["metrics"]
    change_verdict(
        folder,
        outcome="INCONCLUSIVE",
        reasons=["unstable_engine"],
        aa={"flips": 3},
        metrics=[{**metrics[0], "new": 1}],
    )
    told = explain_run(folder)
    assert (told.verdict, told.words) == ("INCONCLUSIVE", "")
    assert told.notes == ["the verdict was written by another version of the gate and is read only in part"]
    assert told.advice[0] == "The gate could not decide: unstable_engine."


@pytest.mark.parametrize("text", ["[]", "{}", "no json", '{"outcome": "PASS", "metrics": [{}]}'])
def test_a_broken_verdict_is_a_note(ended: Ended, text: str) -> None:
    folder = ended("refused", wrong=80)
    (folder / "gate/verdict.json").write_text(text)
    told = explain_run(folder)
    assert told.notes[-1].endswith("`sqtool gate demo` judges the records again")


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        explain_run(tmp_path)


def test_speculation_has_a_verdict_of_its_own(ended: Ended) -> None:
    folder = ended()
    assert any(line.startswith("Speculation is approved; `sqtool advise demo`") for line in explain_run(folder).advice)
    result = read_json(folder / "approve/result.json")
    result["summary"] = {"approved": False, "gate": "block", "reasons": ["both: REGRESSED"]}
    write_json(folder / "approve/result.json", result)
    assert explain_run(folder).advice[-1] == (
        "Speculation is not approved, and that blocks the release: both: REGRESSED. `sqtool advise demo` says what to "
        "deploy."
    )
