"""Reading a speculate stage's folder: the frozen traffic, the plan, and what each arm measured.

Nothing is guessed: a file or a field that is not as it should be is a `DataError` with file, line and field. An arm is
there when its `arm.json` is, because that file is written last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from sqtool.errors import DataError
from sqtool.files import read_json, read_jsonl, sha256_file
from sqtool.speculate.counters import Speculation, from_answer

T = TypeVar("T")
FIRST = ("baseline", "quantized", "speculative", "both", "baseline_again")
"""The order in which these arms are shown; other arms follow in the plan's order."""
SCORED_ELSEWHERE = (
    "this arm answers the tasks in the baseline or evaluate stage; its scores are in that stage's records"
)


class Sent(msgspec.Struct, frozen=True):
    """One request of one arm; times in seconds. `accepted` is None where the item has no scorer, `late_s` (how long
    after its arrival time an open loop sent it) in a closed loop."""

    id: str
    kind: str
    load: str
    round: int
    block: int
    error: str = ""
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    itl_s: list[float] = []
    late_s: float | None = None
    completion_tokens: int | None = None
    text: str = ""
    tool_calls: list[dict[str, Any]] = []
    speculation: dict[str, Any] | None = None
    accepted: bool | None = None

    @property
    def ok(self) -> bool:
        """Whether a whole answer came."""
        return not self.error and self.e2e_s is not None

    @property
    def said(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """Text and tool calls without their random ids."""
        calls = ((str(call.get("name", "")), str(call.get("arguments", ""))) for call in self.tool_calls)
        return self.text, tuple(calls)


class _Counts(msgspec.Struct, frozen=True):
    speculation: dict[str, Any] | None = None
    others: dict[str, float] = {}


class _Block(msgspec.Struct, frozen=True):
    load: str
    round: int
    block: int
    seconds: float
    counters: _Counts
    kind: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Block:
    """One block of one arm: wall time in seconds and what `/metrics` counted meanwhile."""

    load: str
    round: int
    block: int
    kind: str | None
    seconds: float
    speculation: Speculation | None
    others: Mapping[str, float]
    note: str = ""
    """Why nothing was counted; only of a server that sqtool did not start."""


class Drawn(msgspec.Struct, frozen=True):
    """One sampled answer to a prompt of the distribution test."""

    id: str
    sample: int
    text: str = ""
    tool_calls: list[dict[str, Any]] = []

    @property
    def said(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """Text and tool calls without their random ids."""
        calls = ((str(call.get("name", "")), str(call.get("arguments", ""))) for call in self.tool_calls)
        return self.text, tuple(calls)


class Asked(msgspec.Struct, frozen=True):
    """One request of the frozen traffic; block -1 is the warm-up."""

    id: str
    kind: str
    block: int
    scorer: Any = None


@dataclass(frozen=True)
class Arm:
    """What one arm measured. `info` is its arm.json."""

    name: str
    info: Mapping[str, Any]
    requests: list[Sent]
    blocks: list[Block]
    drawn: list[Drawn] = field(default_factory=list)
    probe: Mapping[str, Any] | None = None
    quality: Mapping[str, float] | None = None

    @property
    def target(self) -> str:
        """`baseline` or `quantized`."""
        return str(self.info["target"])

    @property
    def speculates(self) -> bool:
        """Whether the server had a speculative configuration."""
        return bool(self.info.get("speculative_config"))


@dataclass(frozen=True)
class Stage:
    """A whole folder. `traffic` holds the measured requests by id, without the warm-up."""

    folder: Path
    plan: Mapping[str, Any]
    traffic: Mapping[str, Asked]
    warmup: int
    sha256: str
    arms: Mapping[str, Arm]

    @property
    def loads(self) -> list[str]:
        """Names of the loads in the plan's order; those of the requests where the plan has none."""
        planned = [load if isinstance(load, str) else str(load["name"]) for load in self.plan.get("loads") or ()]
        seen = dict.fromkeys(row.load for arm in self.arms.values() for row in arm.requests)
        return [load for load in planned if load in seen] + [load for load in seen if load not in planned]

    def sibling(self, name: str) -> str | None:
        """The arm with the same target and no speculation."""
        arm = self.arms[name]
        plain = arm.target if arm.speculates else None
        return plain if plain in self.arms and plain != name else None


def read_stage(folder: Path) -> Stage:
    """Read everything; `DataError` when a file is missing or wrong, or when no arm is complete."""
    path = folder / "traffic.jsonl"
    asked = [_row(path, number, value, Asked) for number, value in read_jsonl(path)]
    traffic = {one.id: one for one in asked if one.block >= 0}
    if not traffic:
        raise DataError(path, "holds no measured request", field="block")
    plan = read_json(folder / "plan.json")
    if not isinstance(plan, dict):
        raise DataError(folder / "plan.json", "must be an object")
    found = sorted(path.parent.name for path in folder.glob("arms/*/arm.json"))
    if not found:
        raise DataError(folder / "arms", "holds no complete arm", remedy="Run the speculate stage again; it resumes.")
    planned = [one if isinstance(one, str) else str(one["name"]) for one in plan.get("arms") or ()]
    order = [name for name in dict.fromkeys((*FIRST, *planned, *found)) if name in found]
    arms = {name: _read_arm(folder / "arms" / name, name, traffic) for name in order}
    return Stage(folder, plan, traffic, sum(one.block < 0 for one in asked), sha256_file(path), arms)


def _read_arm(folder: Path, name: str, traffic: Mapping[str, Asked]) -> Arm:
    info = read_json(folder / "arm.json")
    if not isinstance(info, dict) or info.get("target") not in ("baseline", "quantized"):
        raise DataError(folder / "arm.json", "must be 'baseline' or 'quantized'", field="target")
    path = folder / "requests.jsonl"
    requests: list[Sent] = []
    seen: set[tuple[str, int, str]] = set()
    for number, value in read_jsonl(path):
        row = _row(path, number, value, Sent)
        if row.id not in traffic:
            raise DataError(path, f"{row.id!r} is not in the frozen traffic", line=number, field="id")
        if (key := (row.load, row.round, row.id)) in seen:
            raise DataError(path, f"{row.id!r} occurs twice in one round of {row.load}", line=number, field="id")
        seen.add(key)
        requests.append(row)
    if not requests:
        raise DataError(path, "holds no request")
    blocks = _read_blocks(folder / "blocks.jsonl")
    timed = {(b.load, b.round, b.block) for b in blocks}
    for row in requests:
        if (row.load, row.round, row.block) not in timed:
            where = f"load {row.load}, round {row.round}, block {row.block}"
            raise DataError(folder / "blocks.jsonl", f"has no line for {where}, in which requests were sent")
    path = folder / "sampling.jsonl"
    drawn = [_row(path, n, value, Drawn) for n, value in read_jsonl(path)] if path.is_file() else []
    path = folder / "probe.json"
    probe = read_json(path) if path.is_file() else None
    # By id and round, so that no result depends on the order in which answers came.
    requests.sort(key=lambda row: (row.load, row.id, row.round))
    return Arm(name, info, requests, blocks, drawn, probe, _read_quality(folder / "quality"))


def _read_blocks(path: Path) -> list[Block]:
    blocks = []
    for number, value in read_jsonl(path):
        row = _row(path, number, value, _Block)
        if not row.seconds > 0:
            raise DataError(path, f"must be positive, found {row.seconds}", line=number, field="seconds")
        counts = row.counters.speculation
        try:
            speculation = None if counts is None else _speculation(counts)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(path, f"{error!r}", line=number, field="counters.speculation") from None
        blocks.append(
            Block(row.load, row.round, row.block, row.kind, row.seconds, speculation, row.counters.others, row.note)
        )
    return sorted(blocks, key=lambda b: (b.load, b.round, b.block))


def _speculation(counts: Mapping[str, Any]) -> Speculation:
    positions = counts["accepted_per_position"] if "accepted_per_position" in counts else counts["per_position"]
    drafts, drafted, accepted = (int(counts[name]) for name in ("drafts", "draft_tokens", "accepted_tokens"))
    return Speculation(drafts, drafted, accepted, tuple(int(n) for n in positions))


def _read_quality(folder: Path) -> dict[str, float] | None:
    """Mean of each metric over the task records; `task/metric` where there is more than one task."""
    means: dict[str, list[float]] = {}
    files = sorted(folder.rglob("*.jsonl"))
    for path in files:
        for number, value in read_jsonl(path):
            scores = value.get("scores")
            if not isinstance(scores, dict):
                raise DataError(path, "must be an object", line=number, field="scores")
            task = str(value.get("task") or path.stem)
            for metric, score in scores.items():
                if isinstance(score, int | float):
                    means.setdefault(f"{task}/{metric}", []).append(float(score))
    return {name: sum(values) / len(values) for name, values in sorted(means.items())} or None


def report_of(row: Sent) -> Speculation | None:
    """What the server reported about this request's acceptance."""
    return None if row.speculation is None else from_answer(row.speculation)


def _row(path: Path, number: int, value: dict[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$.")
        raise DataError(path, message, line=number, field=where.rstrip("`")) from None
