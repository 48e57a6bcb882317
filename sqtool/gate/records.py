"""Reading per-item records and pairing them; whatever does not pair is an error, never a smaller sample.

A records folder holds one JSONL file a task (`<task>.jsonl`). Of each line the gate reads `id`, `cluster`, `scores`
and, for slices, `kind`, `fields` and `output.prompt_tokens`; the outputs are read again, later, for the few items that
the verdict shows.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sqtool.errors import DataError, did_you_mean
from sqtool.gate.intervals import Floats, Ints
from sqtool.gate.spec import GEN_LEN, SliceRule

PROMPT_TOKENS = "prompt_tokens"
"""A slice field that needs no entry in `fields`: the prompt's length, as the engine counted it for the baseline."""


class _Row(msgspec.Struct, gc=False):
    id: str
    scores: dict[str, float | bool]
    cluster: str | int | None = None
    kind: str | None = None


class _Output(msgspec.Struct, gc=False):
    prompt_tokens: Any = None


class _RowWithFields(_Row, gc=False):
    fields: dict[str, Any] | None = None
    # Other programs' records may have any output; what is no object has no count of tokens.
    output: _Output | list[Any] | str | int | float | bool | None = None


@dataclass(frozen=True)
class TaskRecords:
    """One side's records of one task, in the file's order; `scores[metric]` is [n] with NaN where not scored."""

    path: Path
    sha256: str
    ids: list[str]
    clusters: list[str | int | None]
    kinds: list[str | None]
    fields: list[dict[str, Any]] | None
    scores: dict[str, Floats]

    def whole(self, indices: Iterable[int]) -> dict[int, dict[str, Any]]:
        """The complete records at these places, read from the file again."""
        wanted = set(indices)
        found = {}
        with self.path.open("rb") as handle:
            for index, line in enumerate(line for line in handle if not line.isspace()):
                if index in wanted:
                    found[index] = json.loads(line)
                    if len(found) == len(wanted):
                        break
        return found


@dataclass(frozen=True)
class PairedTask:
    """Both sides of one task in one order (by id, so that no result depends on the files' order).

    `base_at` and `cand_at` [n] give each item's place in its file. `codes` [n] numbers the clusters, None when every
    item stands alone.
    """

    baseline: TaskRecords
    candidate: TaskRecords
    base_at: Ints
    cand_at: Ints
    codes: Ints | None


@dataclass(frozen=True)
class PairedMetric:
    """Scores of one metric on the items that have it, shapes [n]; `rows` are places in the paired task's order. Records
    hold `scale` times these scores."""

    baseline: Floats
    candidate: Floats
    codes: Ints | None
    rows: Ints
    scale: float = 1.0


def task_files(folder: Path) -> dict[str, Path]:
    """Task name -> records file. `folder` may be one JSONL file, the records folder, or a folder with `records/`."""
    if folder.is_file():
        return {folder.stem: folder}
    if not folder.is_dir():
        raise DataError(folder, "no such records folder", remedy="Run `sqtool eval` to make one.")
    inner = folder / "records"
    files = sorted((inner if inner.is_dir() else folder).glob("*.jsonl"))
    if not files:
        raise DataError(folder, "holds no <task>.jsonl records", remedy="Run `sqtool eval` to make them.")
    return {path.stem: path for path in files}


