"""Judging: both sides' records and the rules in, a verdict out.

A verdict is a function of the records and the spec alone: computing it again gives the same bytes. An evaluation that
ended early is judged by the sequence that let it end (`sqtool.gate.stopping`); records that are incomplete for any
other reason are an error, never a smaller sample.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sqtool.errors import DataError
from sqtool.gate.compare import Comparison, Outcome, compare, decide, items_to_decide, with_power
from sqtool.gate.control import judge_control
from sqtool.gate.multiplicity import holm
from sqtool.gate.records import (
    PairedMetric,
    TaskRecords,
    metric_names,
    metric_slices,
    paired_metric,
    task_files,
)
from sqtool.gate.sides import Task, load_tasks, records_files, task_of
from sqtool.gate.spec import GateSpec, MetricRule, diagnostic
from sqtool.gate.stopping import (
    Evidence,
    asked_order,
    cluster_codes,
    declared_of,
    evidence,
    harm_alpha,
)
from sqtool.gate.verdict import Difference, MetricVerdict, RecordsHash, Stopped, Verdict, WorstItem

WORST_ITEMS = 10
LOWEST_RELATIVE_BASELINE = 0.05
STOPPED = "stopped_early"
UNSTABLE = "unstable_engine"
DIFFERS = "differs_from_the_baseline"


@dataclass
class _Entry:
    """A comparison on its way to a verdict."""

    metric: str
    rule: MetricRule
    gated: bool
    task: Task
    data: PairedMetric
    result: Comparison
    declared: int
    evidence: Evidence | None = None
    slice_field: str | None = None
    slice_value: str | None = None
    require: Literal["no_harm", "pass"] = "pass"

    @property
    def undecided(self) -> bool:
        """Whether the fixed tests do not apply: they are for the declared number of items only."""
        return self.task.part


def judge(
    spec: GateSpec,
    baseline: Path,
    candidate: Path,
    *,
    control: Path | None = None,
    bindings: Mapping[str, Any] | None = None,
    differences: Sequence[Mapping[str, str]] = (),
) -> Verdict:
    """Judge the candidate's records against the baseline's (folders of `<task>.jsonl`, or one such file each).

    `control` is the folder of the baseline's second set of answers, the A/A control. `bindings` says what was measured
    (engine, version, device class, kernels, KV dtype, server flags); it is kept in the verdict. `differences` are the
    fields beside the weights that are not the baseline's (file, field, baseline, candidate). Raises `DataError`
    when a gated metric is missing, when items do not pair, or when the candidate answered a part of the items and
    nothing among them justifies having stopped there.
    """
    files = records_files(spec, task_files(baseline), task_files(candidate))
    tasks, notes = load_tasks(spec, *files)
    entries = [_entry(spec, tasks, name, rule) for name, rule in spec.metrics.items() if task_of(name) in tasks]
    for task_name, task in tasks.items():
        for metric in metric_names(task.paired):
            name = f"{task_name}.{metric}"
            if name in spec.metrics:
                continue
            try:
                entries.append(_entry(spec, tasks, name, diagnostic(name)))
            except DataError as error:  # nobody asked for this metric, so it does not stop the gate
                # Without the file's place, which differs where the verdict is computed again.
                notes.append(f"metric {name} is not compared: {error.message.removeprefix(f'{error.path}: ')}")
    not_measured = tuple(name for name in spec.gated if task_of(name) not in tasks)
    _check_stop(spec, tasks, entries, not_measured, candidate)
    slices = [part for entry in entries if entry.gated for part in _slices(spec, entry)]

    family = [entry for entry in entries if entry.gated] + slices
    p_values = [1.0 if entry.undecided else entry.result.harm.p_value for entry in family]
    adjusted = dict(zip(map(id, family), holm([*p_values, *(1.0 for _ in not_measured)]), strict=False))
    size = len(family) + len(not_measured)
    judged = [_judge_one(spec, entry, adjusted.get(id(entry)), size) for entry in entries]
    parts = [_judge_one(spec, entry, adjusted[id(entry)], size) for entry in slices]
    steady = None if control is None else judge_control(spec, files[0], control)
    outcome, reasons = _overall([m for m in judged if m.gated], parts, not_measured)
    if steady is not None and not steady.stable:
        unsteady = [m for m in steady.metrics if not m.steady]
        outcome, reasons = "INCONCLUSIVE", tuple(f"{m.metric}: {UNSTABLE} ({m.reason})" for m in unsteady)
    differ = tuple(
        Difference(**found, allowed=f"{found['file']}:{found['field']}" in spec.allow_differences)
        for found in differences
    )
    if any(not found.allowed for found in differ):
        # Certain without any statistics, and so whatever the engine's steadiness.
        outcome, reasons = "REGRESSED", tuple(f"{d.name}: {DIFFERS}" for d in differ if not d.allowed)
    return Verdict(
        outcome=outcome,
        reasons=reasons,
        inconclusive=spec.inconclusive,
        alpha=spec.alpha,
        early_stop=spec.early_stop,
        stopped=tuple(Stopped(task=t.name, items=len(t.asked), of=t.declared) for t in tasks.values() if t.part),
        not_measured=not_measured,
        control=steady,
        differences=differ,
        tests_in_family=size,
        metrics=tuple(judged),
        slices=tuple(parts),
        notes=tuple(notes),
        inputs={
            side: {name: _hash(getattr(task.paired, side)) for name, task in tasks.items()}
            for side in ("baseline", "candidate")
        },
        bindings=json.loads(json.dumps(dict(bindings or {}), sort_keys=True, allow_nan=False)),
        spec=spec.model_dump(mode="json"),
    )


def _entry(spec: GateSpec, tasks: Mapping[str, Task], name: str, rule: MetricRule) -> _Entry:
    task_name, _, metric = name.rpartition(".")
    task = tasks[task_name]
    data = paired_metric(task.paired, metric)
    path = task.paired.baseline.path
    if len(data.rows) == 0:
        raise DataError(path, "no item has a score", field=f"scores.{metric}")
    result = compare(data.baseline, data.candidate, data.codes, rule, spec.alpha, spec.min_items)
    if rule.gated and rule.relative is not None and result.baseline < LOWEST_RELATIVE_BASELINE:
        raise DataError(
            path,
            f"a relative margin on {name} needs a baseline mean of at least {LOWEST_RELATIVE_BASELINE}; "
            f"it is {result.baseline:.4g}",
            field=f"scores.{metric}",
            remedy="Give max_drop (absolute), or choose items that the baseline can do.",
        )
    declared = int(np.count_nonzero(~np.isnan(task.paired.baseline.scores[metric])))
    sequential = task.part or spec.early_stop == "both"
    shown = _evidence(spec, rule, task, metric) if rule.gated and sequential else None
    return _Entry(name, rule, rule.gated, task, data, result, declared, shown)


def _evidence(spec: GateSpec, rule: MetricRule, task: Task, metric: str) -> Evidence:
    """What the items show in the order asked."""
    left, right = task.paired.baseline, task.paired.candidate
    at = {name: place for place, name in enumerate(right.ids)}
    places = [place for place in task.asked if not np.isnan(left.scores[metric][place])]
    scores = right.scores[metric][[at[left.ids[place]] for place in places]]
    codes = cluster_codes([left.clusters[place] for place in places])
    every = task.asked if not task.part else asked_order(left)
    return evidence(spec, rule, left.scores[metric][places], scores, codes, declared_of(left, metric, every))


def _check_stop(
    spec: GateSpec, tasks: Mapping[str, Task], entries: list[_Entry], not_measured: tuple[str, ...], candidate: Path
) -> None:
    """`DataError` when items are missing and what is there does not justify that."""
    parts = [task for task in tasks.values() if task.part]
    if not parts and not not_measured:
        return
    gated = [entry for entry in entries if entry.gated and entry.evidence is not None]
    if any(entry.evidence.exceeds for entry in gated if entry.evidence is not None):
        return
    passed = {entry.task.name for entry in gated}
    passed -= {entry.task.name for entry in gated if entry.evidence is not None and not entry.evidence.passed}
    if not not_measured and not spec.slices and all(task.name in passed for task in parts):
        return
    what = [f"{len(task.asked)} of {task.declared} items of task {task.name!r}" for task in parts]
    what += [f"no items for {name}" for name in not_measured]
    raise DataError(
        candidate,
        f"holds {', '.join(what)}, and by these rules nothing among them justifies having stopped there",
        remedy="Run the evaluation again: `sqtool quantize` asks what is missing.",
    )


def _slices(spec: GateSpec, entry: _Entry) -> list[_Entry]:
    parts = []
    for rule in spec.slices:
        for value, data in metric_slices(entry.task.paired, entry.data, rule):
            result = compare(data.baseline, data.candidate, data.codes, entry.rule, spec.alpha, spec.min_items)
            parts.append(
                _Entry(
                    entry.metric,
                    entry.rule,
                    True,
                    entry.task,
                    data,
                    result,
                    result.n,
                    slice_field=rule.field,
                    slice_value=value,
                    require=rule.require,
                )
            )
    return parts


def _decided(spec: GateSpec, entry: _Entry, p_adjusted: float | None) -> tuple[Outcome | Literal["NOT_JUDGED"], str]:
    """(outcome, reason): the fixed tests where every declared item was asked, the sequence where it has a say."""
    shown = entry.evidence
    if entry.undecided and entry.slice_field is not None:
        return "NOT_JUDGED", STOPPED
    outcome: Outcome = "INCONCLUSIVE"
    reason = STOPPED
    if not entry.undecided:
        # A diagnostic metric is in no family: it shows its interval, and p = 1 keeps it from being REGRESSED.
        outcome, reason = decide(entry.result, 1.0 if p_adjusted is None else p_adjusted, harm_alpha(spec))
    if shown is None or outcome == "REGRESSED":
        return outcome, reason
    if shown.exceeds:
        return "REGRESSED", "drop_exceeds_margin"
    if spec.early_stop == "both":
        if shown.passed and not entry.result.too_few:
            return "PASS", "drop_beyond_margin_excluded"
        return "INCONCLUSIVE", STOPPED if entry.undecided else "sequence_reaches_margin"
    return outcome, reason


def _judge_one(spec: GateSpec, entry: _Entry, p_adjusted: float | None, family: int) -> MetricVerdict:
    result, shown = entry.result, entry.evidence
    outcome, reason = _decided(spec, entry, p_adjusted)
    least = max(spec.min_items, entry.rule.min_items or 1)
    needed = items_to_decide(result, spec.alpha, max(family, 1), least) if outcome == "INCONCLUSIVE" else None
    if entry.slice_field is not None and outcome == "INCONCLUSIVE" and not _could_pass(result, entry, spec.alpha):
        outcome, reason = "NOT_JUDGED", "too_few_items_even_without_flips"
    # The interval shown is that of whatever decided.
    by_sequence = shown is not None and (
        entry.undecided or (spec.early_stop == "both" and outcome != "REGRESSED") or reason == "sequence_reaches_margin"
    )
    lower, upper = _sequence_interval(entry, shown) if by_sequence and shown else (result.lower, result.upper)
    return MetricVerdict(
        metric=entry.metric,
        slice_field=entry.slice_field,
        slice_value=entry.slice_value,
        require=entry.require,
        gated=entry.gated,
        direction=entry.rule.direction,
        outcome=outcome,
        reason=reason,
        items=result.n,
        declared=entry.declared,
        clusters=result.clusters,
        baseline=result.baseline,
        candidate=result.candidate,
        difference=result.difference,
        # A running intersection may leave the mean of the moment; an interval that does so would only confuse.
        lower=min(lower, result.difference),
        upper=max(upper, result.difference),
        margin=result.margin,
        margin_kind="absolute" if entry.rule.relative is None else "relative",
        improved=result.improved,
        worsened=result.worsened,
        interval="betting_sequence" if by_sequence else result.interval.method,
        design_effect=result.interval.design_effect,
        test="betting_sequence" if entry.undecided and shown is not None else result.harm.name,
        p_value=None if p_adjusted is None or entry.undecided else result.harm.p_value,
        p_adjusted=None if entry.undecided else p_adjusted,
        pass_p_value=shown.pass_p if shown is not None and spec.early_stop == "both" else result.exact_p,
        sequence_p_value=None if shown is None else shown.harm_p,
        alpha=result.alpha,
        items_to_decide=needed,
        items_for_power=with_power(needed, spec.alpha),
        worst=_worst(entry) if entry.gated and entry.slice_field is None else (),
    )


def _sequence_interval(entry: _Entry, shown: Evidence) -> tuple[float, float]:
    """The sequence's bounds, which are of scores as recorded, on the scale of the difference."""
    shift = entry.result.margin + entry.result.threshold
    lower, upper = shown.lower / entry.data.scale - shift, shown.upper / entry.data.scale - shift
    return max(lower, -1.0), min(upper, 1.0)


