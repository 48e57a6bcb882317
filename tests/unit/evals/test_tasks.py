"""Task files: strict, with lines and suggestions; the shipped ones load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from evals.spec import EvaluateSpec
from evals.tasks import find_task, load_task, load_tasks, read_task
from sqtool.errors import DataError, RecipeError, UsageError
from tests.unit.evals.builders import text_row

ROOT = Path(__file__).resolve().parents[3]
GOOD = "task: t\nitems: items.jsonl\nscorer: exact_match\n"


def _write(folder: Path, text: str, name: str = "t.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "evals" / "tasks").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_shipped_tasks_are_valid(path: Path) -> None:
    task = read_task(path)
    assert task.task == path.stem
    assert task.description
    assert str(task.items.file).startswith("artifacts/reference/data/test/")


def test_every_problem_with_its_line(tmp_path: Path) -> None:
    path = _write(
        tmp_path, "task: t\nitms: x\nscorer:\n  name: exact_match\n  option: {}\ngeneration:\n  max_token: 3\n"
    )
    with pytest.raises(RecipeError) as caught:
        read_task(path)
    found = {(p.field, p.line, p.hint) for p in caught.value.problems}
    assert ("itms", 2, "did you mean 'items'?") in found
    assert ("scorer.option", 5, "did you mean 'options'?") in found
    assert ("generation.max_token", 7, "did you mean 'max_tokens'?") in found
    assert any(field == "items" for field, _, _ in found)


@pytest.mark.parametrize("text", ["task: [", "- a\n", "", "task: !!python/object/apply:os.getcwd []\n"])
def test_what_is_no_task_file(tmp_path: Path, text: str) -> None:
    with pytest.raises((DataError, RecipeError)):
        read_task(_write(tmp_path, text))


def test_wrong_scorer_and_settings(tmp_path: Path) -> None:
    spec = EvaluateSpec(tasks=("t.yaml",))
    path = _write(tmp_path, GOOD.replace("exact_match", "exact_mtch"))
    with pytest.raises(DataError, match="did you mean 'exact_match'"):
        load_task(str(path), tmp_path, spec)
    _write(tmp_path, GOOD + "generation: {top_p: 0.5}\n")
    with pytest.raises(DataError, match="top_p"):
        load_task(str(path), tmp_path, spec)


def test_an_unknown_task_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match="did you mean 'tool_calls'"):
        find_task("tool_call", ROOT)
    with pytest.raises(UsageError, match="no task file"):
        find_task("nowhere/x.yaml", ROOT)


def test_items_limit_and_settings(tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    write_jsonl("items.jsonl", [text_row(i, "a") for i in range(10)])
    path = _write(tmp_path, GOOD + "generation: {max_tokens: 7}\n")
    task = load_task(str(path), tmp_path, EvaluateSpec(tasks=("t",), limit=3))
    assert [item.id for item in task.items] == ["i0", "i3", "i6"]
    assert task.generation.max_tokens == 7


def test_two_tasks_of_one_name(tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    write_jsonl("items.jsonl", [text_row(1, "a")])
    _write(tmp_path, GOOD)
    _write(tmp_path, GOOD, "u.yaml")
    with pytest.raises(DataError, match="called 't' too"):
        load_tasks(EvaluateSpec(tasks=("t.yaml", "u.yaml")), tmp_path)
