"""Scorers: metrics and failure layers, by example and by property."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.items import Item
from evals.schemas import parse_json
from evals.scorers import SCORERS, Answer, Fault, ToolCall, make_scorer
from evals.scorers.arguments import json_equal
from evals.scorers.exact_match import normalise
from sqtool.errors import UsageError
from tests.unit.evals.builders import called, text_row, tool_item

PARIS = ("weather", {"city": "Paris", "days": 2})
ROME = ("weather", {"city": "Rome"})
HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>'

CALLS = make_scorer("tool_calls")
EXACT = make_scorer("exact_match")


def test_the_table_loads() -> None:
    for name, target in SCORERS.items():
        module, _, attribute = target.partition(":")
        scorer = getattr(import_module(module), attribute)
        assert scorer.metrics, name
        assert scorer.failures, name
        assert scorer.asks in ("generate", "loglikelihood")
        assert all(field.description for field in scorer.model_fields.values()), name


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(UsageError, match="did you mean 'exact_match'"):
        make_scorer("exact_mach")
    with pytest.raises(UsageError, match="did you mean 'ignore_case'"):
        make_scorer("exact_match", {"ignore_cas": True})


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (Answer("The  Nile\n"), None),
        (Answer("the nile"), "wrong_text"),
        (Answer(" \n"), "empty"),
        (Answer("The Nile and", finish_reason="length"), "truncated"),
        (called(("weather", {})), "called_tool"),
        (called(("weather", {}), text="The Nile"), "called_tool"),
    ],
)
def test_exact_match(answer: Answer, failure: str | None) -> None:
    item = Item.model_validate(text_row(1, "The Nile"))
    score = EXACT.score(item, answer)
    assert score.failure == failure
    assert set(score.scores) == set(EXACT.applies(item))
    assert score.scores == {"exact_match": float(failure is None)}


def test_exact_match_can_ignore_case() -> None:
    item = Item.model_validate(text_row(1, "The Nile"))
    assert make_scorer("exact_match", {"ignore_case": True}).score(item, Answer("THE NILE")).failure is None


@given(st.text())
def test_normalise_is_idempotent_and_only_touches_whitespace(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert "".join(once.split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("wanted", "answer", "failure", "schema_valid", "call_match"),
    [
        ([PARIS], called(PARIS), None, 1, 1),
        ([PARIS], called(("weather", {"days": 2.0, "city": "Paris"})), None, 1, 1),
        ([PARIS, ROME], called(ROME, PARIS), None, 1, 1),
        ([PARIS, PARIS], called(PARIS), "wrong_count", 1, 0),
        ([PARIS], called(PARIS, PARIS), "wrong_count", 1, 0),
        ([PARIS], called(PARIS, finish="length"), "wrong_finish_reason", 1, 1),
        ([PARIS], called(PARIS, finish="stop"), "wrong_finish_reason", 1, 1),
        ([PARIS, ROME], called(ROME, text=HERMES), "left_in_content", 1, 0),
        ([PARIS, ROME], called(PARIS, finish="length"), "truncated", 1, 0),
        ([PARIS], called(("weather", '{"city": "Par'), finish="length"), "truncated", 0, 0),
        ([PARIS], called(("weather", '{"city": "Par')), "unparseable", 0, 0),
        ([PARIS], called(("weather", '["Paris"]')), "unparseable", 0, 0),
        ([PARIS], called(("weather", '{"city": "Paris", "days": NaN}')), "unparseable", 0, 0),
        ([PARIS], called(("timer", {"seconds": 2})), "wrong_tool", 1, 0),
        ([PARIS], called(("wether", {"city": "Paris", "days": 2})), "wrong_tool", 0, 0),
        ([PARIS], called(("weather", {"city": "Paris", "days": "2"})), "schema_invalid", 0, 0),
        ([PARIS], called(("weather", {"city": "Paris", "days": True})), "schema_invalid", 0, 0),
        ([PARIS], called(("weather", {"days": 2})), "schema_invalid", 0, 0),
        ([PARIS], called(("weather", {"city": "paris", "days": 2})), "wrong_arguments", 1, 0),
        ([PARIS], called(("weather", {"city": "Paris"})), "wrong_arguments", 1, 0),
        ([PARIS, ROME], called(PARIS, PARIS), "wrong_arguments", 1, 0),
        ([PARIS], Answer("It is sunny."), "not_attempted", 0, 0),
        ([PARIS], Answer(""), "not_attempted", 0, 0),
        ([PARIS], Answer(HERMES), "left_in_content", 0, 0),
        ([PARIS], Answer(HERMES.replace("tool_call>", "x>")), "not_attempted", 0, 0),
        ([PARIS], Answer('```json\n{"name": "weather", "arguments": {}}\n```'), "left_in_content", 0, 0),
        ([PARIS], Answer(HERMES.replace("}}", "}")), "unparseable", 0, 0),
        ([PARIS], Answer(HERMES[:40], finish_reason="length"), "truncated", 0, 0),
        ([PARIS], Answer("Let me think about", finish_reason="length"), "truncated", 0, 0),
        ([], Answer("None of my tools does that."), None, None, 1),
        ([], Answer("None of my tools", finish_reason="length"), None, None, 1),
        ([], called(PARIS), "failed_abstention", None, 0),
        ([], Answer(HERMES), "failed_abstention", None, 0),
        ([], Answer("None.", finish_reason="tool_calls"), "wrong_finish_reason", None, 1),
    ],
)
def test_tool_calls(
    wanted: list[tuple[str, dict[str, Any]]],
    answer: Answer,
    failure: str | None,
    schema_valid: int | None,
    call_match: int,
) -> None:
    score = CALLS.score(tool_item(*wanted), answer)
    assert score.failure == failure
    assert score.scores.get("schema_valid") == schema_valid
    assert score.scores["call_match"] == call_match
    assert failure is None or failure in CALLS.failures


def test_the_wrong_argument_is_named() -> None:
    score = CALLS.score(tool_item(PARIS), called(("weather", {"city": "Rome", "days": 2})))
    assert score.detail == "weather: city: expected 'Paris', found 'Rome'"
    assert score.faults == (Fault("weather", "city", "value"),)


def test_every_wrong_argument_is_counted_by_how_it_is_wrong() -> None:
    said = called(("weather", {"city": 5, "hours": 1}), ("weather", {"city": "Rome", "days": 3}))
    score = CALLS.score(tool_item(PARIS, ("weather", {"city": "Rome", "days": 1})), said)
    assert score.failure == "schema_invalid", "a city that is a number"
    assert {(one.argument, one.wrong) for one in score.faults} == {
        ("city", "type"),
        ("days", "missing"),
        ("hours", "unexpected"),
        ("days", "value"),
    }


@pytest.mark.parametrize(
    ("wanted", "answer", "by_server", "by_text"),
    [
        ([PARIS], Answer(HERMES), "left_in_content", None),
        ([PARIS, PARIS], Answer(HERMES + "\n" + HERMES), "left_in_content", None),
        ([PARIS], Answer("Sure.\n" + HERMES), "left_in_content", None),
        ([PARIS], called(PARIS), None, None),
        ([ROME], Answer(HERMES), "left_in_content", "wrong_arguments"),
        ([PARIS, ROME], Answer(HERMES), "left_in_content", "wrong_count"),
        ([PARIS, ROME], Answer(HERMES + "<tool_call>{"), "unparseable", "unparseable"),
        ([PARIS], Answer("It is sunny."), "not_attempted", "not_attempted"),
        ([], Answer(HERMES), "failed_abstention", "failed_abstention"),
        ([], Answer("No."), None, None),
    ],
)
def test_the_servers_parser_and_the_text(
    wanted: list[tuple[str, dict[str, Any]]], answer: Answer, by_server: str | None, by_text: str | None
) -> None:
    """A call that stands in the text and not among the server's is the parser's failure, not the model's."""
    item = tool_item(*wanted)
    assert CALLS.score(item, answer).failure == by_server
    text = make_scorer("tool_calls", {"parser": "text"})
    score = text.score(item, answer)
    assert score.failure == by_text
    assert set(score.scores) == set(text.applies(item))
    assert "finish_reason_ok" not in score.scores, "no parser, no finish_reason of its own"


