"""The gate that is meant when nobody wrote one: for `sqtool gate --baseline A --candidate B --task T`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqtool.errors import DataError, did_you_mean
from sqtool.gate.records import load, task_files
from sqtool.gate.spec import BUILT_IN, DEFAULT_MAX_DROP, DEFAULT_METRICS, GateSpec


def spec_for(
    baseline: Path, candidate: Path, tasks: Sequence[str] = (), *, max_drop: float = DEFAULT_MAX_DROP, **other: Any
) -> GateSpec:
    """Gate the usual metrics of `tasks` (default: all that both sides have), or all of an unknown task's own.

    `other` goes to GateSpec. Raises `DataError` when a side lacks a task. More metrics are not a stricter gate only:
    each of them must pass, so a gate of many passes rarely.
    """
    left, right = task_files(baseline), task_files(candidate)
    if len(left) == len(right) == 1 and not tasks:
        (name,) = left
        left, right = {name: left[name]}, {name: next(iter(right.values()))}
    chosen = list(tasks) or sorted(set(left) & set(right))
    if not chosen:
        raise DataError(baseline, f"has no task in common with {candidate}")
    metrics: list[str] = []
    for task in chosen:
        for folder, files in ((baseline, left), (candidate, right)):
            if task not in files:
                raise DataError(folder, f"has no records of task {task!r}", remedy=did_you_mean(task, list(files)))
        usual = [name for name in DEFAULT_METRICS if name.rpartition(".")[0] == task]
        metrics += usual or [f"{task}.{metric}" for metric in load(left[task]).scores if metric not in BUILT_IN]
    return GateSpec.for_metrics(metrics, max_drop=max_drop, **other)
