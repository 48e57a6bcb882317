from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.features import Profile, features, script
from calibrate.greedy import cover, traffic_weights
from calibrate.render import Rendered
from calibrate.spec import MinScores
from calibrate.text_coverage import measure_text, name_fillers, quantiles, verdict, wanted, worst

SPECIAL = {0: "<end>"}


def talk(text: str = "hello", kind: str = "a", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "fine"}]
    return {"kind": kind, "messages": messages, **more}


def calling(tool: str, arguments: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    call = {"function": {"name": tool, "arguments": arguments}}
    schema = {"type": "object", "properties": properties}
    return {
        "messages": [{"role": "user", "content": "do"}, {"role": "assistant", "content": "", "tool_calls": [call]}],
        "tools": [{"function": {"name": tool, "parameters": schema}}],
    }


def found(record: dict[str, Any], ids: Sequence[int] = (5, 6, 0), answer: int = 1) -> dict[str, frozenset[str]]:
    return features(record, Rendered(list(ids), answer, len(ids)), SPECIAL)


def profile(*records: dict[str, Any], ids: Sequence[int] = (5, 6, 0)) -> Profile:
    made = Profile()
    for record in records:
        rendered = Rendered(list(ids), 1, len(ids))
        made.add(features(record, rendered, SPECIAL), rendered)
    return made


def test_calls_give_tools_parameters_types_and_enum_values() -> None:
    properties = {
        "unit": {"type": "string", "enum": ["km", "mile"]},
        "day": {"type": "string", "format": "date"},
        "count": {"type": ["integer", "null"]},
        "tags": {"type": "array", "items": {"type": "string"}},
    }
    given = {"unit": "km", "day": "2030-01-01", "count": 3, "tags": ["x"], "undeclared": 1.5}
    made = found(calling("convert", given, properties))
    assert made["tools"] == {"convert"}
    assert made["parameters"] == {f"convert.{name}" for name in given}
    assert made["types"] == {"enum", "string (date)", "integer", "array of string", "number"}
    assert made["enum_values"] == {"convert.unit=km"}
    assert made["n_tools"] == {"1"}
    assert made["roles"] == {"user", "assistant", "tool calls"}


@pytest.mark.parametrize(
    ("text", "scripts"),
    [
        ("hello", {"Latin"}),
        ("русский текст для проверки, всё на кириллице", {"Cyrillic"}),
        ("繁體中文的對話", {"Han", "Latin"}),
        ("ひらがなとカタカナ", {"Hiragana", "Katakana", "Latin"}),
        ("مرحبا بالعالم", {"Arabic", "Latin"}),
        ("a" * 200 + "я", {"Latin"}),
        ("123 !?", {"Latin"}),
    ],
)
def test_scripts_by_their_unicode_names(text: str, scripts: set[str]) -> None:
    # The answer, `fine`, is Latin; a script below a twentieth of the letters does not count.
    record = talk(text)
    if scripts == {"Cyrillic"}:
        record["messages"][1]["content"] = "да"
    assert found(record)["scripts"] == scripts


def test_a_script_is_nothing_for_what_is_no_letter() -> None:
    assert [script(c) for c in "aß1 中。"] == ["Latin", "Latin", "", "", "Han", ""]


def test_system_prompts_are_told_apart_and_none_is_one() -> None:
    long = "x" * 100
    with_system = talk()
    with_system["messages"].insert(0, {"role": "system", "content": long})
    other = talk()
    other["messages"].insert(0, {"role": "developer", "content": long + "y"})
    names = [next(iter(found(record)["system_prompts"])) for record in (talk(), with_system, other)]
    assert names[0] == "(none)"
    assert len(set(names)) == 3
    assert all(len(name) < 80 for name in names)


def test_a_score_is_the_share_of_the_traffic_that_the_set_has() -> None:
    traffic = profile(*[talk(kind="a")] * 6, *[talk(kind="b")] * 3, talk(kind="c"))
    report = measure_text(MinScores(), {"traffic": traffic}, profile(talk(kind="a"), talk(kind="b")))
    kinds = report["kinds"]
    assert kinds["score"] == pytest.approx(0.9)
    assert kinds["verdict"] == "COVERED"
    assert kinds["missing"] == [{"name": "c", "share": 0.1, "against": "traffic"}]
    assert "tools" not in report, "nobody calls one"


def test_the_score_is_the_lowest_of_all_references_and_all_missing_is_named() -> None:
    traffic, evals = profile(talk(kind="a")), profile(talk(kind="a"), talk(kind="b"))
    report = measure_text(MinScores(), {"traffic": traffic, "evals": evals}, profile(talk(kind="a")))
    assert report["kinds"]["against"] == {"traffic": 1.0, "evals": 0.5}
    assert (report["kinds"]["score"], report["kinds"]["verdict"]) == (0.5, "THIN")


def test_a_conversation_is_covered_when_all_that_it_has_is() -> None:
    with_result = talk()
    with_result["messages"].insert(1, {"role": "tool", "content": "42"})
    traffic = profile(*[talk()] * 4, with_result)
    report = measure_text(MinScores(), {"traffic": traffic}, profile(talk()))
    assert report["roles"]["score"] == pytest.approx(0.8), "not 10 of 11 roles"
    assert report["roles"]["missing"] == [{"name": "tool", "share": pytest.approx(0.2), "against": "traffic"}]


def test_sources_without_kinds_are_not_compared_by_kind() -> None:
    unlabelled = talk()
    del unlabelled["kind"]
    assert "kinds" not in measure_text(MinScores(), {"traffic": profile(talk())}, profile(unlabelled))


def test_verdicts() -> None:
    assert [verdict(s, 0.8) for s in (0.8, 0.79, 0.4, 0.39)] == ["COVERED", "THIN", "THIN", "UNCOVERED"]
    assert verdict(0.0, 0.0) == "COVERED"
    assert worst([]) == "COVERED"
    assert worst(["COVERED", "UNCOVERED", "THIN"]) == "UNCOVERED"


def test_a_dimension_whose_features_never_come_again_is_measured_only() -> None:
    open_ended = profile(*[calling(f"tool_{n}", {"x": 1}, {}) for n in range(100)])
    have = profile(calling("other", {"x": 1}, {}))
    assert wanted(open_ended, "tools") == ({}, True)
    mixed = [calling("often", {"x": 1}, {})] * 60 + [calling(f"tool_{n}", {"x": 1}, {}) for n in range(40)]
    report = measure_text(MinScores(), {"traffic": profile(*mixed)}, have)
    assert (report["tools"]["score"], report["tools"]["verdict"]) == (0.0, "UNCOVERED")
    assert [m["name"] for m in report["tools"]["missing"]] == ["often"], "what came once does not count"
    twice = [calling(f"tool_{n // 2}", {"x": 1}, {}) for n in range(20)] + [
        calling(f"once_{n}", {"x": 1}, {}) for n in range(80)
    ]
    report = measure_text(MinScores(), {"traffic": profile(*twice)}, have)
    assert (report["tools"]["open"], report["tools"]["verdict"]) == (True, "COVERED")
    named = measure_text(MinScores(tools=0.5), {"traffic": profile(*twice)}, have)
    assert named["tools"]["verdict"] == "UNCOVERED", "a minimum that the recipe names holds all the same"


def test_a_small_sample_is_taken_at_its_word() -> None:
    small = profile(*[calling(f"tool_{n}", {"x": 1}, {}) for n in range(10)])
    report = measure_text(MinScores(), {"traffic": small}, profile(calling("tool_1", {"x": 1}, {})))
    assert (report["tools"]["score"], report["tools"]["open"]) == (0.1, False)


def test_tokens_count_as_often_as_they_occur() -> None:
    traffic = profile(talk(), ids=(5, 5, 5, 7))
    report = measure_text(MinScores(), {"traffic": traffic}, profile(talk(), ids=(5, 0)))
    assert report["tokens"]["score"] == pytest.approx(0.75)
    assert report["prompt_length"]["quantiles"]["traffic"] == {"p50": 3, "p90": 3, "p99": 3, "max": 3}


def test_quantiles_of_nothing_and_of_many() -> None:
    assert quantiles([]) is None
    assert quantiles(list(range(1, 101))) == {"p50": 51, "p90": 91, "p99": 100, "max": 100}


def test_what_is_missing_names_who_would_fill_it() -> None:
    report = measure_text(MinScores(), {"traffic": profile(talk("русский"))}, profile(talk()))
    pool = [("x:1", found(talk("русский"))), ("x:2", found(talk())), ("x:3", found(talk("ещё")))]
    name_fillers(report, pool)
    (missing,) = report["scripts"]["missing"]
    assert (missing["name"], missing["in_pool"], missing["items"]) == ("Cyrillic", 2, ["x:1", "x:3"])


def options(*names: str) -> list[dict[str, frozenset[str]]]:
    return [{"kinds": frozenset(name)} for name in names]


def test_the_greedy_choice_takes_what_is_new_and_keeps_the_traffics_proportions() -> None:
    weights = {("kinds", "a"): 0.75, ("kinds", "b"): 0.25}
    chosen = cover(options(*"aaaaaaaabbbb"), weights, costs=[1] * 12, budgets=[8], groups=[0] * 12)
    assert sum(place < 8 for place in chosen) == 6
    both = cover(options("a", "b", "ab"), weights, costs=[1] * 3, budgets=[1], groups=[0] * 3)
    assert both == [2]


def test_floors_come_first_and_sources_have_budgets_of_their_own() -> None:
    weights = {("kinds", "a"): 1.0}
    chosen = cover(options(*"aaab"), weights, costs=[1] * 4, budgets=[2], groups=[0] * 4, floors={("kinds", "b"): 1})
    assert chosen == [3, 0]
    assert cover(options(*"aaaa"), weights, costs=[1] * 4, budgets=[1, 1], groups=[0, 0, 1, 1]) == [0, 2]


def test_costs_are_kept_within_the_budget() -> None:
    weights = {("kinds", "a"): 0.6, ("kinds", "b"): 0.4}
    assert cover(options("a", "b", "b"), weights, costs=[10, 2, 2], budgets=[5], groups=[0] * 3) == [1, 2]


@given(
    st.lists(st.frozensets(st.sampled_from("abcdef"), min_size=1), min_size=1, max_size=12),
    st.integers(1, 6),
)
def test_lazy_evaluation_finds_what_full_evaluation_finds(sets: list[frozenset[str]], budget: int) -> None:
    import math

    weights = {("kinds", name): 1.0 + n for n, name in enumerate("abcdef")}
    counts = dict.fromkeys("abcdef", 0)
    value = 0.0
    left = set(range(len(sets)))
    for _ in range(min(budget, len(sets))):
        gains = {p: sum(weights["kinds", f] * math.log1p(1 / (counts[f] + 1)) for f in sets[p]) for p in left}
        best = max(gains, key=lambda p: (round(gains[p], 9), -p))
        value += gains[best]
        left.remove(best)
        for name in sets[best]:
            counts[name] += 1
    places = cover(
        [{"kinds": s} for s in sets], weights, costs=[1] * len(sets), budgets=[budget], groups=[0] * len(sets)
    )
    assert len(places) == len(set(places)) == min(budget, len(sets))
    got: dict[str, int] = dict.fromkeys("abcdef", 0)
    for place in places:
        for name in sets[place]:
            got[name] += 1
    assert sum(weights["kinds", f] * math.log1p(n) for f, n in got.items()) == pytest.approx(value)


def test_open_dimensions_weigh_nothing() -> None:
    weights = traffic_weights(profile(*[calling(f"tool_{n}", {"x": 1}, {}) for n in range(100)]))
    assert {dimension for dimension, _ in weights}.isdisjoint({"tools", "parameters"})
    assert weights["types", "integer"] == 1.0
