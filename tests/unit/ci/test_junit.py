from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from junitparser import Error, Failure, JUnitXml, Skipped, TestCase

from sqtool.ci import junit, read_run
from sqtool.ci.junit import _text
from sqtool.files import read_json, write_json
from tests.unit.advise.reports import approval
from tests.unit.ci.conftest import STAGES, Ended, change_verdict
from tests.unit.report.test_markdown import HOSTILE


def cases(folder: Path) -> dict[str, TestCase]:
    """The file as another program reads it: `class.name` -> case; its counts are checked on the way."""
    text = junit(read_run(folder))
    assert text.startswith("<?xml version='1.0' encoding='UTF-8'?>\n")
    root = ElementTree.fromstring(text)
    (suite,) = root
    found = list(suite.iter("testcase"))
    for tag, count in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        assert len(list(suite.iter(tag))) == int(suite.attrib[count]) == int(root.attrib[count])
    assert len(found) == int(suite.attrib["tests"])
    assert sum(float(c.get("time", 0)) for c in found) == pytest.approx(float(suite.attrib["time"]))
    read = list(itertools.chain.from_iterable(JUnitXml.fromstring(text.encode())))
    return {f"{case.classname}.{case.name}": case for case in read}


def result(case: TestCase) -> Any:
    return case.result[0] if case.result else None


def test_a_released_run_has_no_failure_and_one_case_a_gated_metric(ended: Ended) -> None:
    found = cases(ended())
    assert list(found) == ["run.outcome", "recall.exact_match"]
    assert all(case.is_passed for case in found.values())
    assert found["recall.exact_match"].time == 12.5
    assert found["run.outcome"].time == 8 * 61.0 - 12.5, "all stages but the answering, which has cases of its own"
    assert found["recall.exact_match"].system_out == (
        "100.00 % -> 100.00 %, change 0.00 points (interval -0.67 to +0.67), margin 2.00, 400 items, "
        "0/0 better/worse: PASS"
    )
    assert "repeat: sqtool quantize recipes/demo.yaml" in found["run.outcome"].system_out.splitlines()


def test_regressed_is_a_failure_with_figures_and_items(ended: Ended) -> None:
    found = cases(ended("refused", wrong=80))
    failure = result(found["recall.exact_match"])
    assert isinstance(failure, Failure)
    assert failure.type == "REGRESSED"
    assert failure.message.startswith("100.00 % -> 80.00 %, change -20.00 points")
    assert "got worse: recall-0 (early)\n  expected:  right\n  baseline:  right\n  candidate: wrong" in failure.text
    assert failure.text.count("got worse: ") == 3
    whole = result(found["run.outcome"])
    assert isinstance(whole, Failure)
    assert (whole.type, whole.message) == ("REGRESSED", "it regressed")


def test_inconclusive_fails_when_refused_and_is_skipped_when_allowed(ended: Ended) -> None:
    refused = result(cases(ended("inconclusive", wrong=4))["recall.exact_match"])
    assert isinstance(refused, Failure)
    assert refused.type == "INCONCLUSIVE"


def test_an_unsteady_engine_is_not_allowed(ended: Ended) -> None:
    folder = ended("inconclusive", wrong=4, gate={"inconclusive": "allow"})
    change_verdict(folder, control={"stable": False})
    assert isinstance(result(cases(folder)["recall.exact_match"]), Failure)


def test_inconclusive_that_is_allowed(ended: Ended) -> None:
    found = cases(ended("released", wrong=4, gate={"inconclusive": "allow"}))
    allowed = result(found["recall.exact_match"])
    assert isinstance(allowed, Skipped)
    assert allowed.message.startswith("does not block: 100.00 % -> 99.00 %")
    assert found["run.outcome"].is_passed


def test_slices_are_cases_and_only_those_that_block_fail(ended: Ended) -> None:
    found = cases(ended("refused", wrong=80, gate={"slices": ["kind"]}))
    assert isinstance(result(found["recall.exact_match [kind=early]"]), Failure)
    assert found["recall.exact_match [kind=late]"].is_passed
    unjudged = result(found["recall.exact_match [kind=rare]"])
    assert isinstance(unjudged, Skipped)
    assert unjudged.type == "NOT_JUDGED"
    assert "too few items to pass even if no answer changed" in unjudged.message


def test_a_slice_that_must_pass_blocks_when_it_cannot_be_judged(ended: Ended) -> None:
    found = cases(ended("inconclusive", gate={"slices": [{"field": "kind", "require": "pass"}]}))
    assert isinstance(result(found["recall.exact_match [kind=rare]"]), Failure)
    assert found["recall.exact_match"].is_passed


def test_a_slice_that_need_not_pass_does_not_block_by_being_undecided(ended: Ended) -> None:
    found = cases(ended("inconclusive", wrong=2, gate={"slices": ["kind"]}))
    undecided = result(found["recall.exact_match [kind=early]"])
    assert isinstance(undecided, Skipped)
    assert undecided.type == "INCONCLUSIVE"


