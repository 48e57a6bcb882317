"""The field's rules of thumb, made measurable: each looks at figures of the run and says whether it applies to it.

A rule is a function in RULES. It returns what it looked at (`evidence`), the limit that it holds that to, whether it
applies (None: the run does not say), and what follows. `sqtool.advise.choose` chooses arms; a rule explains, and
says what to try first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqtool.advise.measured import BASELINE, BOTH, CONTROL, E2E, QUANTIZED, SPECULATIVE, Measured, number, pair
from sqtool.errors import EXIT_RELEASED
from sqtool.gate.acceptance import json_exit_code

WEIGHTS_SHARE = 0.5
"""With at least this share of weights + KV cache taken by weights, memory is what limits the batch."""
PREFILL_SHARE = 0.5
"""With at least this share of a request's time before its first token, the prompt is what costs."""
DECODE_SHARE = 0.7
"""With at least this share of it after the first token, tokens are what cost."""
SMALL_ROOM = 0.25
"""Less than this share of a margin left: one more change may cross it."""
IDLE_POSITION = 0.2
"""A draft position that is accepted less often than this mostly costs a slot in every verification."""
LIGHT = 4.0
"""Up to so many requests at once (or a second), the first token does not wait in a queue."""


@dataclass(frozen=True)
class Rule:
    """One rule as it came out. `applies` is None where the run has no figures for it."""

    name: str
    applies: bool | None
    evidence: dict[str, Any]
    limit: str
    says: str


@dataclass(frozen=True)
class Case:
    """Everything that advice is given on. `verdict` is the gate's verdict.json, `speculation` speculation_verdict.json
    without its advice; either may be missing."""

    measured: Measured | None
    verdict: Mapping[str, Any] | None = None
    speculation: Mapping[str, Any] | None = None

    @property
    def quantized_accepted(self) -> bool:
        """Whether the gate lets the candidate be used; False where there is no verdict."""
        return json_exit_code(self.verdict or {}) == EXIT_RELEASED

    @property
    def approved(self) -> bool:
        """Whether speculation was judged and approved."""
        return (self.speculation or {}).get("approved") is True


def memory_bound(case: Case) -> Rule:
    """Memory-bound fit -> quantize."""
    limit = f"weights are at least {WEIGHTS_SHARE:.0%} of weights + KV cache, or requests were preempted"
    if case.measured is None:
        return _unknown("memory_bound", limit)
    weights, cache = (case.measured.memory(BASELINE, what) for what in ("weights_bytes", "kv_cache_bytes"))
    preempted = sum(
        number((case.measured.at(BASELINE, load).get("counters") or {}).get("preemptions")) or 0
        for load in case.measured.loads
    )
    evidence: dict[str, Any] = {"weights_bytes": weights, "kv_cache_bytes": cache}
    if preempted:
        evidence["preemptions"] = preempted
    if not weights or not cache:
        if not preempted:
            return _unknown("memory_bound", limit, evidence)
        share = None
    else:
        share = evidence["weights_share"] = weights / (weights + cache)
    small = case.measured.memory(QUANTIZED, "weights_bytes")
    if small and weights:
        evidence["quantized_weights_bytes"] = small
    if not preempted and (share is None or share < WEIGHTS_SHARE):
        return Rule("memory_bound", False, evidence, limit, f"Weights take {share:.0%} of weights + KV cache.")
    why = f"{preempted:.0f} requests were preempted for want of KV cache" if preempted else ""
    if share is not None and share >= WEIGHTS_SHARE:
        why = f"weights take {share:.0%} of weights + KV cache" + (f", and {why}" if why else "")
    freed = f" That frees {(weights - small) / 1e9:.3g} GB for KV cache." if weights and small else ""
    return Rule("memory_bound", True, evidence, limit, f"Quantize first: {why}.{freed}")


def prefill_bound(case: Case) -> Rule:
    """Prefill-bound -> prefix caching, chunked prefill; neither quantization nor speculation acts on it."""
    limit = f"at least {PREFILL_SHARE:.0%} of the baseline's time is before the first token, at the lightest load"
    share, evidence = _first_token_share(case)
    if share is None:
        return _unknown("prefill_bound", limit, evidence)
    queue = _queue(evidence)
    engine = case.measured.arms[BASELINE].get("engine") if case.measured and BASELINE in case.measured.arms else None
    cached = str((engine or {}).get("enable_prefix_caching")).lower() == "true"
    if share < PREFILL_SHARE:
        return Rule("prefill_bound", False, evidence, limit, f"{share:.0%} of a request passes before its first token.")
    return Rule(
        "prefill_bound",
        True,
        evidence,
        limit,
        f"Prefix caching{' (it is on already)' if cached else ''} and chunked prefill first: {share:.0%} of a request "
        f"passes before its first token, where drafting does nothing and lighter weights do little.{queue}",
    )


