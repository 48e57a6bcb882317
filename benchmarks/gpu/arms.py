"""Servers side by side on one device, and the same requests through each: what `benchmarks.gpu.four_arms` measures."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.pipeline import ROOT, memory
from benchmarks.gpu.timebox import note
from evals.server import VllmServer
from evals.spec import EngineSpec
from sqtool.errors import SqtoolError
from sqtool.speculate.client import Answer, Pass, Target, send_block
from sqtool.speculate.counters import fetch_metrics, read_settled
from sqtool.speculate.memory import device_bytes
from sqtool.speculate.traffic import Request

TIMEOUT = 120.0
SAME_PROMPTS = "--no-enable-prefix-caching"
"""Rounds and loads send the same prompts again; a cache of them would make every round but the first another test."""


@dataclass(frozen=True)
class Arm:
    """One server: a checkpoint, with a draft model or without."""

    name: str
    model: Path
    draft: Path | None = None

    def arguments(self, tokens: int) -> list[str]:
        """Further arguments of `vllm serve`."""
        if self.draft is None:
            return [SAME_PROMPTS]
        config = {"method": "draft_model", "model": str(self.draft.resolve()), "num_speculative_tokens": tokens}
        return [SAME_PROMPTS, "--speculative-config", json.dumps(config)]


def start(
    arms: Sequence[Arm], engine: EngineSpec, tokens: int, logs: Path, at_once: int, stack: ExitStack
) -> tuple[dict[str, VllmServer], dict[str, str]]:
    """Start all servers, some at once; those that run, and why the others do not. `stack` ends them."""
    running: dict[str, VllmServer] = {}
    failed: dict[str, str] = {}

    def one(arm: Arm) -> None:
        log, extra = logs / f"{arm.name}.log", arm.arguments(tokens)
        server = VllmServer(arm.model, engine, log=log, extra_args=extra, root=ROOT)
        try:
            server.__enter__()
        except SqtoolError as error:
            failed[arm.name] = error.message
            note(f"{arm.name}: {error.message}")
            return
        stack.push(server.__exit__)
        running[arm.name] = server
        note(f"{arm.name}: up after {server.start_seconds:.0f} s")

    with ThreadPoolExecutor(max_workers=at_once) as pool:
        for future in [pool.submit(one, arm) for arm in arms]:
            future.result()
    return running, failed


def facts(server: VllmServer, log: Path) -> dict[str, Any]:
    """Engine and memory of a running server."""
    told = server.facts()
    names = ("version", "device_class", "device", "kernels", "attention", "kv_cache_dtype", "dtype", "start_seconds")
    known = {"flags": told["flags"], "device_bytes": device_bytes(server.pid), **memory(log)}
    return {**{name: told.get(name) for name in names}, **known}


def send(server: VllmServer, requests: Sequence[Request], load: int) -> dict[str, Any]:
    """Send the requests with `load` in flight; times of each answer, wall seconds, and what the server counted."""
    answers: list[Answer] = []

    def counters() -> Any:
        return read_settled(lambda: fetch_metrics(server.base_url, server.api_key))

    before = counters()
    seconds = send_block(
        requests,
        Target(server.base_url, server.api_key, server.served_name, TIMEOUT),
        Pass(load=f"c{load}"),
        concurrency=load,
        began=time.perf_counter(),
        on_answer=answers.append,
    )
    counted = counters().since(before).speculation
    failed = [answer.error for answer in answers if not answer.ok]
    if len(failed) == len(answers):
        raise server.failure(f"every one of {len(answers)} requests failed, the first with: {failed[0]}")
    return {
        "seconds": seconds,
        "failed": failed[:3],
        "failures": len(failed),
        "answers": {a.id: [a.ttft_s, a.tpot_s, a.e2e_s, a.completion_tokens] for a in answers if a.ok},
        "said": {a.id: a.text or json.dumps(a.tool_calls) for a in answers if a.ok},
        "speculation": counted.to_dict() if counted is not None else None,
    }


def schedule(arms: Sequence[str], loads: Sequence[int], rounds: int, seed: int) -> list[tuple[int, int, str]]:
    """(round, load, arm) in the order run: in each round and at each load the arms in another order."""
    rng = random.Random(f"arms {seed}")
    order: list[tuple[int, int, str]] = []
    for round_ in range(rounds):
        for load in loads:
            shuffled = list(arms)
            rng.shuffle(shuffled)
            order += [(round_, load, arm) for arm in shuffled]
    return order


def pooled(cells: Mapping[str, Any], arm: str, load: int) -> dict[str, Any] | None:
    """All rounds of an arm at a load: percentiles in milliseconds, tokens per second, acceptance."""
    import numpy as np

    rounds = [cell for key, cell in sorted(cells.items()) if key.startswith(f"{arm}@{load}#") and "error" not in cell]
    if not rounds:
        return None
    found: dict[str, Any] = {"requests": sum(len(r["answers"]) for r in rounds)}
    for place, name in enumerate(("ttft", "tpot", "e2e")):
        values = [a[place] * 1000 for r in rounds for a in r["answers"].values() if a[place] is not None]
        found[name] = {f"p{p}": float(np.percentile(values, p)) for p in (50, 95, 99)} if values else None
        each = [np.median([a[place] * 1000 for a in r["answers"].values() if a[place] is not None]) for r in rounds]
        if values:
            found[name]["rounds"] = [float(value) for value in each]
    tokens = sum(a[3] or 0 for r in rounds for a in r["answers"].values())
    found["tokens_per_s"] = tokens / sum(r["seconds"] for r in rounds)
    found["failures"] = sum(r["failures"] for r in rounds)
    told = [r["speculation"] for r in rounds if r["speculation"]]
    if told:
        drafts, accepted = (sum(t[key] for t in told) for key in ("drafts", "accepted_tokens"))
        drafted = sum(t["draft_tokens"] for t in told)
        found["acceptance_length"] = 1 + accepted / drafts if drafts else None
        found["acceptance_rate"] = accepted / drafted if drafted else None
    return found


def latencies(cells: Mapping[str, Any], arm: str, load: int) -> dict[str, float]:
    """Each request's end-to-end time in seconds, the mean of the rounds."""
    times: dict[str, list[float]] = {}
    for key, cell in cells.items():
        if key.startswith(f"{arm}@{load}#") and "error" not in cell:
            for name, answer in cell["answers"].items():
                times.setdefault(name, []).append(answer[2])
    return {name: sum(values) / len(values) for name, values in times.items()}


