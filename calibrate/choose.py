"""Which conversations: a weighted mix of the sources, seeded, each one at most once."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

from calibrate.pool import Entry, Pool

ABSENT = 1e-12
"""Share of a stratum that the traffic does not have: taken only when the others have no more."""

ROUNDING = 1e-9
"""A whole number is not missed by the last bits of a division."""


def shares(weights: Sequence[float], sizes: Sequence[int], total: int) -> list[int]:
    """How many to take of each source: in proportion to `weights`, never more than `sizes`, `total` in all if there
    are as many. What a small source cannot give goes to the others, again by weight; leftovers go to the largest
    remainders, the earlier source first."""
    taken = [0] * len(sizes)
    left = min(total, sum(sizes))
    while left:
        free = [i for i in range(len(sizes)) if taken[i] < sizes[i]]
        whole = sum(weights[i] for i in free)
        ideal = {i: left * weights[i] / whole for i in free}
        step = {i: min(int(ideal[i] + ROUNDING), sizes[i] - taken[i]) for i in free}
        if not any(step.values()):
            first = sorted(free, key=lambda i: (-ideal[i], i))[:left]
            step = dict.fromkeys(first, 1)
        for i, n in step.items():
            taken[i] += n
        left -= sum(step.values())
    return taken


def choose(
    pool: Pool,
    weights: Sequence[float],
    total: int,
    *,
    seed: int,
    shuffle: bool,
    at_least: int | None = None,
    by_length: bool = False,
    traffic: Mapping[tuple[str, str], int] | None = None,
) -> list[Entry]:
    """`total` entries of the pool, or all of them when it has fewer. Same pool, weights and seed: same choice.

    With `at_least`, within a source every kind gets its share by size, and at least that many where there are as many
    and `total` leaves room for it: a rare kind is what a small random choice misses. Without, kinds play no part.
    `by_length` also gives the bins of the prompts' lengths their share within a kind. `traffic` counts a sample of the
    traffic by (kind, bin): shares then follow it instead of the pool.
    """
    counts = shares(weights, [len(entries) for entries in pool.entries], total)
    chosen: list[Entry] = []
    for number, (entries, count) in enumerate(zip(pool.entries, counts, strict=True)):
        # A generator of its own for each source: adding a source does not change what the others give.
        source = list(entries)
        if shuffle:
            random.Random(f"calibrate:{seed}:{number}").shuffle(source)
        if at_least is None:
            chosen += source[:count]
        else:
            chosen += _by_kind(source, count, at_least, pool.kinds[number], by_length=by_length, traffic=traffic)
    if shuffle:
        random.Random(f"calibrate:{seed}:order").shuffle(chosen)
    return chosen


def _by_kind(
    entries: Sequence[Entry],
    count: int,
    at_least: int,
    kinds: Mapping[str, int],
    *,
    by_length: bool,
    traffic: Mapping[tuple[str, str], int] | None,
) -> list[Entry]:
    """The first entries of each kind, by share; `count` in all."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.kind, []).append(entry)
    # Sorted, so that the shares do not depend on which kind happens to come first.
    names = sorted(groups)
    sizes = [len(groups[name]) for name in names]
    least = [min(at_least, size) for size in sizes]
    if sum(least) > count:
        least = [0] * len(names)
    wanted: Mapping[str, float] = kinds
    if traffic is not None and any(kind in groups for kind, _ in traffic):
        wanted = Counter()
        for (kind, _), n in traffic.items():
            wanted[kind] += n
    # What a proportional share alone would give, raised to the minimum; the largest kinds pay for it.
    taken = shares([wanted.get(name, 0) or ABSENT for name in names], sizes, count) if names else []
    taken = [max(n, floor) for n, floor in zip(taken, least, strict=True)]
    while sum(taken) > count:
        most = max(range(len(taken)), key=lambda i: (taken[i] - least[i], -i))
        taken[most] -= 1
    picked: set[Entry] = set()
    for name, n in zip(names, taken, strict=True):
        picked.update(_by_length(groups[name], n, name, traffic) if by_length else groups[name][:n])
    return [entry for entry in entries if entry in picked]


def _by_length(
    entries: Sequence[Entry], count: int, kind: str, traffic: Mapping[tuple[str, str], int] | None
) -> list[Entry]:
    bins: dict[str, list[Entry]] = {}
    for entry in entries:
        bins.setdefault(entry.bin, []).append(entry)
    names = sorted(bins)
    sizes = [len(bins[name]) for name in names]
    # A traffic sample without kinds still has lengths.
    asked = [sum(n for (k, b), n in (traffic or {}).items() if b == name and k == kind) for name in names]
    if traffic is not None and not any(asked):
        asked = [sum(n for (_, b), n in traffic.items() if b == name) for name in names]
    taken = shares([n or ABSENT for n in asked] if any(asked) else sizes, sizes, count)
    return [entry for name, n in zip(names, taken, strict=True) for entry in bins[name][:n]]
