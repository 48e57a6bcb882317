"""A rollout that is read after every request: false alarms, missed harm, and time to detection. Prints Markdown tables.

    python benchmarks/rollout/false_alarms.py [--runs 500] [--horizon 20000] [--parts 1 5] [--quick]

1. No difference between the arms, one metric, a look after every request: how often harm is ever shown within the
   horizon (at most alpha = 5 %), beside a one-sided z test of two proportions at 5 %, repeated after every request, or
   after every 1,000.
2. Users whose requests hang together and who stay with an arm: the same by user, and ignoring who asks.
3. Whole verdicts: five metrics, two candidate arms, Holm.
4. A rise by exactly the margin: how often NO_HARM is ever shown (at most 5 %).
5. Planted rises: how often HARM is shown, and after how many requests, for one metric and among five; and how long
   NO_HARM takes when nothing changed. Beside it the requests that a test with one look at the end needs for 80 % power.

A wealth that has ever reached 1/alpha leaves a p-value below alpha for good, so "ever" is read off the last p-value.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binomtest, norm

from sqtool.gate.sequential import Monitor
from sqtool.rollout.compare import Comparison
from sqtool.rollout.matching import Matcher
from sqtool.rollout.record import Record
from sqtool.rollout.rules import Rules, metrics_of
from sqtool.rollout.units import Units
from sqtool.rollout.verdict import Watch

ALPHA = 0.05
MARGIN = 0.02
FIRST_LOOK = 100
"""The z test starts when each arm has as many requests, as a careful person would."""
CHUNK = 4000
"""Requests between two questions whether a run has decided; no figure depends on it."""
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def table(title: str, head: list[str], rows: list[list[str]]) -> None:
    print(f"\n### {title}\n\n| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def share(count: int, runs: int) -> str:
    """A share in per cent with its exact 95 % interval."""
    low, high = binomtest(count, runs).proportion_ci(method="exact")
    return f"{100 * count / runs:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def z_alarm(arms: Bools, bad: Bools, every: int) -> bool:
    """Whether a one-sided z test of two proportions at 5 % ever rejects, looking after each `every` requests."""
    n1, n0 = np.cumsum(arms, dtype=np.float64), np.cumsum(~arms, dtype=np.float64)
    x1, x0 = np.cumsum(bad & arms), np.cumsum(bad & ~arms)
    look = (np.arange(1, len(arms) + 1) % every == 0) & (n1 >= FIRST_LOOK) & (n0 >= FIRST_LOOK)
    n1, n0, x1, x0 = n1[look], n0[look], x1[look], x0[look]
    pooled = (x1 + x0) / (n1 + n0)
    error = np.sqrt(pooled * (1 - pooled) * (1 / n1 + 1 / n0))
    return bool(np.any((x1 / n1 - x0 / n0) > norm.ppf(1 - ALPHA) * error))


def compared(arms: Bools, values: Bools | Floats) -> Comparison:
    """sqtool's comparison after all of these."""
    comparison = Comparison(MARGIN)
    for candidate, value in zip(arms.tolist(), values.astype(np.float64).tolist(), strict=True):
        comparison.add(candidate, value)
    return comparison


def harm(arms: Bools, values: Bools | Floats) -> bool:
    """Whether sqtool has ever shown harm, by one metric alone."""
    return compared(arms, values).evidence(ALPHA, ALPHA).p_harm <= ALPHA


def unchanged(rng: np.random.Generator, runs: int, n: int) -> None:
    day = np.linspace(0, 1, n)
    cases: list[tuple[str, Floats, Floats]] = [
        ("half of the traffic, rate 5 %", np.full(n, 0.5), np.full(n, 0.05)),
        ("half of the traffic, rate 0.5 %", np.full(n, 0.5), np.full(n, 0.005)),
        ("half of the traffic, rate 30 %", np.full(n, 0.5), np.full(n, 0.3)),
        ("a canary with 5 % of the traffic, rate 5 %", np.full(n, 0.05), np.full(n, 0.05)),
        ("split raised from 2 % to 50 %, rate drifts from 3 % to 12 %", 0.02 + 0.48 * day, 0.03 + 0.09 * day),
    ]
    rows = []
    for name, split, rate in cases:
        counts = np.zeros(3, dtype=int)
        for _ in range(runs):
            arms, bad = rng.random(n) < split, rng.random(n) < rate
            counts += (harm(arms, bad), z_alarm(arms, bad, 1), z_alarm(arms, bad, 1000))
        rows.append([name, *(share(int(count), runs) for count in counts)])
    table(
        f"Nothing changed: harm ever shown within {n:,} requests, %",
        ["traffic", "sqtool, every request", "z test, every request", "z test, every 1,000"],
        rows,
    )


