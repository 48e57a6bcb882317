"""What to deploy for this traffic and load. Pure: what was measured and judged in, advice out.

What is held to, whatever the figures say:

- an arm that serves the candidate is recommended only if the gate accepted the candidate;
- an arm that speculates only if its task scores were judged and approved, and speculation as a whole was;
- an arm is called faster only if the interval of its gain lies above 1 and above what the A/A arm shows;
- between arms that cannot be told apart, the one with fewer moving parts;
- every arm that was measured gets a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqtool.advise.cautions import cautions
from sqtool.advise.complexity import Complexity, complexity, rank
from sqtool.advise.measured import BASELINE, E2E, FOUR, QUANTIZED, Gain, Measured, check_schema
from sqtool.advise.rules import RULES, Case, Rule

SCHEMA = "sqtool.advice/1"
SPOKEN = {
    BASELINE: "the baseline",
    QUANTIZED: "the quantized checkpoint",
    "speculative": "the baseline with speculation",
    "both": "the quantized checkpoint with speculation",
}
FAILED_SHARE = 0.01
"""More failed requests than this share above the baseline's, and an arm is not recommended however fast it is."""
WORDS = {"e2e_p50": "median request"}
COST = "cost_per_accepted_answer"


@dataclass(frozen=True)
class LoadAdvice:
    """What to deploy at one load. `gain` is None where speed is not the reason (the baseline, or memory)."""

    load: str
    deploy: str
    num_speculative_tokens: int | None
    measure: str
    gain: Gain | None
    because: str
    """`speed`, `memory` or `fewest_parts`."""
    why: str


@dataclass(frozen=True)
class ArmAdvice:
    """What is to be thought of one arm: `deploy` (at the loads named in `reason`), `not here` (it may be served, and
    nothing shown speaks for it), or `no` (it must not be)."""

    arm: str
    says: str
    reason: str
    complexity: Complexity


@dataclass(frozen=True)
class Advice:
    """All of it; `to_json` is what `sqtool advise --json` prints."""

    headline: str
    loads: tuple[LoadAdvice, ...]
    arms: tuple[ArmAdvice, ...]
    rules: tuple[Rule, ...]
    first: tuple[str, ...]
    """What to try first and why, in order."""
    cautions: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}


def advise(
    report: Mapping[str, Any] | None,
    *,
    verdict: Mapping[str, Any] | None = None,
    speculation: Mapping[str, Any] | None = None,
) -> Advice:
    """Advice on `report` (speculate.json; None where nothing was measured), the gate's `verdict` (verdict.json) and
    `speculation` (speculation_verdict.json). `UsageError` for a report of another version."""
    if report is not None:
        check_schema(report)
    case = Case(None if report is None else Measured(report), verdict, speculation)
    refused = _not_eligible(case)
    loads = (
        ()
        if case.measured is None
        else tuple(_choose(case, case.measured, load, refused) for load in case.measured.loads)
    )
    rules = tuple(rule(case) for rule in RULES)
    return Advice(
        headline=_headline(case, loads),
        loads=loads,
        arms=tuple(_arm(case, name, loads, refused) for name in _arms(case)),
        rules=rules,
        first=_first(case, rules),
        cautions=tuple(cautions(case, loads)),
    )


def _arms(case: Case) -> tuple[str, ...]:
    if case.measured is None or not case.measured.arms:
        return (BASELINE, QUANTIZED)
    names = list(case.measured.arms)
    return tuple(sorted(names, key=lambda name: (FOUR.index(name) if name in FOUR else len(FOUR), names.index(name))))


def _not_eligible(case: Case) -> dict[str, str]:
    """Arm to why it may not be recommended, whatever it measured."""
    found = {}
    for arm in _arms(case):
        why = _barred(case, arm)
        if why:
            found[arm] = why
    return found


