"""A user's own function: only what an installed package declares, and nothing but [0, 1] from it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from evals.items import Item
from evals.scorers import Answer, make_scorer, scorer_files
from evals.spec import EvaluateSpec
from evals.tasks import load_task, task_files
from sqtool.errors import DataError, UsageError
from tests.unit.evals.builders import text_row

CODE = """
def says_it(item, answer):
    return item["expected"]["text"] in answer["text"]

def share(item, answer):
    return len(answer["text"]) / 10

def breaks(item, answer):
    return {}["x"]

not_callable = 5
"""
ENTRIES = """[sqtool.scorers]
says_it = checks_of_a_user:says_it
share = checks_of_a_user:share
breaks = checks_of_a_user:breaks
constant = checks_of_a_user:not_callable
gone = checks_of_a_user:gone
"""


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package as pip leaves it: code and a dist-info with entry points."""
    site = tmp_path / "site"
    info = site / "checks_of_a_user-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: checks-of-a-user\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    (site / "checks_of_a_user.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "checks_of_a_user", raising=False)
    return site


ITEM = Item.model_validate(text_row(1, "Nile"))


def test_what_the_function_gives_is_the_score() -> None:
    scorer = make_scorer("function", {"name": "says_it"})
    assert scorer.check(ITEM) is None
    right, wrong = scorer.score(ITEM, Answer("The Nile.")), scorer.score(ITEM, Answer("The Rhine."))
    assert (right.scores, right.failure) == ({"passed": 1.0}, None)
    assert (wrong.scores, wrong.failure) == ({"passed": 0.0}, "not_passed")
    part = make_scorer("function", {"name": "share"}).score(ITEM, Answer("12345"))
    assert (part.scores, part.failure) == ({"passed": 0.5}, "not_passed")


@pytest.mark.parametrize("name", ["checks_of_a_user:says_it", "os:system", "nothing"])
def test_a_module_that_nobody_declared_is_never_imported(name: str) -> None:
    with pytest.raises(UsageError, match=r"install the package and give the NAME"):
        make_scorer("function", {"name": name})
    assert "checks_of_a_user" not in sys.modules


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match="did you mean 'says_it'"):
        make_scorer("function", {"name": "say_it"})


@pytest.mark.parametrize(("name", "message"), [("constant", "is no function"), ("gone", "cannot be loaded")])
def test_what_cannot_be_called_is_found_before_anything_runs(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_scorer("function", {"name": name}).check(ITEM)


def test_a_function_that_fails_ends_the_evaluation() -> None:
    with pytest.raises(DataError, match=r"item i1: the function breaks raised KeyError: 'x'"):
        make_scorer("function", {"name": "breaks"}).score(ITEM, Answer("x"))
    with pytest.raises(DataError, match=r"gave 1\.2, not true, false or a number in \[0, 1\]"):
        make_scorer("function", {"name": "share"}).score(ITEM, Answer("123456789012"))


def test_the_functions_code_counts_as_an_input(
    installed: Path, tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    write_jsonl("items.jsonl", [text_row(1, "Nile")])
    task = tmp_path / "t.yaml"
    task.write_text("task: t\nitems: items.jsonl\nscorer: {name: function, options: {name: says_it}}\n")
    assert load_task("t.yaml", tmp_path, EvaluateSpec(tasks=("t.yaml",))).scorer.metrics == ("passed",)
    assert task_files(task, tmp_path) == [task, tmp_path / "items.jsonl", installed / "checks_of_a_user.py"]
    assert scorer_files("function", {"name": "nothing"}) == []
    assert scorer_files("exact_match", {}) == []
