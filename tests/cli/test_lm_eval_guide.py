"""docs/lm-eval.md: the task, its data and the recipe in it work together as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

from ruamel.yaml import YAML

from evals.harness.stage import check_metric, loaded, names
from evals.spec import EvaluateSpec
from sqtool.gate.spec import GateSpec
from sqtool.stages.measuring import TaskFacts

GUIDE = Path(__file__).parents[2] / "docs" / "lm-eval.md"


def test_the_example_works(tmp_path: Path) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, flags=re.MULTILINE)
    task, item, recipe = (re.sub(r"^    ", "", block, flags=re.MULTILINE).strip("\n") + "\n" for block in blocks)
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "lookup.yaml").write_text(task)
    (folder / "lookup.jsonl").write_text(item * 3)
    sections = YAML(typ="safe").load(recipe)
    evaluate, gate = EvaluateSpec.model_validate(sections["evaluate"]), GateSpec.model_validate(sections["gate"])
    assert names(evaluate, tmp_path) == ["lookup"]
    for metric in gate.gated:
        check_metric(evaluate, tmp_path, *metric.rsplit(".", 1))
    ((found, limit),) = loaded(evaluate, tmp_path, {})
    facts = TaskFacts.of_lm_eval(found, limit)
    assert facts.applies == {"acc": [True] * 3}
    assert all(rule.field in facts.fields[0] for rule in gate.slices)
    assert found.task.doc_to_text(found.docs(1)[0]) == "a: 4\nb: 7\nWhich value has b?"
