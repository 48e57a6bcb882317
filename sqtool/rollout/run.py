"""Reading a rollout's log once: the table of every arm and the verdict on every candidate."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqtool.errors import DataError, UsageError, did_you_mean
from sqtool.progress import SILENT, Progress
from sqtool.rollout.clock import AGREE, FAR
from sqtool.rollout.formats import Format
from sqtool.rollout.reading import Source, records
from sqtool.rollout.record import Record
from sqtool.rollout.rules import RATES, Metric, Rules, metrics_of, rules_json
from sqtool.rollout.table import Cell
from sqtool.rollout.units import Units
from sqtool.rollout.verdict import ArmVerdict, Outcome, Watch

SCHEMA = "sqtool.rollout/1"
MOST_ARMS = 20
MOST_KINDS = 64
OTHER_KINDS = "(other kinds)"
NO_KIND = "(no kind)"


@dataclass(frozen=True)
class Rollout:
    """What a log says. `table` is by arm, `kinds` by kind and arm (empty unless asked for)."""

    source: Source
    rules: Rules
    baseline: str
    table: dict[str, dict[str, Any]]
    kinds: dict[str, dict[str, dict[str, Any]]]
    cost_unit: str | None
    verdicts: tuple[ArmVerdict, ...]
    unit: Literal["cluster", "request"]
    notes: tuple[str, ...]

    @property
    def outcome(self) -> Outcome:
        """HARM when any arm is, NO_HARM when all are."""
        found = {verdict.outcome for verdict in self.verdicts}
        return "HARM" if "HARM" in found else "NO_HARM" if found == {"NO_HARM"} else "KEEP_WATCHING"

    def to_dict(self) -> dict[str, Any]:
        """The JSON document, schema `sqtool.rollout/1`."""
        return {
            "schema": SCHEMA,
            "outcome": self.outcome,
            "baseline": self.baseline,
            "source": {
                "files": list(self.source.names),
                "format": self.source.format,
                "requests": self.source.lines,
                "first_timestamp": self.source.first,
                "last_timestamp": self.source.last,
                "out_of_order": self.source.out_of_order,
                "far_ahead": self.source.far_ahead,
                "ignored_fields": self.source.ignored,
            },
            "rules": rules_json(self.rules),
            "unit": self.unit,
            "verdict": {verdict.arm: verdict.to_dict() for verdict in self.verdicts},
            "cost_unit": self.cost_unit,
            "arms": self.table,
            "kinds": self.kinds,
            "notes": list(self.notes),
        }


def read_rollout(
    names: Sequence[str],
    rules: Rules,
    *,
    baseline: str = "baseline",
    format: Format = "auto",
    mapping: Mapping[str, str] | None = None,
    absent: Collection[str] = (),
    by_kind: bool = False,
    price_per_hour: float | None = None,
    sort: bool = False,
    progress: Progress = SILENT,
) -> Rollout:
    """Read the logs `names` (paths, `-` for standard input; in this order) and judge.

    `absent` names the flags (`corrected`, ...) of which no word means no.

    Memory does not grow with the number of requests (a set entry a user or session does), except with `sort`, which
    holds all of them. Raises `DataError` with file and line for a line that is no record, and `UsageError` for a
    baseline that is not among the arms, or a log of one arm.
    """
    source = Source(tuple(names))
    metrics = metrics_of(rules)
    units = Units([metric.bad for metric in metrics], 60 * rules.window_minutes)
    watch = Watch(metrics, baseline)
    cells: dict[str, Cell] = {}
    kinds: dict[str, dict[str, Cell]] = {}
    for record in _ordered(records(source, format, mapping, progress, absent), sort):
        cell = cells.get(record.arm)
        if cell is None:
            if len(cells) == MOST_ARMS:
                raise DataError(
                    ", ".join(names),
                    f"more than {MOST_ARMS} arms, the last {record.arm!r}",
                    field="arm",
                    remedy="Name the field that holds the arm with --field arm=PATH.",
                )
            cell = cells[record.arm] = Cell()
        cell.add(record)
        if by_kind:
            kind = record.kind or NO_KIND
            if kind not in kinds and len(kinds) >= MOST_KINDS:
                kind = OTHER_KINDS
            kinds.setdefault(kind, {}).setdefault(record.arm, Cell()).add(record)
        for unit in units.add(record):
            watch.add(unit)
    _check_arms(list(cells), baseline)
    arms = [arm for arm in sorted(cells) if arm != baseline]
    known = [units.known(place) for place in range(len(metrics))]
    only_true = [_only_true(metric, units, place) for place, metric in enumerate(metrics)]
    unit_of_cost = next((u for u in ("price", "device_seconds") if all(c.has_all(u) for c in cells.values())), None)

    def measures(cell: Cell) -> dict[str, Any]:
        return cell.to_dict(price_per_hour, unit_of_cost)

    order = [baseline, *arms]
    return Rollout(
        source,
        rules,
        baseline,
        {arm: measures(cells[arm]) for arm in order},
        {k: {arm: measures(kinds[k][arm]) for arm in order if arm in kinds[k]} for k in sorted(kinds)},
        "currency" if unit_of_cost == "device_seconds" and price_per_hour is not None else unit_of_cost,
        tuple(watch.judge(arms, rules.alpha, rules.candidates, known=known, only_true=only_true)),
        "cluster" if units.clusters else "request",
        tuple(_notes(source, units, watch, rules, arms, sort=sort)),
    )


def _only_true(metric: Metric, units: Units, place: int) -> bool:
    """Whether the metric's flag is true wherever the log has it, and is not there elsewhere: a log of events. What
    counts as bad of `accepted` is that it is false."""
    true, false = (units.fine, units.bad) if metric.good else (units.bad, units.fine)
    return metric.limit is None and bool(true[place] and units.silent[place]) and not false[place]


def _ordered(found: Iterable[Record], sort: bool) -> Iterator[Record]:
    yield from sorted(found, key=lambda record: record.timestamp) if sort else found


def _check_arms(arms: Sequence[str], baseline: str) -> None:
    shown = ", ".join(sorted(arms))
    if len(arms) == 1:
        raise UsageError(
            f"the log has one arm only, {shown!r}: a verdict compares two",
            remedy="Has the candidate no traffic yet, or is the arm in another field (--field arm=PATH)?",
        )
    if baseline not in arms:
        hint = did_you_mean(baseline, list(arms))
        raise UsageError(
            f"no arm {baseline!r} in the log (arms: {shown})",
            remedy=(hint[:1].upper() + hint[1:] + " " if hint.startswith("did") else "") + "Use --baseline ARM.",
        )


def _notes(
    source: Source, units: Units, watch: Watch, rules: Rules, arms: Sequence[str], *, sort: bool
) -> Iterator[str]:
    if source.incomplete:
        yield f"{source.incomplete}: the last line is cut off and was left out (is the log being written?)"
    if source.ignored:
        yield f"fields without a meaning here, ignored: {', '.join(source.ignored[:10])}"
    if source.only_answers:
        yield (
            "the log has neither a status nor an error: requests with an answer count as not failed "
            "(--field failed=PATH says where failures are)"
        )
    if source.out_of_order and not sort:
        yield (
            f"{source.out_of_order} requests are older than one before them, by {source.most_behind:.3g} s at most "
            f"({source.behind_at}); they were taken in the order of the log (--sort orders them by time, in memory)"
        )
    if source.far_ahead:
        yield (
            f"{source.far_ahead} requests are more than a day ahead of the requests around them, the first at "
            f"{source.ahead_at}, by {source.most_ahead / FAR:.0f} days at most (a wrong clock?); no user's window was "
            "closed by them"
        )
    if units.waiting:
        yield (
            f"the last {units.waiting} requests are more than a day ahead of all before them and not judged yet: "
            f"{AGREE} show that it is a gap in the log and no wrong clock"
        )
    for place, metric in enumerate(watch.metrics):
        if _only_true(metric, units, place):
            true, field = units.fine if metric.good else units.bad, RATES[metric.name]  # type: ignore[index]
            yield (
                f"`{field}` is true in all of the {true[place]} requests that have it and absent in "
                f"{units.silent[place]}: a rate needs both, so {metric.name} is not judged (write false as well; or, "
                f"where absent means no, add --absent {field}=false)"
            )
    missing = [m.name for place, m in enumerate(watch.metrics) if not (units.known(place) or m.named)]
    if missing:
        yield f"the log says nothing about: {', '.join(missing)}; not judged, though counted among the tests"
    if not units.clusters:
        yield (
            "no request names a user or session: each request counts as independent, which gives false alarms when "
            "users stay with an arm; log `cluster`, or name it with --field cluster=PATH"
        )
    elif units.alone:
        yield f"{units.alone} requests name no user or session and count as independent"
    if units.later:
        yield (
            f"{units.later} requests came after the first {rules.window_minutes:g} minutes of their user or session: "
            "in the table, not in the verdict (--window)"
        )
    if units.open:
        minutes = f"{rules.window_minutes:g} minutes"
        yield f"{units.open} users or sessions are within their first {minutes} and not judged yet"
    if units.elsewhere:
        yield f"{units.elsewhere} requests were answered by another arm than their user's first: not in the verdict"
    for arm in arms:
        if watch.unmatched(arm):
            yield f"{arm}: {watch.unmatched(arm)} units found no neighbour in time to be compared with"
