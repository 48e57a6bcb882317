"""Arrays of paired scores in, outcomes out: the gate's own functions and, beside them, two rules in common use."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import norm

from benchmarks.gate.damage.population import TASKS, protocol
from sqtool.gate.compare import Outcome, compare, decide
from sqtool.gate.intervals import Floats
from sqtool.gate.multiplicity import holm
from sqtool.gate.records import load, pair, paired_metric
from sqtool.gate.spec import GateSpec
from sqtool.gate.stopping import harm_alpha

POINT = 0.01
Scores = tuple[Floats, Floats]
"""Baseline's and candidate's scores of the same items."""


@dataclass(frozen=True)
class Task:
    """One task's gated metrics: name -> both sides' scores, shapes [items], NaN where an item is not scored."""

    items: int
    scores: Mapping[str, Scores]


@dataclass(frozen=True)
class Shares:
    """Shares of the resamples."""

    passed: float
    regressed: float
    inconclusive: float
    threshold: float
    """Refused by the 1-point threshold."""
    unpaired: float
    """Refused by the unpaired z test."""


def gate_spec() -> GateSpec:
    """The gate as the protocol fixes it."""
    return GateSpec(metrics=protocol()["metrics"], alpha=protocol()["alpha"])


def load_tasks(baseline: Path, candidate: Path, spec: GateSpec) -> list[Task]:
    """The population's scores; items in the order of their ids."""
    tasks = []
    for name in TASKS:
        paired = pair(load(baseline / "records" / f"{name}.jsonl"), load(candidate / "records" / f"{name}.jsonl"))
        assert paired.codes is None, "the population has no clusters"
        items = len(paired.base_at)
        scores = {}
        for metric in (m for m in spec.gated if m.rpartition(".")[0] == name):
            data = paired_metric(paired, metric.rpartition(".")[2])
            left, right = np.full(items, np.nan), np.full(items, np.nan)
            left[data.rows], right[data.rows] = data.baseline, data.candidate
            scores[metric] = left, right
        tasks.append(Task(items, scores))
    return tasks


def scored(tasks: list[Task], spec: GateSpec) -> dict[str, Scores]:
    """Each gated metric on the items that have it, in the gate's order."""
    found = {name: both for task in tasks for name, both in task.scores.items()}
    return {name: (b[~np.isnan(b)], c[~np.isnan(b)]) for name in spec.gated for b, c in (found[name],)}


def resample(tasks: list[Task], rng: np.random.Generator, n: int, keep: float = 1.0) -> list[Task]:
    """n items of each task drawn with replacement; each candidate's answer is, with probability 1 - keep, replaced
    by the baseline's to the same item (all metrics of an item together)."""
    drawn = []
    for task in tasks:
        rows = rng.integers(0, task.items, n)
        kept = rng.random(n) < keep
        drawn.append(Task(n, {m: (b[rows], np.where(kept, c[rows], b[rows])) for m, (b, c) in task.scores.items()}))
    return drawn


def by_gate(scores: Mapping[str, Scores], spec: GateSpec) -> Outcome:
    """The outcome that `sqtool.gate.judge.judge` gives for complete records with these scores, without slices."""
    compared = [compare(*scores[name], None, spec.metrics[name], spec.alpha, spec.min_items) for name in spec.gated]
    adjusted = holm([c.harm.p_value for c in compared])
    outcomes = {decide(c, p, harm_alpha(spec))[0] for c, p in zip(compared, adjusted, strict=True)}
    return "REGRESSED" if "REGRESSED" in outcomes else "PASS" if outcomes == {"PASS"} else "INCONCLUSIVE"


def by_threshold(scores: Mapping[str, Scores]) -> bool:
    """Whether any metric's mean fell by 1 point or more."""
    # Sums of zeros and ones are exact; a drop of exactly 1 point must not depend on how a division rounds.
    return any(b.sum() - c.sum() >= POINT * len(b) * (1 - 1e-12) for b, c in scores.values())


def by_unpaired_z(scores: Mapping[str, Scores], alpha: float) -> bool:
    """Whether any metric's unpaired one-sided z test rejects, as a reader of two lm-eval tables would compute it."""
    for b, c in scores.values():
        error = math.hypot(b.std(ddof=1), c.std(ddof=1)) / math.sqrt(len(b))
        drop = b.mean() - c.mean()
        if drop > float(norm.ppf(1 - alpha)) * error:
            return True
    return False


def shares(tasks: list[Task], spec: GateSpec, name: str, keep: float = 1.0) -> Shares:
    """Outcome shares over the protocol's resamples; `name` separates the random streams of the variants."""
    fixed = protocol()["resampling"]
    rng = np.random.default_rng([fixed["seed"], *name.encode()])
    outcomes: Counter[Outcome] = Counter()
    threshold = unpaired = 0
    for _ in range(fixed["resamples"]):
        drawn = scored(resample(tasks, rng, fixed["items_per_task"], keep), spec)
        outcomes[by_gate(drawn, spec)] += 1
        threshold += by_threshold(drawn)
        unpaired += by_unpaired_z(drawn, spec.alpha)
    counts = (outcomes["PASS"], outcomes["REGRESSED"], outcomes["INCONCLUSIVE"], threshold, unpaired)
    return Shares(*(count / fixed["resamples"] for count in counts))