def decode_bound(case: Case) -> Rule:
    """Decode-bound with acceptable quality -> speculate."""
    limit = f"at least {DECODE_SHARE:.0%} of the baseline's time is after the first token, and speculation is approved"
    share, evidence = _first_token_share(case)
    if share is None:
        return _unknown("decode_bound", limit, evidence)
    evidence |= {"decode_share": 1 - share, "speculation_approved": case.approved}
    decodes = 1 - share >= DECODE_SHARE
    if decodes and case.approved:
        said = f"Speculate: {1 - share:.0%} of a request is spent on tokens after the first, and the answers held."
    elif decodes:
        said = f"{1 - share:.0%} of a request is spent on tokens after the first, but speculation is not approved."
    else:
        said = f"{1 - share:.0%} of a request is spent on tokens after the first: less for drafting to save."
    return Rule("decode_bound", decodes and case.approved, evidence, limit, said)


def fragile_quality(case: Case) -> Rule:
    """Fragile quality -> be conservative."""
    limit = f"no PASS, less than {SMALL_ROOM:.0%} of a margin left, or answers with speculation did not hold"
    if case.verdict is None:
        return _unknown("fragile_quality", limit)
    gated = [m for m in case.verdict.get("metrics", ()) if m.get("gated") and number(m.get("margin"))]
    room = {
        str(m["metric"]): (m["lower"] + m["margin"]) / m["margin"] for m in gated if number(m.get("lower")) is not None
    }
    least = min(room, key=room.__getitem__) if room else None
    outcome = str(case.verdict.get("outcome"))
    arms = (case.speculation or {}).get("arms") or {}
    failed = [arm for arm in (SPECULATIVE, BOTH) if arm in arms and arms[arm].get("approved") is not True]
    evidence = {
        "gate": outcome,
        "least_room": None if least is None else {"metric": least, "share_of_margin": room[least]},
        "answers_did_not_hold": failed,
    }
    why = []
    if outcome != "PASS":
        why.append(f"the gate said {outcome}")
    elif least is not None and room[least] < SMALL_ROOM:
        why.append(f"{least} has only {room[least]:.0%} of its margin left")
    if failed:
        why.append(f"the answers of {' and '.join(failed)} did not hold")
    if why:
        said = f"Be conservative: {', and '.join(why)}. Change one thing at a time, and judge it on more items."
    else:
        said = "Quality has room" + (f": at least {room[least]:.0%} of every margin is left." if least else ".")
    return Rule("fragile_quality", bool(why), evidence, limit, said)


def within_noise(case: Case) -> Rule:
    """Not distinguishable from the A/A noise -> prefer fewer moving parts."""
    limit = "no arm's gain has an interval above what the A/A arm shows"
    if case.measured is None:
        return _unknown("within_noise", limit)
    measured = case.measured
    evidence: dict[str, Any] = {"measure": E2E, "loads": {}}
    clear = []
    for load in measured.loads:
        gains = {arm: measured.gain(arm, load) for arm in (QUANTIZED, SPECULATIVE, BOTH) if arm in measured.arms}
        floor, noise = measured.floor(load), measured.noise(load)
        evidence["loads"][load] = {
            "floor": floor,
            CONTROL: None if noise is None else [noise.gain, noise.low, noise.high],
            **{arm: [g.gain, g.low, g.high] for arm, g in gains.items() if g is not None},
        }
        clear += [f"{arm} at {load}" for arm, g in gains.items() if g is not None and g.low > floor]
    if not any(set(entry) & {QUANTIZED, SPECULATIVE, BOTH} for entry in evidence["loads"].values()):
        return _unknown("within_noise", limit, evidence)
    if clear:
        unsure = "" if measured.report.get("control") else " No A/A arm ran, so a drift of the machine is not excluded."
        return Rule("within_noise", False, evidence, limit, f"Faster than noise explains: {', '.join(clear)}.{unsure}")
    return Rule(
        "within_noise",
        True,
        evidence,
        limit,
        "No arm is distinguishable from the A/A noise: prefer fewer moving parts, or measure more requests.",
    )


