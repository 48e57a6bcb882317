"""Comparison of arguments by BFCL's rules, and the assignment of calls to expected ones."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.items import Call, Item, PossibleCall
from evals.scorers import Fault, make_scorer
from evals.scorers.arguments import assign, bfcl_faults, possible, standard_string
from tests.unit.evals.builders import called, tool, tool_item, tool_row

SCHEMA = {
    "type": "object",
    "properties": {
        "s": {"type": "string"},
        "i": {"type": "integer"},
        "n": {"type": "number"},
        "b": {"type": "boolean"},
        "strings": {"type": "array", "items": {"type": "string"}},
        "numbers": {"type": "array", "items": {"type": "number"}},
        "o": {"type": "object"},
        "os": {"type": "array", "items": {"type": "object"}},
        "any": {},
    },
    "required": [],
}


@pytest.mark.parametrize(
    ("name", "acceptable", "value", "wrong"),
    [
        ("s", ["San Francisco, CA", "SF"], "san francisco CA", None),
        ("s", ["2023-06-30"], "2023/06/30", None),
        ("s", ["it's"], 'IT"S', None),
        ("s", ["x**2"], "x^2", None),
        ("s", ["round trip"], "one way", "value"),
        ("s", ["5"], 5, "type"),
        ("s", ["", "a"], "", None),
        ("i", [10], 10, None),
        ("i", [10], 10.0, "type"),
        ("i", [10], True, "type"),
        ("i", [10], "10", "type"),
        ("i", [10, 12], 12, None),
        ("i", [10], 11, "value"),
        ("n", [7.0], 7, None),
        ("n", [7], 7.0, None),
        ("n", [0.03], 0.031, "value"),
        ("b", [True], True, None),
        ("b", [True], 1, "type"),
        ("b", [False, ""], False, None),
        ("strings", [["Free WiFi", "Gym"]], ["free wifi", "gym"], None),
        ("strings", [["a", "b"]], ["b", "a"], "value"),
        ("strings", [["a"]], ["a", "b"], "value"),
        ("strings", [["a"]], [1], "type"),
        ("strings", [["a"]], "a", "type"),
        ("strings", [[], ""], [], None),
        ("numbers", [[3, 2.5]], [3, 2.5], None),
        ("numbers", [[3, 2.5]], [3, "2.5"], "type"),
        ("o", [{"size": ["large"], "milk": ["almond", ""]}], {"size": "Large"}, None),
        ("o", [{"size": ["large"], "milk": ["almond", ""]}], {"size": "large", "milk": "Almond"}, None),
        ("o", [{"size": ["large"]}], {}, "value"),
        ("o", [{"size": ["large"]}], {"size": "large", "ice": True}, "value"),
        ("os", [[{"k": [1]}, {"k": [2]}]], [{"k": 1}, {"k": 2}], None),
        ("os", [[{"k": [1]}, {"k": [2]}]], [{"k": 2}, {"k": 1}], "value"),
        ("os", [[{"k": [1]}]], [{"k": 1}, {"k": 1}], "value"),
        # A variable's name stands for an array: compared as it stands.
        ("numbers", ["data['x']"], "data['x']", None),
        ("numbers", ["data['x']"], "DATA['x']", "value"),
        ("any", ["auto"], "Auto", None),
        ("any", [3], 3, None),
        ("any", [3], "3", "type"),
    ],
)
def test_values(name: str, acceptable: list[Any], value: Any, wrong: str | None) -> None:
    found = bfcl_faults({name: acceptable}, {name: value}, SCHEMA)
    assert [one.wrong for one in found] == ([] if wrong is None else [wrong])


@pytest.mark.parametrize(
    ("acceptable", "got", "faults"),
    [
        ({"s": ["a"], "i": [1, ""]}, {"s": "a"}, []),
        ({"s": ["a"], "i": [1]}, {"s": "a"}, [("i", "missing")]),
        ({"s": ["a"]}, {"s": "a", "i": 1}, [("i", "unexpected")]),
        ({"s": ["a"]}, {"s": "a", "zzz": 1}, [("zzz", "unexpected")]),
        ({"s": ["a"], "i": [1]}, {"s": 1, "b": True}, [("i", "missing"), ("s", "type"), ("b", "unexpected")]),
    ],
)
def test_missing_and_unexpected(acceptable: dict[str, Any], got: dict[str, Any], faults: list[Any]) -> None:
    assert [(one.argument, one.wrong) for one in bfcl_faults(acceptable, got, SCHEMA)] == faults


def test_a_required_argument_is_not_optional_even_if_the_answers_say_so() -> None:
    schema = {**SCHEMA, "required": ["i"]}
    assert [one.wrong for one in bfcl_faults({"i": ["", 1]}, {}, schema)] == ["missing"]


@given(st.text())
def test_the_standard_string_is_idempotent_and_blind_to_case_and_spaces(text: str) -> None:
    once = standard_string(text)
    assert standard_string(once) == once
    assert standard_string(f" {text} - ") == once


json_arguments = st.dictionaries(
    st.sampled_from("abc"),
    st.recursive(
        st.booleans() | st.integers(-3, 3) | st.text(min_size=1, max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xy"), inner, max_size=2),
        max_leaves=5,
    ),
    max_size=3,
)


@given(json_arguments)
def test_what_is_exactly_right_is_right_by_bfcls_rules(arguments: dict[str, Any]) -> None:
    """Nor does BFCL's form of a call lose anything: its first possible call is the call."""
    call = Call(name="f", arguments=arguments)
    assert bfcl_faults(possible(call).arguments, arguments, {}) == []
    if "" not in arguments.values():
        assert possible(call).first().arguments.keys() == arguments.keys()


