"""Two arms through real `vllm serve` processes: the figures are there, and vLLM's two accounts of them agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.spec import EngineSpec
from sqtool.progress import SILENT
from sqtool.speculate.compare import agreements
from sqtool.speculate.run import PER_REQUEST_FLAG, Arm, preflight, run_arm
from sqtool.speculate.spec import SpeculateSpec
from sqtool.speculate.summary import summarize
from sqtool.speculate.traffic import choose, load_requests

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "artifacts/reference"

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not (ROOT / ".venv-vllm/bin/python").exists(), reason="vLLM is not set up: run `make vllm`"),
    pytest.mark.skipif(not (REFERENCE / "draft/config.json").exists(), reason="the reference pair is not there"),
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    spec = SpeculateSpec(requests=26, concurrency=8, max_tokens=48, warmup=2)
    target, draft = REFERENCE / "target", REFERENCE / "draft"
    preflight(spec, target=target, draft=draft, root=ROOT)
    requests = load_requests(ROOT / spec.traffic, spec.max_tokens)
    traffic = choose(requests, spec.requests, spec.warmup, 0, single_kind_blocks=False)
    config = json.dumps(spec.speculative_config(str(draft.resolve())))
    out = tmp_path_factory.mktemp("speculate")
    arms = {}
    for arm, extra in (
        (Arm("baseline", target, False), []),
        (Arm("speculative", target, True), ["--speculative-config", config, *PER_REQUEST_FLAG]),
    ):
        arms[arm.name] = run_arm(arm, spec, EngineSpec(), traffic, extra, root=ROOT, out=out, progress=SILENT)
    return {"arms": arms, "out": out, "requests": len(traffic.requests)}


def test_every_measure_is_there(measured: dict[str, Any]) -> None:
    for name, arm in measured["arms"].items():
        summary = summarize(arm)
        assert summary["failures"]["count"] == 0
        assert summary["requests"] == measured["requests"]
        for group in ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"):
            assert summary["latency"][group]["p50"] > 0
        assert summary["latency"]["ttft_ms"]["p50"] <= summary["latency"]["e2e_ms"]["p50"]
        # Tokens as the client adds them up from the answers, and as the server counted them.
        assert summary["output_tokens"] == summary["counters"]["generation_tokens"]
        assert (measured["out"] / "arms" / name / "requests.jsonl").is_file()


def test_acceptance_by_metrics_and_by_answers_is_the_same(measured: dict[str, Any]) -> None:
    entry = summarize(measured["arms"]["speculative"])
    speculation = entry["speculation"]
    assert speculation["cross_check"]["agree"] is True
    assert 1 < speculation["mean_acceptance_length"] <= 5
    assert speculation["per_position_rate"] == sorted(speculation["per_position_rate"], reverse=True)
    assert sum(kind["speculation"]["drafts"] for kind in entry["kinds"].values()) == speculation["drafts"]
    assert summarize(measured["arms"]["baseline"])["speculation"] is None


def test_fewer_steps_and_the_same_answers(measured: dict[str, Any]) -> None:
    steps = {name: summarize(arm)["counters"]["engine_steps"] for name, arm in measured["arms"].items()}
    assert steps["speculative"] < steps["baseline"]
    [entry] = agreements(measured["arms"])["speculative"]
    # Greedy answers agree but for near-ties that another batch shape decides otherwise.
    assert entry["of"] == measured["requests"]
    assert entry["share"] >= 0.8
