"""What the tests of stages share: inputs as the pipeline gives them, and doubles of library functions."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from calibrate.spec import CalibrateSpec
from evals.spec import EngineSpec, EvaluateSpec
from quantize.spec import QuantizeSpec
from sqtool.files import write_json
from sqtool.gate.spec import GateSpec
from sqtool.stages.contract import Inputs

AWQ = QuantizeSpec.model_validate({"methods": [{"awq": {}}]})


FP8 = QuantizeSpec.model_validate({"methods": [{"fp8": {}}]})


FINISHED = QuantizeSpec(checkpoint="some/where")


class Double:
    """Takes the place of a library function; calls must fit the real function's signature."""

    def __init__(self, real: Callable[..., Any], result: Any, does: Callable[..., None] | None = None) -> None:
        self.signature, self.result, self.does = inspect.signature(real), result, does
        self.arguments: dict[str, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.signature.bind(*args, **kwargs)
        self.arguments = bound.arguments
        if self.does is not None:
            self.does(**bound.arguments)
        return self.result


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Double]:
    def make(where: str, result: Any, does: Callable[..., None] | None = None) -> Double:
        module, _, name = where.partition(":")
        fake = Double(getattr(import_module(module), name), result, does)
        monkeypatch.setattr(import_module(module), name, fake)
        return fake

    return make


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    for name in ("model", "draft", "candidate"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"vocab_size": 8}')
    folders = {}
    for name in ("calibrate", "quantize", "baseline", "evaluate", "gate", "speculate"):
        folders[name] = tmp_path / "run" / name
        folders[name].mkdir(parents=True)
    return Inputs(
        model=tmp_path / "model",
        draft=tmp_path / "draft",
        seed=7,
        folders=folders,
        root=tmp_path,
        candidate=tmp_path / "candidate",
        sections={
            "engine": EngineSpec(),
            "quantize": AWQ,
            "calibrate": CalibrateSpec(),
            "evaluate": EvaluateSpec(tasks=("t",), drift=None),
            "gate": GateSpec(early_stop="off"),
        },
        recipe={"name": "mine", "text": "name: mine\n", "model": "model", "resolved": {}},
    )


def task_of(tmp_path: Path) -> Path:
    """The evaluation's only task, `t`; the file of its items."""
    folder = tmp_path / "evals" / "tasks"
    folder.mkdir(parents=True)
    (folder / "t.yaml").write_text("task: t\nitems: t.jsonl\nscorer: exact_match\n")
    (tmp_path / "t.jsonl").touch()
    return tmp_path / "t.jsonl"


def out_of(tmp_path: Path) -> Path:
    out = tmp_path / "out.tmp"
    out.mkdir()
    return out


def records(folder: Path, scores: list[float], digest: str = "d" * 64) -> None:
    (folder / "records").mkdir(parents=True, exist_ok=True)
    lines = [
        {"task": "t", "id": f"i{n}", "kind": "k", "scores": {"exact_match": s}, "output": {"text": f"said {n}"}}
        for n, s in enumerate(scores)
    ]
    (folder / "records" / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {"engine": {"engine": "vllm", "start_seconds": len(scores)}, "candidate_digest": digest}
    write_json(folder / "result.json", {"summary": summary})
