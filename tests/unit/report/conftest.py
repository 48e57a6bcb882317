"""A run folder as the pipeline leaves it, with results in the shapes that the library functions return."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sqtool.files import write_json
from sqtool.gate.judge import judge
from sqtool.gate.spec import GateSpec
from tests.unit.advise.reports import approval, report

ENGINE = {
    "engine": "vllm",
    "version": "0.32.0+cpu",
    "device": "Some CPU, 2 cores, avx2",
    "flags": ["model", "--tool-call-parser", "hermes"],
    "kernels": ["CPUWNA16LinearKernel"],
}


STATS = {
    "positions": 1000,
    "non_finite": 0,
    "kl_mean": 0.00012,
    "kl_p99": 0.003,
    "kl_max": 0.5,
    "top1_agreement": 0.998,
    "perplexity_ratio": 1.0012,
}
DRIFT = {"path": "transformers", "device": "cpu", "texts": 264, "all": STATS, "answers": STATS, "by_kind": {}}
COVERAGE = {
    "verdict": "COVERED",
    "samples": 256,
    "tokens": 40000,
    "minimum": {"per_kind": 8, "per_tool": 0},
    "kinds": {"lookup": {"samples": 30, "tokens": 900, "in_pool": 300}},
    "tools": {"called": 12, "offered": 60, "called_in_pool": 40, "by_name": {}},
    "below_minimum": {"kinds": [], "tools": []},
}
QUANTIZE = {"bytes_before": 29_100_000, "bytes_after": 10_500_000, "layers_quantized": 56, "bits_per_weight": 4.16}

Make = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> Make:
    """`make_run(outcome, wrong=0, said=..., drop=[...])` writes a run folder; `wrong` of 400 answers got worse."""

    def make(
        outcome: str = "released",
        wrong: int = 0,
        said: str = "wrong",
        drop: tuple[str, ...] = (),
        error: dict[str, Any] | None = None,
        item: str = "recall",
    ) -> Path:
        folder = tmp_path / "artifacts/runs/demo"
        for side, bad in (("baseline", 0), ("evaluate", wrong)):
            place = folder / side / "records"
            place.mkdir(parents=True)
            lines = [
                {
                    "task": "recall",
                    "id": f"{item}-{n}",
                    "kind": "recall",
                    "scores": {"exact_match": float(n >= bad)},
                    "expected": {"text": "right"},
                    "output": {"text": said if n < bad else "right", "tool_calls": []},
                }
                for n in range(400)
            ]
            (place / "recall.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "calibrate").mkdir()
        write_json(folder / "calibrate/coverage.json", COVERAGE)
        (folder / "gate").mkdir()
        spec = GateSpec.model_validate({"metrics": {"recall.exact_match": 0.02}})
        verdict = judge(spec, folder / "baseline/records", folder / "evaluate/records")
        (folder / "gate/verdict.json").write_text(verdict.to_json())
        summaries: dict[str, dict[str, Any]] = {
            "calibrate": {},
            "quantize": QUANTIZE,
            "baseline": {"engine": ENGINE, "tasks": {}},
            "evaluate": {"engine": ENGINE, "tasks": {}, "drift": DRIFT},
            "gate": {"outcome": verdict.outcome},
            "speculate": {},
            "approve": {"approved": True, "reasons": [], "gate": "report"},
            "release": {
                "path": "artifacts/releases/demo/2026-01-01-abc",
                "serve": "vllm serve artifacts/releases/demo/2026-01-01-abc --tool-call-parser hermes",
            },
        }
        contents = {"speculate": ("speculate.json", report()), "approve": ("speculation_verdict.json", approval())}
        stages = []
        for name, summary in summaries.items():
            done = name not in drop
            if done:
                (folder / name).mkdir(exist_ok=True)
                write_json(folder / name / "result.json", {"digest": name * 8, "summary": summary})
                if name in contents:
                    write_json(folder / name / contents[name][0], contents[name][1])
            stages.append(
                {
                    "name": name,
                    "state": "done" if done else "not reached",
                    "why": "not done yet" if done else "",
                    "digest": name * 8 if done else "",
                    "folder": f"artifacts/runs/demo/{name}" if done else "",
                    "seconds": 61.0 if done else None,
                    "error": "",
                }
            )
        state = {
            "name": "demo",
            "root": str(tmp_path),
            "recipe": "recipes/demo.yaml",
            "model": "artifacts/reference/target",
            "until": None,
            "started": "2026-01-01T00:00:00+00:00",
            "seconds": 400.0,
            "outcome": outcome,
            "error": error,
            "problems": [],
            "stages": stages,
        }
        write_json(folder / "run.json", state)
        return folder

    return make
