"""One arm at one load as arrays, a row for each request sent; what the other modules compute with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sqtool.speculate.counters import Speculation
from sqtool.speculate.reading import Arm, Block, Sent, report_of
from sqtool.speculate.resample import Floats, Ints
from sqtool.speculate.spec import SloSpec

Flags = NDArray[np.bool_]
TIMES = ("ttft", "tpot", "e2e")


@dataclass(frozen=True)
class Frame:
    """Rows in the order of (id, round). Times are seconds and NaN where there is none; flags are [n].

    `within`: answered inside every limit of the SLO (a request of one token has no TPOT and cannot miss that limit).
    `seconds`: the row's share of its block's wall time, see `apportion`. `acceptance` [n, 3 + k]: drafts, draft
    tokens, accepted tokens and acceptances at each position; None unless every answer reports it.
    """

    arm: str
    load: str
    rows: Sequence[Sent]
    blocks: Sequence[Block]
    unit: Ints
    ok: Flags
    times: dict[str, Floats]
    tokens: Floats
    scored: Flags
    accepted: Flags
    within: Flags
    seconds: Floats
    acceptance: Floats | None

    @property
    def units(self) -> int:
        """Number of distinct requests."""
        return len(np.unique(self.unit))

    @property
    def wall(self) -> float:
        """Wall seconds of the load's blocks, without the pauses between them."""
        return sum(block.seconds for block in self.blocks)

    @property
    def uncounted(self) -> str:
        """Why the server's counters say nothing, or not everything; empty where they do."""
        return next((block.note for block in self.blocks if block.note), "")

    @property
    def open_loop(self) -> bool:
        """Whether requests were sent at times of their own, and not as earlier ones ended."""
        return is_open(self.load)

    def only(self, keep: Flags) -> Frame:
        """The rows where `keep` [n]; blocks stay as they are."""
        return replace(
            self,
            rows=[row for row, kept in zip(self.rows, keep, strict=True) if kept],
            unit=self.unit[keep],
            ok=self.ok[keep],
            times={name: values[keep] for name, values in self.times.items()},
            tokens=self.tokens[keep],
            scored=self.scored[keep],
            accepted=self.accepted[keep],
            within=self.within[keep],
            seconds=self.seconds[keep],
            acceptance=None if self.acceptance is None else self.acceptance[keep],
        )

    def of_kind(self, kind: str) -> Frame:
        """The rows of one kind."""
        return self.only(np.array([row.kind == kind for row in self.rows], dtype=bool))


def is_open(load: str) -> bool:
    """Whether a load of this name (`c16`, `r4`, `trace`) is open loop."""
    return not load.startswith("c")


def build(arm: Arm, load: str, place: Mapping[str, int], with_scorer: Set[str], slo: SloSpec | None) -> Frame | None:
    """The arm's frame at `load`; None when it sent nothing then.

    `place` numbers the ids. A failed request counts as scored, and not accepted, when its id is in `with_scorer`.
    """
    rows = [row for row in arm.requests if row.load == load]
    if not rows:
        return None
    blocks = [block for block in arm.blocks if block.load == load]
    times = {name: _column(rows, lambda row, name=name: getattr(row, f"{name}_s")) for name in TIMES}  # type: ignore[misc]
    ok = np.array([row.ok for row in rows], dtype=bool)
    scored = np.array([row.accepted is not None or (not row.ok and row.id in with_scorer) for row in rows], dtype=bool)
    for values in times.values():
        values[~ok] = np.nan
    return Frame(
        arm=arm.name,
        load=load,
        rows=rows,
        blocks=blocks,
        unit=np.array([place[row.id] for row in rows], dtype=np.int64),
        ok=ok,
        times=times,
        tokens=np.where(ok, np.nan_to_num(_column(rows, lambda row: row.completion_tokens)), 0.0),
        scored=scored,
        accepted=ok & np.array([bool(row.accepted) for row in rows], dtype=bool),
        within=_within(ok, times, slo),
        seconds=apportion(rows, blocks, is_open(load)),
        acceptance=_acceptance(rows) if arm.speculates else None,
    )


def apportion(rows: Sequence[Sent], blocks: Sequence[Block], open_loop: bool) -> Floats:
    """Each row's share [n] of the wall seconds of its block; the shares of a block add up to its seconds.

    Closed loop: in proportion to the time that the request was in flight, because a slot that one request holds is
    kept from the next. A failed request, whose end is not recorded, counts as the block's mean. Open loop: equally,
    because there the arrivals and not the answers decide how long the block takes.
    """
    result = np.zeros(len(rows))
    members: dict[tuple[int, int], list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        members[row.round, row.block].append(at)
    for block in blocks:
        inside = np.array(members.get((block.round, block.block), []), dtype=np.int64)
        if not len(inside):
            continue
        weight = np.ones(len(inside))
        flights = np.array([rows[at].e2e_s if rows[at].ok else np.nan for at in inside], dtype=np.float64)
        if not open_loop and np.isfinite(flights).any():
            weight = np.where(np.isnan(flights), np.nanmean(flights), flights)
        result[inside] = block.seconds * weight / weight.sum()
    return result


def _column(rows: Sequence[Sent], get: Callable[[Sent], float | int | None]) -> Floats:
    values = (get(row) for row in rows)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _within(ok: Flags, times: dict[str, Floats], slo: SloSpec | None) -> Flags:
    inside = ok.copy()
    if slo is not None:
        for name in TIMES:
            if (limit := getattr(slo, f"{name}_ms")) is not None:
                # A NaN is no miss: `ok` has already dealt with requests that failed.
                inside &= ~(times[name] * 1000 > limit)
    return inside


def _acceptance(rows: Sequence[Sent]) -> Floats | None:
    """Reports as an array; zeros for failed requests. None when an answered one has no report."""
    reports: list[Speculation | None] = [report_of(row) if row.ok else None for row in rows]
    if not any(row.ok for row in rows) or any(row.ok and one is None for row, one in zip(rows, reports, strict=True)):
        return None
    positions = max(len(one.per_position) for one in reports if one is not None)
    result = np.zeros((len(rows), 3 + positions))
    for at, one in enumerate(reports):
        if one is not None:
            result[at, :3] = one.drafts, one.draft_tokens, one.accepted_tokens
            result[at, 3 : 3 + len(one.per_position)] = one.per_position
    return result
