"""Acceptance of drafted tokens: per arm, position and kind, and how quantizing the target changed it.

All figures are ratios of sums over verifications. Verifications of one request depend on one another, so requests are
what is resampled. Without reports per request the counters around blocks are all there is, and blocks are resampled; a
block's rounds send the same requests again, so they belong together as a request's rounds do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sqtool.speculate.counters import Speculation, add_up
from sqtool.speculate.frame import Frame
from sqtool.speculate.missing import Missing
from sqtool.speculate.resample import Floats, Interval, Resamples, draw, interval

DRAFTS, DRAFTED, ACCEPTED = 0, 1, 2
NO_REPORTS = "this server reports no acceptance per request, and its blocks mix kinds"
FEW_BLOCKS = "acceptance is counted around blocks only, and too few blocks make an interval"


class Counts:
    """Counts [units, 3 + k] of one arm, with the weights that resample their units."""

    def __init__(self, table: Floats, weights: Floats, units: int, source: str, names: Sequence[int] = ()) -> None:
        """`names` of the units where they are blocks; requests have their places in the resamples."""
        self.table, self.weights, self.units, self.source, self.names = table, weights, units, source, tuple(names)

    @property
    def total(self) -> Speculation:
        """Sum over all units."""
        sums = [round(value) for value in self.table.sum(axis=0)]
        return Speculation(sums[DRAFTS], sums[DRAFTED], sums[ACCEPTED], tuple(sums[3:]))

    def replicates(self) -> dict[str, Floats]:
        """acceptance_rate and mean_acceptance_length [replicates], per_position_rate [replicates, k]."""
        sums = self.weights @ self.table
        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                "acceptance_rate": sums[:, ACCEPTED] / sums[:, DRAFTED],
                "mean_acceptance_length": 1 + sums[:, ACCEPTED] / sums[:, DRAFTS],
                "per_position_rate": sums[:, 3:] / sums[:, [DRAFTS]],
            }


def counts_of(frame: Frame, resamples: Resamples, kind: str | None = None) -> Counts | None:
    """The arm's counts at this load, of all kinds or one: from reports, else from counters around blocks; or None."""
    chosen = frame if kind is None else frame.of_kind(kind)
    if chosen.acceptance is not None and len(chosen.rows):
        table = np.zeros((resamples.units, chosen.acceptance.shape[1]))
        np.add.at(table, chosen.unit, chosen.acceptance)
        return Counts(table, resamples.weights, len(np.unique(chosen.unit[chosen.ok])), "answers")
    blocks = [b for b in frame.blocks if b.speculation is not None and kind in (None, b.kind)]
    if not blocks:
        return None
    width = max(len(b.speculation.per_position) for b in blocks if b.speculation is not None)
    names = sorted({block.block for block in blocks})
    table = np.zeros((len(names), 3 + width))
    for block in blocks:
        counted, at = block.speculation, names.index(block.block)
        assert counted is not None
        table[at, :3] += counted.drafts, counted.draft_tokens, counted.accepted_tokens
        table[at, 3 : 3 + len(counted.per_position)] += counted.per_position
    # One seed for every arm, so that arms with the same blocks are resampled alike and stay paired.
    rng = np.random.default_rng(7202)
    weights = draw(rng, len(names), len(resamples.weights))
    return Counts(table, weights, len(names), "metrics", names)


def acceptance(frame: Frame, resamples: Resamples, missing: Missing, kind: str | None = None) -> dict[str, Any]:
    """The `speculation` entry of an arm or kind: counts, rates, intervals, source, and the two sources compared."""
    counts = counts_of(frame, resamples, kind)
    if counts is None:
        usual = "the server counted no speculative decoding" if kind is None else NO_REPORTS
        reason = frame.uncounted or usual
        return missing.add(
            "acceptance" if kind is None else "acceptance by kind", reason, arm=frame.arm, load=frame.load
        )
    if frame.uncounted and counts.source == "metrics":
        missing.add("acceptance of some blocks", frame.uncounted, arm=frame.arm, load=frame.load)
    total = counts.total
    entry: dict[str, Any] = {**total.to_dict(), "ci": None, "source": counts.source}
    if total.draft_tokens:
        entry["ci"] = {name: _intervals(values, counts.units) for name, values in counts.replicates().items()}
        if counts.source == "metrics" and entry["ci"]["acceptance_rate"] is None:
            missing.add("interval of acceptance", FEW_BLOCKS, arm=frame.arm, load=frame.load)
    check = _cross_check(frame, kind)
    if kind is None or check["counters"] is not None:
        entry["cross_check"] = check
    return entry


