"""The four arms as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqtool.report.numbers import milliseconds, percent, value

if TYPE_CHECKING:
    from sqtool.report.facts import Facts

LATENCIES = (("TTFT", "ttft_ms"), ("TPOT", "tpot_ms"), ("end to end", "e2e_ms"))
ARMS = {
    "baseline": "baseline",
    "quantized": "quantized only",
    "speculative": "speculation only",
    "both": "both",
}


def add_speculation(facts: Facts, report: Mapping[str, Any]) -> None:
    """Put the speculate stage's report into the tables `arms` and `acceptance`, and its summary into sentences."""
    from sqtool.report.facts import Table

    arms: Mapping[str, Any] = report["arms"]
    agreement = {name: _agreement(entries) for name, entries in report.get("agreement", {}).items()}
    headers = ("arm", "accepted length", "acceptance", *(f"{n} p50/p95/p99 ms" for n, _ in LATENCIES))
    rows = []
    for name, arm in arms.items():
        spoken = arm.get("speculation") or {}
        rows.append(
            (
                ARMS.get(name, name),
                value(spoken.get("mean_acceptance_length"), 3),
                "-" if spoken.get("acceptance_rate") is None else percent(spoken["acceptance_rate"], 1),
                *(_latency(arm["latency"].get(key)) for _, key in LATENCIES),
                value(arm.get("output_tokens_per_s"), 4),
                agreement.get(name, "-"),
                str(arm["failures"]["count"]),
            )
        )
    traffic = report["traffic"]
    method = str(report["method"]).replace("_", " ")
    drafted = report["speculative_config"].get("num_speculative_tokens")
    note = (
        f"{traffic['requests']} requests, {traffic['concurrency']} at once, after {traffic['warmup']} to warm up; the "
        f"same for every arm. {method}, {drafted} draft tokens. Same answers: greedy answers equal to those of the "
        "same weights without speculation (for quantized only: to the baseline's)."
    )
    facts.arms = Table((*headers, "tokens/s", "same answers", "failed"), tuple(rows), (note,))
    _add_acceptance(facts, arms, report.get("acceptance_change"))
    facts.speculation += _sentences(report)


def _latency(figures: Mapping[str, Any] | None) -> str:
    if not figures:
        return "-"
    return " / ".join(milliseconds(figures.get(p)) for p in ("p50", "p95", "p99"))


def _agreement(entries: Any) -> str:
    """The last entry compares with the same weights without speculation, or with the baseline where there is none."""
    if not entries:
        return "-"
    last = entries[-1]
    return "-" if last.get("share") is None else f"{last['identical']}/{last['of']}"


def _add_acceptance(facts: Facts, arms: Mapping[str, Any], change: Mapping[str, Any] | None) -> None:
    from sqtool.report.facts import Table

    if not {"speculative", "both"} <= set(arms):
        return
    rows = []
    before, after = arms["speculative"].get("kinds", {}), arms["both"].get("kinds", {})
    for kind in sorted(set(before) & set(after)):
        old, new = (side[kind].get("speculation") or {} for side in (before, after))
        if old.get("mean_acceptance_length") is None or new.get("mean_acceptance_length") is None:
            continue
        difference = new["mean_acceptance_length"] - old["mean_acceptance_length"]
        rows.append(
            (
                kind,
                str(before[kind]["requests"]),
                value(old["mean_acceptance_length"], 3),
                value(new["mean_acceptance_length"], 3),
                f"{difference:+.2f}",
            )
        )
    if rows:
        headers = ("kind", "requests", "accepted length, bf16 target", "quantized target", "change")
        facts.acceptance = Table(headers, tuple(rows))
    overall = (change or {}).get("overall")
    if overall is not None:
        facts.speculation.append(
            f"quantizing the target changed the mean accepted length by {overall['mean_acceptance_length']:+.2f}"
        )


def _sentences(report: Mapping[str, Any]) -> list[str]:
    gains = report.get("interaction", {}).get("e2e_p50") or {}
    said = []
    for name, label in (("quantization", "quantization"), ("speculation", "speculation"), ("both", "both together")):
        if gains.get(name):
            said.append(f"{label} {gains[name]:.2f} times")
    sentences = []
    if said:
        sentences.append(f"median request against the baseline, as a speed-up: {', '.join(said)}")
    if gains.get("ratio"):
        sentences.append(f"both together are {gains['ratio']:.2f} times what the two gains multiply to")
    return sentences