def load(path: Path, *, with_fields: bool = False) -> TaskRecords:
    """Read and check one task's records of one side; a `DataError` names file, line and field of the first fault."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(path, "no such file") from None
    decoder: Any = msgspec.json.Decoder(_RowWithFields if with_fields else _Row)
    collecting = gc.isenabled()
    gc.disable()  # a million new rows would be walked again and again by the collector, and none of them is garbage
    try:
        rows: list[Any] = decoder.decode_lines(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _explain(path, data, decoder, error) from None
    finally:
        if collecting:
            gc.enable()
    if not rows:
        raise DataError(path, "holds no items", remedy="An empty evaluation proves nothing; run it again.")
    ids = [row.id for row in rows]
    if len(set(ids)) < len(ids):
        twice, count = Counter(ids).most_common(1)[0]
        raise DataError(
            path,
            f"item {twice!r} occurs {count} times; each id must be unique",
            line=_line_number(data, ids.index(twice, ids.index(twice) + 1)),
            field="id",
        )
    scores = [row.scores for row in rows]
    names = sorted(set(itertools.chain.from_iterable(scores)))
    return TaskRecords(
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        ids=ids,
        clusters=[row.cluster for row in rows],
        kinds=[row.kind for row in rows],
        fields=[_fields(row) for row in rows] if with_fields else None,
        scores={name: _column(path, data, scores, name) for name in names},
    )


def _fields(row: _RowWithFields) -> dict[str, Any]:
    """An item's fields, with what its output adds; an item's own field of that name counts more."""
    fields = row.fields or {}
    tokens = row.output.prompt_tokens if isinstance(row.output, _Output) else None
    return fields if tokens is None or PROMPT_TOKENS in fields else {**fields, PROMPT_TOKENS: tokens}


def _column(path: Path, data: bytes, scores: Sequence[dict[str, float | bool]], name: str) -> Floats:
    column = np.array([row.get(name) for row in scores], dtype=np.float64)
    wrong = np.flatnonzero((column < 0) | (column > 1))
    if len(wrong):
        at = int(wrong[0])
        message = f"{column[at]!s} is outside [0, 1]"
        raise DataError(path, message, line=_line_number(data, at), field=f"scores.{name}")
    return column


def _line_number(data: bytes, index: int) -> int:
    """1-based number of the line that holds record `index`; empty lines are between records."""
    numbers = (number for number, line in enumerate(data.split(b"\n"), 1) if line.strip())
    return next(itertools.islice(numbers, index, None))


def _explain(path: Path, data: bytes, decoder: Any, fault: Exception) -> DataError:
    """The fault of the first line that does not decode, in the user's terms."""
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return _explain_line(path, number, line, error)
    return DataError(path, f"not JSON lines: {fault}")


def _explain_line(path: Path, number: int, line: bytes, error: Exception) -> DataError:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return DataError(path, f"not a JSON record: {error}", line=number)
    scores = value.get("scores") if isinstance(value, dict) else None
    for name, score in scores.items() if isinstance(scores, dict) else ():
        if score is None or score != score:
            remedy = "Leave the key out where an item is not scored; a failed item scores 0."
            return DataError(path, "NaN or null is not a score", line=number, field=f"scores.{name}", remedy=remedy)
    return DataError(path, f"not a record: {error}", line=number)


def pair(baseline: TaskRecords, candidate: TaskRecords, *, part: bool = False) -> PairedTask:
    """Match the two sides by id; a `DataError` when either side has an item that the other has not.

    With `part` the candidate may have answered some of the items only; the caller answers for which ones.
    """
    for here, there, side in ((baseline, candidate, "candidate"), (candidate, baseline, "baseline")):
        if (part and side == "candidate") or (len(here.ids) == len(there.ids) and here.ids == there.ids):
            continue
        missing = set(here.ids).difference(there.ids)
        if missing:
            example = ", ".join(repr(name) for name in sorted(missing)[:3])
            raise DataError(
                there.path,
                f"{len(missing)} items of {here.path} are missing on the {side}'s side, such as {example}",
                field="id",
                remedy="Evaluate both sides on the same items; a verdict over a part of them would be biased.",
            )
    base_at = _by_id(baseline.ids)
    if part and len(candidate.ids) < len(baseline.ids):
        asked = set(candidate.ids)
        base_at = np.array([at for at in base_at.tolist() if baseline.ids[at] in asked], dtype=np.int64)
    cand_at = base_at if baseline.ids == candidate.ids else _by_id(candidate.ids)
    return PairedTask(baseline, candidate, base_at, cand_at, _clusters(baseline, candidate, base_at, cand_at))


def _by_id(ids: list[str]) -> Ints:
    if all(map(str.__lt__, ids, ids[1:])):
        return np.arange(len(ids), dtype=np.int64)
    return np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)


def _clusters(baseline: TaskRecords, candidate: TaskRecords, base_at: Ints, cand_at: Ints) -> Ints | None:
    if set(baseline.clusters) == {None} == set(candidate.clusters):
        return None
    numbers: dict[tuple[int, str], int] = {}
    codes = np.empty(len(base_at), dtype=np.int64)
    for row, (left, right) in enumerate(zip(base_at, cand_at, strict=True)):
        name = baseline.clusters[left]
        if name != candidate.clusters[right]:
            raise DataError(
                candidate.path,
                f"item {baseline.ids[left]!r} is in cluster {candidate.clusters[right]!r} here "
                f"and in {name!r} in {baseline.path}",
                field="cluster",
            )
        # An item without a cluster is one of its own; the first element keeps the two kinds of name apart.
        key = (0, baseline.ids[left]) if name is None else (1, str(name))
        codes[row] = numbers.setdefault(key, len(numbers))
    return None if len(numbers) == len(codes) else codes


