"""`vllm bench serve` and our client on one speculating server, with the same prompts: the same figures.

One request at a time, greedy and without prefix caching, so that every pass over the prompts computes the same thing.
Our client goes before and after, and its two passes bracket what the machine does by itself.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from evals.engine_env import locate, resolve_env, server_environment
from evals.server import VllmServer
from evals.spec import EngineSpec
from sqtool.speculate.analyse import analyse
from sqtool.speculate.client import Answer, Pass, Target, send_block
from sqtool.speculate.counters import Counters, fetch_metrics, read_settled
from sqtool.speculate.spec import SpeculateSpec
from sqtool.speculate.traffic import Request

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "artifacts" / "reference"
KINDS = ("recall", "arithmetic", "prose", "lookup")
PER_KIND = 8
MAX_TOKENS = 48
K = 4
LOAD = "c1"
ENGINE = EngineSpec(generation_config="vllm")
NOISE = 1.5
"""How far a median time of the one client may lie outside those of the other's two passes, as a factor. A fixed cost
that one of them counted and the other did not (connecting, reading the whole stream) would be a multiple of TTFT."""

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Measured:
    """What vLLM's client saved, and what our analysis made of our client's two passes."""

    theirs: dict[str, Any]
    ours: dict[str, Any]
    passes: list[list[Answer]]


def prompts() -> list[Request]:
    chosen: list[Request] = []
    left = dict.fromkeys(KINDS, PER_KIND)
    for line in (REFERENCE / "data" / "traffic.jsonl").read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        # vLLM's client sends one user message without tools.
        if left.get(item["kind"]) and len(item["messages"]) == 1 and not item.get("tools"):
            left[item["kind"]] -= 1
            body = {"messages": item["messages"], "max_tokens": MAX_TOKENS}
            chosen.append(Request(item["id"], item["kind"], body))
    assert not any(left.values())
    return chosen


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    out = tmp_path_factory.mktemp("bench")
    config = {"method": "draft_model", "model": str(REFERENCE / "draft"), "num_speculative_tokens": K}
    flags = ["--speculative-config", json.dumps(config), "--per-request-spec-decode-metrics", "summary"]
    requests = prompts()
    with VllmServer(
        REFERENCE / "target", ENGINE, log=out / "server.log", extra_args=[*flags, "--no-enable-prefix-caching"],
        root=ROOT,
    ) as server:  # fmt: skip
        one_pass(server, requests[:4], 0)
        before, first, middle = around(server, requests, 0)
        theirs = bench(server, requests, out)
        middle_again, second, after = around(server, requests, 1)
    blocks = [(before, middle, first[1]), (middle_again, after, second[1])]
    write(out, requests, [first[0], second[0]], blocks, config)
    return Measured(theirs, analyse(out, SpeculateSpec(), replicates=200), [first[0], second[0]])


def one_pass(server: VllmServer, requests: list[Request], turn: int) -> tuple[list[Answer], float]:
    answers: list[Answer] = []
    target = Target(server.base_url, server.api_key, server.served_name, 120.0)
    where = Pass(load=LOAD, round=turn, block=0, salt="pass")
    seconds = send_block(
        requests, target, where, concurrency=1, began=time.perf_counter(), on_answer=answers.append
    )  # fmt: skip
    assert all(answer.ok for answer in answers)
    return answers, seconds


def around(
    server: VllmServer, requests: list[Request], turn: int
) -> tuple[Counters, tuple[list[Answer], float], Counters]:
    def read() -> Counters:
        return read_settled(lambda: fetch_metrics(server.base_url, server.api_key))

    before = read()
    sent = one_pass(server, requests, turn)
    return before, sent, read()


def bench(server: VllmServer, requests: list[Request], out: Path) -> dict[str, Any]:
    """vLLM's own client, in vLLM's own environment; what `--save-result` wrote."""
    env = locate(resolve_env(ENGINE, ROOT))
    # Of its data sets for files, this is the one that needs no pandas; the second turn is not sent.
    data = out / "prompts.json"
    turns = [[{"value": r.body["messages"][0]["content"]}, {"value": "-"}] for r in requests]
    data.write_text(json.dumps([{"conversations": pair} for pair in turns]))
    command = [
        str(env.folder / "bin" / "vllm"), "bench", "serve", "--backend", "openai-chat",
        "--base-url", server.base_url, "--endpoint", "/v1/chat/completions",
        "--model", str(REFERENCE / "target"), "--served-model-name", server.served_name,
        "--dataset-name", "sharegpt", "--dataset-path", str(data), "--num-prompts", str(len(requests)),
        "--sharegpt-output-len", str(MAX_TOKENS), "--no-oversample", "--disable-shuffle",
        "--temperature", "0", "--max-concurrency", "1", "--disable-tqdm",
        "--percentile-metrics", "ttft,tpot,e2el", "--save-result", "--result-dir", str(out),
        "--result-filename", "bench.json",
    ]  # fmt: skip
    keys = {"OPENAI_API_KEY": server.api_key, "NO_PROXY": "*", "no_proxy": "*"}
    environment = server_environment(env, ENGINE, server.api_key) | keys
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads((out / "bench.json").read_text())
    return result


def write(
    out: Path,
    requests: list[Request],
    passes: list[list[Answer]],
    blocks: list[tuple[Counters, Counters, float]],
    config: dict[str, Any],
) -> None:
    """The stage's files, with this one arm: what is compared is what a run reports."""
    arm = out / "arms" / "speculative"
    arm.mkdir(parents=True)
    lines = {
        out / "traffic.jsonl": [{"id": r.id, "kind": r.kind, "block": 0} for r in requests],
        arm / "requests.jsonl": [answer.to_dict() for answers in passes for answer in answers],
        arm / "blocks.jsonl": [
            {"load": LOAD, "round": turn, "block": 0, "kind": None, "seconds": seconds, "counters": counted(pair)}
            for turn, (*pair, seconds) in enumerate(blocks)
        ],
    }
    for path, rows in lines.items():
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (out / "plan.json").write_text(json.dumps({"arms": ["speculative"], "loads": [LOAD], "seed": 0}))
    info = {"name": "speculative", "target": "baseline", "model": "target", "speculative_config": config}
    (arm / "arm.json").write_text(json.dumps(info))


