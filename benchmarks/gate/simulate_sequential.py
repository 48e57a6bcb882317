"""Error rates, power and items of an evaluation that may stop early. Prints Markdown tables.

    python benchmarks/gate/simulate_sequential.py [--draws 4000] [--quick]

1. Whole gates of 1, 4, 8 and 20 metrics, independent and correlated: exit 1 under no change, and PASS when one metric
   dropped by exactly its margin (targets: at most alpha = 5 %).
2. Looking after every item, and bounds that are ever wrong: one metric at a drop equal to the margin.
3. Power and items asked for n from 100 to 10,000, by way of stopping.
4. Items saved on clear regressions.
5. The price of a PASS: items to declare for 80 % power, and items asked, beside the fixed test, the mixture and the
   best single bet of somebody who knew the discordance.
6. Clusters whose items change together.

`early_stop: off`, `regressed` and `both` as in sqtool/gate/expected.py; a look after each 32 items, the harm side's
alpha split 0.2 to 0.8. The one-metric cells are drawn as counts, the whole gates item by item.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import binom
from simulate import ALPHA, cluster_draw, percent, refuses, table

from sqtool.gate.expected import (
    LOOK_EVERY,
    OUTCOMES,
    EarlyStop,
    Paths,
    decide_paths,
    draw_paths,
    harm_looks,
    pass_looks,
)
from sqtool.gate.intervals import Floats
from sqtool.gate.power import items_needed, passes, power_to_pass
from sqtool.gate.sequential import BETS, PRIOR, anytime_p, cluster_terms, sequence_bounds

SHARE = 0.2
MODES: tuple[EarlyStop, ...] = ("off", "regressed", "both")
PASS, REGRESSED = OUTCOMES.index("PASS"), OUTCOMES.index("REGRESSED")


def metric_paths(
    rng: np.random.Generator, draws: int, n: int, discordance: float, drops: list[float], together: float
) -> list[Paths]:
    """A path a metric; each item follows a draw that all metrics share with probability `together`."""
    common = rng.random((draws, n))
    paths = []
    for drop in drops:
        u = np.where(rng.random((draws, n)) < together, common, rng.random((draws, n)))
        gains, losses = u < discordance / 2, u > 1 - discordance / 2 - drop
        # A byte each: twenty metrics of 1,500 items are much.
        paths.append(Paths(gains.astype(np.int8), losses.astype(np.int8), np.ones(n, dtype=np.int64), LOOK_EVERY))
    return paths


def whole_gate(paths: list[Paths], margin: float, mode: EarlyStop) -> tuple[Floats, NDArray[np.bool_], Floats]:
    """(exit 1, exit 0, items asked), each [draws]: stops at a regression, or when all metrics have passed."""
    never, n = len(paths[0].ends), int(paths[0].asked[-1])
    gains = np.array([p.gains.sum(axis=1) for p in paths])
    losses = np.array([p.losses.sum(axis=1) for p in paths])
    harmed = passed = np.full(gains.shape[1], never)
    if mode != "off":
        target = math.log(len(paths) / (ALPHA * SHARE))
        harmed = np.min([harm_looks(p, margin, target) for p in paths], axis=0)
    if mode == "both":
        passed = np.max([pass_looks(p, margin, ALPHA) for p in paths], axis=0)
        accepted = passed < never
    else:
        accepted = np.all(passes(gains, losses, n, margin, ALPHA), axis=0)
    p_values = np.where(gains + losses > 0, binom.cdf(gains, gains + losses, 0.5), 1.0)
    at_end = refuses(p_values, (gains - losses) / n, margin, ALPHA if mode == "off" else ALPHA * (1 - SHARE))
    last = np.minimum(harmed, passed) >= never - 1
    refused = (at_end & last) | ((harmed <= passed) & (harmed < never))
    return refused, accepted & ~refused, paths[0].asked[np.minimum(np.minimum(harmed, passed), never - 1)]


def gates(rng: np.random.Generator, draws: int) -> None:
    margin = 0.02
    rows = []
    for metrics in (1, 4, 8, 20):
        for n, discordance in ((150, 0.03), (500, 0.05), (500, 0.20), (1500, 0.20)):
            for together in (0.0, 0.8):
                if metrics == 1 and together:
                    continue
                unchanged = metric_paths(rng, draws, n, discordance, [0.0] * metrics, together)
                dropped = metric_paths(rng, draws, n, discordance, [margin] + [0.0] * (metrics - 1), together)
                row = [str(metrics), str(n), f"{100 * discordance:g}", f"{together:g}"]
                row += [percent(whole_gate(unchanged, margin, mode)[0].mean()) for mode in MODES]
                row += [percent(whole_gate(dropped, margin, mode)[1].mean()) for mode in MODES]
                rows.append(row)
    table(
        "Whole gates, %, margin 2 points",
        [
            *("metrics", "items each", "discordance, %", "shared"),
            *(f"exit 1 when nothing changed, {mode}" for mode in MODES),
            *(f"PASS at a drop equal to one margin, {mode}" for mode in MODES),
        ],
        rows,
    )


def every_look(rng: np.random.Generator, draws: int) -> None:
    rows = []
    for margin, gain, loss in ((0.01, 0.0, 0.01), (0.02, 0.01, 0.03), (0.02, 0.05, 0.07), (0.05, 0.1, 0.15)):
        for n in (300, 2000):
            wrong = np.zeros(4)
            for _ in range(draws):
                changes = rng.choice([1.0, -1.0, 0.0], p=[gain, loss, 1 - gain - loss], size=n)
                terms = changes + margin
                lower, upper = sequence_bounds(changes, np.ones(n), -1, 1, 1, ALPHA, margin_at=-margin, horizon=n)
                wrong += (
                    anytime_p(terms, margin - 1, margin + 1, horizon=n)[-1] <= ALPHA,
                    anytime_p(-terms, -margin - 1, 1 - margin)[-1] <= ALPHA,
                    lower > -margin,
                    upper < -margin,
                )
            shares = (percent(float(w)) for w in wrong / draws)
            rows.append([f"{100 * margin:g}", f"{100 * gain:g}, {100 * loss:g}", str(n), *shares])
    table(
        "One metric at a drop equal to the margin, a look after every item, %",
        [
            *("margin, points", "gains and losses, %", "n"),
            *("planned bets ever show a pass", "mixture ever shows harm", "lower bound wrong", "upper bound wrong"),
        ],
        rows,
    )


def power(rng: np.random.Generator, draws: int) -> None:
    margin = 0.02
    rows = []
    for discordance in (0.01, 0.03, 0.10):
        for n in (100, 200, 300, 500, 1000, 2000, 5000, 10_000):
            row = [f"{100 * discordance:g}", str(n)]
            for drop, outcome in ((0.0, PASS), (2 * margin, REGRESSED)):
                paths = draw_paths(rng, draws, n, discordance, drop, LOOK_EVERY, by_item=True)
                for mode in MODES:
                    found, asked = decide_paths(paths, margin, mode, ALPHA, SHARE, 1)
                    row.append(percent(float((found == outcome).mean())))
                    if mode == "both" or (mode == "regressed" and drop):
                        row.append(f"{asked.mean():.0f}")
            rows.append(row)
    table(
        "Power, %, and mean items asked, margin 2 points",
        [
            *("discordance, %", "n"),
            *("PASS, no change, off", "regressed", "both", "items, both"),
            *("REGRESSED, drop 4, off", "regressed", "items, regressed", "both", "items, both"),
        ],
        rows,
    )


def savings(rng: np.random.Generator, draws: int) -> None:
    margin = 0.02
    rows = []
    for n in (500, 1000, 3000):
        for discordance in (0.03, 0.10):
            for drop in (0.04, 0.08, 0.20):
                row = [str(n), f"{100 * discordance:g}", f"{100 * drop:g}"]
                paths = draw_paths(rng, draws, n, discordance, drop, LOOK_EVERY, by_item=False)
                row.append(percent(float((decide_paths(paths, margin, "off", ALPHA, SHARE, 1)[0] == REGRESSED).mean())))
                for family in (1, 4, 20):
                    found, asked = decide_paths(paths, margin, "regressed", ALPHA, SHARE, family)
                    row += [percent(float((found == REGRESSED).mean())), f"{asked.mean():.0f}"]
                    row.append(f"{100 * (1 - asked.mean() / n):.0f}")
                rows.append(row)
    table(
        "Clear regressions, early_stop: regressed, margin 2 points",
        [
            *("n", "discordance, %", "drop, points", "REGRESSED, %, off"),
            *(
                f"{what}, {family} metric{'s' * (family > 1)}"
                for family in (1, 4, 20)
                for what in ("REGRESSED, %", "items asked", "saved, %")
            ),
        ],
        rows,
    )


def mixture_power(paths: Paths, margin: float, bets: Floats, prior: Floats) -> float:
    """Share of the paths on which this mixture of bets shows at a look that the drop is within the margin."""
    grow = np.log1p(np.multiply.outer(np.array([1.0, -1.0, 0.0]) + margin, bets) / (1 - margin))
    gains, losses = np.cumsum(paths.gains, axis=1), np.cumsum(paths.losses, axis=1)
    passed = np.zeros(len(gains), dtype=bool)
    for end, asked in zip(paths.ends, paths.asked, strict=True):
        up, down = gains[:, end - 1], losses[:, end - 1]
        logs = np.stack((up, down, asked - up - down), axis=1) @ grow
        passed |= logsumexp(logs, axis=1, b=prior) >= math.log(1 / ALPHA)
    return float(passed.mean())


def fewest(power_at: Callable[[int], float], start: int) -> int:
    """Items, to 1 %, for 80 % power; `start` have less, 16 times as many have more."""
    low, high = start, 16 * start
    while high - low > max(low // 100, 2):
        middle = (low + high) // 2
        low, high = (low, middle) if power_at(middle) >= 0.8 else (middle, high)
    return high


def price_row(margin: float, discordance: float, draws: int, seed: int) -> list[str]:
    def paths(n: int, *, by_item: bool) -> Paths:
        return draw_paths(np.random.default_rng(seed), draws, n, discordance, 0.0, LOOK_EVERY, by_item)

    def planned_power(n: int) -> float:
        drawn = paths(n, by_item=True)
        return float((pass_looks(drawn, margin, ALPHA) < len(drawn.ends)).mean())

    def with_bets(bets: Floats, prior: Floats) -> int:
        return fewest(lambda n: mixture_power(paths(n, by_item=False), margin, bets, prior), fixed)

    fixed = items_needed(margin, discordance) or 0
    planned = fewest(planned_power, fixed)
    found, asked = decide_paths(paths(planned, by_item=True), margin, "both", ALPHA, SHARE, 1)
    alone = [with_bets(np.array([share]), np.ones(1)) for share in (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.95)]
    return [
        *(f"{100 * margin:g}", f"{100 * discordance:g}", str(fixed), str(planned), f"{asked.mean():.0f}"),
        *(f"{asked[found == PASS].mean():.0f}", percent(power_to_pass(planned, margin, discordance))),
        *(str(with_bets(BETS, PRIOR)), str(min(alone))),
    ]


def price(draws: int, seed: int) -> None:
    cases = ((0.01, 0.0), (0.01, 0.01), (0.01, 0.03), (0.02, 0.0), (0.02, 0.03), (0.02, 0.10))
    table(
        "The price of an early PASS, nothing changed: items for 80 % power",
        [
            *("margin, points", "discordance, %", "fixed, exact", "both: declared", "both: asked on average"),
            *("both: asked when PASS", "fixed power at as many, %", "mixture: declared", "best single bet: declared"),
        ],
        [price_row(margin, discordance, draws, seed) for margin, discordance in cases],
    )


def clustered(rng: np.random.Generator, draws: int) -> None:
    margin, discordance = 0.02, 0.04
    rows = []
    for name, sizes_of in (
        ("5 items each", lambda groups: np.full(groups, 5)),
        ("1 to 20 items", lambda groups: rng.integers(1, 21, groups)),
    ):
        for groups in (100, 400):
            for together in (0.3, 1.0):
                shares = np.zeros(6)
                for _ in range(draws):
                    sizes = sizes_of(groups)
                    codes, largest = np.repeat(np.arange(groups), sizes), int(sizes.max())
                    for drop, column in ((margin, 0), (0.0, 2), (0.20, 3)):
                        changes = np.subtract(*cluster_draw(rng, codes, discordance, drop, together)[::-1])
                        terms = cluster_terms(np.bincount(codes, changes), sizes, -margin, largest)
                        shown = anytime_p(terms, margin - 1, margin + 1, horizon=groups)[-1] <= ALPHA
                        harm = anytime_p(-terms, -margin - 1, 1 - margin)
                        if column == 0:
                            alone = anytime_p(changes + margin, margin - 1, margin + 1, horizon=len(codes))
                            shares[[0, 1, 5]] += (shown, harm[-1] <= ALPHA, alone[-1] <= ALPHA)
                        elif column == 2:
                            shares[2] += shown
                        else:
                            stopped = np.flatnonzero(harm <= ALPHA * SHARE)
                            shares[3] += len(stopped) > 0
                            shares[4] += (stopped[0] + 1 if len(stopped) else groups) / groups
                cells = [percent(float(share)) for share in shares / draws]
                rows.append([name, str(groups), f"{together:g}", cells[0], cells[5], *cells[1:5]])
    table(
        "Clustered items, margin 2 points, discordance 4 %, a look after every cluster, %",
        [
            *("cluster sizes", "clusters", "share changing together", "PASS ever shown at the margin"),
            *("the same ignoring clusters", "harm ever shown at the margin", "PASS shown, no change"),
            *("harm shown, drop 20", "clusters asked, drop 20"),
        ],
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the draws")
    args = parser.parse_args()
    draws = max(args.draws // (100 if args.quick else 1), 20)
    rng = np.random.default_rng(args.seed)
    start = time.perf_counter()
    error = 100 * math.sqrt(0.05 * 0.95 / draws)
    print(
        f"{draws} draws a cell, {draws // 2} item by item (standard error of a 5 % rate: {error:.2f} points), ", end=""
    )
    print(f"seed {args.seed}")
    gates(rng, draws)
    every_look(rng, draws // 2)
    power(rng, draws)
    savings(rng, draws)
    price(draws, args.seed)
    clustered(rng, draws // 2)
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
