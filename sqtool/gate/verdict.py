"""The verdict: the design's three outcomes over all gated metrics and slices, and the file that records it.

    PASS          every gated metric's lower bound is above minus its margin (an intersection-union test: the chance
                  of accepting a drop as large as a margin is at most about alpha, without correction)
    REGRESSED     for some gated metric or slice the harm test, Holm-adjusted over all of them, rejects "no drop",
                  and the drop seen is at or past the margin (the chance under no change is at most alpha in all)
    INCONCLUSIVE  anything else

A verdict is a function of the two sides' records and the spec alone: computing it again gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from sqtool.errors import (
    EXIT_INCONCLUSIVE,
    EXIT_REFUSED,
    EXIT_RELEASED,
    DataError,
    did_you_mean,
)
from sqtool.gate.compare import Comparison, Outcome, compare, decide, items_to_decide, with_power
from sqtool.gate.multiplicity import holm
from sqtool.gate.records import (
    PairedMetric,
    PairedTask,
    load,
    metric_names,
    metric_slices,
    pair,
    paired_metric,
    task_files,
)
from sqtool.gate.spec import GateSpec, MetricRule

SCHEMA = "sqtool.verdict/1"
WORST_ITEMS = 10
LOWEST_RELATIVE_BASELINE = 0.05


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class WorstItem(_Part):
    """An item that got worse, with both answers, so that a person can look."""

    id: str
    kind: str | None
    baseline_score: float
    candidate_score: float
    baseline_output: Any
    candidate_output: Any
    expected: Any


class MetricVerdict(_Part):
    """One metric on all items, or on one slice of them.

    `difference`, `lower` and `upper` are candidate minus baseline, turned round for metrics that should be low, so
    that negative is always worse. `margin` is absolute here; `margin_kind` says how the recipe gave it. The
    p-values are None for diagnostic metrics, which are in no family of tests.
    """

    metric: str
    slice_field: str | None = None
    slice_value: str | None = None
    require: Literal["no_harm", "pass"] = "pass"
    gated: bool
    direction: Literal["higher", "lower"]
    outcome: Literal["PASS", "REGRESSED", "INCONCLUSIVE", "NOT_JUDGED"]
    reason: str
    items: int
    clusters: int
    baseline: float
    candidate: float
    difference: float
    lower: float
    upper: float
    margin: float
    margin_kind: Literal["absolute", "relative"]
    improved: int = Field(description="Items whose score rose (for a metric that should be low: fell).")
    worsened: int
    interval: str
    design_effect: float
    test: str
    p_value: float | None = None
    p_adjusted: float | None = None
    items_to_decide: int | None = Field(default=None, description="At the behaviour seen; None when not reachable.")
    items_for_power: int | None = Field(default=None, description="The same, deciding with a chance of 80 %.")
    worst: tuple[WorstItem, ...] = ()

    @property
    def name(self) -> str:
        """`task.metric`, with `[field=value]` for a slice."""
        return self.metric if self.slice_field is None else f"{self.metric}[{self.slice_field}={self.slice_value}]"


class RecordsHash(_Part):
    """One file that the verdict rests on."""

    file: str
    sha256: str
    items: int


class Verdict(_Part):
    """What the gate decided, and everything needed to check it."""

    schema_: str = Field(default=SCHEMA, alias="schema")
    outcome: Outcome
    reasons: tuple[str, ...]
    inconclusive: Literal["refuse", "allow"]
    alpha: float
    tests_in_family: int
    metrics: tuple[MetricVerdict, ...]
    slices: tuple[MetricVerdict, ...]
    notes: tuple[str, ...]
    inputs: dict[str, dict[str, RecordsHash]]
    bindings: dict[str, Any]
    spec: dict[str, Any]

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @property
    def exit_code(self) -> int:
        """0 PASS (or INCONCLUSIVE where the recipe allows it), 1 REGRESSED, 3 INCONCLUSIVE."""
        if self.outcome == "REGRESSED":
            return EXIT_REFUSED
        if self.outcome == "PASS" or self.inconclusive == "allow":
            return EXIT_RELEASED
        return EXIT_INCONCLUSIVE

    @property
    def accepted(self) -> bool:
        """Whether the candidate may be released."""
        return self.exit_code == EXIT_RELEASED

    def metric(self, name: str) -> MetricVerdict:
        """The whole metric called `name`; KeyError when the verdict has none."""
        for entry in self.metrics:
            if entry.metric == name:
                return entry
        raise KeyError(name)

    def to_json(self) -> str:
        """The verdict file's text: the same verdict is always the same bytes."""
        value = self.model_dump(mode="json", by_alias=True)
        return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Verdict:
        """Read `to_json`'s text; pydantic's ValidationError when it is not a verdict of this schema."""
        verdict = cls.model_validate_json(text)
        if verdict.schema_ != SCHEMA:
            raise ValueError(f"verdict has schema {verdict.schema_!r}, this version reads {SCHEMA!r}")
        return verdict


