"""Writes a speculate stage's folder with known truths, so that estimates can be checked against them.

Each request has a length and a speed of its own, shared by all arms; an arm multiplies times by its own factor. Drafts
accept each position with the arm's chance, given that the positions before it were accepted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

KINDS = ("lookup", "prose", "tool")
K = 4


@dataclass(frozen=True)
class Truth:
    """One arm: `time` multiplies every time; `accept` is the chance that a draft position is accepted, None without
    speculation; `good` the chance that the scorer accepts; `noise` the relative scatter of times between arms;
    `differs` the chance that an answer is not the one that the other arms give."""

    target: str
    time: float = 1.0
    accept: float | None = None
    good: float = 1.0
    noise: float = 0.05
    differs: float = 0.0
    fails: float = 0.0
    k: int = K


FOUR: dict[str, Truth] = {
    "baseline": Truth("baseline"),
    "quantized": Truth("quantized", time=0.8),
    "speculative": Truth("baseline", time=0.6, accept=0.7),
    "both": Truth("quantized", time=0.54, accept=0.6),
    "baseline_again": Truth("baseline"),
}


@dataclass
class Settings:
    """How the folder is made."""

    arms: Mapping[str, Truth] = field(default_factory=lambda: dict(FOUR))
    loads: Sequence[str] = ("c8",)
    rounds: int = 1
    requests: int = 120
    block: int = 40
    seed: int = 0
    reports: bool = True
    counters: bool = True
    single_kind: bool = False
    scorer: bool = True
    step_s: float = 0.01
    samples: int = 0


def write_stage(folder: Path, settings: Settings | None = None) -> Path:
    """Fill `folder` as the speculate stage does; returns it."""
    s = settings or Settings()
    rng = np.random.default_rng(s.seed)
    folder.mkdir(parents=True, exist_ok=True)
    kinds = [KINDS[i % len(KINDS)] for i in range(s.requests)]
    blocks = [KINDS.index(kind) if s.single_kind else i // s.block for i, kind in enumerate(kinds)]
    scorer = "tool_calls" if s.scorer else None
    asked: list[dict[str, Any]] = [
        {"id": f"r{i:04d}", "kind": kinds[i], "block": blocks[i], "body": {}, "arrival_s": None, "scorer": scorer}
        for i in range(s.requests)
    ]
    warm = {"id": "w", "kind": "lookup", "block": -1, "body": {}, "arrival_s": None, "scorer": None}
    _lines(folder / "traffic.jsonl", [warm, *asked])
    plan = {"arms": list(s.arms), "loads": list(s.loads), "rounds": s.rounds, "seed": s.seed, "interleaved": True}
    (folder / "plan.json").write_text(json.dumps(plan))
    tokens = rng.integers(8, 60, size=s.requests)
    pace = s.step_s * rng.lognormal(0, 0.3, size=s.requests)
    for name, truth in s.arms.items():
        _arm(folder / "arms" / name, name, truth, s, asked, tokens, pace)
    return folder


def _arm(
    folder: Path, name: str, truth: Truth, s: Settings, asked: list[dict[str, Any]], tokens: Any, pace: Any
) -> None:
    rng = np.random.default_rng([s.seed, *name.encode()])
    folder.mkdir(parents=True)
    rows, blocks = [], []
    for load in s.loads:
        for turn in range(s.rounds):
            mine = [_row(i, one, truth, s, rng, tokens, pace, load, turn) for i, one in enumerate(asked)]
            rows += mine
            for number in sorted({one["block"] for one in asked}):
                inside = [row for row in mine if row["block"] == number]
                flights = sum(row["e2e_s"] or 0.0 for row in inside)
                workers = int(load[1:]) if load.startswith("c") else 1
                counted = None
                if truth.accept is not None and s.counters:
                    parts = [row["counted"] for row in inside]
                    counted = {
                        "drafts": sum(p[0] for p in parts),
                        "draft_tokens": truth.k * sum(p[0] for p in parts),
                        "accepted_tokens": sum(sum(p[1]) for p in parts),
                        "per_position": [sum(p[1][at] for p in parts) for at in range(truth.k)],
                    }
                steps = sum(row["passes"] for row in inside) / workers
                blocks.append(
                    {
                        "load": load,
                        "round": turn,
                        "block": number,
                        "kind": inside[0]["kind"] if s.single_kind else None,
                        "seconds": flights / workers,
                        "counters": {"speculation": counted, "others": {"engine_steps": steps}},
                    }
                )
    for row in rows:
        del row["counted"], row["passes"]
    _lines(folder / "requests.jsonl", rows)
    _lines(folder / "blocks.jsonl", blocks)
    if s.samples:
        drawn = [
            {"id": one["id"], "sample": n, "text": f"{'ab'[int(rng.random() < 0.5)]} c", "tool_calls": []}
            for one in asked[:30]
            for n in range(s.samples)
        ]
        _lines(folder / "sampling.jsonl", drawn)
    config = None if truth.accept is None else {"method": "draft_model", "num_speculative_tokens": truth.k}
    info = {
        "name": name,
        "target": truth.target,
        "model": f"models/{truth.target}",
        "speculative_config": config,
        "engine": {"engine": "synthetic"},
        "start_seconds": 20.0,
        "memory": {"weights_bytes": 1000, "missing": {"device_peak_bytes": "no device"}},
        "complete": True,
    }
    (folder / "arm.json").write_text(json.dumps(info))


def _row(
    i: int, one: dict[str, Any], truth: Truth, s: Settings, rng: Any, tokens: Any, pace: Any, load: str, turn: int
) -> dict[str, Any]:
    length = int(tokens[i])
    step = float(pace[i] * truth.time * rng.lognormal(0, truth.noise))
    passes, counted, report = length, (0, [0] * truth.k), None
    if truth.accept is not None:
        drafts, positions, left = 0, [0] * truth.k, length - 1
        histogram = [0] * (truth.k + 1)
        while left > 0:
            hits = int(np.argmin(np.append(rng.random(truth.k) < truth.accept, False)))
            histogram[hits] += 1
            drafts += 1
            positions = [n + (at < hits) for at, n in enumerate(positions)]
            left -= 1 + hits
        counted, passes = (drafts, positions), 1 + drafts
        if s.reports:
            report = {
                "num_spec_steps": drafts,
                "num_draft_tokens": truth.k * drafts,
                "num_accepted_draft_tokens": sum(positions),
                "acceptance_histogram": histogram,
            }
    failed = rng.random() < truth.fails
    ttft = 2 * step
    e2e = ttft + step * (length - 1)
    return {
        "id": one["id"],
        "kind": one["kind"],
        "load": load,
        "round": turn,
        "block": one["block"],
        "sent_s": 0.0,
        "error": "HTTP 500: no" if failed else "",
        "ttft_s": None if failed else ttft,
        "tpot_s": None if failed or length == 1 else step,
        "e2e_s": None if failed else e2e,
        "itl_s": [] if failed else [step] * (length - 1),
        "prompt_tokens": 20,
        "completion_tokens": None if failed else length,
        "finish_reason": "stop",
        "text": "" if failed else f"{one['id']} {'x' if rng.random() < truth.differs else 'y'}",
        "tool_calls": [],
        "speculation": None if failed else report,
        "accepted": (None if failed else bool(rng.random() < truth.good)) if s.scorer else None,
        "score": None,
        "counted": counted,
        "passes": passes,
    }


def _lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
