"""Shares for the report's plots: lengths and kinds on both sides, and how channels' maxima compare."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from calibrate.activations.traffic import Sample

RATIO_EDGES = (0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.5, 2.0, 3.0)
"""A bin goes from its edge up to the next one; the last has no end."""


def overlap(calibration: Sequence[Sample], traffic: Sequence[Sample]) -> dict[str, Any]:
    """Conversations by length in tokens (bins from one power of two to the next) and by kind.

    {"lengths": {"edges": [int], "calibration": [share], "traffic": [share], "overlap"}, "kinds": {"names": [str], ...}}
    with "overlap" the sum of the smaller shares: 1 for equal distributions, 0 for ones that have nothing in common.
    """
    sides = {"calibration": calibration, "traffic": traffic}
    bins = {name: Counter(len(s.tokens).bit_length() - 1 for s in samples) for name, samples in sides.items()}
    kinds = {name: Counter(s.kind for s in samples) for name, samples in sides.items()}
    used = set().union(*bins.values())
    powers = range(min(used), max(used) + 1) if used else range(0)
    names = sorted(set().union(*kinds.values()))
    return {
        "lengths": {"edges": [1 << p for p in powers], **_both(bins, powers)},
        "kinds": {"names": names, **_both(kinds, names)},
    }


def _both(counts: dict[str, Counter[Any]], keys: Iterable[Any]) -> dict[str, Any]:
    keys = list(keys)
    shares = {
        name: [round(found[key] / found.total(), 6) if found else 0.0 for key in keys] for name, found in counts.items()
    }
    return {**shares, "overlap": round(sum(map(min, *shares.values())), 4)}


def count_ratios(ratios: Iterable[float]) -> list[int]:
    """How many of `ratios` fall into each bin of `RATIO_EDGES`; infinity (nothing was calibrated) into the last."""
    counts = [0] * len(RATIO_EDGES)
    for ratio in ratios:
        counts[bisect_right(RATIO_EDGES, ratio) - 1] += 1
    return counts
