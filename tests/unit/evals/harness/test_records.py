"""lm-eval's samples as records: which metrics are scores, and what a record says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.metrics import mean, nanmean

from evals.harness.catalogue import Leaf
from evals.harness.loading import Loaded
from evals.harness.models import Ledger
from evals.harness.records import records_of
from evals.scorers import Answer
from sqtool.errors import DataError


class FakeTask:
    OUTPUT_TYPE = "generate_until"

    def __init__(self, aggregations: dict[str, Any], lower: tuple[str, ...] = ()) -> None:
        self._aggregations, self._lower = aggregations, lower

    def aggregation(self) -> dict[str, Any]:
        return self._aggregations

    def higher_is_better(self) -> dict[str, bool]:
        return {metric: metric not in self._lower for metric in self._aggregations}


def loaded(aggregations: dict[str, Any], lower: tuple[str, ...] = ()) -> Loaded:
    return Loaded(Leaf("t", {}, None), FakeTask(aggregations, lower), 1)


def sample(number: int, filter_name: str = "none", **metrics: Any) -> dict[str, Any]:
    return {
        "doc_id": number,
        "doc": {"q": f"question {number}", "n": number},
        "target": "right",
        "arguments": [("prompt", {"until": [], "max_gen_toks": 4})],
        "resps": [["said"]],
        "filtered_resps": ["said"],
        "filter": filter_name,
        "metrics": list(metrics),
        **dict.fromkeys(("doc_hash", "prompt_hash", "target_hash"), "x"),
        **metrics,
    }


def ledger(count: int) -> Ledger:
    return Ledger(answers={number: [Answer("said", completion_tokens=2)] for number in range(count)})


NUMBERS = st.sampled_from([0, 1, 0.0, 1.0, True, False, np.float64(1), np.int64(0), np.bool_(True)])


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=60))
def test_the_mean_of_right_and_wrong_is_lm_evals(values: list[tuple[Any, Any]]) -> None:
    samples = [sample(i, "none", m=a) for i, (a, _) in enumerate(values)]
    samples += [sample(i, "other", m=b) for i, (_, b) in enumerate(values)]
    found = records_of(loaded({"m": mean}), samples, ledger(len(values)), 256)
    assert found.diagnostics == {}
    for column, name in ((0, "m"), (1, "m,other")):
        scores = [record["scores"][name] for record in found.records]
        assert sum(scores) / len(scores) == mean([float(pair[column]) for pair in values])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_and_of_shares_but_for_rounding(values: list[float]) -> None:
    samples = [sample(i, m=value) for i, value in enumerate(values)]
    found = records_of(loaded({"m": mean}), samples, ledger(len(values)), 256)
    scores = [record["scores"]["m"] for record in found.records]
    assert scores == values
    assert sum(scores) / len(scores) == pytest.approx(mean(values), rel=1e-12)


@pytest.mark.parametrize(
    ("value", "aggregation", "why"),
    [
        (1.5, mean, "item 1 has 1.5, which is no number in [0, 1]"),
        (-0.1, mean, "item 1 has -0.1"),
        ((0, 1), mean, "item 1 has (0, 1)"),
        ("0.5", mean, "item 1 has 0.5"),
        (math.nan, mean, "item 1 has nan"),
        (math.inf, nanmean, "item 1 has inf"),
        (0.5, max, "computed from all items together (with a function of its own)"),
    ],
)
def test_what_is_no_score_is_said(value: Any, aggregation: Any, why: str) -> None:
    samples = [sample(0, m=0.5, other=1), sample(1, m=value, other=0)]
    found = records_of(loaded({"m": aggregation, "other": mean}), samples, ledger(2), 256)
    assert found.diagnostics["m"].startswith(why)
    assert [set(record["scores"]) & {"m", "other"} for record in found.records] == [{"other"}] * 2, "not by halves"


def test_an_item_that_lm_eval_leaves_out_has_no_score() -> None:
    samples = [sample(0, m=math.nan), sample(1, m=1.0)]
    found = records_of(loaded({"m": nanmean}), samples, ledger(2), 256)
    assert found.diagnostics == {}
    assert ["m" in record["scores"] for record in found.records] == [False, True]


@pytest.mark.parametrize(
    ("value", "lower", "failure"),
    [(1, (), None), (0, (), "wrong_text"), (0.5, (), "partly_right"), (0, ("m",), None), (1, ("m",), "wrong_text")],
)
def test_failures_follow_the_first_metric(value: float, lower: tuple[str, ...], failure: str | None) -> None:
    (record,) = records_of(loaded({"m": mean}, lower), [sample(0, m=value)], ledger(1), 256).records
    assert record["failure"] == failure
    assert record["detail"] == ("" if failure is None else "expected 'right', found 'said'")


def test_all_repeats_are_the_answer() -> None:
    book = Ledger(answers={0: [Answer("a", completion_tokens=1), Answer("b", completion_tokens=2)]})
    (record,) = records_of(loaded({"m": mean}), [sample(0, m=1)], book, 256).records
    assert record["output"]["text"] == "a\nb"
    assert record["output"]["completion_tokens"] == 3
    assert record["scores"]["gen_len"] == 0.25


def test_a_metric_with_the_name_of_a_built_in_one() -> None:
    with pytest.raises(DataError, match="'truncated' has the name of one that every answer has"):
        records_of(loaded({"truncated": mean}), [sample(0, truncated=1)], ledger(1), 256)


def test_ids_follow_place_and_data() -> None:
    first = records_of(loaded({"m": mean}), [sample(0, m=1), sample(1, m=1)], ledger(2), 256).records
    other = sample(1, m=1)
    other["doc"] = {**other["doc"], "n": 9}
    second = records_of(loaded({"m": mean}), [sample(0, m=1), other], ledger(2), 256).records
    assert first[0]["id"] == second[0]["id"]
    assert first[1]["id"] != second[1]["id"]
    assert first[0]["id"].startswith("00000-")
    assert first[1]["fields"] == {"q": "question 1", "n": 1}