def draft_length(case: Case) -> Rule:
    """Draft positions that are hardly ever accepted -> draft fewer tokens."""
    limit = f"the last draft position is accepted in less than {IDLE_POSITION:.0%} of verifications"
    if case.measured is None:
        return _unknown("draft_length", limit)
    measured = case.measured
    arm = BOTH if BOTH in measured.arms else SPECULATIVE
    for load in measured.loads:
        rates = [number(rate) for rate in measured.speculation(arm, load).get("per_position_rate") or ()]
        known = [rate for rate in rates if rate is not None]
        if not known or len(known) < len(rates):
            continue
        useful = sum(rate >= IDLE_POSITION for rate in known)
        evidence = {"arm": arm, "load": load, "per_position_rate": known}
        if known[-1] >= IDLE_POSITION:
            said = (
                f"All {len(known)} draft positions earn their place: the last is accepted {known[-1]:.0%} of the time."
            )
            return Rule("draft_length", False, evidence, limit, said)
        said = (
            f"Draft fewer tokens: position {len(known)} is accepted {known[-1]:.0%} of the time; measure "
            f"`sweep: {{num_speculative_tokens: [{useful}, {len(known)}]}}`."
            if useful
            else f"Even the first draft token is accepted only {known[0]:.0%} of the time: this draft does not fit."
        )
        return Rule("draft_length", True, evidence, limit, said)
    return _unknown("draft_length", limit, {"arm": arm})


def multiplies(case: Case) -> Rule:
    """Whether quantization and speculation multiply: where they do not, each was worth less with the other."""
    limit = "the interval of both / (quantization x speculation) is below 1"
    if case.measured is None:
        return _unknown("gains_do_not_multiply", limit)
    evidence: dict[str, Any] = {}
    below = []
    for load in case.measured.loads:
        entry = ((case.measured.report.get("interaction") or {}).get(load) or {}).get(E2E) or {}
        ratio = entry.get("ratio") or {}
        value, ends = (
            (number(ratio.get("value")), pair(ratio.get("ci"))) if isinstance(ratio, Mapping) else (None, None)
        )
        if value is None or ends is None:
            continue
        evidence[load] = {"ratio": value, "ci": list(ends)}
        if ends[1] < 1:
            below.append(f"{value:.2f} of the product at {load}")
    if not evidence:
        return _unknown("gains_do_not_multiply", limit)
    if below:
        said = f"The two gains do not multiply: both together give {', '.join(below)}. Verification is what to look at."
        return Rule("gains_do_not_multiply", True, evidence, limit, said)
    return Rule(
        "gains_do_not_multiply", False, evidence, limit, "Nothing shows that the two gains get in each other's way."
    )


def _first_token_share(case: Case) -> tuple[float | None, dict[str, Any]]:
    """Mean TTFT over mean end-to-end of the baseline at the lightest load, and what it was made from."""
    if case.measured is None or not case.measured.loads:
        return None, {}
    load = case.measured.loads[0]
    first, whole = (case.measured.figure(BASELINE, load, group, "mean") for group in ("ttft_ms", "e2e_ms"))
    evidence: dict[str, Any] = {"load": load, "ttft_mean_ms": first, "e2e_mean_ms": whole}
    if first is None or not whole:
        return None, evidence
    evidence["first_token_share"] = first / whole
    return first / whole, evidence


def _queue(evidence: Mapping[str, Any]) -> str:
    """At a heavy load the first token also waits for other requests."""
    load = str(evidence.get("load", ""))
    try:
        light = float(load[1:]) <= LIGHT
    except ValueError:
        return ""
    return (
        ""
        if light
        else f" {load} is the lightest load measured, so part of that is waiting in the queue: measure at 1."
    )


def _unknown(name: str, limit: str, evidence: Mapping[str, Any] | None = None) -> Rule:
    return Rule(name, None, dict(evidence or {}), limit, "The run does not say.")


RULES: tuple[Callable[[Case], Rule], ...] = (
    memory_bound,
    prefill_bound,
    decode_bound,
    fragile_quality,
    within_noise,
    draft_length,
    multiplies,
)