@pytest.mark.parametrize("outcome", ["failed", "cancelled", "running"])
def test_a_run_that_did_not_get_to_the_gate_is_an_error(ended: Ended, outcome: str) -> None:
    error = {"type": "EngineError", "message": "the vLLM server died", "remedy": "Look at its log."}
    folder = ended(outcome, drop=STAGES[3:], error=None if outcome == "running" else error)
    state = read_json(folder / "run.json")
    state["stages"][3]["state"] = outcome
    write_json(folder / "run.json", state)
    found = cases(folder)
    assert list(found) == ["run.outcome"]
    whole = result(found["run.outcome"])
    assert isinstance(whole, Error)
    assert f"stage evaluate: {outcome}" in whole.text
    if outcome != "running":
        assert (whole.type, whole.message) == ("EngineError", "the vLLM server died")
        assert "Look at its log." in whole.text


def test_thin_coverage_is_a_failure_without_a_verdict(ended: Ended) -> None:
    error = {"type": "CoverageError", "message": "too few of kind date", "remedy": ""}
    whole = result(cases(ended("refused", drop=STAGES, error=error))["run.outcome"])
    assert isinstance(whole, Failure)
    assert (whole.type, whole.message) == ("CoverageError", "too few of kind date")


def test_a_failure_behind_a_passed_gate_is_an_error(ended: Ended) -> None:
    error = {"type": "InfrastructureError", "message": "the disk is full", "remedy": ""}
    found = cases(ended("failed", drop=("release",), error=error))
    assert isinstance(result(found["run.outcome"]), Error)
    assert found["recall.exact_match"].is_passed


def test_what_a_later_gate_adds_does_not_break_it_and_is_never_green(ended: Ended) -> None:
    folder = ended("inconclusive")
    verdict = read_json(folder / "gate/verdict.json")
    metrics = [{**verdict["metrics"][0], "outcome": "UNSTABLE", "reason": "unstable_engine", "new": {"x": 1}}]
    change_verdict(folder, outcome="INCONCLUSIVE", metrics=metrics, reasons=["unstable_engine"], aa={"flips": 3})
    found = cases(folder)
    assert isinstance(result(found["run.outcome"]), Failure)
    assert result(found["recall.exact_match"]).message.endswith("UNSTABLE: unstable engine")


def test_a_verdict_of_another_shape_leaves_the_outcome(ended: Ended) -> None:
    folder = ended("refused", wrong=80)
    write_json(folder / "gate/verdict.json", {"outcome": "REGRESSED", "metrics": [{"gated": True, "metric": "a.b"}]})
    found = cases(folder)
    assert list(found) == ["run.outcome"]
    assert isinstance(result(found["run.outcome"]), Failure)


def test_diagnostic_metrics_are_properties_not_cases(ended: Ended) -> None:
    folder = ended()
    verdict = read_json(folder / "gate/verdict.json")
    extra = {**verdict["metrics"][0], "metric": "recall.length", "gated": False, "candidate": 0.5, "difference": -0.5}
    change_verdict(folder, metrics=[*verdict["metrics"], extra])
    assert list(cases(folder)) == ["run.outcome", "recall.exact_match"]
    root = ElementTree.fromstring(junit(read_run(folder)))
    properties = {p.get("name"): p.get("value") for p in root.iter("property")}
    assert properties["diagnostic.recall.length"] == "100.00 % -> 50.00 %, change -50.00 points"
    assert (properties["outcome"], properties["exit_code"], properties["verdict"]) == ("released", "0", "PASS")


@pytest.mark.parametrize("text", [*HOSTILE, "]]>", "<!DOCTYPE x>", "\x00\x0b\ufffe\uffff", "a" * 10_000])
def test_hostile_answers_stay_text(ended: Ended, text: str) -> None:
    error = {"type": "RegressedError", "message": text, "remedy": text}
    found = cases(ended("refused", wrong=80, said=text, item=text or "x", error=error))
    assert list(found) == ["run.outcome", "recall.exact_match"]


@given(st.text(st.characters(), max_size=60))
def test_any_text_can_stand_in_xml(text: str) -> None:
    element = ElementTree.Element("a")
    element.text = _text(text)
    assert (ElementTree.fromstring(ElementTree.tostring(element)).text or "") == _text(text)


def test_speculation_is_a_property_and_blocks_only_where_the_recipe_says_so(ended: Ended) -> None:
    def properties(folder: Path) -> dict[str, str]:
        root = ElementTree.fromstring(junit(read_run(folder)))
        return {p.attrib["name"]: p.attrib["value"] for p in root.iter("property")}

    folder = ended()
    assert properties(folder)["speculation"] == "approved (num_speculative_tokens 4)"
    write_json(folder / "approve/speculation_verdict.json", approval(approved=False))
    assert properties(folder)["speculation"].startswith("not approved: both: REGRESSED against quantized")
    assert cases(folder)["run.outcome"].is_passed
    state = read_json(folder / "run.json")
    error = {"type": "RegressedError", "message": "speculation is not approved: both", "remedy": "", "exit_code": 1}
    write_json(folder / "run.json", {**state, "outcome": "refused", "exit_code": 1, "error": error})
    run = read_run(folder)
    assert not run.gate_decided, "its verdict is PASS"
    assert cases(folder)["recall.exact_match"].is_passed
    (failure,) = cases(folder)["run.outcome"].result
    assert (failure.type, failure.message) == ("RegressedError", "speculation is not approved: both")