def _possible(*values: list[int]) -> list[PossibleCall]:
    return [PossibleCall(name="f", arguments={"i": list(one)}) for one in values]


def test_first_come_first_served_would_lose_a_match() -> None:
    """The first call fits both expectations, the second only the first one."""
    wanted = _possible([1, 2], [1])
    got = [("f", {"i": 1}), ("f", {"i": 2})]
    for order in itertools.permutations(got):
        assert assign(wanted, list(order), {}).matched


@given(
    st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3), min_size=1, max_size=5),
    st.lists(st.integers(0, 4), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
)
def test_the_assignment_finds_a_match_where_there_is_one(
    values: list[list[int]], said: list[int], rng: random.Random
) -> None:
    rng.shuffle(said)
    there_is_one = len(values) == len(said) and any(
        all(one in some for one, some in zip(order, values, strict=True)) for order in itertools.permutations(said)
    )
    found = assign(_possible(*values), [("f", {"i": i}) for i in said], {})
    assert found.matched == there_is_one
    assert found.matched == (not found.detail and len(values) == len(said))


def test_faults_are_those_of_the_nearest_assignment() -> None:
    wanted = [Call(name="f", arguments={"a": 1, "b": 1}), Call(name="f", arguments={"a": 2, "b": 2})]
    found = assign(wanted, [("f", {"a": 2, "b": 2}), ("f", {"a": 1, "b": 9})], {})
    assert found.faults == (Fault("f", "b", "value"),)
    assert found.detail == "f: b: expected 1, found 9"
    other = assign(wanted, [("g", {}), ("f", {"a": 1, "b": 1})], {})
    assert (other.matched, other.faults, other.detail) == (False, (), "f: not called")


BFCL = make_scorer("tool_calls", {"compare": "bfcl"})
BOOK = tool("book", {"city": {"type": "string"}, "nights": {"type": "integer"}}, ["city"])


def _bfcl_item(*calls: dict[str, Any]) -> Item:
    return Item.model_validate(tool_row([], tools=[BOOK], expected={"possible_calls": list(calls)}))


@pytest.mark.parametrize(
    ("arguments", "failure", "valid"),
    [
        ({"city": "paris"}, None, 1.0),
        ({"city": "Paris, France", "nights": 2}, None, 1.0),
        ({"city": "Paris", "nights": 3}, "wrong_arguments", 1.0),
        ({"city": "Paris", "nights": "2"}, "schema_invalid", 0.0),
        ({"nights": 2}, "schema_invalid", 0.0),
    ],
)
def test_the_scorer_by_bfcls_rules(arguments: dict[str, Any], failure: str | None, valid: float) -> None:
    item = _bfcl_item({"name": "book", "arguments": {"city": ["Paris", "Paris, France"], "nights": [2, ""]}})
    assert BFCL.check(item) is None
    score = BFCL.score(item, called(("book", arguments)))
    assert (score.failure, score.scores["schema_valid"]) == (failure, valid)
    assert score.scores["call_match"] == float(failure is None)


def test_exact_calls_can_be_compared_by_bfcls_rules() -> None:
    item = tool_item(("weather", {"city": "New York"}))
    said = called(("weather", {"city": "new-york"}))
    assert BFCL.score(item, said).failure is None
    assert make_scorer("tool_calls").score(item, said).failure == "wrong_arguments"


@pytest.mark.parametrize(
    ("call", "options", "message"),
    [
        ({"name": "book", "arguments": {"city": ["x"]}}, {}, "compare: bfcl"),
        ({"name": "bok", "arguments": {}}, {"compare": "bfcl"}, "no tool 'bok'"),
        ({"name": "book", "arguments": {"town": ["x"]}}, {"compare": "bfcl"}, "no parameter 'town'"),
    ],
)
def test_possible_calls_are_checked(call: dict[str, Any], options: dict[str, str], message: str) -> None:
    problem = make_scorer("tool_calls", options).check(_bfcl_item(call))
    assert problem is not None
    assert problem[0] == "expected.possible_calls.0"
    assert message in problem[1]
