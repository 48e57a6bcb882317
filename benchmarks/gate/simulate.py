"""Error rates of the gate by simulation, beside the two rules in common use. Prints Markdown tables.

    python benchmarks/gate/simulate.py [--draws 20000] [--quick]

1. False accepts: share of PASS at a true drop equal to the margin (target: at most alpha = 5 %).
2. Exit 1 under no change, over whole gates of 1, 4, 8 and 20 metrics (target: at most 5 %).
3. Power: PASS under no change, and REGRESSED at drops of one, two and four margins, for n from 100 to 10,000.
4. Clustered items: 1. and 2. again with items that come in groups and change together.

Beside the gate stand `threshold`: refuse when the drop is 1 point or more, accept otherwise; and `unpaired z`: refuse
when lm-eval's two-sample statistic, (mean difference) / sqrt(stderr_a^2 + stderr_b^2), is below -1.645, else accept.
Item pairs are drawn as (gain, loss, neither) from a multinomial; the baseline is right on 80 % of the items.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm

from sqtool.gate.compare import compare, decide
from sqtool.gate.exact import critical_score, probability, score
from sqtool.gate.multiplicity import holm
from sqtool.gate.power import passes
from sqtool.gate.spec import MetricRule

ALPHA = 0.05
BASELINE = 0.8
OTHERS = ("1-point threshold", "unpaired z")
Counts = NDArray[np.float64]


def draw(rng: np.random.Generator, draws: int, n: int, discordance: float, drop: float) -> tuple[Counts, Counts]:
    """(gains, losses), each [draws]; losses happen at discordance/2 + drop."""
    loss, gain = discordance / 2 + drop, discordance / 2
    table = rng.multinomial(n, [gain, loss, 1 - gain - loss], size=draws).astype(np.float64)
    return table[:, 0], table[:, 1]


def gate(gains: Counts, losses: Counts, n: int, margin: float, family: int = 1) -> tuple[float, float]:
    """(share PASS, share REGRESSED) of a one-metric gate, vectorised over the draws."""
    p_value = np.where(gains + losses > 0, binom.cdf(gains, gains + losses, 0.5), 1.0)
    refused = (p_value <= ALPHA / family) & (gains - losses <= -margin * n)
    return float(passing(gains, losses, n, margin).mean()), float(refused.mean())


def passing(gains: Counts, losses: Counts, n: int, margin: float) -> NDArray[np.bool_]:
    """Whether the gate says PASS: the score bound clears the margin, and the exact check agrees."""
    level = critical_score(n, margin, ALPHA)
    result: NDArray[np.bool_] = passes(gains, losses, n, margin, ALPHA) & (score(gains, losses, n, margin) >= level)
    return result


def threshold(gains: Counts, losses: Counts, n: int, limit: float = 0.01) -> float:
    """Share refused by a point threshold."""
    return float(((losses - gains) / n >= limit).mean())


def unpaired(gains: Counts, losses: Counts, n: int) -> float:
    """Share refused by lm-eval's unpaired z test, one-sided at 5 %."""
    candidate = BASELINE + (gains - losses) / n
    error = np.sqrt((BASELINE * (1 - BASELINE) + candidate * (1 - candidate)) / (n - 1))
    return float(((gains - losses) / n / error < norm.ppf(ALPHA)).mean())