def metric_names(task: PairedTask) -> list[str]:
    """Metrics that both sides have."""
    return [name for name in task.baseline.scores if name in task.candidate.scores]


def paired_metric(task: PairedTask, metric: str) -> PairedMetric:
    """Both sides' scores of `metric`; a `DataError` when a side lacks it or scored it on other items."""
    for side, records in (("baseline", task.baseline), ("candidate", task.candidate)):
        if metric not in records.scores:
            raise DataError(
                records.path,
                f"the {side}'s records have no metric {metric!r}",
                field="scores",
                remedy=did_you_mean(metric, list(records.scores)),
            )
    left = task.baseline.scores[metric][task.base_at]
    right = task.candidate.scores[metric][task.cand_at]
    scored = ~np.isnan(left)
    differing = np.flatnonzero(scored != ~np.isnan(right))
    if len(differing):
        example = task.baseline.ids[int(task.base_at[differing[0]])]
        raise DataError(
            task.candidate.path,
            f"{len(differing)} items have {metric!r} on one side only, such as {example!r}",
            field=f"scores.{metric}",
            remedy="Whether an item is scored may depend on the item, never on the answer.",
        )
    rows = np.flatnonzero(scored).astype(np.int64)
    left, right = left[rows], right[rows]
    scale = 1.0
    if metric == GEN_LEN and len(rows):
        # A share of the allowance says little where the allowance is generous: of the longest answer it says more.
        scale = max(float(left.max()), float(right.max())) or 1.0
        left, right = left / scale, right / scale
    return PairedMetric(left, right, recode(task.codes, rows), rows, scale)


def recode(codes: Ints | None, rows: Ints) -> Ints | None:
    """Cluster numbers 0..G-1 of a subset of items; None when none of them share a cluster any more."""
    if codes is None or len(rows) == 0:
        return None
    distinct, renumbered = np.unique(codes[rows], return_inverse=True)
    return None if len(distinct) == len(rows) else renumbered.astype(np.int64)


def metric_slices(task: PairedTask, data: PairedMetric, rule: SliceRule) -> Iterator[tuple[str, PairedMetric]]:
    """Each slice that `rule` makes of a metric's items, by name; `DataError` when it makes none."""
    values = np.array(slice_values(task, rule), dtype=object)[data.rows]
    found = rule.ordered(values.tolist())
    if not found:
        raise _no_such_field(task.baseline, rule)
    for name in found:
        rows = np.flatnonzero(values == name).astype(np.int64)
        yield name, PairedMetric(data.baseline[rows], data.candidate[rows], recode(data.codes, rows), data.rows[rows])


def _no_such_field(records: TaskRecords, rule: SliceRule) -> DataError:
    known = sorted({"kind"}.union(*(records.fields or ())) - {rule.field})
    return DataError(
        records.path,
        "is in gate.slices, and no item that is scored has it",
        field=rule.field,
        remedy=did_you_mean(rule.field, known),
    )


def slice_values(task: PairedTask, rule: SliceRule) -> list[str]:
    """The slice that each item belongs to, [n] in paired order, from the baseline's `kind` or `fields`.

    A value that is no text is named as JSON, a number that is sorted into bins by its bin; an item without the field
    is in no slice and gets an empty name. `DataError` when no item has the field, or when a value to be sorted into
    bins is no number.
    """
    records = task.baseline
    if rule.field == "kind":
        return [records.kinds[at] or "" for at in task.base_at]
    if records.fields is None:
        raise ValueError("records were loaded without their fields")
    values = [records.fields[at].get(rule.field) for at in task.base_at]
    if all(value is None for value in values):
        raise _no_such_field(records, rule)
    if rule.bins is not None:
        return _binned(task, rule, rule.bins, values)
    return ["" if v is None else v if isinstance(v, str) else json.dumps(v, sort_keys=True) for v in values]


def _binned(task: PairedTask, rule: SliceRule, bins: Sequence[float], values: Sequence[Any]) -> list[str]:
    names = rule.bin_names()
    found = []
    for at, value in zip(task.base_at, values, strict=True):
        if value is None:
            found.append("")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append(names[bisect_left(bins, value)])
        else:
            raise DataError(
                task.baseline.path,
                f"item {task.baseline.ids[at]!r} has {json.dumps(value)}, and gate.slices sorts numbers into bins",
                field=f"fields.{rule.field}",
                remedy="Leave bins out for one slice per value.",
            )
    return found
