from __future__ import annotations

from typing import Any

import pytest

from sqtool.explain.advice import of_doubt, of_pass, of_regression, only_kind
from sqtool.explain.worse import Change, Part

AWQ = [{"awq": {"scheme": "W4A16_ASYM", "group_size": None}}]
RTN = [{"rtn": {"scheme": "W4A16", "group_size": None}}]


def changed(kinds: dict[str, int], failures: tuple[tuple[str, int], ...] = (), of: int = 100) -> Change:
    """A change with so many worse items of each kind, of `of` items each."""
    parts = tuple(
        Part("kind", name, of, n, 0, 1.0, 1 - n / of) for name, n in sorted(kinds.items(), key=lambda k: -k[1])
    )
    worse = sum(kinds.values())
    return Change("t.m", of * len(kinds), worse, 0, parts, failures or (("wrong_text", worse),), (), 0, ())


def test_one_kind_of_several_asks_for_calibration() -> None:
    (line,) = of_regression([changed({"parallel": 25, "simple": 1})], AWQ, [])
    assert line.startswith("t.m: 25 of the 26 items that got worse are of kind parallel. Calibrate with more of it")


def test_a_method_without_data_is_not_told_to_calibrate() -> None:
    (line,) = of_regression([changed({"parallel": 25, "simple": 1})], RTN, [])
    assert "sees no data; one that does (awq, gptq)" in line


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (RTN, "Try awq or gptq in place of rtn, an asymmetric scheme (W4A16_ASYM), a smaller group_size, more bits"),
        (AWQ, "Try a smaller group_size, more bits (W8A16, fp8)."),
        ([{"gptq": {"scheme": "W8A8"}}], "Try smoothquant before it, more bits, or fewer layers."),
        ([{"smoothquant": {}}, {"gptq": {"scheme": "W8A8"}}], "Try more bits, or fewer layers."),
        ([], "Try more bits, or fewer layers."),
    ],
)
def test_lost_everywhere_asks_for_precision(methods: list[dict[str, Any]], said: str) -> None:
    (line,) = of_regression([changed({"recall": 20})], methods, [])
    assert line.startswith("t.m (20 of 100 items, all of kind recall): no single kind among others is to blame")
    assert said in line


def test_what_is_lost_everywhere_is_said_once() -> None:
    (line,) = of_regression([changed({"recall": 20}), changed({"a": 10, "b": 10})], RTN, [])
    assert line.startswith("t.m (20 of 100 items, all of kind recall), t.m (20 of 200 items, spread over its kinds): ")
    assert line.count("Try ") == 1


@pytest.mark.parametrize("failure", ["truncated", "empty", "left_in_content", "unparseable"])
def test_answers_that_break_the_same_way_point_to_the_template(failure: str) -> None:
    (line,) = of_regression([changed({"a": 10, "b": 10}, ((failure, 18), ("wrong_text", 2)))], AWQ, [])
    assert "most fail the same way" in line
    assert "Compare" in line or "Look at" in line


def test_most_items_worse_is_something_broken() -> None:
    (line,) = of_regression([changed({"a": 60, "b": 60})], AWQ, [])
    assert "120 of 200 items got worse, which is more than rounding does" in line


def test_layers_are_named() -> None:
    layers = [{"name": "model.layers.1.mlp.down_proj", "relative_error": 0.2}]
    assert of_regression([changed({"a": 10})], AWQ, layers)[-1] == (
        "The layers with the largest error are model.layers.1.mlp.down_proj: leave them in 16 bits with `ignore`."
    )


def test_only_kind_needs_several_kinds() -> None:
    assert only_kind(changed({"a": 10})) is None
    assert only_kind(changed({"a": 6, "b": 4})) is None
    assert only_kind(changed({"a": 0, "b": 0})) is None


UNDECIDED = {"metric": "t.m", "items": 400, "reason": "interval_reaches_margin", "items_to_decide": 1084}


def test_doubt_says_how_many_items() -> None:
    lines = of_doubt([{**UNDECIDED, "items_for_power": 2476}], [], allowed=False)
    assert lines[0] == (
        "t.m: measure more items. 400 cannot decide; about 1,084 would, if they behave like these (2,476 for a chance "
        "of 80 %)."
    )
    assert lines[1].startswith("To accept the risk instead")


def test_doubt_near_the_margin_asks_for_no_items() -> None:
    lines = of_doubt([{**UNDECIDED, "items_to_decide": None}], [], allowed=True)
    assert "so close to the margin" in lines[0]
    assert lines[1] == "The recipe accepts the risk (`gate: {inconclusive: allow}`)."


def test_doubt_for_a_reason_that_is_not_known_yet() -> None:
    assert of_doubt([], ["unstable_engine: 3 of 100"], allowed=False)[0] == (
        "The gate could not decide: unstable_engine: 3 of 100."
    )
    part = {"metric": "t.m", "slice_field": "kind", "slice_value": "x", "outcome": "NEW", "reason": "some_new_thing"}
    assert of_doubt([part], [], allowed=False)[0].startswith("t.m[kind=x]: some new thing")


def test_a_pass_says_where_the_least_room_was() -> None:
    wide = {"metric": "t.a", "lower": -0.001, "upper": 0.002, "margin": 0.02}
    near = {"metric": "t.b", "lower": -0.015, "upper": -0.001, "margin": 0.02}
    lines = of_pass([wide, near])
    assert lines[0] == (
        "Nothing has to be done. Least room: t.b, whose lower bound -1.50 is 0.50 points above minus its margin."
    )
    assert lines[1].startswith("t.b did fall: its interval (-1.50 to -0.10 points) is below zero")
    assert len(lines) == 2
