"""The two sides of a gate: which tasks they have, their items in pairs, and how far the candidate came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqtool.errors import DataError, did_you_mean
from sqtool.gate.records import PairedTask, TaskRecords, load, pair
from sqtool.gate.spec import GateSpec
from sqtool.gate.stopping import asked_order, on_a_boundary


@dataclass
class Task:
    """A task's pairs, and the order in which its items were asked (places among the baseline's records)."""

    name: str
    paired: PairedTask
    asked: list[int]
    declared: int

    @property
    def part(self) -> bool:
        """Whether the evaluation ended before the last item."""
        return len(self.asked) < self.declared


def task_of(metric: str) -> str:
    """`tool_calls` of `tool_calls.call_match`."""
    return metric.rpartition(".")[0]


def records_files(
    spec: GateSpec, left: Mapping[str, Path], right: Mapping[str, Path]
) -> tuple[Mapping[str, Path], Mapping[str, Path]]:
    """Records files by task, with every task that the gate needs; a stop may have left some out on the right."""
    needed = {task_of(name) for name in spec.metrics}
    if len(left) == len(right) == len(needed) == 1 and set(left) != set(right):
        # Two single files may have any names: `gate --baseline a.jsonl --candidate b.jsonl`.
        task = next(iter(needed))
        left, right = {task: next(iter(left.values()))}, {task: next(iter(right.values()))}
    for name in sorted(needed):
        for side, files in (("baseline", left), ("candidate", right)):
            if name in files or (side == "candidate" and spec.early_stop != "off" and files.keys() & needed):
                continue
            where = next(iter(files.values())).parent
            raise DataError(
                where / f"{name}.jsonl",
                f"the {side} has no records of task {name!r}, which the gate needs",
                remedy=did_you_mean(name, list(files)),
            )
    return left, right


def load_tasks(
    spec: GateSpec, left: Mapping[str, Path], right: Mapping[str, Path]
) -> tuple[dict[str, Task], list[str]]:
    needed = {task_of(name) for name in spec.metrics}
    notes = [
        f"task {name!r} was recorded on one side only and is not compared"
        for name in sorted((set(left) ^ set(right)) - needed)
    ]
    with_fields = any(rule.field != "kind" for rule in spec.slices)
    tasks = {}
    for name in sorted(set(left) & set(right)):
        sides = load(left[name], with_fields=with_fields), load(right[name], with_fields=with_fields)
        tasks[name] = _paired(spec, name, *sides)
        lonely = set(sides[0].scores) ^ set(sides[1].scores)
        notes += [
            f"metric {name}.{metric} was scored on one side only and is not compared"
            for metric in sorted(lonely)
            if f"{name}.{metric}" not in spec.metrics
        ]
    return tasks, notes


def _paired(spec: GateSpec, name: str, baseline: TaskRecords, candidate: TaskRecords) -> Task:
    """Pairs of all items, or of the first ones asked where the gate lets an evaluation end early."""
    ended = spec.early_stop != "off" and len(candidate.ids) < len(baseline.ids)
    places = asked_order(baseline) if ended or spec.early_stop == "both" else list(range(len(baseline.ids)))
    first = places[: len(candidate.ids)]
    part = ended and {baseline.ids[at] for at in first} == set(candidate.ids)
    part = part and on_a_boundary(baseline, places, len(first))
    return Task(name, pair(baseline, candidate, part=part), first if part else places, len(places))
