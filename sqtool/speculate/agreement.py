"""Whose greedy answers are the same, with the A/A arm's disagreement as the yardstick."""

from __future__ import annotations

from typing import Any

import numpy as np

from sqtool.speculate.interaction import CONTROL
from sqtool.speculate.latency import share_interval
from sqtool.speculate.reading import Arm, Stage
from sqtool.speculate.resample import Floats, Ints, Resamples, interval

EXAMPLES = 10


def agreement(stage: Stage, resamples: Resamples) -> dict[str, list[dict[str, Any]]]:
    """For each arm: against the baseline, and (last) against the arm with the same target and no speculation.

    `of` counts requests that both answered, over all loads and rounds; `excess` is how much more often they differ than
    the two baseline arms do, paired by request.
    """
    result: dict[str, list[dict[str, Any]]] = {}
    for name, arm in stage.arms.items():
        others = dict.fromkeys(o for o in ("baseline", stage.sibling(name)) if o in stage.arms and o != name)
        result[name] = [_entry(stage, arm, stage.arms[other], resamples) for other in others if other is not None]
    return result


def _entry(stage: Stage, arm: Arm, other: Arm, resamples: Resamples) -> dict[str, Any]:
    unit, same, ids = _pairs(arm, other, resamples)
    of, identical = len(same), int(same.sum())
    entry = {
        "with": other.name,
        "of": of,
        "identical": identical,
        "share": identical / of if of else None,
        "ci": share_interval(unit, same, resamples) if of else None,
        "different": list(dict.fromkeys(ids[at] for at in np.flatnonzero(same == 0)))[:EXAMPLES],
    }
    if arm.name != CONTROL and CONTROL in stage.arms and "baseline" in stage.arms and of:
        entry["excess"] = _excess(stage, unit, same, resamples)
    return entry


def _pairs(arm: Arm, other: Arm, resamples: Resamples) -> tuple[Ints, Floats, list[str]]:
    theirs = {(row.load, row.round, row.id): row.said for row in other.requests if row.ok}
    rows = [row for row in arm.requests if row.ok and (row.load, row.round, row.id) in theirs]
    same = np.array([row.said == theirs[row.load, row.round, row.id] for row in rows], dtype=np.float64)
    return np.array([resamples.place[row.id] for row in rows], dtype=np.int64), same, [row.id for row in rows]


def _excess(stage: Stage, unit: Ints, same: Floats, resamples: Resamples) -> dict[str, Any] | None:
    """Share that differs, minus the share that differs between baseline_again and baseline."""
    floor_unit, floor_same, _ = _pairs(stage.arms[CONTROL], stage.arms["baseline"], resamples)
    if not len(floor_same):
        return None
    ones, floor_ones = np.ones(len(same)), np.ones(len(floor_same))
    replicates = resamples.ratio(unit, 1 - same, ones) - resamples.ratio(floor_unit, 1 - floor_same, floor_ones)
    units = min(len(np.unique(unit)), len(np.unique(floor_unit)))
    value = float((1 - same).mean() - (1 - floor_same).mean())
    # Without a single difference anywhere no resample differs, and an interval of zero width would claim too much.
    varies = bool(replicates.std() > 0)
    return {"value": value, "ci": interval(replicates, units) if varies else None}