def gains(cells: Mapping[str, Any], fmt: str, load: int, resamples: int = 2000) -> dict[str, Any] | None:
    """How many times faster the median request is than in bf16 without speculation, and whether the gains multiply:
    {"quantization" | "speculation" | "both" | "ratio": [value, low, high]}, 95 % intervals by a bootstrap over requests
    that takes the same requests in every arm. `ratio` is both / (quantization x speculation)."""
    import numpy as np

    names = ("bf16", fmt, "bf16+draft", f"{fmt}+draft")
    sides = [latencies(cells, name, load) for name in names]
    common = sorted(set.intersection(*(set(side) for side in sides)))
    if not common:
        return None
    table = np.array([[side[name] for name in common] for side in sides])
    rng = np.random.default_rng(0)
    picks = [np.arange(len(common)), *rng.integers(0, len(common), (resamples, len(common)))]
    rows = []
    for pick in picks:
        base, quantized, speculative, both = np.median(table[:, pick], axis=1)
        one, two, three = base / quantized, base / speculative, base / both
        rows.append([one, two, three, three / (one * two)])
    values = np.array(rows)
    low, high = np.percentile(values[1:], [2.5, 97.5], axis=0)
    keys = ("quantization", "speculation", "both", "ratio")
    return {key: [float(values[0, at]), float(low[at]), float(high[at])] for at, key in enumerate(keys)}


def agreement(cells: Mapping[str, Any], one: str, other: str, load: int) -> tuple[int, int] | None:
    """(identical, compared) answers of two arms in their first round at a load."""
    sides = [cells.get(f"{arm}@{load}#0", {}).get("said") for arm in (one, other)]
    if not all(sides):
        return None
    left, right = sides
    both = set(left) & set(right)
    return sum(left[name] == right[name] for name in both), len(both)
