"""`sqtool calibrate` with the real stage: tokens and text, no model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.contract.tiny import make_model

from .conftest import Sqtool

RECIPE = """
model: model
draft: null
calibrate:
  sources: [{{path: pool.jsonl}}]
  match: traffic.jsonl
  num_calibration_samples: 6
  max_seq_length: 256
  selection: random
  shuffle: false
  activations: null
  coverage: {{min_per_kind: 0, min_score: {{scripts: {scripts}}}}}
quantize: {{methods: [{method}]}}
evaluate: {{tasks: [exam.yaml]}}
gate: {{metrics: {{exam.exact_match: {{max_drop: 0.02}}}}}}
"""


def talk(text: str, number: int) -> dict[str, Any]:
    answer = {"role": "assistant", "content": f"Answer {number}"}
    return {"id": f"i{number}", "kind": "chat", "messages": [{"role": "user", "content": text}, answer]}


@pytest.fixture
def project(sqtool_: Sqtool, tmp_path: Path) -> Path:
    """A project with a tiny model, 60 conversations of which one is Greek, and traffic of which a fifth is."""
    make_model(tmp_path / "model", hidden=64, layers=1)
    lines = {
        "pool": [*[talk(f"Question {n}?", n) for n in range(59)], talk("Καλημέρα σε όλους", 99)],
        "traffic": [*[talk(f"Ask {n}?", n) for n in range(8)], talk("Γεια σας", 8), talk("Καλησπέρα", 9)],
        "items": [{"id": "t", "messages": [{"role": "user", "content": "Test?"}], "expected": {"text": "Answer 1"}}],
    }
    for name, records in lines.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (tmp_path / "exam.yaml").write_text("task: exam\nitems: items.jsonl\nscorer: exact_match\n")
    (tmp_path / "demo.yaml").write_text(RECIPE.format(scripts=1.0, method="gptq"))
    return tmp_path


def test_a_set_that_misses_a_script_is_refused_and_fixed(project: Path, sqtool_: Sqtool) -> None:
    said = sqtool_("calibrate", "demo.yaml")
    assert said.code == 1
    assert said.out.startswith("THIN: 6 conversations")
    assert "missing of scripts: Greek, 20.0 % of the traffic; 1 in the sources, e.g. pool.jsonl:60" in said.out
    assert "--fix" in said.err
    said = sqtool_("calibrate", "demo.yaml", "--fix")
    assert said.code == 0
    assert said.out.startswith("COVERED: 7 conversations")
    assert "calibrate.coverage.fix: true" in said.out
    card = (project / "artifacts/runs/demo/calibrate/card.md").read_text()
    assert "7 conversations" in card
    again = sqtool_("calibrate", "demo.yaml", "--fix", "--json")
    assert again.code == 0
    assert again.json["stages"][0]["state"] == "cached"
    assert again.json["coverage"]["text"]["scripts"]["verdict"] == "COVERED"
    assert again.json["results"]["calibrate"]["added"] == 1


def test_json_has_the_coverage_that_was_refused(project: Path, sqtool_: Sqtool) -> None:
    said = sqtool_("calibrate", "demo.yaml", "--json")
    assert (said.code, said.json["exit_code"], said.json["coverage"]["verdict"]) == (1, 1, "THIN")


def test_test_items_and_bad_lines_fail_with_their_place(project: Path, sqtool_: Sqtool) -> None:
    pool = project / "pool.jsonl"
    lines = pool.read_text().splitlines()
    pool.write_text("\n".join([*lines[:1], "{", *lines[1:]]))
    said = sqtool_("calibrate", "demo.yaml", "--fix")
    assert said.code == 2
    assert "pool.jsonl:2: not JSON" in said.err
    (project / "demo.yaml").write_text(RECIPE.format(scripts=0.0, method="gptq").replace(": 6", ": 61"))
    pool.write_text("\n".join([*lines, json.dumps(talk("test", 5))]))
    said = sqtool_("calibrate", "demo.yaml")
    assert said.code == 2
    assert "pool.jsonl:61 and exam: t share question ('test')" in said.err


def test_a_recipe_without_data_says_that_there_is_no_set(project: Path, sqtool_: Sqtool) -> None:
    (project / "demo.yaml").write_text(RECIPE.format(scripts=1.0, method="fp8"))
    said = sqtool_("calibrate", "demo.yaml")
    assert (said.code, said.out.strip()) == (0, "demo: no calibration set: no method of the recipe looks at data")
