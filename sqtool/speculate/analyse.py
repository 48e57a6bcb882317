"""From the files of a speculate stage to speculate.json: every measure with its interval, or the reason why not.

Pure NumPy and SciPy: no server, no torch. The same files give the same bytes. docs/speculate-measures.md defines each
measure.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sqtool.files import canonical_json
from sqtool.progress import SILENT, Progress, Task
from sqtool.speculate import acceptance, cost, latency, steps
from sqtool.speculate.agreement import agreement
from sqtool.speculate.frame import Frame, build
from sqtool.speculate.interaction import CONTROL, control, interaction
from sqtool.speculate.missing import Missing
from sqtool.speculate.reading import SCORED_ELSEWHERE, Arm, Stage, read_stage
from sqtool.speculate.resample import REPLICATES, Resamples
from sqtool.speculate.sampling_test import sampling
from sqtool.speculate.spec import SpeculateSpec

SCHEMA = "sqtool.speculate/2"
_SWEPT = re.compile(r"_k\d+$")
FOUR = ("baseline", "quantized", "speculative", "both")


@dataclass(frozen=True)
class _Analysis:
    stage: Stage
    spec: SpeculateSpec
    resamples: Resamples
    frames: Mapping[tuple[str, str], Frame]
    missing: Missing


def analyse(
    folder: Path,
    spec: SpeculateSpec,
    *,
    progress: Progress = SILENT,
    replicates: int = REPLICATES,
) -> dict[str, Any]:
    """What speculate.json holds, from the files in `folder` (traffic.jsonl, plan.json, arms/).

    `replicates` is the number of bootstrap resamples. Raises `DataError` for a file that is not as it should be.
    """
    stage = read_stage(folder)
    with progress.task("speculate: intervals", total=(len(stage.arms) + 1) * len(stage.loads)) as task:
        return _report(stage, spec, replicates, task)


def _report(stage: Stage, spec: SpeculateSpec, replicates: int, task: Task) -> dict[str, Any]:
    seed = int(stage.plan.get("seed") or 0)
    resamples = Resamples({name: one.kind for name, one in stage.traffic.items()}, seed=seed, replicates=replicates)
    scorers = {name for name, one in stage.traffic.items() if one.scorer is not None}
    found = {
        (name, load): build(arm, load, resamples.place, scorers, spec.slo)
        for name, arm in stage.arms.items()
        for load in stage.loads
    }
    frames = {key: frame for key, frame in found.items() if frame is not None}
    analysis = _Analysis(stage, spec, resamples, frames, Missing())
    arms: dict[str, Any] = {}
    for name, arm in stage.arms.items():
        loads = {}
        for load in stage.loads:
            if (name, load) in frames:
                loads[load] = _load(analysis, arm, frames[name, load])
            else:
                analysis.missing.add("all", "this arm was sent nothing at this load", arm=name, load=load)
            task.advance()
        arms[name] = {**_arm(analysis, arm), "loads": loads}
    _draft_lengths(arms, stage, frames, resamples)
    siblings = {name: plain for name in stage.arms if (plain := stage.sibling(name)) is not None}
    interactions, controls = {}, {}
    for load in stage.loads:
        here = {name: frames[name, load] for name in stage.arms if (name, load) in frames}
        scored = spec.slo is not None
        interactions[load] = interaction(here, siblings, resamples, slo=scored, missing=analysis.missing)
        controls[load] = control(here, resamples, slo=scored)
        task.advance()
    for name in FOUR:
        if name not in stage.arms:
            analysis.missing.add("all", "this arm was not measured", arm=name)
    if CONTROL not in stage.arms:
        analysis.missing.add("noise floor", "there is no A/A arm (speculate.control is false)", arm=CONTROL)
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "method": spec.method,
        "speculative_config": _config(stage),
        "seed": seed,
        "interleaved": stage.plan.get("interleaved"),
        "interleaved_why": stage.plan.get("why"),
        "traffic": {
            "source": Path(spec.traffic).name if Path(spec.traffic).is_absolute() else spec.traffic,
            "sha256": stage.sha256,
            "requests": len(stage.traffic),
            "warmup": stage.warmup,
            "kinds": dict(sorted(Counter(one.kind for one in stage.traffic.values()).items())),
            "scored": sum(one.scorer is not None for one in stage.traffic.values()),
        },
        "loads": stage.loads,
        "arms": arms,
        "agreement": agreement(stage, resamples),
        "interaction": interactions,
        "acceptance_change": acceptance.changes(frames, stage.loads, resamples),
        "control": controls,
        "sampling": sampling(stage, seed=seed, missing=analysis.missing),
    }
    report["missing"] = analysis.missing.entries
    return report


def _config(stage: Stage) -> Any:
    """The speculative configuration of `both`, or of the first arm that speculates."""
    names = [name for name in ("both", "speculative", *stage.arms) if name in stage.arms]
    return next((stage.arms[name].info["speculative_config"] for name in names if stage.arms[name].speculates), None)


def _arm(analysis: _Analysis, arm: Arm) -> dict[str, Any]:
    """What holds for an arm at every load."""
    memory = dict(arm.info.get("memory") or {})
    for measure, reason in (memory.get("missing") or {}).items():
        if measure == "draft_bytes" and not arm.speculates:
            continue  # there is nothing to be missing
        analysis.missing.add(f"memory.{measure}", str(reason), arm=arm.name)
    if not memory:
        analysis.missing.add("memory", "the arm's arm.json has none", arm=arm.name)
    for measure, reason in (arm.info.get("missing") or {}).items():
        analysis.missing.add(measure, str(reason), arm=arm.name)
    for measure, reason in ((arm.probe or {}).get("missing") or {}).items():
        analysis.missing.add(f"probe.{measure}", str(reason), arm=arm.name)
    if arm.probe is None:
        analysis.missing.add("cancellation", "the probe was not run on this arm", arm=arm.name)
    if arm.quality is None:
        reason = "no task was answered by this arm" if arm.speculates else SCORED_ELSEWHERE
        analysis.missing.add("quality", reason, arm=arm.name)
    return {
        "target": arm.target,
        "model": arm.info.get("model"),
        "speculates": arm.speculates,
        "speculative_config": arm.info.get("speculative_config"),
        "engine": arm.info.get("engine"),
        "memory": memory or None,
        "start_seconds": arm.info.get("start_seconds"),
        **({"server": arm.info["server"]} if arm.info.get("server") else {}),
        "quality": arm.quality,
        "probe": None if arm.probe is None else {**arm.probe, **recovery(arm.probe)},
    }


def recovery(probe: Mapping[str, Any]) -> dict[str, Any]:
    """What a cancellation probe shows; each is None where the probe has not the figures for it.

    `idle_after_s`: seconds from the last stream's end to the first reading without a running request (None also when
    there was none). `kv_freed`: whether the KV cache is as empty as before. `e2e_p50_ratio`: median time after over
    before.
    """
    running = probe.get("running_after_s") or []
    used, left = probe.get("kv_usage_before"), probe.get("kv_usage_after")
    before, after = probe.get("e2e_p50_before"), probe.get("e2e_p50_after")
    return {
        "idle_after_s": next((float(seconds) for seconds, count in running if count == 0), None),
        "kv_freed": None if used is None or left is None else bool(left <= used),
        "e2e_p50_ratio": after / before if before and after is not None else None,
    }


def _draft_lengths(
    arms: Mapping[str, Any], stage: Stage, frames: Mapping[tuple[str, str], Frame], resamples: Resamples
) -> None:
    """Add `marginal_ms_per_draft_token` to the steps of arms that differ from one another in draft length only."""
    alike: dict[str, list[str]] = {}
    for name, arm in stage.arms.items():
        config = dict(arm.info.get("speculative_config") or {})
        if config.pop("num_speculative_tokens", None) is not None:
            # A sweep's arms are called after the arm that they vary; an arm of another name may differ in its engine.
            swept = _SWEPT.sub("", name)
            alike.setdefault(canonical_json([swept, arm.target, config]), []).append(name)
    for names in alike.values():
        for load in stage.loads:
            there = [name for name in names if (name, load) in frames]
            found = steps.marginal([frames[name, load] for name in there], resamples) if len(there) > 1 else None
            if found is not None:
                for name in there:
                    arms[name]["loads"][load]["steps"]["marginal_ms_per_draft_token"] = found


def _load(analysis: _Analysis, arm: Arm, frame: Frame) -> dict[str, Any]:
    """One arm at one load."""
    resamples, missing, spec = analysis.resamples, analysis.missing, analysis.spec
    failed = [row for row in frame.rows if not row.ok]
    plain = analysis.stage.sibling(arm.name)
    times = latency.latency(frame)
    _note_percentiles(times, frame, missing)
    kinds = sorted({row.kind for row in frame.rows})
    return {
        "requests": len(frame.rows),
        "failures": {
            "count": len(failed),
            "examples": [{"id": row.id, "error": row.error or "no whole answer"} for row in failed[:3]],
        },
        **latency.throughput(frame, resamples),
        "latency": times,
        "late_ms": latency.lateness(frame),
        "goodput": None if spec.slo is None else latency.goodput(frame, resamples),
        "accepted": cost.accepted(frame, resamples),
        "cost": cost.cost(frame, resamples, spec.price, missing),
        "steps": steps.steps(
            frame,
            analysis.frames.get((plain, frame.load)) if plain else None,
            arm.info.get("speculative_config"),
            resamples,
            missing,
        ),
        "speculation": acceptance.acceptance(frame, resamples, missing) if arm.speculates else None,
        "kinds": {kind: _kind(analysis, arm, frame, kind) for kind in kinds},
    }


def _kind(analysis: _Analysis, arm: Arm, frame: Frame, kind: str) -> dict[str, Any]:
    part = frame.of_kind(kind)
    return {
        "requests": len(part.rows),
        "failures": int(np.count_nonzero(~part.ok)),
        "output_tokens": int(part.tokens.sum()),
        "latency": latency.latency(part),
        "speculation": acceptance.acceptance(frame, analysis.resamples, analysis.missing, kind)
        if arm.speculates
        else None,
        "accepted": cost.accepted(part, analysis.resamples),
    }


def _note_percentiles(times: Mapping[str, Any], frame: Frame, missing: Missing) -> None:
    """Which intervals the arm's percentiles do not have. Those of kinds follow the same rule and are not listed."""
    where = {"arm": frame.arm, "load": frame.load}
    for name, figures in times.items():
        if figures is None:
            missing.add(name, "no answered request has it", **where)
    for percentile in latency.PERCENTILES:
        without = [n for n, figures in times.items() if figures and figures["ci"][f"p{percentile}"] is None]
        if without:
            needed = latency.requests_needed(percentile / 100)
            reason = f"{frame.units} distinct requests; an interval needs {needed} independent values"
            missing.add(f"interval of p{percentile} of {', '.join(without)}", reason, **where)
