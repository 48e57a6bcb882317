"""How often the intervals of speculate.json hold the truth. Prints a Markdown table.

    python benchmarks/speculate/coverage.py [--draws 1000] [--requests 40,130,400]

A population of requests of three kinds is known (lengths, paces, acceptance that differs from request to request); from
it four arms are drawn again and again, and each interval is computed by the code that writes speculate.json. Target:
95 % inside, 2.5 % on either side. The last column is the mean width relative to the true value.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sqtool.speculate.acceptance import acceptance, change
from sqtool.speculate.cost import cost
from sqtool.speculate.frame import Frame, build
from sqtool.speculate.interaction import figures, gain, ratio_of_ratios
from sqtool.speculate.latency import latency
from sqtool.speculate.missing import Missing
from sqtool.speculate.reading import Arm, Block, Sent
from sqtool.speculate.resample import Floats, Resamples
from sqtool.speculate.spec import SloSpec

KINDS = (("tool", 0.5, 20), ("lookup", 0.3, 12), ("prose", 0.2, 60))
"""Kind, its share, its mean number of tokens."""
K, MOST_DRAFTS, WORKERS = 4, 120, 8
SLO = SloSpec(e2e_ms=900)
REPLICATES = 1000


@dataclass(frozen=True)
class Config:
    """One arm: time of a step relative to the baseline's, and the drafter's mean acceptance, None without one."""

    target: str
    step: float
    accept: float | None = None


ARMS = {
    "baseline": Config("baseline", 1.0),
    "quantized": Config("quantized", 0.75),
    "speculative": Config("baseline", 1.3, 0.75),
    "both": Config("quantized", 1.1, 0.65),
}


@dataclass(frozen=True)
class Drawn:
    """What one arm did, arrays [n]; counts [n, 3 + K]; gaps [n, MOST_DRAFTS] with NaN after the last."""

    tokens: Floats
    ttft: Floats
    e2e: Floats
    counts: Floats
    gaps: Floats
    accepted: Floats


def requests(rng: np.random.Generator, size: int) -> tuple[list[str], Floats, Floats, Floats]:
    """(kinds, tokens, pace, ease of drafting) of `size` requests, each kind with its share."""
    kinds = [name for name, share, _ in KINDS for _ in range(round(share * size))]
    means = np.array([mean for _, share, mean in KINDS for _ in range(round(share * size))])
    tokens = np.clip(2 + rng.poisson(means * rng.gamma(4, 0.25, len(means))), 2, MOST_DRAFTS)
    return kinds, tokens.astype(float), rng.lognormal(np.log(0.012), 0.25, len(means)), rng.normal(0, 1, len(means))


def answer(rng: np.random.Generator, config: Config, tokens: Floats, pace: Floats, ease: Floats) -> Drawn:
    """One arm's answers to the requests: the same lengths and paces, its own drafts and noise."""
    size = len(tokens)
    step = pace * config.step * rng.lognormal(0, 0.1, size)
    counts = np.zeros((size, 3 + K))
    number = tokens - 1
    if config.accept is not None:
        logit = np.log(config.accept / (1 - config.accept)) + 0.6 * ease
        chance = 1 / (1 + np.exp(-logit))
        kept = np.cumprod(rng.random((size, MOST_DRAFTS, K)) < chance[:, None, None], axis=2)
        made = np.cumsum(1 + kept.sum(axis=2), axis=1)
        number = 1.0 + (made < (tokens - 1)[:, None]).sum(axis=1)
        used = np.arange(MOST_DRAFTS)[None, :] < number[:, None]
        positions = (kept * used[:, :, None]).sum(axis=1)
        counts = np.column_stack([number, K * number, positions.sum(axis=1), positions])
    gaps = step[:, None] * rng.lognormal(0, 0.2, (size, MOST_DRAFTS))
    gaps *= 1 + 4 * (rng.random(gaps.shape) < 0.03)
    gaps[np.arange(MOST_DRAFTS)[None, :] >= number[:, None]] = np.nan
    ttft = 3 * step * rng.lognormal(0, 0.3, size)
    return Drawn(tokens, ttft, ttft + np.nansum(gaps, axis=1), counts, gaps, (rng.random(size) < 0.85) * 1.0)


def frame_of(name: str, kinds: list[str], drawn: Drawn, place: dict[str, int]) -> Frame:
    """The arm as the stage's files would give it: one closed-loop block."""
    config, rows = ARMS[name], []
    for at, kind in enumerate(kinds):
        drafts, drafted, accepted, *positions = (int(v) for v in drawn.counts[at])
        edges = [drafts, *positions, 0]
        report = {
            "num_spec_steps": drafts,
            "num_draft_tokens": drafted,
            "num_accepted_draft_tokens": accepted,
            "acceptance_histogram": [a - b for a, b in pairwise(edges)],
        }
        ttft, e2e, tokens = float(drawn.ttft[at]), float(drawn.e2e[at]), int(drawn.tokens[at])
        rows.append(
            Sent(
                f"r{at:04d}", kind, "c8", 0, 0, ttft_s=ttft, tpot_s=(e2e - ttft) / (tokens - 1), e2e_s=e2e,
                itl_s=drawn.gaps[at][~np.isnan(drawn.gaps[at])].tolist(), completion_tokens=tokens,
                speculation=report if config.accept is not None else None, accepted=bool(drawn.accepted[at]),
            )
        )  # fmt: skip
    block = Block("c8", 0, 0, None, float(drawn.e2e.sum() / WORKERS), None, {})
    speculative = {"method": "draft_model"} if config.accept is not None else None
    arm = Arm(name, {"target": config.target, "speculative_config": speculative}, rows, [block])
    frame = build(arm, "c8", place, frozenset(), SLO)
    assert frame is not None
    return frame


