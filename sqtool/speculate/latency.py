"""Latency percentiles, throughput and goodput of one arm at one load, with intervals."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from scipy.stats import binom, binomtest

from sqtool.speculate.frame import TIMES, Frame
from sqtool.speculate.resample import LEVEL, MIN_UNITS, Floats, Interval, Ints, Resamples, interval

PERCENTILES = (50, 90, 95, 99)
_TAIL = 5


@cache
def requests_needed(probability: float, level: float = LEVEL) -> int:
    """Fewest independent values for which an interval of the quantile exists: 6, 36, 72 and 368 for p50 to p99."""
    size = 1
    while _ranks(probability, size, level) is None:
        size += 1
    return size


def percentile_interval(values: Floats, unit: Ints, probability: float, level: float = LEVEL) -> tuple[Interval, float]:
    """(interval of the quantile, effective number of values).

    Two order statistics, chosen by the binomial distribution of how many values lie below the quantile: valid whatever
    the distribution, and never narrower than `level` (David and Nagaraja 2003, Order Statistics, section 7.1). Where a
    request brings several values (rounds, gaps), the ranks are those of the effective sample size n p(1-p) / v, with v
    the variance of the share below the quantile between requests (Korn and Graubard 1998, Survey Methodology
    24:193-201). None when the sample has no such order statistics: there are too few values that far out.
    """
    ordered = np.sort(values)
    size = len(ordered)
    effective = effective_size(values, unit, probability)
    ranks = _ranks(probability, int(effective), level)
    if ranks is None:
        return None, effective
    low, high = (min(max(int(np.ceil(rank / int(effective) * size)), 1), size) - 1 for rank in ranks)
    return [float(ordered[low]), float(ordered[high])], effective


def effective_size(values: Floats, unit: Ints, probability: float) -> float:
    """How many independent values would give the same precision of the quantile, at most len(values).

    The number of requests where fewer than `_TAIL` of them reach past the quantile: the variance between requests
    cannot be seen then, and each request counts once.
    """
    names, codes = np.unique(unit, return_inverse=True)
    size, groups = len(values), len(names)
    if groups in (size, 0):
        return float(groups)
    above = values > np.quantile(values, probability)
    if len(np.unique(codes[above])) < _TAIL:
        return float(groups)
    pulls = np.bincount(codes, above - above.mean())
    variance = groups / (groups - 1) * float(pulls @ pulls) / size**2
    return min(float(size), probability * (1 - probability) / variance) if variance > 0 else float(groups)


@cache
def _ranks(probability: float, size: int, level: float) -> tuple[int, int] | None:
    """1-based ranks of the two order statistics among `size`; None where they fall outside."""
    low = int(binom.ppf((1 - level) / 2, size, probability))
    high = int(binom.ppf((1 + level) / 2, size, probability)) + 1
    return (low, high) if low >= 1 and high <= size else None


def latency(frame: Frame) -> dict[str, Any]:
    """TTFT, TPOT, ITL and end-to-end in milliseconds over answered requests; None for one without values."""
    result: dict[str, Any] = {}
    for name in TIMES:
        there = ~np.isnan(frame.times[name])
        result[f"{name}_ms"] = percentiles(frame.times[name][there] * 1000, frame.unit[there])
    good = [at for at, ok in enumerate(frame.ok) if ok]
    gaps = np.array([gap for at in good for gap in frame.rows[at].itl_s], dtype=np.float64) * 1000
    counts = [len(frame.rows[at].itl_s) for at in good]
    result["itl_ms"] = percentiles(gaps, np.repeat(frame.unit[good], counts))
    return {name: result[name] for name in ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms")}


def lateness(frame: Frame) -> dict[str, float] | None:
    """How late an open loop sent its requests, milliseconds: p50, p95, max; None in a closed loop.

    Latency counts from the sending. Requests that were sent late, by a client that could not keep up, waited before.
    """
    late = np.array([row.late_s for row in frame.rows if row.late_s is not None]) * 1000
    if not len(late):
        return None
    return {"p50": float(np.median(late)), "p95": float(np.percentile(late, 95)), "max": float(late.max())}


def percentiles(values: Floats, unit: Ints) -> dict[str, Any] | None:
    """p50, p90, p95, p99 (linear interpolation), mean and n of `values` [n], and `ci` of each percentile or None."""
    if not len(values):
        return None
    points = np.percentile(values, PERCENTILES)
    return {
        **{f"p{p}": float(point) for p, point in zip(PERCENTILES, points, strict=True)},
        "mean": float(values.mean()),
        "n": len(values),
        "ci": {f"p{p}": percentile_interval(values, unit, p / 100)[0] for p in PERCENTILES},
    }


def throughput(frame: Frame, resamples: Resamples) -> dict[str, Any]:
    """Wall seconds, tokens and answers, and both per second with intervals (ratio of sums, shares of `apportion`).

    No interval in an open loop: there the arrivals set the time, and resampling requests says nothing about it.
    """
    wall = frame.wall
    tokens, answers = float(frame.tokens.sum()), int(frame.ok.sum())
    ends = {
        "output_tokens_per_s": interval(resamples.ratio(frame.unit, frame.tokens, frame.seconds), frame.units),
        "requests_per_s": interval(
            resamples.ratio(frame.unit, frame.ok.astype(np.float64), frame.seconds), frame.units
        ),
    }
    return {
        "seconds": wall,
        "output_tokens": int(tokens),
        "output_tokens_per_s": tokens / wall if answers else None,
        "requests_per_s": answers / wall if answers else None,
        "ci": ends if answers and not frame.open_loop else {"output_tokens_per_s": None, "requests_per_s": None},
    }


def goodput(frame: Frame, resamples: Resamples) -> dict[str, Any]:
    """Requests inside the SLO: per second of wall time, and as a share of those sent.

    Where all are inside, an open loop's rate is the arrivals', and has no interval."""
    inside = frame.within.astype(np.float64)
    count = int(inside.sum())
    varies = not frame.open_loop or 0 < count < len(inside)
    rate = interval(resamples.ratio(frame.unit, inside, frame.seconds), frame.units) if varies else None
    return {
        "requests_per_s": count / frame.wall,
        "share": count / len(inside),
        "ci": {
            "requests_per_s": rate,
            "share": share_interval(frame.unit, inside, resamples),
        },
    }


def share_interval(unit: Ints, flags: Floats, resamples: Resamples) -> Interval:
    """Interval of mean(flags) over requests.

    Bootstrap; where every flag is equal no resample differs, and the exact binomial interval (Clopper and Pearson 1934)
    of the number of distinct requests stands in.
    """
    units = len(np.unique(unit))
    if not units:
        return None
    if units < MIN_UNITS or flags.min() == flags.max():
        # Flags of a request count as one when they agree, and as a success only if all are.
        whole = np.bincount(unit, flags) / np.maximum(np.bincount(unit), 1)
        hits = int(np.floor(whole[np.unique(unit)].sum() + 1e-9))
        ends = binomtest(hits, units).proportion_ci(LEVEL, "exact")
        return [float(ends.low), float(ends.high)]
    return interval(resamples.ratio(unit, flags, np.ones(len(flags))), units)