@dataclass
class _Entry:
    """A comparison on its way to a verdict."""

    metric: str
    rule: MetricRule
    gated: bool
    task: PairedTask
    data: PairedMetric
    result: Comparison
    slice_field: str | None = None
    slice_value: str | None = None
    require: Literal["no_harm", "pass"] = "pass"


def judge(spec: GateSpec, baseline: Path, candidate: Path, *, bindings: Mapping[str, Any] | None = None) -> Verdict:
    """Judge the candidate's records against the baseline's (folders of `<task>.jsonl`, or one such file each).

    `bindings` says what was measured (engine, version, device class, kernels, KV dtype, server flags); it is kept in
    the verdict. Raises `DataError` when a gated metric is missing, or when items do not pair.
    """
    tasks, notes = _load_tasks(spec, task_files(baseline), task_files(candidate))
    entries = [_entry(spec, tasks, name, rule) for name, rule in spec.metrics.items()]
    for task_name, task in tasks.items():
        for metric in metric_names(task):
            name = f"{task_name}.{metric}"
            if name in spec.metrics:
                continue
            try:
                entries.append(_entry(spec, tasks, name, MetricRule(gated=False)))
            except DataError as error:  # nobody asked for this metric, so it does not stop the gate
                notes.append(f"metric {name} is not compared: {error.message}")
    slices = [part for entry in entries if entry.gated for part in _slices(spec, entry)]

    family = [entry for entry in entries if entry.gated] + slices
    adjusted = dict(zip(map(id, family), holm([e.result.harm.p_value for e in family]), strict=True))
    judged = [_judge_one(spec, entry, adjusted.get(id(entry)), len(family)) for entry in entries]
    parts = [_judge_one(spec, entry, adjusted[id(entry)], len(family)) for entry in slices]
    outcome, reasons = _overall([m for m in judged if m.gated], parts)
    return Verdict(
        outcome=outcome,
        reasons=reasons,
        inconclusive=spec.inconclusive,
        alpha=spec.alpha,
        tests_in_family=len(family),
        metrics=tuple(judged),
        slices=tuple(parts),
        notes=tuple(notes),
        inputs={
            side: {name: _hash(getattr(task, side)) for name, task in tasks.items()}
            for side in ("baseline", "candidate")
        },
        bindings=json.loads(json.dumps(dict(bindings or {}), sort_keys=True, allow_nan=False)),
        spec=spec.model_dump(mode="json"),
    )


def _load_tasks(
    spec: GateSpec, left: Mapping[str, Path], right: Mapping[str, Path]
) -> tuple[dict[str, PairedTask], list[str]]:
    needed = {name.rpartition(".")[0] for name in spec.metrics}
    if len(left) == len(right) == len(needed) == 1 and set(left) != set(right):
        # Two single files may have any names: `gate --baseline a.jsonl --candidate b.jsonl`.
        task = next(iter(needed))
        left, right = {task: next(iter(left.values()))}, {task: next(iter(right.values()))}
    for name in sorted(needed):
        for side, files in (("baseline", left), ("candidate", right)):
            if name not in files:
                where = next(iter(files.values())).parent
                raise DataError(
                    where / f"{name}.jsonl",
                    f"the {side} has no records of task {name!r}, which the gate needs",
                    remedy=did_you_mean(name, list(files)),
                )
    notes = [
        f"task {name!r} was recorded on one side only and is not compared" for name in sorted(set(left) ^ set(right))
    ]
    with_fields = any(rule.field != "kind" for rule in spec.slices)
    tasks = {}
    for name in sorted(set(left) & set(right)):
        tasks[name] = pair(load(left[name], with_fields=with_fields), load(right[name], with_fields=with_fields))
        lonely = set(tasks[name].baseline.scores) ^ set(tasks[name].candidate.scores)
        notes += [
            f"metric {name}.{metric} was scored on one side only and is not compared"
            for metric in sorted(lonely)
            if f"{name}.{metric}" not in spec.metrics
        ]
    return tasks, notes


