"""Foreign rows become items through templates; what goes wrong names file, line and field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evals.items import Expected
from evals.spec import EvaluateSpec
from evals.tasks import Task, load_task, task_files
from evals.templates import BadTemplateError, template
from sqtool.errors import DataError, RecipeError
from tests.unit.evals.builders import WEATHER, text_row, tool_row

Writer = Callable[..., Path]


@pytest.fixture
def load(tmp_path: Path, write_jsonl: Writer) -> Callable[..., Task]:
    def load(rows: list[Any], more: str) -> Task:
        write_jsonl("rows.jsonl", rows)
        (tmp_path / "t.yaml").write_text(f"task: t\nitems: rows.jsonl\n{more}")
        return load_task("t.yaml", tmp_path, EvaluateSpec(tasks=("t.yaml",)))

    return load


def test_a_foreign_data_set_without_conversion(load: Callable[..., Task]) -> None:
    rows = [
        {"question": "6 * 12?", "answer": "Six twelves.\n#### 72", "level": 2, "source": {"book": "b1"}},
        {"question": "2 < 3 & 'x'?", "answer": "#### 1", "level": 3, "source": {"book": "b1"}},
    ]
    task = load(
        rows,
        """\
scorer: numeric
system: "Answer with a number. Level {{ level }}."
prompt: |
  Question: {{ question }}
  Answer:
kind: arithmetic
cluster: "{{ source.book }}"
expected: "{{ answer.split('####')[-1] | trim }}"
fields: {level: "{{ level }}", hard: "{{ level > 2 }}", constant: x}
slices: [level, hard]
""",
    )
    first, second = task.items
    assert [m.model_dump() for m in first.messages] == [
        {"role": "system", "content": "Answer with a number. Level 2."},
        {"role": "user", "content": "Question: 6 * 12?\nAnswer:"},
    ]
    assert (first.id, second.id) == ("000001", "000002")
    assert first.expected == Expected(text="72")
    assert first.fields == {"level": 2, "hard": False, "constant": "x"}, "numbers stay numbers"
    assert (first.kind, first.cluster) == ("arithmetic", "b1")
    assert second.messages[1].content == "Question: 2 < 3 & 'x'?\nAnswer:", "nothing is escaped"


def test_choices_and_calls_from_columns(load: Callable[..., Task]) -> None:
    arc = {"q": "?", "choices": {"text": ["one", "two"], "label": ["A", "B"]}, "answerKey": "B", "id": 7}
    mapping = """\