def _could_pass(result: Comparison, entry: _Entry, alpha: float) -> bool:
    """Whether this many items could have passed had no answer changed."""
    same = entry.data.baseline
    unchanged = compare(same, same, entry.data.codes, entry.rule, alpha)
    return decide(unchanged, 1.0, alpha)[0] == "PASS" and not result.too_few


def _worst(entry: _Entry) -> tuple[WorstItem, ...]:
    sign = 1.0 if entry.rule.direction == "higher" else -1.0
    change = sign * (entry.data.candidate - entry.data.baseline)
    order = np.argsort(change, kind="stable")[:WORST_ITEMS]
    worse = [int(at) for at in order if change[at] < 0]
    if not worse:
        return ()
    paired = entry.task.paired
    places = [(int(paired.base_at[row]), int(paired.cand_at[row])) for row in entry.data.rows[worse]]
    lefts = paired.baseline.whole(left for left, _ in places)
    rights = paired.candidate.whole(right for _, right in places)
    items = []
    for at, places_of in zip(worse, places, strict=True):
        left, right = lefts[places_of[0]], rights[places_of[1]]
        items.append(
            WorstItem(
                id=left["id"],
                kind=left.get("kind"),
                baseline_score=float(entry.data.baseline[at]),
                candidate_score=float(entry.data.candidate[at]),
                baseline_output=left.get("output"),
                candidate_output=right.get("output"),
                expected=left.get("expected"),
            )
        )
    return tuple(items)


def _overall(
    metrics: list[MetricVerdict], slices: list[MetricVerdict], not_measured: tuple[str, ...]
) -> tuple[Outcome, tuple[str, ...]]:
    everything = metrics + slices
    regressed = [m for m in everything if m.outcome == "REGRESSED"]
    if regressed:
        return "REGRESSED", tuple(f"{m.name}: {m.reason}" for m in regressed)
    unsure = [m for m in everything if m.require == "pass" and m.outcome != "PASS"]
    if unsure or not_measured:
        missing = tuple(f"{name}: not_measured" for name in not_measured)
        return "INCONCLUSIVE", (*(f"{m.name}: {m.reason}" for m in unsure), *missing)
    return "PASS", ()


def _hash(records: TaskRecords) -> RecordsHash:
    return RecordsHash(file=records.path.name, sha256=records.sha256, items=len(records.ids))
