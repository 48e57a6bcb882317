"""The table of failure layers, from run folders as the pipeline leaves them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import failure_layers


def summary(n: int, failures: dict[str, int], arguments: dict[str, dict[str, int]] | None = None) -> dict[str, Any]:
    metrics = {"schema_valid": 0.9775, "call_match": failures["none"] / n}
    return {"n": n, "metrics": metrics, "failures": failures, **({"arguments": arguments} if arguments else {})}


BASE = summary(600, {"none": 580, "wrong_arguments": 20}, {"city": {"value": 15, "type": 1}, "days": {"value": 4}})
RTN4 = summary(600, {"none": 540, "wrong_arguments": 40, "unparseable": 20}, {"city": {"missing": 40}})


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, stage in (("cache/baseline", BASE), ("runs/rtn4-refused/evaluate", RTN4)):
        folder = tmp_path / "artifacts" / name
        folder.mkdir(parents=True)
        (folder / "evaluation.json").write_text(json.dumps({"tasks": {"tool_calls": stage}}))
    stages = [{"name": "baseline", "folder": "artifacts/cache/baseline"}]
    (tmp_path / "artifacts/runs/rtn4-refused/run.json").write_text(json.dumps({"stages": stages}))
    monkeypatch.setattr(failure_layers, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["failure_layers", "--only", "rtn4", "--no-run"])
    return tmp_path


def test_the_table(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert failure_layers.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3:] == [
        (
            "| variant | items | % schema_valid | % call_match | unparseable | wrong_arguments "
            "| arguments: type/value/missing/unexpected |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| bf16 | 600 | 97.8 | 96.7 | 0 | 20 | 1/19/0/0 |",
        "| rtn4 | 600 | 97.8 | 90.0 | 20 | 40 | 0/0/40/0 |",
    ]


def test_too_few_items_are_said(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = root / "artifacts/runs/rtn4-refused/evaluate/evaluation.json"
    path.write_text(json.dumps({"tasks": {"tool_calls": summary(200, {"none": 200})}}))
    assert failure_layers.main() == 1
    assert capsys.readouterr().out.endswith("rtn4: 200 items, fewer than 600\n")


def test_every_variant_has_a_recipe() -> None:
    for name in failure_layers.VARIANTS:
        assert (Path(__file__).resolve().parents[3] / failure_layers.RECIPES[name]).is_file()
