"""Which conversations: a weighted mix of the sources, seeded, each one at most once."""

from __future__ import annotations

import random
from collections.abc import Sequence

from calibrate.pool import Entry, Pool


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
        step = {i: min(int(ideal[i]), sizes[i] - taken[i]) for i in free}
        if not any(step.values()):
            first = sorted(free, key=lambda i: (-ideal[i], i))[:left]
            step = dict.fromkeys(first, 1)
        for i, n in step.items():
            taken[i] += n
        left -= sum(step.values())
    return taken


def choose(
    pool: Pool, weights: Sequence[float], total: int, *, seed: int, shuffle: bool, at_least: int | None = None
) -> list[Entry]:
    """`total` entries of the pool, or all of them when it has fewer. Same pool, weights and seed: same choice.

    With `at_least`, within a source every kind gets its share by size, and at least that many where there are as many
    and `total` leaves room for it: a rare kind is what a small random choice misses. Without, kinds play no part.
    """
    counts = shares(weights, [len(entries) for entries in pool.entries], total)
    chosen: list[Entry] = []
    for number, (entries, count) in enumerate(zip(pool.entries, counts, strict=True)):
        # A generator of its own for each source: adding a source does not change what the others give.
        source = list(entries)
        if shuffle:
            random.Random(f"calibrate:{seed}:{number}").shuffle(source)
        chosen += source[:count] if at_least is None else _by_kind(source, count, at_least)
    if shuffle:
        random.Random(f"calibrate:{seed}:order").shuffle(chosen)
    return chosen


def _by_kind(entries: Sequence[Entry], count: int, at_least: int) -> list[Entry]:
    """The first entries of each kind, by share; `count` in all."""
    kinds: dict[str, list[Entry]] = {}
    for entry in entries:
        kinds.setdefault(entry.kind, []).append(entry)
    # Sorted, so that the shares do not depend on which kind happens to come first.
    groups = [kinds[kind] for kind in sorted(kinds)]
    least = [min(at_least, len(group)) for group in groups]
    if sum(least) > count:
        least = [0] * len(groups)
    sizes = [len(group) for group in groups]
    # What a proportional share alone would give, raised to the minimum; the largest kinds pay for it.
    taken = shares(sizes, sizes, count) if groups else []
    taken = [max(n, floor) for n, floor in zip(taken, least, strict=True)]
    while sum(taken) > count:
        most = max(range(len(taken)), key=lambda i: (taken[i] - least[i], -i))
        taken[most] -= 1
    picked = {entry for group, n in zip(groups, taken, strict=True) for entry in group[:n]}
    return [entry for entry in entries if entry in picked]