def _entry(spec: GateSpec, tasks: Mapping[str, PairedTask], name: str, rule: MetricRule) -> _Entry:
    task_name, _, metric = name.rpartition(".")
    task = tasks[task_name]
    data = paired_metric(task, metric)
    if len(data.rows) == 0:
        raise DataError(task.baseline.path, "no item has a score", field=f"scores.{metric}")
    result = compare(data.baseline, data.candidate, data.codes, rule, spec.alpha, spec.min_items)
    if rule.gated and rule.relative is not None and result.baseline < LOWEST_RELATIVE_BASELINE:
        raise DataError(
            task.baseline.path,
            f"a relative margin on {name} needs a baseline mean of at least {LOWEST_RELATIVE_BASELINE}; "
            f"it is {result.baseline:.4g}",
            field=f"scores.{metric}",
            remedy="Give max_drop (absolute), or choose items that the baseline can do.",
        )
    return _Entry(name, rule, rule.gated, task, data, result)


def _slices(spec: GateSpec, entry: _Entry) -> list[_Entry]:
    parts = []
    for rule in spec.slices:
        for value, data in metric_slices(entry.task, entry.data, rule):
            result = compare(data.baseline, data.candidate, data.codes, entry.rule, spec.alpha, spec.min_items)
            parts.append(
                _Entry(entry.metric, entry.rule, True, entry.task, data, result, rule.field, value, rule.require)
            )
    return parts


def _judge_one(spec: GateSpec, entry: _Entry, p_adjusted: float | None, family: int) -> MetricVerdict:
    result = entry.result
    outcome: Outcome | Literal["NOT_JUDGED"]
    # A diagnostic metric is in no family: it shows its interval, and p = 1 keeps it from being REGRESSED.
    outcome, reason = decide(result, 1.0 if p_adjusted is None else p_adjusted, spec.alpha)
    least = max(spec.min_items, entry.rule.min_items or 1)
    needed = items_to_decide(result, spec.alpha, max(family, 1), least) if outcome == "INCONCLUSIVE" else None
    if entry.slice_field is not None and outcome == "INCONCLUSIVE" and not _could_pass(result, entry, spec.alpha):
        outcome, reason = "NOT_JUDGED", "too_few_items_even_without_flips"
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
        clusters=result.clusters,
        baseline=result.baseline,
        candidate=result.candidate,
        difference=result.difference,
        lower=result.lower,
        upper=result.upper,
        margin=result.margin,
        margin_kind="absolute" if entry.rule.relative is None else "relative",
        improved=result.improved,
        worsened=result.worsened,
        interval=result.interval.method,
        design_effect=result.interval.design_effect,
        test=result.harm.name,
        p_value=None if p_adjusted is None else result.harm.p_value,
        p_adjusted=p_adjusted,
        items_to_decide=needed,
        items_for_power=with_power(needed, spec.alpha),
        worst=_worst(entry) if entry.gated and entry.slice_field is None else (),
    )


def _could_pass(result: Comparison, entry: _Entry, alpha: float) -> bool:
    """Whether this many items could have passed had no answer changed."""
    same = entry.data.baseline
    unchanged = compare(same, same, entry.data.codes, entry.rule, alpha)
    return unchanged.interval.lower > unchanged.threshold and not result.too_few


def _worst(entry: _Entry) -> tuple[WorstItem, ...]:
    sign = 1.0 if entry.rule.direction == "higher" else -1.0
    change = sign * (entry.data.candidate - entry.data.baseline)
    order = np.argsort(change, kind="stable")[:WORST_ITEMS]
    worse = [int(at) for at in order if change[at] < 0]
    if not worse:
        return ()
    places = [(int(entry.task.base_at[row]), int(entry.task.cand_at[row])) for row in entry.data.rows[worse]]
    lefts = entry.task.baseline.whole(left for left, _ in places)
    rights = entry.task.candidate.whole(right for _, right in places)
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


def _overall(metrics: list[MetricVerdict], slices: list[MetricVerdict]) -> tuple[Outcome, tuple[str, ...]]:
    everything = metrics + slices
    regressed = [m for m in everything if m.outcome == "REGRESSED"]
    if regressed:
        return "REGRESSED", tuple(f"{m.name}: {m.reason}" for m in regressed)
    unsure = [m for m in everything if m.require == "pass" and m.outcome != "PASS"]
    if unsure:
        return "INCONCLUSIVE", tuple(f"{m.name}: {m.reason}" for m in unsure)
    return "PASS", ()


def _hash(records: Any) -> RecordsHash:
    return RecordsHash(file=records.path.name, sha256=records.sha256, items=len(records.ids))
