"""Forward passes of the target, and what a step costs: what the counts and the client's times give, and no more.

vLLM reports no time per phase, so drafting and verifying are seen as one step. What can be said of either alone are
bounds: verifying several tokens takes at least as long as a step of the same target that decodes one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sqtool.speculate.acceptance import DRAFTED, DRAFTS, counts_of
from sqtool.speculate.frame import Frame
from sqtool.speculate.missing import Missing
from sqtool.speculate.resample import Floats, Resamples, interval

ENGINE_STEPS = "engine_steps"
PHASES = "vLLM reports no time per phase, so a step's drafting and verifying are measured together (step_ms)"
DRAFTS_EACH_STEP = frozenset({"draft_model", "eagle", "eagle3", "mtp", "medusa"})
"""Methods whose drafter proposes at every decoding step; n-gram lookup proposes only where it finds a match."""


def steps(
    frame: Frame, plain: Frame | None, config: Mapping[str, Any] | None, resamples: Resamples, missing: Missing
) -> dict[str, Any]:
    """The `steps` entry of one arm at one load. `plain` is the arm with the same target and no speculation.

    Passes are per sequence: each of a batch's sequences that a step advances counts one. Without speculation that is
    one per token, the first of them from the prefill. With it, one for the prefill and one per verification, or, where
    the drafter sometimes proposes nothing (n-gram), what the accepted tokens leave: at least that many.
    """
    tokens, answers = int(frame.tokens.sum()), int(frame.ok.sum())
    counted = [block.others[ENGINE_STEPS] for block in frame.blocks if ENGINE_STEPS in block.others]
    engine = round(sum(counted)) if counted and len(counted) == len(frame.blocks) else None
    result: dict[str, Any] = {"output_tokens": tokens, "engine_steps": engine}
    if engine is None:
        why = frame.uncounted or "the server counts no iterations"
        missing.add("engine steps", why, arm=frame.arm, load=frame.load)
    if config is None and frame.uncounted:
        # That it decodes one token a step is only what the recipe says of a server that cannot be looked at.
        return {**result, **missing.add("steps", frame.uncounted, arm=frame.arm, load=frame.load)}
    if config is None:
        return {
            **result,
            "target_forward_passes": tokens,
            "forward_passes_saved": 0,
            "share_saved": 0.0,
            "step_ms": _step_ms(*_decoding(frame), frame, resamples),
        }
    counts = counts_of(frame, resamples)
    if counts is None or not answers:
        usual = frame.uncounted or "the server counted no speculative decoding"
        reason = usual if answers else "no request was answered"
        return {**result, **missing.add("steps", reason, arm=frame.arm, load=frame.load)}
    total = counts.total
    method = str(config.get("method", ""))
    exact = method in DRAFTS_EACH_STEP
    passes = answers + total.drafts if exact else max(answers + total.drafts, tokens - total.accepted_tokens)
    saved = max(tokens - passes, 0)
    result |= {
        "target_forward_passes": passes,
        "forward_passes_saved": saved,
        "share_saved": saved / tokens if tokens else None,
        "exact": exact,
    }
    if not exact:
        reason = f"{method} proposes nothing at some steps, and the server does not count those"
        missing.add("exact number of target forward passes", reason, arm=frame.arm, load=frame.load)
    return {**result, **_costs(frame, plain, total.draft_tokens / max(total.drafts, 1), exact, resamples, missing)}


def _costs(
    frame: Frame, plain: Frame | None, drafted: float, exact: bool, resamples: Resamples, missing: Missing
) -> dict[str, Any]:
    """Time of a step, and what follows for its two parts. `drafted`: draft tokens per verification."""
    where = {"arm": frame.arm, "load": frame.load}
    entry: dict[str, Any] = {
        "step_ms": None,
        "verify_step_ms": missing.add("verify_step_ms", PHASES, arm=frame.arm),
        "draft_ms_per_token": missing.add("draft_ms_per_token", PHASES, arm=frame.arm),
    }
    if not exact or frame.acceptance is None:
        reason = "needs reports per request, and a drafter that proposes at every step"
        missing.add("step_ms", reason, **where)
        return entry
    time, number = _decoding(frame)
    entry["step_ms"] = step = _step_ms(time, number, frame, resamples)
    if frame.open_loop:
        missing.add("overhead_ms", "in an open loop a faster arm has fewer requests in a step", **where)
        return entry
    if plain is None or step is None or plain.uncounted:
        return entry
    plain_time, plain_number = _decoding(plain)
    if not plain_number.sum():
        return entry
    base = 1000 * float(plain_time.sum() / plain_number.sum())
    steps_r = 1000 * resamples.ratio(frame.unit, time, number)
    base_r = 1000 * resamples.ratio(plain.unit, plain_time, plain_number)
    units = min(frame.units, plain.units)
    entry["plain_step_ms"] = base
    entry["overhead_ms"] = {"value": step["value"] - base, "ci": interval(steps_r - base_r, units)}
    entry["step_ratio"] = {"value": step["value"] / base, "ci": interval(steps_r / base_r, units)}
    if step["value"] >= base:
        entry["verify_step_ms_bounds"] = [base, step["value"]]
        if drafted:
            entry["draft_ms_per_token_at_most"] = (step["value"] - base) / drafted
    return entry


def marginal(frames: Sequence[Frame], resamples: Resamples) -> dict[str, Any] | None:
    """What one more draft token adds to a step, in milliseconds: the least-squares slope of `step_ms` over the draft
    tokens of a verification, through arms that differ in draft length only. It is the cost of drafting the token and of
    verifying one more position. None with fewer than two lengths."""
    points = []
    for frame in frames:
        if frame.acceptance is None or frame.open_loop:
            continue
        time, number = _decoding(frame)
        drafted = frame.acceptance[:, DRAFTED].sum()
        if number.sum() and drafted:
            step = 1000 * float(time.sum() / number.sum())
            points.append((drafted / number.sum(), step, 1000 * resamples.ratio(frame.unit, time, number)))
    lengths = np.array([length for length, _, _ in points])
    if len(points) < 2 or np.ptp(lengths) < 0.5:
        return None
    pull = (lengths - lengths.mean()) / ((lengths - lengths.mean()) ** 2).sum()
    slope = float(pull @ np.array([step for _, step, _ in points]))
    replicates = pull @ np.stack([values for _, _, values in points])
    return {
        "value": slope,
        "ci": interval(replicates, min(frame.units for frame in frames)),
        "arms": [frame.arm for frame in frames],
    }


def _decoding(frame: Frame) -> tuple[Floats, Floats]:
    """(seconds from the first token to the last [n], decoding steps in them [n]); zeros where there was no decoding."""
    number = frame.acceptance[:, DRAFTS] if frame.acceptance is not None else np.maximum(frame.tokens - 1, 0)
    lasted = frame.times["e2e"] - frame.times["ttft"]
    there = frame.ok & (number > 0) & ~np.isnan(lasted)
    return np.where(there, lasted, 0.0), np.where(there, number, 0.0)


def _step_ms(time: Floats, number: Floats, frame: Frame, resamples: Resamples) -> dict[str, Any] | None:
    if not number.sum():
        return None
    ends = interval(1000 * resamples.ratio(frame.unit, time, number), frame.units)
    return {"value": 1000 * float(time.sum() / number.sum()), "ci": ends}
