"""Error rates of the intervals for bounded, skewed differences. Prints a Markdown table.

    python benchmarks/gate/coverage.py [--draws 1000] [--quick]

For each shape and size: how often the lower bound lies above the true mean (a false accept at that margin; target 5 %),
how often the upper one lies below it, and the mean width, for Student t, BCa, the bounded score interval and the one
that the rule in sqtool/gate/intervals.py picks. In the clustered cases the items of a cluster change together.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, skew, t

from sqtool.gate.bootstrap import bca_bounds
from sqtool.gate.intervals import Floats, Ints, bounded_score, design_effect, paired_interval, student_t

ALPHA = 0.05
Draw = Callable[[np.random.Generator, int], Floats]


@dataclass(frozen=True)
class Shape:
    """Differences in [-1, 1]: `draw(rng, n)`."""

    name: str
    mean: float
    draw: Draw


SHAPES = (
    Shape("uniform on a fifth, symmetric", 0.0, lambda r, n: np.where(r.random(n) < 0.2, r.uniform(-1, 1, n), 0.0)),
    Shape(
        "15 % lose Beta(1, 3), 10 % gain Beta(1, 8)",
        -0.15 / 4 + 0.1 / 9,
        lambda r, n: pick(r, n, (0.15, -r.beta(1, 3, n)), (0.1, r.beta(1, 8, n))),
    ),
    Shape("all lose Beta(0.3, 3)", -0.3 / 3.3, lambda r, n: -r.beta(0.3, 3, n)),
    Shape(
        "5 % lose all, the rest noise",
        -0.05,
        lambda r, n: pick(r, n, (0.05, -np.ones(n)), (0.95, np.clip(r.normal(0, 0.02, n), -1, 1))),
    ),
    Shape(
        "1 % lose all, the rest noise",
        -0.01,
        lambda r, n: pick(r, n, (0.01, -np.ones(n)), (0.99, np.clip(r.normal(0, 0.02, n), -1, 1))),
    ),
)


def pick(rng: np.random.Generator, n: int, *parts: tuple[float, Floats]) -> Floats:
    """Each value from one of the parts, by its share; 0 for the rest."""
    u, result, edge = rng.random(n), np.zeros(n), 0.0
    for share, values in parts:
        result = np.where((u >= edge) & (u < edge + share), values, result)
        edge += share
    return result


def intervals(values: Floats, codes: Ints | None) -> list[tuple[float, float]]:
    """(lower, upper) of Student t, BCa, bounded score and the rule's choice."""
    n, mean = len(values), float(values.mean())
    error, freedom, _ = student_t(values, codes)
    reach = float(t.ppf(1 - ALPHA, freedom)) * error
    effect = 1.0 if codes is None else design_effect(values, values != 0, codes)
    quantile = float(norm.ppf(1 - ALPHA)) if codes is None else float(t.ppf(1 - ALPHA, freedom))
    sums, sizes = (values, None) if codes is None else (np.bincount(codes, values), np.bincount(codes).astype(float))
    distinct, counts = np.unique(values, return_counts=True)
    # The rule sees two columns of scores: a baseline that leaves room for each difference.
    baseline = np.where(values < 0, 1.0, 0.0)
    chosen = paired_interval(baseline, baseline + values, codes, ALPHA)
    return [
        (mean - reach, mean + reach),
        bca_bounds(sums, sizes, ALPHA),
        bounded_score(distinct, counts / n, -1.0, 1.0, n / effect, quantile),
        (chosen.lower, chosen.upper),
    ]


def row(rng: np.random.Generator, shape: Shape, terms: int, cluster: int, draws: int) -> list[str]:
    wrong_low, wrong_high, width = np.zeros(4), np.zeros(4), np.zeros(4)
    for _ in range(draws):
        values = np.repeat(shape.draw(rng, terms), cluster)
        codes = np.repeat(np.arange(terms), cluster) if cluster > 1 else None
        bounds = np.array(intervals(values, codes))
        wrong_low += bounds[:, 0] > shape.mean
        wrong_high += bounds[:, 1] < shape.mean
        width += bounds[:, 1] - bounds[:, 0]
    skewness = float(skew(shape.draw(np.random.default_rng(0), 10**6))) / math.sqrt(terms)
    rates = [f"{100 * rate / draws:.1f}" for rate in (*wrong_low, *wrong_high)]
    return [shape.name, f"{terms}" + (f" x {cluster}" if cluster > 1 else ""), f"{skewness:.2f}", *rates] + [
        f"{100 * w / draws:.2f}" for w in width
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the draws")
    args = parser.parse_args()
    draws = max(args.draws // (100 if args.quick else 1), 10)
    start = time.perf_counter()
    print(f"{draws} draws a row (standard error of a 5 % rate: {100 * math.sqrt(0.05 * 0.95 / draws):.2f} points)\n")
    methods = ("t", "BCa", "score", "rule")
    head = ["differences", "items", "skewness of the mean"]
    for what in ("lower wrong, %", "upper wrong, %", "width, points"):
        head += [f"{method}: {what}" for method in methods]
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    rng = np.random.default_rng(args.seed)
    for shape in SHAPES:
        for terms, cluster in ((50, 1), (100, 1), (300, 1), (1000, 1), (100, 5), (300, 5)):
            print(f"| {' | '.join(row(rng, shape, terms, cluster, draws))} |", flush=True)
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