def _intervals(values: Floats, units: int) -> Any:
    if values.ndim == 1:
        return interval(values, units)
    return [interval(column, units) for column in values.T]


def _cross_check(frame: Frame, kind: str | None) -> dict[str, Any]:
    """What the answers report against what `/metrics` counted around the same blocks. `agree` is about exact counts;
    a failed request is counted by the server and reported by no answer, and then the reason says so."""
    chosen = frame if kind is None else frame.of_kind(kind)
    reported: Speculation | None = None
    if chosen.acceptance is not None and len(chosen.rows):
        sums = [round(value) for value in chosen.acceptance.sum(axis=0)]
        reported = Speculation(sums[DRAFTS], sums[DRAFTED], sums[ACCEPTED], tuple(sums[3:]))
    parts = [b.speculation for b in frame.blocks if kind in (None, b.kind)]
    there = [part for part in parts if part is not None]
    counted = add_up(there) if there and len(there) == len(parts) else None
    check: dict[str, Any] = {
        "per_request_reports": reported is not None,
        "per_request": None if reported is None else reported.to_dict(),
        "counters": None if counted is None else counted.to_dict(),
        "agree": None,
    }
    if reported is not None and counted is not None:
        check["agree"] = _same(reported, counted)
        if not check["agree"] and not chosen.ok.all():
            check["reason"] = f"{int((~chosen.ok).sum())} failed requests are in the counters and in no report"
    return check


def _same(one: Speculation, other: Speculation) -> bool:
    width = max(len(one.per_position), len(other.per_position))
    padded = [replace(s, per_position=(s.per_position + (0,) * width)[:width]) for s in (one, other)]
    return padded[0] == padded[1]


def change(full: Frame, quantized: Frame, resamples: Resamples, kinds: list[str]) -> dict[str, Any]:
    """Quantized target minus full target, over requests that both answered, with paired intervals."""
    both = _paired(full, quantized)
    return {
        "overall": _change(*both, resamples, None),
        "kinds": {kind: _change(*both, resamples, kind) for kind in kinds},
    }


def _paired(full: Frame, quantized: Frame) -> tuple[Frame, Frame]:
    keys = [{(row.id, row.round) for row in frame.rows if row.ok} for frame in (full, quantized)]
    common = keys[0] & keys[1]
    frames = (full, quantized)
    kept = [f.only(np.array([(r.id, r.round) in common for r in f.rows], dtype=bool)) for f in frames]
    return kept[0], kept[1]


def _change(full: Frame, quantized: Frame, resamples: Resamples, kind: str | None) -> dict[str, Any] | None:
    before, after = (counts_of(frame, resamples, kind) for frame in (full, quantized))
    if before is None or after is None or not before.total.draft_tokens or not after.total.draft_tokens:
        return None
    old, new = before.total.to_dict(), after.total.to_dict()
    old_r, new_r = before.replicates(), after.replicates()
    units = min(before.units, after.units)
    # Resampled together only when both have the same units: requests, or blocks one for one.
    paired = (before.source, before.names) == (after.source, after.names)

    def ends(difference: Floats) -> Interval:
        # Where no request differs no resample does, and an interval of no width would claim too much.
        return interval(difference, units) if paired and np.nanstd(difference) > 0 else None

    result: dict[str, Any] = {"requests": len({row.id for row in full.rows if kind in (None, row.kind)})}
    for name in ("acceptance_rate", "mean_acceptance_length"):
        result[name] = _valued(new[name] - old[name], ends(new_r[name] - old_r[name]))
    positions = min(old_r["per_position_rate"].shape[1], new_r["per_position_rate"].shape[1])
    moved = new_r["per_position_rate"][:, :positions] - old_r["per_position_rate"][:, :positions]
    result["per_position_rate"] = [
        _valued(new["per_position_rate"][at] - old["per_position_rate"][at], ends(moved[:, at]))
        for at in range(positions)
    ]
    return result


def _valued(value: float, ends: Interval) -> dict[str, Any]:
    return {"value": value, "ci": ends}


def changes(frames: Mapping[tuple[str, str], Frame], loads: list[str], resamples: Resamples) -> dict[str, Any] | None:
    """`acceptance_change` of speculate.json: `both` minus `speculative` at each load; None without both arms."""
    result = {}
    for load in loads:
        full, quantized = frames.get(("speculative", load)), frames.get(("both", load))
        if full is not None and quantized is not None:
            kinds = sorted({row.kind for row in full.rows} & {row.kind for row in quantized.rows})
            result[load] = change(full, quantized, resamples, kinds)
    return result or None