def counted(pair: Any) -> dict[str, Any]:
    before, after = pair
    between = after.since(before)
    assert between.speculation is not None
    return {"speculation": between.speculation.to_dict(), "others": dict(between.others)}


def test_the_same_work_was_done(measured: Measured) -> None:
    assert measured.theirs["completed"] == len(measured.passes[0])
    first, second = ([answer.said for answer in answers] for answers in measured.passes)
    assert first == second
    tokens = sum(answer.completion_tokens or 0 for answer in measured.passes[0])
    assert measured.theirs["total_output_tokens"] == tokens


def test_acceptance_is_the_same(measured: Measured) -> None:
    entry = measured.ours["arms"]["speculative"]["loads"][LOAD]["speculation"]
    assert entry["cross_check"]["agree"] is True
    theirs = measured.theirs
    # Ours counts two passes. Theirs reads the counters as soon as the last answer is there, when the server may not
    # have added that answer's last step yet.
    assert abs(theirs["spec_decode_num_drafts"] - entry["drafts"] / 2) <= 1
    assert abs(theirs["spec_decode_accepted_tokens"] - entry["accepted_tokens"] / 2) <= K
    assert theirs["spec_decode_acceptance_rate"] / 100 == pytest.approx(entry["acceptance_rate"], abs=0.01)
    assert theirs["spec_decode_acceptance_length"] == pytest.approx(entry["mean_acceptance_length"], abs=0.03)
    positions = theirs["spec_decode_per_position_acceptance_rates"]
    assert positions == pytest.approx(entry["per_position_rate"], abs=0.01)


def test_passes_of_the_target_are_the_engines_own_steps(measured: Measured) -> None:
    """One request at a time, a step of the engine is a pass of the target for that request."""
    steps = measured.ours["arms"]["speculative"]["loads"][LOAD]["steps"]
    assert steps["target_forward_passes"] == steps["engine_steps"]
    assert steps["forward_passes_saved"] > steps["output_tokens"] / 3


@pytest.mark.parametrize("measure", ["ttft", "tpot"])
def test_times_are_the_same_within_noise(measured: Measured, measure: str) -> None:
    medians = []
    for answers in measured.passes:
        times = sorted(value for a in answers if (value := getattr(a, f"{measure}_s")) is not None)
        medians.append(1000 * times[len(times) // 2])
    theirs = measured.theirs[f"median_{measure}_ms"]
    assert min(medians) / NOISE <= theirs <= max(medians) * NOISE
    ours = measured.ours["arms"]["speculative"]["loads"][LOAD]["latency"][f"{measure}_ms"]["p50"]
    assert min(medians) * 0.9 <= ours <= max(medians) * 1.1, "the analysis pools the two passes"