def test_a_tool_without_parameters() -> None:
    plain = {"type": "function", "function": {"name": "ping"}}
    item = tool_item(("ping", {}), tools=[plain])
    assert CALLS.check(item) is None
    assert CALLS.score(item, called(("ping", ""))).failure is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_equality_survives_a_round_trip_in_any_key_order(value: Any) -> None:
    def reordered(v: Any) -> Any:
        if isinstance(v, dict):
            return {k: reordered(v[k]) for k in reversed(v)}
        return [reordered(x) for x in v] if isinstance(v, list) else v

    assert json_equal(value, parse_json(json.dumps(reordered(value))))


@given(json_values, json_values)
def test_equality_is_symmetric_and_separates_types(a: Any, b: Any) -> None:
    assert json_equal(a, b) == json_equal(b, a)
    if json_equal(a, b) and not isinstance(a, int | float):
        assert type(a) is type(b)


def test_equality_by_example() -> None:
    assert json_equal(5, 5.0)
    assert not json_equal(1, True)
    assert not json_equal(0, False)
    assert not json_equal("5", 5)
    assert not json_equal([1, 2], [2, 1])
    assert not json_equal({"a": None}, {})
    assert not json_equal("é", "e\u0301")
    assert not json_equal(2**53 + 1, float(2**53))