def user_traffic(rng: np.random.Generator, users: int, each: int, rate: float) -> tuple[Bools, Bools, NDArray[np.int_]]:
    """(arm, bad, user) of requests: users who stay with an arm, each with a rate of its own (Beta, mean `rate`)."""
    own = beta.rvs(rate * 2, (1 - rate) * 2, size=users, random_state=rng)
    stays = rng.random(users) < 0.5
    # Sessions overlap: a user's requests lie close together among those of others.
    when = np.argsort(np.repeat(np.arange(users), each) + rng.exponential(20, users * each), kind="stable")
    who = np.repeat(np.arange(users), each)[when]
    return stays[who], rng.random(users * each) < own[who], who


def clustered(rng: np.random.Generator, runs: int, n: int) -> None:
    rows = []
    for each in (4, 16):
        counts = np.zeros(4, dtype=int)
        for _ in range(runs):
            arms, bad, who = user_traffic(rng, n // each, each, 0.05)
            _, first = np.unique(who, return_index=True)
            first.sort()
            means = np.bincount(who, bad)[who[first]] / each
            counts += (harm(arms[first], means), harm(arms, bad), z_alarm(arms, bad, 1), z_alarm(arms, bad, 1000))
        rows.append([f"{each} requests a user", *(share(int(count), runs) for count in counts)])
    table(
        f"Nothing changed, users stay with an arm and differ (5 % on average): harm ever shown in {n:,} requests, %",
        ["traffic", "sqtool by user", "sqtool without the user's name", "z test, every request", "z test, every 1,000"],
        rows,
    )


def whole(rng: np.random.Generator, runs: int, n: int) -> None:
    """Records through units and watch, as the command does it."""
    metrics = metrics_of(Rules())
    names, any_harm = ("baseline", "a", "b"), 0
    fields = ("corrected", "accepted", "retried", "cancelled", "failed")
    rates = np.array([0.05, 0.7, 0.03, 0.02, 0.01])
    for _ in range(runs):
        units, watch = Units([metric.bad for metric in metrics], 1800), Watch(metrics, "baseline")
        chosen, flags = rng.integers(0, 3, n).tolist(), (rng.random((n, 5)) < rates).tolist()
        for second, (arm, flag) in enumerate(zip(chosen, flags, strict=True)):
            record = Record(names[arm], float(second), **dict(zip(fields, flag, strict=True)))
            for unit in units.add(record):
                watch.add(unit)
        verdicts = watch.judge(names[1:], ALPHA)
        any_harm += any(v.p_adjusted <= ALPHA for verdict in verdicts for v in verdict.metrics)
    table(
        f"Nothing changed, five metrics, two candidate arms: harm ever shown on anything in {n:,} requests, %",
        ["sqtool, every request"],
        [[share(any_harm, runs)]],
    )


def at_the_margin(rng: np.random.Generator, runs: int, n: int) -> None:
    rows = []
    for split in (0.5, 0.1):
        for rate in (0.01, 0.05):
            wrong = 0
            for _ in range(runs):
                arms = rng.random(n) < split
                bad = rng.random(n) < np.where(arms, rate + MARGIN, rate)
                wrong += compared(arms, bad).evidence(ALPHA, ALPHA).p_no_harm <= ALPHA
            rows.append([f"{100 * split:g} %", f"{100 * rate:g} to {100 * (rate + MARGIN):g}", share(wrong, runs)])
    table(
        f"A rise by exactly the margin of 2 points: NO_HARM ever shown in {n:,} requests, %",
        ["candidate's traffic", "rate, %", "sqtool, every request"],
        rows,
    )


def first_time(where: Bools, requests: NDArray[np.int_]) -> float:
    return float(requests[int(np.argmax(where))]) if where.any() else math.inf


def times(arms: Bools, bad: Bools, *, calm: bool) -> tuple[float, float]:
    """Requests until HARM, by one metric and by one among five; if `calm` until NO_HARM. Infinite when never."""
    matcher = Matcher()
    bet = Monitor(MARGIN - 1, MARGIN + 1) if calm else Monitor(-1, 1)
    terms: list[float] = []
    requests: list[int] = []
    wealth = np.zeros(0)
    found = (math.inf, math.inf)
    for start in range(0, len(arms), CHUNK):
        before = len(terms)
        part = zip(arms[start : start + CHUNK].tolist(), bad[start : start + CHUNK].astype(float).tolist(), strict=True)
        for number, (candidate, value) in enumerate(part, start + 1):
            term = matcher.add(candidate, value)
            if term is not None:
                terms.append(term.difference)
                requests.append(number)
        new = np.array(terms[before:])
        wealth = np.maximum.accumulate(np.concatenate((wealth, bet.feed(MARGIN - new if calm else new))))
        past = np.cumsum(terms) / np.arange(1, len(terms) + 1) >= MARGIN
        when = np.array(requests)
        levels = (math.log(1 / ALPHA), math.log(5 / ALPHA))
        one, among = (first_time((wealth >= level) & (past | calm), when) for level in levels)
        found = (one, among)
        if math.isfinite(among):
            break
    return found


def one_look(split: float, low: float, high: float) -> int:
    """Requests for 80 % power of the one-sided z test with a single look."""
    reach = norm.ppf(1 - ALPHA) + norm.ppf(0.8)
    return math.ceil(reach**2 * (low * (1 - low) / (1 - split) + high * (1 - high) / split) / (high - low) ** 2)


def told(found: Floats) -> list[str]:
    """Share found, and the median and 90th percentile of the time (never is later than any)."""
    quantiles = np.quantile(found, (0.5, 0.9), method="higher")
    return [f"{100 * np.mean(np.isfinite(found)):.1f}", *(f"{q:,.0f}" if math.isfinite(q) else "-" for q in quantiles)]


def detection(rng: np.random.Generator, runs: int, n: int) -> None:
    rows, calm = [], []
    for split in (0.5, 0.1):
        for low, high in ((0.05, 0.06), (0.05, 0.07), (0.05, 0.08), (0.05, 0.10), (0.05, 0.20), (0.05, 0.05)):
            found = np.empty((runs, 2))
            for run in range(runs):
                arms = rng.random(n) < split
                found[run] = times(arms, rng.random(n) < np.where(arms, high, low), calm=low == high)
            if low == high:
                calm.append([f"{100 * split:g} %", *told(found[:, 0])])
                continue
            look = f"{one_look(split, low, high):,}"
            rows.append(
                [f"{100 * split:g} %", f"{100 * low:g} to {100 * high:g}", *told(found[:, 0]), *told(found[:, 1]), look]
            )
    table(
        f"Planted rises, margin 2 points: requests of both arms until HARM, at most {n:,}",
        [
            *("candidate's traffic", "rate, %", "HARM, one metric, %", "median", "90th percentile"),
            *("HARM, among five, %", "median", "90th percentile", "one look, 80 % power"),
        ],
        rows,
    )
    table(
        f"Nothing changed at 5 %: requests of both arms until NO_HARM on one metric, at most {n:,}",
        ["candidate's traffic", "NO_HARM, %", "median", "90th percentile"],
        calm,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--horizon", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="only these of the five")
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the runs")
    args = parser.parse_args()
    runs = max(args.runs // (50 if args.quick else 1), 10)
    start = time.perf_counter()
    print(f"{runs} runs a row (half for 3., a fifth for 5.), seed {args.seed}; in brackets exact 95 % intervals")
    parts: list[tuple[Callable[[np.random.Generator, int, int], None], int, int]] = [
        *((unchanged, runs, args.horizon), (clustered, runs, args.horizon), (whole, runs // 2, args.horizon // 2)),
        *((at_the_margin, runs, args.horizon), (detection, max(runs // 5, 5), 3 * args.horizon)),
    ]
    for number, (part, count, horizon) in enumerate(parts):
        if number + 1 in args.parts:
            part(np.random.default_rng((args.seed, number)), count, horizon)
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
