"""docs/evaluations.md: every task in it loads with the rows beside it; every scorer, option and layer is there."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from markdown_it import MarkdownIt
from ruamel.yaml import YAML

from evals.scorers import SCORERS
from evals.sources import ItemSource
from evals.spec import EvaluateSpec
from evals.tasks import TaskSpec, json_schema, load_task

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "evaluations.md").read_text(encoding="utf-8")


def examples() -> dict[str, tuple[str, list[Any]]]:
    """Task name -> (its YAML, the JSON of the blocks that follow it)."""
    found: dict[str, tuple[str, list[Any]]] = {}
    name = ""
    for block in (t for t in MarkdownIt("commonmark").parse(PAGE) if t.type == "fence"):
        if block.info == "yaml":
            name = YAML(typ="safe").load(block.content)["task"]
            assert block.content.startswith(f"# evals/tasks/{name}.yaml\n")
            found[name] = (block.content, [])
        elif block.info == "json":
            found[name][1].append(json.loads(block.content))
    return found


EXAMPLES = examples()


def put(source: ItemSource, rows: list[Any], root: Path) -> None:
    """Write an example's rows where its task looks for them."""
    if source.dataset is not None:
        from datasets import Dataset, DatasetDict

        DatasetDict({source.split or "test": Dataset.from_list(rows)}).save_to_disk(str(root / source.dataset))
        return
    for name, row in zip((source.file or source.bfcl, source.answers), rows, strict=False):
        path = root / str(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            import pyarrow as pa
            from pyarrow import parquet

            parquet.write_table(pa.Table.from_pylist([row]), path)
        else:
            path.write_text(json.dumps(row) + "\n", encoding="utf-8")


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_task_loads(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "site" / "my_package-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "entry_points.txt").write_text("[sqtool.scorers]\nsql_runs = json:loads\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    text, rows = EXAMPLES[name]
    assert rows
    (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    Draft202012Validator(json_schema()).validate(YAML(typ="safe").load(text))
    put(TaskSpec.model_validate(YAML(typ="safe").load(text)).items, rows, tmp_path)
    task = load_task(f"{name}.yaml", tmp_path, EvaluateSpec())
    assert task.name == name
    assert len(task.items) >= 1


def test_every_scorer_has_an_example_with_its_options_metrics_and_layers() -> None:
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##)", PAGE, flags=re.MULTILINE | re.DOTALL))
    for name, target in SCORERS.items():
        module, _, attribute = target.partition(":")
        scorer = getattr(import_module(module), attribute)
        section = sections[name]
        assert "```yaml" in section, name
        for word in (*scorer.model_fields, *scorer.failures):
            assert re.search(rf"\b{word}\b", section), f"{name}: {word}"
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
        assert re.findall(r"`(\w+)`", row.split("|")[2]) == list(scorer.metrics)


@pytest.mark.parametrize(
    "task",
    [
        {"task": "t", "items": "x", "scorer": "no_such_scorer"},
        {"task": "t", "items": "x", "scorer": {"name": "numeric", "options": {"relativ": 1}}},
        {"task": "t", "items": {"fil": "x"}, "scorer": "numeric"},
        {"task": "t", "scorer": "numeric"},
    ],
)
def test_the_schema_of_a_task_refuses(task: dict[str, Any]) -> None:
    assert not Draft202012Validator(json_schema()).is_valid(task)


def test_every_key_and_source_is_named() -> None:
    table = PAGE[PAGE.index("| key | |") : PAGE.index("## Where items come from")]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("|")]
    keys = {word for cell in cells for word in re.findall(r"`(\w+)`", cell)}
    assert keys == set(TaskSpec.model_fields)
    sources = PAGE[PAGE.index("| `items:` | |") : PAGE.index("### Rows of any form")]
    assert all(f"{key}:" in sources for key in ItemSource.model_fields)