call_lists = st.lists(
    st.tuples(
        st.just("weather"),
        st.fixed_dictionaries({"city": st.sampled_from(["Rome", "Paris"])}, optional={"days": st.integers(0, 2)}),
    ),
    min_size=1,
    max_size=4,
)


@given(call_lists, st.randoms(use_true_random=False))
def test_parallel_calls_match_in_any_order(calls: list[tuple[str, dict[str, Any]]], rng: random.Random) -> None:
    shuffled = list(calls)
    rng.shuffle(shuffled)
    score = CALLS.score(tool_item(*calls), called(*shuffled))
    assert score.failure is None
    assert score.scores == {"schema_valid": 1.0, "call_match": 1.0, "finish_reason_ok": 1.0}


@given(call_lists, st.data())
def test_one_changed_argument_never_matches(calls: list[tuple[str, dict[str, Any]]], data: st.DataObject) -> None:
    changed = copy.deepcopy(calls)
    changed[data.draw(st.integers(0, len(calls) - 1))][1]["city"] = "Oslo"
    score = CALLS.score(tool_item(*calls), called(*changed))
    assert score.failure == "wrong_arguments"
    assert score.scores == {"schema_valid": 1.0, "call_match": 0.0, "finish_reason_ok": 1.0}


@given(call_lists, call_lists)
def test_calls_read_from_the_text_score_as_those_of_the_server(
    wanted: list[tuple[str, dict[str, Any]]], got: list[tuple[str, dict[str, Any]]]
) -> None:
    blocks = [f"<tool_call>\n{json.dumps({'name': n, 'arguments': a})}\n</tool_call>" for n, a in got]
    item = tool_item(*wanted)
    by_text = make_scorer("tool_calls", {"parser": "text"}).score(item, Answer("\n".join(blocks)))
    by_server = CALLS.score(item, called(*got))
    assert by_text == replace(by_server, scores={k: by_server.scores[k] for k in by_text.scores})


@given(st.text(), st.sampled_from(["stop", "length", "tool_calls"]), call_lists, call_lists)
def test_the_answer_is_right_exactly_when_it_has_no_failure(
    text: str, finish: str, wanted: list[tuple[str, dict[str, Any]]], got: list[tuple[str, dict[str, Any]]]
) -> None:
    for answer in (Answer(text, finish_reason=finish), called(*got, text=text, finish=finish)):
        for item in (tool_item(*wanted), tool_item()):
            score = CALLS.score(item, answer)
            right = score.scores["call_match"] == score.scores["finish_reason_ok"] == 1.0
            assert right == (score.failure is None)
            assert all(value in (0.0, 1.0) for value in score.scores.values())
            assert set(score.scores) == set(CALLS.applies(item)), "what is scored depends on the item alone"


@pytest.mark.parametrize(
    "arguments",
    [
        '{"city":1e999}',
        r'{"\ud83d":"\udc00"}',
        *('{"city":' + "[" * deep + "]" * deep + "}" for deep in (300, 900, 960, 990, 1000, 100_000)),
    ],
    ids=["infinite", "surrogates", "300", "900", "960", "990", "1000", "100000"],
)
@pytest.mark.parametrize("way", ["parsed", "left in the text", "hermes"])
def test_no_arguments_stop_the_scoring(arguments: str, way: str) -> None:
    from evals.engines.chat import hermes_calls
    from evals.records import record
    from sqtool.files import canonical_json

    text = f'<tool_call>{{"name": "weather", "arguments": {arguments}}}</tool_call>'
    content, calls = (text, ()) if way == "left in the text" else hermes_calls(text)
    if way == "parsed":
        content, calls = "", (ToolCall("weather", arguments),)
    item = tool_item(ROME)
    answer = Answer(content, calls, "tool_calls" if calls else "stop")
    for options in ({}, {"compare": "bfcl", "parser": "text"}):
        score = make_scorer("tool_calls", options).score(item, answer)
        assert score.scores["call_match"] == 0.0
        canonical_json(record("t", item, answer, score, 256)).encode()
