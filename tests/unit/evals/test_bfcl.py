"""Files in the Berkeley Function Calling Leaderboard's published form, loaded as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evals.items import Item
from evals.scorers import Answer
from evals.spec import EvaluateSpec
from evals.tasks import Task, load_task, task_files
from evals.texts import _answer
from sqtool.errors import DataError, RecipeError
from tests.unit.evals.builders import called, text_row

Writer = Callable[..., Path]


def function(name: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    parameters = {"type": "dict", "properties": properties, "required": required}
    return {"name": name, "description": f"Does {name}.", "parameters": parameters}


AREA = function("geometry.area", {"base": {"type": "float"}, "unit": {"type": "string", "default": "cm"}}, ["base"])
ROUTE = function(
    "route",
    {
        "points": {"type": "tuple", "items": {"type": "float"}, "description": "Latitude and longitude."},
        "options": {"type": "dict", "properties": {"type": {"type": "string"}, "tolls": {"type": "boolean"}}},
        "extra": {"type": "any", "required": True},
    },
    ["points"],
)


def question(name: str, text: str, *functions: dict[str, Any], system: str = "") -> dict[str, Any]:
    first = [{"role": "system", "content": system}] if system else []
    return {"id": name, "question": [[*first, {"role": "user", "content": text}]], "function": list(functions)}


ROWS = [
    question("simple_python_0", "Area?", AREA, system="Be brief."),
    question("live_multiple_3-1-0", "Route?", AREA, ROUTE),
    question("parallel_0", "Two areas?", AREA),
    question("parallel_multiple_12", "Both?", AREA, ROUTE),
    question("irrelevance_7", "What time is it?", AREA),
]
ANSWERS = [
    {"id": "simple_python_0", "ground_truth": [{"geometry.area": {"base": [10], "unit": ["", "cm"]}}]},
    {
        "id": "live_multiple_3-1-0",
        "ground_truth": [{"route": {"points": [[1.5, 2]], "options": [{"type": ["fast"], "tolls": [False, ""]}]}}],
    },
    {"id": "parallel_0", "ground_truth": [{"geometry.area": {"base": [1.0, 2.0]}}, {"geometry.area": {"base": [1.0]}}]},
    {
        "id": "parallel_multiple_12",
        "ground_truth": [{"route": {"points": [[0.5, 0.5]]}}, {"geometry.area": {"base": [3]}}],
    },
]
TASK = """\
task: bfcl
items: {bfcl: questions.json, answers: possible_answer/answers.json}
scorer: {name: tool_calls, options: {compare: bfcl}}
"""


@pytest.fixture
def load(tmp_path: Path, write_jsonl: Writer) -> Callable[..., Task]:
    def load(rows: list[Any] = ROWS, answers: list[Any] = ANSWERS, task: str = TASK) -> Task:
        write_jsonl("questions.json", rows)
        write_jsonl("possible_answer/answers.json", answers)
        (tmp_path / "t.yaml").write_text(task)
        return load_task("t.yaml", tmp_path, EvaluateSpec(tasks=("t.yaml",)))

    return load


def test_every_category_with_one_turn(load: Callable[..., Task], tmp_path: Path) -> None:
    task = load()
    assert [item.kind for item in task.items] == [
        "simple_python", "live_multiple", "parallel", "parallel_multiple", "irrelevance",
    ]  # fmt: skip
    assert task.items[0].messages[0].role == "system"
    assert [f.name for f in task_files(tmp_path / "t.yaml", tmp_path)] == ["t.yaml", "questions.json", "answers.json"]


def test_parameters_become_json_schema(load: Callable[..., Task]) -> None:
    tools = load().items[3].tools
    assert tools is not None
    assert [tool["function"]["name"] for tool in tools] == ["geometry_area", "route"]
    assert tools[1]["function"]["parameters"] == {
        "type": "object",
        "properties": {
            "points": {"type": "array", "items": {"type": "number"}, "description": "Latitude and longitude."},
            "options": {"type": "object", "properties": {"type": {"type": "string"}, "tolls": {"type": "boolean"}}},
            "extra": {},
        },
        "required": ["points"],
    }


def test_right_answers_are_right_and_wrong_ones_are_not(load: Callable[..., Task]) -> None:
    task = load()
    simple, multiple, parallel, both, irrelevance = task.items
    one, two = ("geometry_area", {"base": 1}), ("geometry_area", {"base": 2.0})
    route = ("route", {"points": [0.5, 0.5]})
    fast = ("route", {"points": [1.5, 2], "options": {"type": "FAST"}})
    cases = [
        (simple, [("geometry_area", {"base": 10})], None),
        (simple, [("geometry_area", {"base": 10, "unit": "CM"})], None),
        (simple, [("geometry_area", {"base": 11})], "wrong_arguments"),
        (simple, [one, one], "wrong_count"),
        (multiple, [fast], None),
        (multiple, [one], "wrong_tool"),
        # The first call would do for both expectations: only the assignment as a whole finds the match.
        (parallel, [one, two], None),
        (parallel, [two, one], None),
        (parallel, [two, two], "wrong_arguments"),
        (both, [("geometry_area", {"base": 3}), route], None),
        (irrelevance, [], None),
        (irrelevance, [one], "failed_abstention"),
    ]
    for item, calls, failure in cases:
        answer = called(*calls, finish="tool_calls" if calls else "stop")
        assert task.scorer.score(item, answer).failure == failure, (item.id, calls)


def test_the_first_of_the_possible_calls_is_right(load: Callable[..., Task]) -> None:
    """Drift reads it as the answer."""
    for item in (item for item in load().items if item.kind in ("simple_python", "live_multiple", "parallel_multiple")):
        assert item.expected is not None
        assert item.expected.possible_calls is not None
        calls = [call.first() for call in item.expected.possible_calls]
        said = called(*((call.name, call.arguments) for call in calls))
        assert load().scorer.score(item, said).failure is None


def test_drift_reads_the_first_possible_call_as_the_answer(load: Callable[..., Task]) -> None:
    message = _answer(load().items[1], {})
    assert message is not None
    arguments = {"points": [1.5, 2], "options": {"type": "fast", "tolls": False}}
    assert message["tool_calls"] == [{"type": "function", "function": {"name": "route", "arguments": arguments}}]
    row = {**text_row(1, "x"), "choices": ["a", "b"], "expected": {"choice": 1}}
    assert _answer(Item.model_validate(row), {}) == {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("change", "where", "field", "message"),
    [
        ({"id": "simple"}, "questions.json:1", "id", "CATEGORY_NUMBER"),
        ({"id": "simple_99"}, "questions.json:1", "id", "no possible answer for 'simple_99'"),
        ({"function": []}, "questions.json:1", "function", "list of functions"),
        ({"question": [[], []]}, "questions.json:1", "question", "one turn"),
        ({"question": 5}, "questions.json:1", "question", "[[messages]]"),
        (
            {"function": [function("f", {"x": {"type": "HashMap"}}, [])]},
            "questions.json:1",
            "function.0.parameters.properties.x.type",
            "Java",
        ),
    ],
)
def test_what_cannot_be_read_is_named(
    load: Callable[..., Task], change: dict[str, Any], where: str, field: str, message: str
) -> None:
    with pytest.raises(DataError) as caught:
        load([{**ROWS[0], **change}])
    assert where in str(caught.value)
    assert caught.value.field == field
    assert message in caught.value.message


def test_wrong_answer_files(load: Callable[..., Task]) -> None:
    with pytest.raises(DataError, match=r"answers\.json:1: ground_truth"):
        load(answers=[{"id": "simple_python_0", "ground_truth": {"f": {}}}])
    with pytest.raises(DataError, match=r"questions\.json:1: id: .*items\.answers"):
        load(task=TASK.replace(", answers: possible_answer/answers.json", ""))
    with pytest.raises(DataError, match=r"t\.yaml: items\.answers: no such file"):
        load(task=TASK.replace("answers.json", "nothing.json"))
    with pytest.raises(RecipeError, match="goes with `bfcl`"):
        load(task=TASK.replace("bfcl: questions", "file: questions"))


def test_irrelevance_alone_needs_no_answers(load: Callable[..., Task]) -> None:
    task = load([ROWS[4]], task=TASK.replace(", answers: possible_answer/answers.json", ""))
    assert [item.expected.calls for item in task.items if item.expected] == [()]


def test_rows_that_nothing_can_match_load_and_score_zero(load: Callable[..., Task]) -> None:
    rows = [
        question("live_simple_1-0-0", "Area?", AREA),
        question("live_multiple_2-0-0", "Area?", AREA, ROUTE),
        question("live_irrelevance_3-0-0", "What time is it?"),
    ]
    answers = [
        {"id": "live_simple_1-0-0", "ground_truth": [{"geometry.area": {"base": [1], "height": [2]}}]},
        {"id": "live_multiple_2-0-0", "ground_truth": [{"geometry.area": {"base": [], "unit": ["", "cm"]}}]},
    ]
    unknown, none, irrelevance = load(rows, answers).items
    task = load(rows, answers)
    for item in (unknown, none):
        for arguments in ({"base": 1}, {"base": 1, "height": 2}, {}):
            assert task.scorer.score(item, called(("geometry_area", arguments))).scores["call_match"] == 0.0
    assert irrelevance.tools == ()
    assert task.scorer.score(irrelevance, Answer("Noon.")).scores["call_match"] == 1.0
    assert _answer(none, {})["tool_calls"][0]["function"]["arguments"] == {}  # type: ignore[index]