def table(title: str, head: list[str], rows: list[list[str]]) -> None:
    print(f"\n### {title}\n\n| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def percent(share: float) -> str:
    return f"{100 * share:.2f}"


def false_accepts(rng: np.random.Generator, draws: int) -> None:
    rows = []
    sizes = (149, 299, 500, 1000, 3000, 10_000)
    for margin in (0.01, 0.02):
        for discordance in (0.0, 0.01, 0.03, 0.10):
            row = [f"{100 * margin:g}", f"{100 * discordance:g}"]
            for n in sizes:
                gains, losses = draw(rng, draws, n, discordance, margin)
                exact = probability(
                    n,
                    discordance / 2,
                    discordance / 2 + margin,
                    lambda g, k, n=n, margin=margin: passing(g, k, n, margin),  # type: ignore[misc]
                )
                row.append(f"{percent(gate(gains, losses, n, margin)[0])} ({percent(exact)})")
            gains, losses = draw(rng, draws, 1000, discordance, margin)
            accepted = [1 - threshold(gains, losses, 1000), 1 - unpaired(gains, losses, 1000)]
            rows.append(row + [percent(share) for share in accepted])
    table(
        "PASS at a true drop equal to the margin, % (exact value in brackets)",
        ["margin, points", "discordance, %", *(f"n = {n}" for n in sizes), *(f"{rule}, n = 1000" for rule in OTHERS)],
        rows,
    )


def false_refusals(rng: np.random.Generator, draws: int) -> None:
    rows = []
    for metrics in (1, 4, 8, 20):
        for n in (100, 500, 2000):
            for discordance in (0.01, 0.05, 0.20):
                by_threshold, by_z = np.zeros(draws, dtype=bool), np.zeros(draws, dtype=bool)
                p_values, estimates = [], []
                for _ in range(metrics):
                    gains, losses = draw(rng, draws, n, discordance, 0.0)
                    p_values.append(np.where(gains + losses > 0, binom.cdf(gains, gains + losses, 0.5), 1.0))
                    estimates.append((gains - losses) / n)
                    by_threshold |= estimates[-1] <= -0.01
                    error = math.sqrt(2 * BASELINE * (1 - BASELINE) / (n - 1))
                    by_z |= estimates[-1] / error < norm.ppf(ALPHA)
                refused = refuses(np.array(p_values), np.array(estimates), 0.02, ALPHA)
                cells = (refused.mean(), by_threshold.mean(), by_z.mean())
                rows.append([str(metrics), str(n), f"{100 * discordance:g}", *(percent(float(c)) for c in cells)])
    table(
        "Exit 1 when nothing changed, over the whole gate, % (margin 2 points)",
        ["metrics", "items each", "discordance, %", "gate", *OTHERS],
        rows,
    )


def refuses(p_values: Counts, estimates: Counts, margin: float, alpha: float) -> NDArray[np.bool_]:
    """Whether Holm's procedure rejects a metric whose estimate is at or past the margin; from [metrics, draws]."""
    order, metrics = np.argsort(p_values, axis=0), len(p_values)
    ranked, drops = np.take_along_axis(p_values, order, 0), np.take_along_axis(estimates, order, 0)
    # The smallest p-value is the first that Holm looks at; a later one is only reached past it.
    steps = metrics - np.arange(metrics)[:, None]
    running = np.logical_and.accumulate(ranked * steps <= alpha, axis=0)
    result: NDArray[np.bool_] = np.any(running & (drops <= -margin), axis=0)
    return result


def power(rng: np.random.Generator, draws: int) -> None:
    margin = 0.02
    rows = []
    for n in (100, 200, 300, 500, 1000, 2000, 5000, 10_000):
        for discordance in (0.01, 0.03, 0.10):
            gains, losses = draw(rng, draws, n, discordance, 0.0)
            cells = [gate(gains, losses, n, margin)[0]]
            for drop in (margin, 2 * margin, 4 * margin):
                gains, losses = draw(rng, draws, n, discordance, drop)
                cells.append(gate(gains, losses, n, margin)[1])
                cells.append(unpaired(gains, losses, n))
            rows.append([str(n), f"{100 * discordance:g}", *(percent(c) for c in cells)])
    table(
        "Power, %, margin 2 points",
        [
            *("n", "discordance, %", "PASS, no change"),
            *(f"{who}, drop {d}" for d in ("2", "4", "8") for who in ("REGRESSED", "unpaired z refuses")),
        ],
        rows,
    )


def clustered(rng: np.random.Generator, draws: int) -> None:
    """Through the gate's own functions, one draw at a time, as the cluster forms are not vectorised."""
    rule = MetricRule(max_drop=0.02)
    cases: dict[str, Callable[[int], NDArray[np.int64]]] = {
        "5 items each": lambda clusters: np.full(clusters, 5),
        "1 to 20 items": lambda clusters: rng.integers(1, 21, clusters),
    }
    rows = []
    for name, sizes_of in cases.items():
        for clusters in (60, 200, 600):
            for correlation in (0.3, 1.0):
                accepted = refused = naive = 0
                for _ in range(draws):
                    sizes = sizes_of(clusters)
                    codes = np.repeat(np.arange(clusters), sizes)
                    for drop in (0.02, 0.0):
                        baseline, candidate = cluster_draw(rng, codes, 0.04, drop, correlation)
                        compared = compare(baseline, candidate, codes, rule, ALPHA)
                        outcome = decide(compared, holm([compared.harm.p_value])[0], ALPHA)[0]
                        if drop:
                            accepted += outcome == "PASS"
                            gains, losses = float(compared.improved), float(compared.worsened)
                            alone = passes(np.array([gains]), np.array([losses]), len(codes), 0.02, ALPHA)
                            naive += bool(alone[0])
                        else:
                            refused += outcome == "REGRESSED"
                shares = (accepted / draws, naive / draws, refused / draws)
                rows.append([name, str(clusters), f"{correlation:g}", *(percent(s) for s in shares)])
    table(
        "Clustered items, margin 2 points, discordance 4 %",
        [
            *("cluster sizes", "clusters", "share changing together"),
            *("PASS at the margin, %", "the same ignoring clusters, %", "REGRESSED under no change, %"),
        ],
        rows,
    )


def cluster_draw(
    rng: np.random.Generator, codes: NDArray[np.int64], discordance: float, drop: float, together: float
) -> tuple[Counts, Counts]:
    """Each item follows its cluster's draw with probability `together`, its own otherwise."""
    shared = rng.random(int(codes.max()) + 1)[codes]
    u = np.where(rng.random(len(codes)) < together, shared, rng.random(len(codes)))
    gain, loss = discordance / 2, discordance / 2 + drop
    baseline = np.where(u < gain, 0.0, 1.0)
    candidate = np.where((u >= gain) & (u < gain + loss), 0.0, 1.0)
    return baseline, candidate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=20_000)
    parser.add_argument("--cluster-draws", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the draws")
    args = parser.parse_args()
    scale = 100 if args.quick else 1
    rng = np.random.default_rng(args.seed)
    start = time.perf_counter()
    draws = max(args.draws // scale, 10)
    error = 100 * math.sqrt(0.05 * 0.95 / draws)
    print(f"{draws} draws a cell (standard error of a 5 % rate: {error:.2f} points), seed {args.seed}")
    false_accepts(rng, draws)
    false_refusals(rng, draws)
    power(rng, draws)
    clustered(rng, max(args.cluster_draws // scale, 10))
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