def truth() -> dict[str, float]:
    """The population's values, from 300,000 requests."""
    rng = np.random.default_rng(1)
    parts: dict[str, list[Drawn]] = defaultdict(list)
    for _ in range(30):
        _, *shared = requests(rng, 10_000)
        for name, config in ARMS.items():
            parts[name].append(answer(rng, config, *shared))
    joined = {
        name: {field: np.concatenate([getattr(d, field) for d in drawn]) for field in Drawn.__annotations__}
        for name, drawn in parts.items()
    }
    quick = {name: 1 / np.median(j["e2e"]) for name, j in joined.items()}
    rates = {name: j["tokens"].sum() / (j["e2e"].sum() / WORKERS) for name, j in joined.items()}
    both, full = joined["both"], joined["speculative"]
    rate = {n: j["counts"][:, 2].sum() / j["counts"][:, 1].sum() for n, j in (("both", both), ("full", full))}
    good = both["accepted"] * (both["e2e"] * 1000 <= SLO.e2e_ms)
    gaps = both["gaps"][~np.isnan(both["gaps"])]
    return {
        "ratio of ratios, e2e p50": quick["both"] * quick["baseline"] / (quick["quantized"] * quick["speculative"]),
        "ratio of ratios, tokens/s": rates["both"] * rates["baseline"] / (rates["quantized"] * rates["speculative"]),
        "gain of both, e2e p50": quick["both"] / quick["baseline"],
        "gain of both, e2e p95": np.quantile(joined["baseline"]["e2e"], 0.95) / np.quantile(both["e2e"], 0.95),
        "e2e p50, ms": 1000 * np.median(both["e2e"]),
        "e2e p95, ms": 1000 * np.quantile(both["e2e"], 0.95),
        "e2e p99, ms": 1000 * np.quantile(both["e2e"], 0.99),
        "ITL p95, ms": 1000 * np.quantile(gaps, 0.95),
        "ITL p99, ms": 1000 * np.quantile(gaps, 0.99),
        "acceptance rate": rate["both"],
        "acceptance at position 4": both["counts"][:, 6].sum() / both["counts"][:, 0].sum(),
        "mean acceptance length": 1 + both["counts"][:, 2].sum() / both["counts"][:, 0].sum(),
        "acceptance change": rate["both"] - rate["full"],
        "cost per accepted answer, s": both["e2e"].mean() / WORKERS / good.mean(),
    }


def intervals(rng: np.random.Generator, size: int, seed: int) -> dict[str, list[float] | None]:
    """One sample of `size` requests, and every interval from it."""
    kinds, *shared = requests(rng, size)
    named = {f"r{at:04d}": kind for at, kind in enumerate(kinds)}
    resamples = Resamples(named, seed=seed, replicates=REPLICATES)
    frames = {
        name: frame_of(name, kinds, answer(rng, config, *shared), resamples.place) for name, config in ARMS.items()
    }
    found = figures(frames, resamples, slo=True)
    missing = Missing()
    accepted = acceptance(frames["both"], resamples, missing)["ci"]
    times = latency(frames["both"])
    moved = change(frames["speculative"], frames["both"], resamples, [])["overall"]
    e2e = found["e2e_p50"]
    return {
        "ratio of ratios, e2e p50": ratio_of_ratios(e2e)["ci"],
        "ratio of ratios, tokens/s": ratio_of_ratios(found["output_tokens_per_s"])["ci"],
        "gain of both, e2e p50": gain(e2e["both"], e2e["baseline"])["ci"],
        "gain of both, e2e p95": gain(found["e2e_p95"]["both"], found["e2e_p95"]["baseline"])["ci"],
        "e2e p50, ms": times["e2e_ms"]["ci"]["p50"],
        "e2e p95, ms": times["e2e_ms"]["ci"]["p95"],
        "e2e p99, ms": times["e2e_ms"]["ci"]["p99"],
        "ITL p95, ms": times["itl_ms"]["ci"]["p95"],
        "ITL p99, ms": times["itl_ms"]["ci"]["p99"],
        "acceptance rate": accepted["acceptance_rate"],
        "acceptance at position 4": accepted["per_position_rate"][3],
        "mean acceptance length": accepted["mean_acceptance_length"],
        "acceptance change": moved["acceptance_rate"]["ci"],
        "cost per accepted answer, s": cost(frames["both"], resamples, None, missing)["ci"],
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--requests", default="40,130,400")
    args = parser.parse_args()
    start, real = time.time(), truth()
    print("| measure | requests | inside | truth below | truth above | none | mean width |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for size in (int(text) for text in args.requests.split(",")):
        rng = np.random.default_rng([2, size])
        seen: dict[str, list[list[float] | None]] = defaultdict(list)
        for draw in range(args.draws):
            for name, ends in intervals(rng, size, draw).items():
                seen[name].append(ends)
        for name, all_ends in seen.items():
            there = np.array([ends for ends in all_ends if ends is not None])
            none = f"{1 - len(there) / len(all_ends):.0%}"
            if not len(there):
                print(f"| {name} | {size} | - | - | - | {none} | - |", flush=True)
                continue
            below, above = (there[:, 0] > real[name]).mean(), (there[:, 1] < real[name]).mean()
            width = np.mean(there[:, 1] - there[:, 0]) / abs(real[name])
            cells = (f"{1 - below - above:.1%}", f"{below:.1%}", f"{above:.1%}", none, f"{width:.1%}")
            print(f"| {name} | {size} | {' | '.join(cells)} |", flush=True)
    print(f"\n{args.draws} samples of each size, {REPLICATES} resamples each, {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
