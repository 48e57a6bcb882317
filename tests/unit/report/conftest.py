"""A run folder as the pipeline leaves it, with results in the shapes that the library functions return."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sqtool.files import write_json
from sqtool.gate.judge import judge
from sqtool.gate.spec import GateSpec

LATENCY = {"p50": 12.34, "p90": 15.0, "p95": 20.5, "p99": 150.2, "mean": 13.0, "n": 160}
ENGINE = {
    "engine": "vllm",
    "version": "0.32.0+cpu",
    "device": "Some CPU, 2 cores, avx2",
    "flags": ["model", "--tool-call-parser", "hermes"],
    "kernels": ["CPUWNA16LinearKernel"],
}


def arm(length: float | None, tokens: float) -> dict[str, Any]:
    spoken = None if length is None else {"mean_acceptance_length": length, "acceptance_rate": (length - 1) / 4}
    return {
        "requests": 160,
        "failures": {"count": 0, "examples": []},
        "output_tokens_per_s": tokens,
        "latency": {"ttft_ms": LATENCY, "tpot_ms": LATENCY, "itl_ms": None, "e2e_ms": LATENCY},
        "speculation": spoken,
        "kinds": {"recall": {"requests": 9, "speculation": spoken}} if spoken else {},
    }


SPECULATE: dict[str, Any] = {
    "method": "draft_model",
    "speculative_config": {"num_speculative_tokens": 4},
    "traffic": {"requests": 160, "warmup": 8, "concurrency": 8},
    "arms": {
        "baseline": arm(None, 400.0),
        "quantized": arm(None, 500.0),
        "speculative": arm(3.0, 600.0),
        "both": arm(2.9, 700.0),
    },
    "agreement": {
        "baseline": [],
        "quantized": [{"with": "baseline", "of": 160, "identical": 120, "share": 0.75}],
        "speculative": [{"with": "baseline", "of": 160, "identical": 160, "share": 1.0}],
        "both": [
            {"with": "baseline", "of": 160, "identical": 120, "share": 0.75},
            {"with": "quantized", "of": 160, "identical": 158, "share": 0.9875},
        ],
    },
    "interaction": {"e2e_p50": {"quantization": 1.2, "speculation": 1.5, "both": 1.7, "product": 1.8, "ratio": 0.944}},
    "acceptance_change": {"overall": {"mean_acceptance_length": -0.1}, "kinds": {}},
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
            "speculate": copy.deepcopy(SPECULATE),
            "release": {
                "path": "artifacts/releases/demo/2026-01-01-abc",
                "serve": "vllm serve artifacts/releases/demo/2026-01-01-abc --tool-call-parser hermes",
            },
        }
        stages = []
        for name, summary in summaries.items():
            done = name not in drop
            if done:
                (folder / name).mkdir(exist_ok=True)
                write_json(folder / name / "result.json", {"digest": name * 8, "summary": summary})
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