scorer: choice
prompt: "{{ q }}"
choices: "{{ choices.text }}"
expected: {choice: "{{ choices.label.index(answerKey) }}"}
"""
    (item,) = load([arc], mapping).items
    assert (item.id, item.choices) == ("7", ("one", "two"))
    assert item.expected == Expected(choice=1)
    inline = mapping.replace('"{{ choices.text }}"', '["{{ q }}", "x{{ id }}"]')
    assert load([arc], inline).items[0].choices == ("?", "x7")

    row = {"ask": "Weather?", "want": '[{"name": "weather", "arguments": {"city": "Rome"}}]'}
    task = load(
        [row],
        'scorer: tool_calls\nprompt: "{{ ask }}"\nexpected: {calls: "{{ want | fromjson }}"}\ntools: tools.json\n'
        "tool_choice: none\n",
    )
    assert task.items[0].expected == Expected.model_validate({"calls": json.loads(row["want"])})
    assert task.items[0].tools == (WEATHER,)
    assert task.items[0].tool_choice == "none"


@pytest.fixture(autouse=True)
def tools_json(tmp_path: Path) -> Path:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([WEATHER]))
    return path


def test_rows_that_are_items_take_the_tasks_tools_and_system(load: Callable[..., Task]) -> None:
    bare = {k: v for k, v in tool_row([]).items() if k != "tools"}
    own = {**tool_row([]), "id": "own", "messages": [{"role": "system", "content": "Mine."}]}
    inline = json.dumps([WEATHER])
    task = load([bare, own], f"scorer: tool_calls\ntools: {inline}\nsystem: Yours.\n")
    first, second = task.items
    assert first.tools == (WEATHER,)
    assert [m.content for m in first.messages] == ["Yours.", "hi"]
    assert second.tools is not None
    assert len(second.tools) == 2, "an item's own tools count"
    assert [m.content for m in second.messages] == ["Mine."]


def test_aliases_and_numbers_as_text(load: Callable[..., Task]) -> None:
    row = {"q": "?", "a": 5, "more": ["five", 5.0], "none": None}
    mapping = 'scorer: exact_match\nprompt: "{{ q }}"\nexpected: {text: "{{ a }}", aliases: "{{ %s }}"}\n'
    (item,) = load([row], mapping % "more").items
    assert item.expected == Expected(text="5", aliases=("five", "5.0"))
    (item,) = load([row], mapping % "none").items
    assert item.expected == Expected(text="5")


@pytest.mark.parametrize(
    ("mapping", "field", "message"),
    [
        ('prompt: "{{ qq }}"', "prompt", "unknown column 'qq'; did you mean 'q'?"),
        ('prompt: "{{ q.x.y }}"', "prompt", "has no attribute 'x'"),
        ('prompt: "Q {{ none }}"', "prompt", "a null would be written as text"),
        ('prompt: "{{ q.__class__ }}"', "prompt", "unsafe"),
        ('prompt: "{{ q }}"\nexpected: "{{ none }}"', "expected.text", "null (from '{{ none }}')"),
        ('prompt: "{{ q }}"\nexpected: {choice: "{{ [].index(q) }}"}', "expected.choice", "ValueError"),
        ('prompt: "{{ q }}"\nchoices: "{{ q }}"', "choices", "expected a list, found '?'"),
        ('prompt: "{{ q }}"\nfields: {n: "{{ xs }}"}', "fields.n", "valid"),
        ('prompt: "{{ q }}"\nfields: {n: "{{ m }}"}', "fields.n", "unknown column 'm'"),
        ('kind: "{{ q }}"', "messages", "missing"),
    ],
)
def test_a_row_that_does_not_fit_is_named(load: Callable[..., Task], mapping: str, field: str, message: str) -> None:
    rows = [{"q": "?", "none": None, "xs": [1], "expected": {"text": "x"}}] * 2
    with pytest.raises(DataError) as caught:
        load(rows, f"scorer: exact_match\n{mapping}\n")
    assert "rows.jsonl:1: " in str(caught.value)
    assert caught.value.field.startswith(field)
    assert message in caught.value.message
    assert "1 more line of this file is wrong" in caught.value.remedy


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('prompt: "{{ q "', "t.yaml:4: prompt: not a template: unexpected end of template"),
        ('fields: {n: "{% foo %}"}', "t.yaml:4: fields: not a template: Encountered unknown tag 'foo'"),
        ("expected: {txt: x}", "t.yaml:4: expected: unknown key 'txt'; did you mean 'text'?"),
        ("tool_choice: maybe", "t.yaml:4: tool_choice: Input should be 'auto', 'none' or 'required'"),
        ("promt: x", "t.yaml:4: promt: unknown key (did you mean 'prompt'?)"),
    ],
)
def test_what_is_wrong_in_the_task_has_its_line(load: Callable[..., Task], line: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load([text_row(1, "a")], f"scorer: exact_match\n{line}\n")
    assert message in caught.value.message


def test_wrong_scorer_options_and_tools_have_their_place(load: Callable[..., Task], tools_json: Path) -> None:
    schema = "scorer:\n  name: json_schema\n  options:\n    json_schema: {type: objct}\n"
    with pytest.raises(
        DataError, match=r"t\.yaml:5: scorer: scorer json_schema: option json_schema: .*not a valid JSON"
    ):
        load([text_row(1, "a")], schema)
    broken = {"type": "function", "function": {"name": "f", "parameters": {"type": "x"}}}
    with pytest.raises(DataError, match=r"t\.yaml:4: tools.*\.parameters.*not a valid JSON Schema"):
        load([text_row(1, "a")], f"scorer: exact_match\ntools: {json.dumps([broken])}\n")
    tools_json.write_text('{"a": 1}')
    with pytest.raises(DataError, match=r"tools\.json: tools: expected a list of OpenAI tools"):
        load([text_row(1, "a")], "scorer: exact_match\ntools: tools.json\n")
    tools_json.unlink()
    with pytest.raises(DataError, match=r"tools\.json: no such file"):
        load([text_row(1, "a")], "scorer: exact_match\ntools: tools.json\n")


def test_the_file_of_tools_is_an_input(tmp_path: Path, load: Callable[..., Task]) -> None:
    load([text_row(1, "a")], "scorer: exact_match\ntools: tools.json\n")
    assert [p.name for p in task_files(tmp_path / "t.yaml", tmp_path)] == ["t.yaml", "rows.jsonl", "tools.json"]
    (tmp_path / "tools.json").unlink()
    with pytest.raises(DataError, match=r"t\.yaml: tools: no such file"):
        task_files(tmp_path / "t.yaml", tmp_path)


ROW = {"a": 1, "q": "x", "xs": ["b", "c"], "none": None, "odd name": 3}


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("{{ a }}", 1),
        ("{{- a -}}", 1),
        (" {{ a }}", " 1"),
        ("{{ a }}{{ a }}", "11"),
        ("Q: {{ q }}\n", "Q: x"),
        ("{{ xs | map('upper') }}", ["B", "C"]),
        ("{{ row['odd name'] }}", 3),
        ("{{ none }}", None),
        ("{{ none | default('', true) }}", ""),
        ("{{ '}}' }}", "}}"),
        ("{% for x in xs %}{{ x }}{% endfor %}", "bc"),
        ("{% if nothing is defined %}y{% else %}n{% endif %}", "n"),
        ("{{ '[1, 2]' | fromjson }}", [1, 2]),
        ("plain", "plain"),
    ],
)
def test_templates(source: str, value: Any) -> None:
    assert template(source).value(ROW) == value


@pytest.mark.parametrize(
    "source", ["{{ a / 0 }}", "{{ q + 1 }}", "{{ 'x' | fromjson }}", "{{ xs[9].y }}", "{{ q | nothing }}"]
)
def test_templates_that_fail(source: str) -> None:
    with pytest.raises(BadTemplateError):
        template(source).value(ROW)
