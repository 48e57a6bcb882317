"""lm-eval's tasks as the stages see them: digests, plans, and errors before an engine starts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from evals.spec import EngineSpec, EvaluateSpec
from sqtool.errors import DataError, UsageError
from sqtool.gate.spec import GateSpec
from sqtool.pipeline.job import _located
from sqtool.recipe import load_recipe
from sqtool.stages import baseline, drifting, gate
from sqtool.stages.contract import Inputs
from sqtool.stages.measuring import evaluation_estimate, item_facts

ROOT = Path(__file__).parents[3]
TASKS = "tests/lm_eval_tasks"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / TASKS, tmp_path / TASKS)
    (tmp_path / "model").mkdir()
    return tmp_path


def spec(*tasks: str, **more: Any) -> EvaluateSpec:
    values = {"tasks": [], "drift": None, "lm_eval": {"tasks": list(tasks), "include_path": TASKS}, **more}
    return EvaluateSpec.model_validate(values)


def inputs(root: Path, evaluate: EvaluateSpec) -> Inputs:
    sections = {"engine": EngineSpec(), "evaluate": evaluate}
    return Inputs(model=root / "model", draft=None, seed=0, folders={}, root=root, sections=sections)


def test_the_digest_has_files_and_versions(root: Path) -> None:
    given = spec("lookups")
    at = inputs(root, given)
    assert {path.name for path in baseline.data_files(given, at)} >= {"lookup_text.yaml", "lookup.jsonl"}
    found = baseline.fingerprint(given, at)
    assert found["lm-eval"] == "0.4.13"
    assert found["lm-eval task lookup_text"].startswith("1.0 ")
    without = EvaluateSpec(tasks=("t",), drift=None)
    assert not any(name.startswith("lm-eval") for name in baseline.fingerprint(without, inputs(root, without)))


def test_a_plan_counts_the_items(root: Path) -> None:
    given = spec("lookups", limit=10)
    estimate = evaluation_estimate(given, inputs(root, given))
    assert estimate.details == {"items": {"lookup_text": 10, "lookup_choice": 10}}
    facts = item_facts(given, root)["lookup_choice"]
    assert facts.applies == {"acc": [True] * 10, "acc_norm": [True] * 10}
    assert facts.fields[0]["entries"] == 12
    assert facts.kinds == ["lookup_choice"] * 10


def test_the_plan_of_the_gate(root: Path) -> None:
    rules = GateSpec.for_metrics(["lookup_choice.acc", "lookup_text.exact_match,word"], max_drop=0.2)
    found = gate.details(rules, inputs(root, spec("lookups")))["gate"]
    assert [(m["metric"], m["items"], m["counted"]) for m in found["metrics"]] == [
        ("lookup_choice.acc", 24, "items"),
        ("lookup_text.exact_match,word", 24, "items"),
    ]
    assert found["stopping"] == []
    assert "lookup_choice, lookup_text: lm-eval asks its tasks whole, so none of them ends early" in found["notes"]


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("lookup_choice.brier_score", "from all items together"),
        ("lookup_choice.ac", "has no such metric"),
        ("lookups.acc", "names no task 'lookups'"),
    ],
)
def test_a_metric_that_cannot_be_gated(root: Path, metric: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        gate.details(GateSpec.for_metrics([metric]), inputs(root, spec("lookups")))


def test_two_tasks_of_one_name(root: Path) -> None:
    (root / "items.jsonl").write_text(
        '{"id": "a", "messages": [{"role": "user", "content": "x"}], "expected": {"text": "y"}}\n'
    )
    (root / "own.yaml").write_text("task: lookup_text\nitems: items.jsonl\nscorer: exact_match\n")
    with pytest.raises(UsageError, match=r"the task of .*own\.yaml is called 'lookup_text' too"):
        item_facts(spec("lookup_text", tasks=["own.yaml"]), root)


def test_what_does_not_load_fails_in_the_preflight(root: Path) -> None:
    (root / TASKS / "bad.yaml").write_text("task: bad\ndataset_path: org/nothing\ntest_split: test\n")
    given = spec("bad")
    with pytest.raises(DataError, match="not on this machine"):
        evaluation_estimate(given, inputs(root, given))


RECIPE = """
quantize: {methods: [{fp8: {}}]}
evaluate:
  tasks: []
  drift: null
  lm_eval: {tasks: [lookups, tasks/lookup_text.yaml], include_path: tasks}
gate:
  metrics: {lookup_choice.acc: 0.1}
"""


def test_a_recipe_names_a_folder_beside_it(tmp_path: Path) -> None:
    shutil.copytree(ROOT / TASKS, tmp_path / "own" / "tasks")
    path = tmp_path / "own" / "r.yaml"
    path.write_text(RECIPE)
    recipe = load_recipe(path).recipe
    section = _located(recipe, tmp_path, path.parent)["evaluate"]
    assert isinstance(section, EvaluateSpec)
    assert section.lm_eval is not None
    assert section.lm_eval.include_path == "own/tasks"
    assert section.lm_eval.tasks == ("lookups", "own/tasks/lookup_text.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": [], "lm_eval": None}, "no task is named"),
        ({"lm_eval": {"tasks": []}}, "at least 1"),
        ({"lm_eval": {"tasks": ["a", "a"]}}, "named twice"),
        ({"lm_eval": {"tasks": ["a"], "fewshot_as_multiturn": True}}, "needs apply_chat_template"),
        ({"lm_eval": {"tasks": ["a"], "num_fewshots": 3}}, "Extra inputs"),
    ],
)
def test_what_a_recipe_may_not_say(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluateSpec.model_validate(change)


@pytest.mark.parametrize("lack", ["texts", "template"])
def test_drift_with_nothing_to_compare_is_noticed_before_anything_is_asked(
    root: Path, monkeypatch: pytest.MonkeyPatch, lack: str
) -> None:
    monkeypatch.setattr("sqtool.stages.baseline.engine_preflight", lambda *_: None)
    values: dict[str, Any] = {"tasks": [], "lm_eval": {"tasks": ["lookups"], "include_path": TASKS}}
    if lack == "template":
        (root / "artifacts/reference/data/test").mkdir(parents=True)
        (root / "artifacts/reference/data/test/prose.jsonl").touch()
        (root / "model/tokenizer_config.json").write_text("{}")
    told = {"texts": "drift has no texts", "template": "has no chat template"}[lack]
    given = EvaluateSpec.model_validate(values)
    (warning,) = baseline.preflight(given, inputs(root, given)).warnings
    assert told in warning
    assert drifting.possible(given, inputs(root, given)).drift is None
    asked_for = EvaluateSpec.model_validate({**values, "drift": {}})
    with pytest.raises(UsageError, match=told):
        baseline.preflight(asked_for, inputs(root, asked_for))
    if lack == "template":
        (root / "model/chat_template.jinja").write_text("{{ messages }}")
        assert baseline.preflight(given, inputs(root, given)).warnings == ()