def _barred(case: Case, arm: str) -> str:
    measured = case.measured
    target = arm if measured is None else measured.target(arm)
    if target == QUANTIZED and not case.quantized_accepted:
        if case.verdict is None:
            return "the gate gave no verdict on the candidate"
        return f"the gate did not accept the candidate ({case.verdict.get('outcome')})"
    if measured is None:
        return ""
    if not measured.speculates(arm):
        return "" if arm in (BASELINE, QUANTIZED) else "measured only: no task answers were judged under its settings"
    if case.speculation is None:
        return "speculation was not judged"
    own = (case.speculation.get("arms") or {}).get(arm)
    if isinstance(own, Mapping) and own.get("approved") is True and case.approved:
        return ""
    reasons = list((own or {}).get("reasons") or ()) or list(case.speculation.get("reasons") or ())
    if own is None and case.approved:
        return "its answers to the tasks were not judged"
    return f"speculation is not approved: {reasons[0]}" if reasons else "speculation is not approved"


def _harm(measured: Measured, arm: str, load: str) -> str:
    """What an arm shows to be worse than the baseline's at `load`, beside the median; empty when nothing."""
    failed = measured.failed_share(arm, load)
    if failed > measured.failed_share(BASELINE, load) + FAILED_SHARE:
        return f"{failed:.1%} of its requests failed"
    for name, measure in (("p99", "e2e_p99"), ("p95", "e2e_p95")):
        tail = measured.gain(arm, load, measure)
        if tail is not None and tail.high * measured.floor(load, measure) < 1:
            return f"its {name} is longer: {tail} as fast as the baseline's"
    return _costlier(measured, arm, load)


def _costlier(measured: Measured, arm: str, load: str) -> str:
    """How an accepted answer is shown to cost more than the baseline's; empty where that is not shown."""
    base, own = (measured.cost(name, load) for name in (BASELINE, arm))
    scored, good = measured.accepted(arm, load)
    if base is not None and scored and good == 0:
        return f"none of its {scored:.0f} scored answers was accepted within the SLO"
    if base is None or own is None:
        return ""
    paired = measured.gain(arm, load, COST)
    apart = base[1] is not None and own[1] is not None and own[1][0] > base[1][1]
    shown = apart if paired is None else paired.high * measured.floor(load, COST) < 1
    return f"an accepted answer costs more: {own[0]:.3g} {own[2]}, the baseline's {base[0]:.3g}" if shown else ""


def _choose(case: Case, measured: Measured, load: str, refused: Mapping[str, str]) -> LoadAdvice:
    """Walk from the fewest moving parts to the most, and move on only to what is shown to be faster."""
    floor = measured.floor(load)
    chosen, gain, because = BASELINE, None, "fewest_parts"
    for arm in sorted(
        (a for a in measured.arms if a != BASELINE and a not in refused), key=lambda a: rank(measured, a)
    ):
        own = measured.gain(arm, load)
        if own is None or _harm(measured, arm, load):
            continue
        if own.low > floor and _beats(measured, load, arm, own, chosen, gain):
            chosen, gain, because = arm, own, "speed"
    if chosen == BASELINE and QUANTIZED in measured.arms and QUANTIZED not in refused:
        tight = RULES[0](case)
        own = measured.gain(QUANTIZED, load)
        slower = own is not None and own.high * floor < 1
        if tight.applies and not slower and not _harm(measured, QUANTIZED, load):
            chosen, because = QUANTIZED, "memory"
    tokens = measured.draft_tokens(chosen) if measured.speculates(chosen) else None
    return LoadAdvice(load, chosen, tokens, E2E, gain, because, _why(measured, load, gain, because, refused))


def _beats(measured: Measured, load: str, arm: str, own: Gain, chosen: str, gain: Gain | None) -> bool:
    """Whether `arm` is shown to be faster than what is chosen so far: paired where the file pairs the two, else by
    intervals that lie apart."""
    if gain is None:
        return True
    plain = measured.over_plain(arm, load) if chosen == measured.target(arm) else None
    return own.low > gain.high if plain is None else plain.low > measured.floor(load)


def _why(measured: Measured, load: str, gain: Gain | None, because: str, refused: Mapping[str, str]) -> str:
    floor = measured.floor(load)
    noise = f", the A/A arm up to {floor:.2f}" if measured.noise(load) is not None else ""
    if because == "memory":
        return "for its memory: the fit is memory-bound, and at this load no gain in speed is shown"
    if gain is not None:
        return f"{WORDS[E2E]} {gain}{noise}"
    left = sorted((a for a in measured.arms if a != BASELINE and a not in refused), key=lambda a: rank(measured, a))
    if not left:
        return "no other arm may be recommended"
    shown = [f"{arm} {own}" for arm in left if (own := measured.gain(arm, load)) is not None]
    return f"no arm is shown to be faster ({'; '.join(shown)}{noise})" if shown else "nothing comparable was measured"


