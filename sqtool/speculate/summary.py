"""One arm in numbers: latency percentiles, throughput, acceptance overall and per kind, failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqtool.speculate.client import Answer
from sqtool.speculate.counters import Counters, Speculation, add_up, from_answer

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class BlockResult:
    """One block of one arm: wall time in seconds, and what `/metrics` counted in it. `kind` only for such blocks."""

    seconds: float
    counted: Counters
    kind: str | None


@dataclass
class ArmResult:
    """Everything that was measured on one arm, in the order sent."""

    name: str
    model: Path
    speculates: bool
    answers: list[Answer] = field(default_factory=list)
    blocks: list[BlockResult] = field(default_factory=list)
    engine: dict[str, Any] = field(default_factory=dict)

    @property
    def good(self) -> list[Answer]:
        """The requests that were answered."""
        return [answer for answer in self.answers if answer.ok]

    @property
    def seconds(self) -> float:
        """Wall time of the blocks, without the pauses between them."""
        return sum(block.seconds for block in self.blocks)


def percentiles(values: Sequence[float], scale: float = 1000.0) -> dict[str, float | int] | None:
    """p50, p90, p95, p99 (linear interpolation), mean and n of `values` times `scale`; None without values."""
    import numpy as np

    if not values:
        return None
    array = np.asarray(values, dtype=np.float64) * scale
    result: dict[str, float | int] = {f"p{p}": float(np.percentile(array, p)) for p in PERCENTILES}
    return {**result, "mean": float(array.mean()), "n": len(array)}


def latency(answers: Sequence[Answer]) -> dict[str, Any]:
    """Percentiles in milliseconds of TTFT, TPOT, ITL and end-to-end over successful answers."""
    return {
        "ttft_ms": percentiles([a.ttft_s for a in answers if a.ttft_s is not None]),
        "tpot_ms": percentiles([a.tpot_s for a in answers if a.tpot_s is not None]),
        "itl_ms": percentiles([gap for a in answers for gap in a.itl_s]),
        "e2e_ms": percentiles([a.e2e_s for a in answers if a.e2e_s is not None]),
    }


def counted(arm: ArmResult) -> Speculation | None:
    """The arm's acceptance by `/metrics`, or None for an arm whose server has none."""
    parts = [block.counted.speculation for block in arm.blocks]
    present = [part for part in parts if part is not None]
    return add_up(present) if present else None


def reported(answers: Sequence[Answer]) -> Speculation | None:
    """Acceptance by the answers' own reports; None unless every answer has one."""
    reports = [a.speculation for a in answers]
    if not reports or any(report is None for report in reports):
        return None
    return add_up(from_answer(report) for report in reports if report is not None)


def summarize(arm: ArmResult) -> dict[str, Any]:
    """The arm's entry in speculate.json. What the runtime does not give is absent, with the reason under `missing`;
    `speculation` is None for an arm that does not speculate."""
    good = arm.good
    tokens = sum(a.completion_tokens or 0 for a in good)
    seconds = arm.seconds if good and arm.seconds > 0 else None
    others: Counter[str] = Counter()
    for block in arm.blocks:
        others.update({name: round(value) for name, value in block.counted.others.items()})
    return {
        "model": arm.model.name,
        "requests": len(arm.answers),
        "failures": _failures(arm.answers),
        "seconds": arm.seconds,
        "output_tokens": tokens,
        "output_tokens_per_s": tokens / seconds if seconds else None,
        "requests_per_s": len(good) / seconds if seconds else None,
        "latency": latency(good),
        "finish_reasons": dict(sorted(Counter(a.finish_reason or "" for a in good).items())),
        "speculation": _speculation(arm),
        "counters": dict(others),
        "kinds": {kind: _kind(arm, kind) for kind in sorted({a.kind for a in arm.answers})},
        "engine": arm.engine,
    }


def _failures(answers: Sequence[Answer]) -> dict[str, Any]:
    failed = [a for a in answers if not a.ok]
    return {"count": len(failed), "examples": [{"id": a.id, "error": a.error} for a in failed[:3]]}


def _speculation(arm: ArmResult) -> dict[str, Any] | None:
    if not arm.speculates:
        return None
    by_metrics, by_answers = counted(arm), reported(arm.good)
    whole = by_metrics or by_answers
    if whole is None:
        return {"missing": "the server counted no speculative decoding"}
    check: dict[str, Any] = {"per_request_reports": by_answers is not None}
    if by_metrics is not None and by_answers is not None:
        check |= {"agree": by_metrics == by_answers, "per_request": by_answers.to_dict()}
    return {**whole.to_dict(), "source": "metrics" if by_metrics else "answers", "cross_check": check}


def _kind(arm: ArmResult, kind: str) -> dict[str, Any]:
    answers = [a for a in arm.good if a.kind == kind]
    entry: dict[str, Any] = {
        "requests": sum(a.kind == kind for a in arm.answers),
        "failures": sum(a.kind == kind and not a.ok for a in arm.answers),
        "output_tokens": sum(a.completion_tokens or 0 for a in answers),
        "latency": latency(answers),
    }
    if arm.speculates:
        acceptance = kind_speculation(arm, kind)
        entry["speculation"] = (
            {"missing": "this server reports no acceptance per request, and its blocks mix kinds"}
            if acceptance is None
            else acceptance.to_dict()
        )
    return entry


def kind_speculation(arm: ArmResult, kind: str) -> Speculation | None:
    """One kind's acceptance: from the answers' reports, else from the counters around blocks of that kind alone."""
    by_answers = reported([a for a in arm.good if a.kind == kind])
    if by_answers is not None:
        return by_answers
    parts = [block.counted.speculation for block in arm.blocks if block.kind == kind]
    present = [part for part in parts if part is not None]
    return add_up(present) if present else None
