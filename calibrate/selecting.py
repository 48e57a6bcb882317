"""The choice that the recipe asks for: by chance, by strata, or by coverage; for so many conversations or tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

from calibrate.candidates import Candidates
from calibrate.choose import choose, shares
from calibrate.features import Profile
from calibrate.greedy import cover, traffic_weights
from calibrate.pool import Entry, Pool

PROBE = 32
"""Conversations whose length says how many a number of tokens needs, at first."""


def select(
    candidates: Candidates, weights: Sequence[float], *, seed: int, traffic: Profile | None
) -> tuple[Pool, list[Entry]]:
    """(the pool without what was too long, the entries chosen from it). `traffic` is what the recipe's `match` names.

    Same pool, spec, seed and traffic: same choice.
    """
    spec = candidates.spec
    # Coverage looks at all; the others only at what they chose, and choose again when something of it does not fit.
    looked_at = candidates.pool.all() if spec.selection == "coverage" else None
    while True:
        chosen = looked_at or _choose(candidates, weights, seed, traffic)
        left_out = candidates.too_long(chosen)
        if not left_out:
            break
        candidates.pool.counts.too_long += len(left_out)
        candidates.pool = candidates.pool.without(left_out)
        looked_at = looked_at and candidates.pool.all()
    if spec.selection == "coverage":
        chosen = _cover(candidates, weights, traffic)
    return candidates.pool, chosen


def _choose(candidates: Candidates, weights: Sequence[float], seed: int, traffic: Profile | None) -> list[Entry]:
    spec, pool = candidates.spec, candidates.pool
    stratified = spec.selection == "stratified"
    matched = traffic.strata if traffic is not None and stratified else None

    def take(count: int) -> list[Entry]:
        return choose(
            pool,
            weights,
            count,
            seed=seed,
            shuffle=spec.shuffle,
            at_least=spec.coverage.min_per_kind if stratified else None,
            by_length=matched is not None or spec.strata == "kind_length",
            traffic=matched,
        )

    target = spec.target_tokens
    if target is None:
        return take(spec.num_calibration_samples)
    probe = take(PROBE)
    count = math.ceil(target * len(probe) / max(1, candidates.length(probe)))
    while True:
        chosen = take(count)
        tokens = candidates.length(chosen)
        if tokens >= target or len(chosen) == len(pool):
            break
        count = max(count + 1, math.ceil(count * target / max(1, tokens)))
    costs = candidates.costs(chosen)
    while chosen and tokens - costs[-1] >= target:
        tokens -= costs.pop()
        chosen.pop()
    return chosen


def _cover(candidates: Candidates, weights: Sequence[float], traffic: Profile | None) -> list[Entry]:
    spec, entries = candidates.spec, candidates.pool.all()
    sizes = [len(of) for of in candidates.pool.entries]
    asked = traffic or candidates.profile(entries)
    budgets: list[float]
    if spec.target_tokens is None:
        budgets = list(shares(weights, sizes, spec.num_calibration_samples))
        costs = [1] * len(entries)
    else:
        # A source without entries has nothing to spend its share on.
        whole = sum(w for w, size in zip(weights, sizes, strict=True) if size)
        budgets = [spec.target_tokens * w / whole if size else 0.0 for w, size in zip(weights, sizes, strict=True)]
        costs = candidates.costs(entries)
    found = cover(
        (features for _, features in candidates.features(entries)),
        traffic_weights(asked),
        costs=costs,
        budgets=budgets,
        groups=[entry.source for entry in entries],
        floors={("kinds", kind): spec.coverage.min_per_kind for of in candidates.pool.kinds for kind in of},
    )
    return [entries[place] for place in found]
