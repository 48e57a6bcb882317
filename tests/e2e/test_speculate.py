"""The arms through real `vllm serve` processes, side by side: every file is there, and vLLM's accounts agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from evals.spec import EngineSpec, EvaluateSpec
from sqtool.files import read_json
from sqtool.progress import SILENT
from sqtool.speculate.counters import NOTHING, Speculation, add_up, from_answer
from sqtool.speculate.run import speculate
from sqtool.speculate.spec import SpeculateSpec

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "artifacts/reference"
SPECULATING = ("speculative", "both")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not (ROOT / ".venv-vllm/bin/python").exists(), reason="vLLM is not set up: run `make vllm`"),
    pytest.mark.skipif(not (REFERENCE / "draft/config.json").exists(), reason="the reference pair is not there"),
]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stage's folder; the candidate is the target itself, so that nothing has to be quantized."""
    out = tmp_path_factory.mktemp("speculate")
    spec = SpeculateSpec.model_validate(
        {
            "requests": 26,
            "max_concurrency": 8,
            "request_rate": 6,
            "max_tokens": 48,
            "warmup": 2,
            "repeats": 1,
            "cancellation": {"share": 0.25, "requests": 12},
            "sampling": {"requests": 3, "samples": 2},
            "quality": {"items": 12},
        }
    )
    speculate(
        spec,
        EngineSpec(kv_cache_memory_bytes=1 << 28),
        baseline=REFERENCE / "target",
        candidate=REFERENCE / "target",
        draft=REFERENCE / "draft",
        root=ROOT,
        out=out,
        progress=SILENT,
        seed=0,
        evaluate=EvaluateSpec(tasks=("tasks",)),
    )
    return out


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_file_is_there(out: Path) -> None:
    plan = read_json(out / "plan.json")
    assert plan["arms"] == ["baseline", "quantized", "speculative", "both", "baseline_again"]
    assert [load["name"] for load in plan["loads"]] == ["c8", "r6"]
    for arm in plan["arms"]:
        folder = out / "arms" / arm
        about = read_json(folder / "arm.json")
        memory = about["memory"]
        assert memory["weights_bytes"] > 20_000_000
        assert memory["kv_cache_bytes"] == 1 << 28
        assert memory["kv_cache_tokens"] > 10_000
        assert memory["rss_peak_bytes"] > memory["weights_bytes"]
        answers = lines(folder / "requests.jsonl")
        assert len(answers) == 2 * 26
        assert not [row["error"] for row in answers if row["error"]]
        assert {row["accepted"] for row in answers} == {True, False} or all(row["accepted"] for row in answers)
        assert len(lines(folder / "sampling.jsonl")) == 3 * 2
        assert (folder / "quality/records/tasks.jsonl").is_file() == (arm in SPECULATING)
    assert read_json(out / "speculate.json")["arms"].keys() >= set(plan["arms"])


def test_the_arrivals_are_kept(out: Path) -> None:
    [load] = [load for load in read_json(out / "plan.json")["loads"] if load["name"] == "r6"]
    for arm in ("baseline", "both"):
        rows = [row for row in lines(out / "arms" / arm / "requests.jsonl") if row["load"] == "r6"]
        # A busy machine sends late, which is kept beside the times; when a request was due is the plan's.
        due = sorted(row["sent_s"] - row["late_s"] for row in rows)
        assert [at - due[0] for at in due] == pytest.approx(
            [at - load["arrivals_s"][0] for at in load["arrivals_s"]], abs=0.05
        )


def test_acceptance_by_metrics_and_by_answers_is_the_same(out: Path) -> None:
    for arm in SPECULATING:
        counted = NOTHING
        for block in lines(out / "arms" / arm / "blocks.jsonl"):
            found = block["counters"]["speculation"]
            counts = (found["drafts"], found["draft_tokens"], found["accepted_tokens"])
            counted += Speculation(*counts, tuple(found["accepted_per_position"]))
        reported = add_up(from_answer(row["speculation"]) for row in lines(out / "arms" / arm / "requests.jsonl"))
        assert counted == reported
        assert 1 < 1 + counted.accepted_tokens / counted.drafts <= 5
        assert list(counted.per_position) == sorted(counted.per_position, reverse=True)


def test_fewer_steps_and_the_same_answers(out: Path) -> None:
    def steps(arm: str) -> int:
        return sum(block["counters"]["others"]["engine_steps"] for block in lines(out / "arms" / arm / "blocks.jsonl"))

    assert steps("speculative") < steps("baseline")
    said = {
        arm: {
            row["id"]: (row["text"], row["tool_calls"])
            for row in lines(out / "arms" / arm / "requests.jsonl")
            if row["load"] == "c8"
        }
        for arm in ("baseline", "speculative")
    }
    same = sum(said["baseline"][name] == said["speculative"][name] for name in said["baseline"])
    # Greedy answers agree but for near-ties that another batch shape decides otherwise.
    assert same >= 0.8 * len(said["baseline"])


def test_tokens_are_those_that_the_server_counted(out: Path) -> None:
    for arm in ("baseline", "both"):
        counted = sum(
            block["counters"]["others"]["generation_tokens"] for block in lines(out / "arms" / arm / "blocks.jsonl")
        )
        assert counted == sum(row["completion_tokens"] for row in lines(out / "arms" / arm / "requests.jsonl"))


def test_what_was_cut_off_is_freed(out: Path) -> None:
    for arm in ("quantized", "both"):
        found = read_json(out / "arms" / arm / "probe.json")
        assert found["cancelled"] >= 1
        assert found["running_after_s"][-1][1] == 0
        assert found["kv_usage_after"] == found["kv_usage_before"] == 0
        assert found["retries"]["answered"] == found["retries"]["retried"] == found["cancelled"]


def test_no_server_is_left(out: Path) -> None:
    assert (out / "speculate.json").is_file()
    below = psutil.Process().children(recursive=True)
    assert [process.pid for process in below if any("vllm" in word.lower() for word in process.cmdline())] == []
