"""Scorers of texts: exact_match, numeric, regex, json_schema."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.items import Item
from evals.scorers import Answer, make_scorer
from evals.scorers.exact_match import normalise
from evals.scorers.numeric import Numeric
from sqtool.errors import UsageError
from tests.unit.evals.builders import called, text_row

CALLED = called(("weather", {}))


def item(expected: Any, **more: Any) -> Item:
    expected = {"text": expected} if isinstance(expected, str) else expected
    return Item.model_validate({**text_row(1, "x"), "expected": expected, **more})


def judge(scorer: str, options: dict[str, Any], expected: Any, answer: Answer | str) -> tuple[float, str | None]:
    """(the first metric, the failure)."""
    made, asked = make_scorer(scorer, options), item(expected)
    assert made.check(asked) is None
    score = made.score(asked, Answer(answer) if isinstance(answer, str) else answer)
    assert set(score.scores) == set(made.applies(asked))
    assert score.failure is None or score.failure in made.failures
    return score.scores[made.metrics[0]], score.failure


SQUAD = {"ignore_case": True, "ignore_punctuation": True, "ignore_articles": True}


@pytest.mark.parametrize(
    ("options", "expected", "said", "right"),
    [
        (SQUAD, "The Amazon River", "amazon river.", True),
        (SQUAD, "Beyoncé", "beyonce", False),
        ({**SQUAD, "ignore_accents": True}, "Beyoncé", "beyonce", True),
        (SQUAD, "U.S.", "us", True),
        (SQUAD, "$5", "5", True),
        (SQUAD, "another day", "other day", False),
        (SQUAD, {"text": "Paris", "aliases": ["City of Light"]}, "the city of light!", True),
        ({}, {"text": "Paris", "aliases": ["Lutetia"]}, "Lutetia", True),
        ({}, {"text": "Paris", "aliases": ["Lutetia"]}, "Rome", False),
        ({}, "a-b", "ab", False),
        ({"ignore_punctuation": True}, "«a–b»", "ab", True),
    ],
)
def test_exact_match(options: dict[str, bool], expected: Any, said: str, right: bool) -> None:
    assert judge("exact_match", options, expected, said) == (float(right), None if right else "wrong_text")


def test_an_expected_text_that_vanishes_is_an_error() -> None:
    scorer = make_scorer("exact_match", SQUAD)
    assert scorer.check(item("The")) == (
        "expected.text",
        "empty (after normalisation): a model that says nothing would be right",
    )
    problem = scorer.check(item({"text": "x", "aliases": ["ok", "..."]}))
    assert problem is not None
    assert problem[0] == "expected.aliases.1"


options_of_normalise = st.fixed_dictionaries(
    {f"ignore_{name}": st.booleans() for name in ("case", "accents", "punctuation", "articles")}
)


@given(st.text(), options_of_normalise)
def test_normalising_twice_changes_nothing(text: str, options: dict[str, bool]) -> None:
    once = normalise(text, **options)
    assert normalise(once, **options) == once or options["ignore_case"], "casefold may undo what NFKD did"
    assert once == once.strip()


@given(st.text(st.characters(max_codepoint=127)), options_of_normalise)
def test_normalising_ascii_twice_changes_nothing(text: str, options: dict[str, bool]) -> None:
    once = normalise(text, **options)
    assert normalise(once, **options) == once
    assert len(once) <= len(text)


@pytest.mark.parametrize(
    ("options", "text", "numbers"),
    [
        ({}, "It costs $1,234.50, not 12.", ["1234.50", "12"]),
        ({}, "-5 and \u22126 and +7", ["-5", "-6", "7"]),
        ({}, "pages 3-5", ["3", "5"]),
        ({}, "2024-01-31", ["2024", "1", "31"]),
        ({}, "1,2,3", ["1", "2", "3"]),
        ({}, "1,2345", ["1", "2345"]),
        ({}, "1.5e-3 and 2E4", ["0.0015", "20000"]),
        ({}, ".5 or 0.5.", ["0.5", "0.5"]),
        ({}, "x=-3", ["-3"]),
        ({}, "GPT-4", ["4"]),
        ({}, "no number, none at all", []),
        ({}, "1e99999999999999999999 then 3", ["3"]),
        ({"thousands": ""}, "1,234", ["1", "234"]),
        ({"thousands": ".", "decimal": ","}, "1.234,5 Euro", ["1234.5"]),
        ({"thousands": "'", "decimal": "."}, "1'234'567.25", ["1234567.25"]),
    ],
)
def test_numbers_in_a_text(options: dict[str, str], text: str, numbers: list[str]) -> None:
    assert [str(n.normalize()) for n in Numeric(**options).numbers(text)] == [
        str(Decimal(n).normalize()) for n in numbers
    ]


@pytest.mark.parametrize(
    ("options", "expected", "answer", "result"),
    [
        ({}, "72", "6 * 12 = 72.", (1, None)),
        ({}, "72", "72 because 6 * 12", (0, "wrong_number")),
        ({"take": "first"}, "72", "72 because 6 * 12", (1, None)),
        ({"take": "only"}, "72", "72", (1, None)),
        ({"take": "only"}, "72", "72 or 72", (0, "wrong_number")),
        ({}, "1234", "1,234", (1, None)),
        ({}, "0.5", "0.50", (1, None)),
        ({}, "5", "five", (0, "no_number")),
        ({}, {"text": "5", "aliases": ["7"]}, "7", (1, None)),
        ({"absolute": 0.1}, "0.3", "0.4", (1, None)),
        ({"absolute": 0.1}, "0.3", "0.41", (0, "wrong_number")),
        ({"relative": 0.01}, "200", "202", (1, None)),
        ({"relative": 0.01}, "-200", "-202.5", (0, "wrong_number")),
        ({}, "1e400000", "2", (0, "wrong_number")),
        ({"relative": 0.5}, "1e999999999", "-1e999999999", (0, "wrong_number")),
        ({}, "72", Answer("It is 7", finish_reason="length"), (0, "truncated")),
        ({"take": "first"}, "7", Answer("7 is", finish_reason="length"), (1, None)),
        ({}, "7", Answer(" "), (0, "empty")),
        ({}, "7", CALLED, (0, "called_tool")),
    ],
)
def test_numeric(options: dict[str, Any], expected: Any, answer: Any, result: tuple[int, str | None]) -> None:
    assert judge("numeric", options, expected, answer) == result


@given(
    st.integers(-(10**6), 10**6), st.integers(-(10**4), 10**4), st.integers(0, 10**4), st.sampled_from([0.0, 0.01, 0.5])
)
def test_the_tolerance_is_exact(right: int, off: int, absolute: int, relative: float) -> None:
    """In hundredths, so that nothing of it is a matter of rounding."""
    said = Decimal(right + off) / 100
    allowed = max(Decimal(absolute) / 100, Decimal(str(relative)) * abs(Decimal(right)) / 100)
    options = {"absolute": absolute / 100, "relative": relative}
    score, _ = judge("numeric", options, f"{Decimal(right) / 100:f}", f"{said:f}")
    assert score == float(abs(Decimal(off)) / 100 <= allowed)


@given(st.integers(-(10**12), 10**12))
def test_thousands_separators_do_not_change_a_number(number: int) -> None:
    assert judge("numeric", {}, str(number), f"It is {number:,}.") == (1.0, None)


def test_what_numeric_needs() -> None:
    problem = make_scorer("numeric").check(item("5 or 6"))
    assert problem is not None
    assert problem[0] == "expected.text"
    assert "'5 or 6' does not hold exactly one number" in problem[1]
    with pytest.raises(UsageError, match="thousands and decimal are the same mark"):
        make_scorer("numeric", {"decimal": ","})


@pytest.mark.parametrize(
    ("options", "expected", "answer", "result"),
    [
        ({"pattern": r"answer is (\w+)"}, "B", "So the answer is B.", (1, None)),
        ({"pattern": r"answer is (\w+)"}, "B", "So the answer is C.", (0, "wrong_text")),
        ({"pattern": r"answer is (\w+)"}, "B", "B", (0, "no_match")),
        ({"pattern": r"\b[A-D]\b", "take": "last"}, "D", "A? No, D", (1, None)),
        ({"pattern": r"\b[A-D]\b"}, "D", "A? No, D", (0, "wrong_text")),
        ({"pattern": "(?P<x>[a-d])", "ignore_case": True}, "d", "D", (1, None)),
        ({"pattern": "(a)|b"}, "a", "b", (0, "wrong_text")),
        ({}, {"pattern": r"\d{4}-\d\d"}, "in 2024-05", (1, None)),
        ({"match": "fullmatch"}, {"pattern": r"\d{4}-\d\d"}, "in 2024-05", (0, "no_match")),
        ({"match": "fullmatch"}, {"pattern": r"\d{4}-\d\d"}, " 2024-05\n", (1, None)),
        ({"multiline": True}, {"pattern": "^b$"}, "a\nb", (1, None)),
        ({"dot_all": True}, {"pattern": "a.b"}, "a\nb", (1, None)),
        ({}, {"pattern": "a.b"}, "a\nb", (0, "no_match")),
        ({}, {"pattern": "x"}, "", (0, "empty")),
        ({}, {"pattern": "x"}, CALLED, (0, "called_tool")),
        ({}, {"pattern": "x$"}, Answer("y", finish_reason="length"), (0, "truncated")),
        ({"pattern": r"\d+", "take": "last"}, "7", Answer("7", finish_reason="length"), (0, "truncated")),
    ],
)
def test_regex(options: dict[str, Any], expected: Any, answer: Any, result: tuple[int, str | None]) -> None:
    assert judge("regex", options, expected, answer) == result


def test_a_pattern_for_every_item_that_expects_nothing() -> None:
    scorer = make_scorer("regex", {"pattern": "^(yes|no)$"})
    asked = Item.model_validate({k: v for k, v in text_row(1, "x").items() if k != "expected"})
    assert scorer.check(asked) is None
    assert scorer.score(asked, Answer("yes")).failure is None
    assert scorer.score(asked, Answer("maybe")).failure == "no_match"


def test_wrong_patterns() -> None:
    with pytest.raises(UsageError, match="scorer regex: option pattern: not a regular expression: missing"):
        make_scorer("regex", {"pattern": "("})
    assert make_scorer("regex").check(item({"pattern": "["})) == (
        "expected.pattern",
        "not a regular expression: unterminated character set at position 0",
    )
    assert make_scorer("regex").check(item("x")) is not None
    assert make_scorer("regex", {"pattern": "x"}).check(item(" ")) is not None


SCHEMA = {
    "type": "object",
    "properties": {"name": {"$ref": "#/$defs/short"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"short": {"type": "string", "maxLength": 3}},
}
GOOD = '{"name": "Bo", "age": 3}'


@pytest.mark.parametrize(
    ("answer", "valid", "failure"),
    [
        (GOOD, (1, 1), None),
        (f"\n{GOOD}\n", (1, 1), None),
        ('{"name": "Boris"}', (1, 0), "schema_invalid"),
        ('{"age": 3}', (1, 0), "schema_invalid"),
        ('{"name": "Bo", "age": 3.5}', (1, 0), "schema_invalid"),
        ('{"name": "Bo", "x": 1}', (1, 0), "schema_invalid"),
        ("[]", (1, 0), "schema_invalid"),
        (f"Here: {GOOD}", (0, 0), "not_json"),
        (f"```json\n{GOOD}\n```", (0, 0), "not_json"),
        ('{"name": NaN}', (0, 0), "not_json"),
        ("{'name': 'Bo'}", (0, 0), "not_json"),
        ("[" * 100_000, (0, 0), "not_json"),
        (Answer(GOOD, finish_reason="length"), (0, 0), "truncated"),
        ("", (0, 0), "empty"),
        (CALLED, (0, 0), "called_tool"),
    ],
)
def test_json_schema(answer: Answer | str, valid: tuple[int, int], failure: str | None) -> None:
    for scorer, asked in (
        (make_scorer("json_schema", {"json_schema": SCHEMA}), item("ignored")),
        (make_scorer("json_schema"), item({"json_schema": SCHEMA})),
    ):
        assert scorer.check(asked) is None
        score = scorer.score(asked, Answer(answer) if isinstance(answer, str) else answer)
        assert (score.scores["json_valid"], score.scores["schema_valid"]) == valid
        assert score.failure == failure


def test_a_code_fence_is_stripped_only_when_told() -> None:
    scorer = make_scorer("json_schema", {"json_schema": SCHEMA, "strip_code_fence": True})
    for text in (f"```json\n{GOOD}\n```", f"```\n{GOOD}\n```\n", GOOD):
        assert scorer.score(item("x"), Answer(text)).failure is None
    assert scorer.score(item("x"), Answer(f"Sure!\n```json\n{GOOD}\n```")).failure == "not_json"


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "objct"}, "not a valid JSON Schema"),
        ({"properties": {"a": {"pattern": "("}}}, "properties.a.pattern: not a valid JSON Schema"),
        ({"$ref": "https://example.com/s.json"}, "nothing is fetched"),
        ({"properties": {"a": {"$ref": "#/$defs/no"}}}, "properties.a.$ref: the reference '#/$defs/no'"),
    ],
)
def test_an_invalid_schema_is_an_error_before_anything_runs(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_scorer("json_schema", {"json_schema": schema})
    assert message in caught.value.message
    problem = make_scorer("json_schema").check(item({"json_schema": schema}))
    assert problem is not None
    assert message in f"{problem[0].removeprefix('expected.json_schema.')}: {problem[1]}"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3), max_leaves=6
)


@given(json_values)
def test_every_json_value_fits_the_schema_that_allows_all(value: Any) -> None:
    assert judge("json_schema", {"json_schema": {}}, "x", json.dumps(value)) == (1.0, None)


def test_what_a_scorer_lacks_is_named() -> None:
    assert make_scorer("json_schema").check(item("x")) == (
        "expected.json_schema",
        "missing, and the scorer json_schema has no option `json_schema`",
    )


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Rs.72", "72"),
        ("is...72", "72"),
        ("руб.72", "72"),
        ("is .5", "0.5"),
        ("-.5", "-0.5"),
        ("(.5)", "0.5"),
        ("1.5", "1.5"),
    ],
)
def test_a_mark_behind_a_letter_or_another_mark_is_no_decimal_one(text: str, number: str) -> None:
    assert list(Numeric().numbers(text)) == [Decimal(number)]
    swapped = Numeric(thousands=".", decimal=",")
    assert list(swapped.numbers(text.replace(".", ","))) == [Decimal(number)]