def _arm(case: Case, arm: str, loads: tuple[LoadAdvice, ...], refused: Mapping[str, str]) -> ArmAdvice:
    measured = case.measured
    parts = complexity(measured, arm)
    if arm in refused:
        return ArmAdvice(arm, "no", refused[arm], parts)
    at = [advice for advice in loads if advice.deploy == arm]
    if at:
        return ArmAdvice(arm, "deploy", "; ".join(f"{a.load}: {a.why}" for a in at), parts)
    if measured is None:
        only = arm == BASELINE and case.quantized_accepted
        reason = "it is what the candidate was measured against" if only else _unmeasured(case, arm)
        return ArmAdvice(arm, "not here" if only else "deploy", reason, parts)
    reasons = [f"{advice.load}: {_passed_over(measured, arm, advice)}" for advice in loads]
    return ArmAdvice(arm, "not here", "; ".join(reasons) or "it was measured at no load", parts)


def _passed_over(measured: Measured, arm: str, advice: LoadAdvice) -> str:
    """Why an arm that may be recommended is not, at one load."""
    load, chosen = advice.load, advice.deploy
    if arm == BASELINE:
        return f"{chosen} {'is shown to be faster' if advice.because == 'speed' else 'needs less memory'}"
    own, harm = measured.gain(arm, load), _harm(measured, arm, load)
    if own is None:
        return "not measured in a way that can be compared"
    if own.high * measured.floor(load) < 1:
        return f"slower, {own}"
    if harm:
        return harm
    if own.low <= max(1.0, measured.floor(load)):
        return f"not distinguishable from noise, {own}"
    if rank(measured, chosen) < rank(measured, arm):
        return f"faster, {own}, but not shown to beat {chosen}, which has fewer moving parts"
    return f"faster, {own}, but {chosen} is shown to be faster still"


def _unmeasured(case: Case, arm: str) -> str:
    if arm == QUANTIZED:
        return "the gate accepted it; its speed was not measured here"
    return "nothing else may be recommended" if not case.quantized_accepted else "it is the reference"


def _headline(case: Case, loads: tuple[LoadAdvice, ...]) -> str:
    if not loads:
        arm = QUANTIZED if case.quantized_accepted else BASELINE
        why = "the gate accepted it" if arm == QUANTIZED else "the gate did not accept the candidate"
        if arm == BASELINE and case.verdict is None:
            why = "there is no verdict on the candidate"
        return f"Serve {SPOKEN[arm]}: {why}. Neither speed nor speculation was measured."
    deployed = list(dict.fromkeys((a.deploy, a.num_speculative_tokens) for a in loads))
    if len(deployed) == 1:
        only = loads[0]
        end = {"speed": "", "memory": ", for its memory", "fewest_parts": ": nothing else is shown to be better"}
        return f"Serve {_spoken(*deployed[0])}{end[only.because]}."
    at = {arm: [a.load for a in loads if (a.deploy, a.num_speculative_tokens) == arm] for arm in deployed}
    each = "; ".join(f"{_spoken(*arm)} at {', '.join(where)}" for arm, where in at.items())
    return f"It depends on the load: {each}."


def _spoken(arm: str, tokens: int | None) -> str:
    name = SPOKEN.get(arm, f"`{arm}`")
    return name if tokens is None else f"{name} (num_speculative_tokens {tokens})"


def _first(case: Case, rules: tuple[Rule, ...]) -> tuple[str, ...]:
    """Quality before speed, then what the traffic is bound by."""
    order = ("fragile_quality", "memory_bound", "prefill_bound", "decode_bound", "within_noise", "draft_length")
    by_name = {rule.name: rule for rule in rules}
    said = [by_name[name].says for name in order if by_name[name].applies]
    if said:
        return tuple(said)
    if case.measured is None:
        return ("Measure before you choose: `sqtool speculate RECIPE`.",)
    return ("Nothing stands out: neither memory, prompts, tokens nor quality asks for a change first.",)
