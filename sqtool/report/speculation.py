"""The speculate stage and the verdict on speculation: a line, a table for the terminal, and sections for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqtool.advise.measured import CONTROL, Measured, check_schema, number
from sqtool.report.numbers import milliseconds, percent, size, value
from sqtool.report.speculation_loads import (
    NONE,
    arm_name,
    cost_text,
    load_tables,
    load_words,
    names,
    same_answers,
)
from sqtool.report.speculation_plots import alt_texts
from sqtool.report.verdict import HEADERS, metric_row

if TYPE_CHECKING:
    from sqtool.report.facts import Facts, Plot, Table

APPROVED, NOT_APPROVED = "approved", "not approved"


@dataclass(frozen=True)
class Section:
    """A part of the report under a heading of its own."""

    title: str
    tables: tuple[tuple[str, Table], ...] = ()
    lines: tuple[str, ...] = ()
    plots: tuple[Plot, ...] = field(default=())


def add_speculation(facts: Facts, report: Mapping[str, Any], approval: Mapping[str, Any] | None) -> None:
    """Put speculate.json and speculation_verdict.json (None where nobody judged) into the report."""
    check_schema(report)
    measured = Measured(report)
    facts.speculation_status = status(approval)
    facts.speculation.append(facts.speculation_status)
    if len(measured.loads) == 1:  # several loads are for a table
        facts.speculation += _sentences(measured)
    facts.arms = _compact(measured)
    facts.speculation_sections += _sections(measured, approval)


def status(approval: Mapping[str, Any] | None) -> str:
    """One line: approved with how many draft tokens, or not approved and why."""
    if approval is None:
        return "speculation: not judged"
    if approval.get("approved") is True:
        tokens = (approval.get("speculative_config") or {}).get("num_speculative_tokens")
        return f"speculation: {APPROVED}" + (f" (num_speculative_tokens {tokens})" if tokens else "")
    reasons = [str(reason) for reason in approval.get("reasons") or ()]
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return f"speculation: {NOT_APPROVED}" + (f": {reasons[0]}{more}" if reasons else "")


def _compact(measured: Measured) -> Table:
    """One row an arm and load, for a terminal and a comment."""
    from sqtool.report.facts import Table

    several = len(measured.loads) > 1
    rows = []
    for load in measured.loads:
        for arm in names(measured):
            at = measured.at(arm, load)
            if not at:
                continue
            spoken = measured.speculation(arm, load)
            gain = measured.noise(load) if arm == CONTROL else measured.gain(arm, load)
            times = (milliseconds(measured.figure(arm, load, "e2e_ms", p)) for p in ("p50", "p95", "p99"))
            rate = number(spoken.get("acceptance_rate"))
            rows.append(
                (
                    *((load,) if several else ()),
                    arm_name(arm),
                    value(number(spoken.get("mean_acceptance_length")), 3),
                    NONE if rate is None else percent(rate, 1),
                    milliseconds(measured.figure(arm, load, "ttft_ms", "p50")),
                    milliseconds(measured.figure(arm, load, "tpot_ms", "p50")),
                    " / ".join(times),
                    NONE if gain is None else f"{gain.gain:.2f} [{gain.low:.2f}, {gain.high:.2f}]",
                    value(number(at.get("output_tokens_per_s")), 4),
                    cost_text(measured, arm, load, interval=False),
                    same_answers(measured, arm),
                    str((at.get("failures") or {}).get("count", 0)),
                )
            )
    headers = (
        *(("load",) if several else ()),
        "arm", "accepted length", "acceptance", "TTFT p50 ms", "TPOT p50 ms", "end to end p50/p95/p99 ms", "gain",
        "tokens/s", "cost per accepted answer", "same answers", "failed",
    )  # fmt: skip
    traffic = measured.report.get("traffic") or {}
    method = str(measured.report.get("method")).replace("_", " ")
    drafted = (measured.report.get("speculative_config") or {}).get("num_speculative_tokens")
    loads = ", ".join(load_words(load) for load in measured.loads)
    note = (
        f"{traffic.get('requests')} requests ({loads}) after {traffic.get('warmup')} to warm up, the same for every "
        f"arm. {method}, {drafted} draft tokens. Gain: the median request, as a speed-up over the baseline."
    )
    return Table(headers, tuple(rows), (note, *_elsewhere(measured)))


def _elsewhere(measured: Measured) -> list[str]:
    """Which arms were asked of servers that sqtool did not start."""
    arms = {name: measured.report["arms"][name].get("server") for name in names(measured)}
    there = [f"{arm_name(name)} ({server.get('url')})" for name, server in arms.items() if server]
    if not there:
        return []
    said = (
        f"Asked of servers that ran already and are not sqtool's: {', '.join(there)}. Gains are between the servers as "
        "they are, whatever machines they run on; memory, start and kernels of these arms are not known."
    )
    return [said]


def _sections(measured: Measured, approval: Mapping[str, Any] | None) -> list[Section]:
    sections = [_verdict_section(approval)] if approval is not None else []
    alts = alt_texts(measured.report)
    for load in measured.loads:
        tables = tuple(load_tables(measured, load))
        if tables:
            sections.append(Section(f"Speculative decoding at {load}: {load_words(load)}", tables))
    from sqtool.report.facts import Plot

    plots = tuple(Plot(file, alt) for file, alt in alts.items())
    tables = tuple((title, table) for title, table in _whole(measured) if table.rows)
    if tables or plots:
        sections.append(
            Section("Speculative decoding, all loads", tables, (*_elsewhere(measured), *_sampling(measured)), plots)
        )
    missing = _missing(measured)
    if missing.rows:
        sections.append(Section("Not measured, and why", (("", missing),)))
    return sections


def _verdict_section(approval: Mapping[str, Any]) -> Section:
    from sqtool.report.facts import Table

    rows: list[tuple[str, ...]] = []
    for name, verdict in (approval.get("pairs") or {}).items():
        gated = [metric for metric in verdict.get("metrics", ()) if metric.get("gated")]
        rows += [(str(name).replace("/", " against "), *metric_row(metric)) for metric in gated]
    tables = [("", Table(("pair", *HEADERS), tuple(rows)))] if rows else []
    rules = [_rule_row(rule) for rule in approval.get("rules") or ()]
    if rules:
        headers = ("rule", "load", "arm", "value", "interval", "limit", "kept")
        tables.append(("Rules of the recipe", Table(headers, tuple(rules))))
    what = "blocks the release" if approval.get("gate") == "block" else "does not block the quantized release"
    lines = [f"{status(approval)}. A verdict against speculation {what}."]
    lines += [str(reason) for reason in approval.get("reasons") or ()]
    return Section("Verdict on speculation", tuple(tables), tuple(lines))


def _rule_row(rule: Mapping[str, Any]) -> tuple[str, ...]:
    status = str(rule.get("status") or ("kept" if rule.get("ok") is True else "not kept")).replace("_", " ")
    figures = (
        value(number(rule.get("value"))),
        _ends(rule.get("judged_on") or rule.get("ci")),
        value(number(rule.get("limit"))),
    )
    return str(rule.get("rule")), str(rule.get("load") or NONE), str(rule.get("arm") or NONE), *figures, status


def _ends(ends: Any) -> str:
    return f"{ends[0]:.3g} to {ends[1]:.3g}" if isinstance(ends, list | tuple) and len(ends) == 2 else NONE


def _whole(measured: Measured) -> list[tuple[str, Table]]:
    """Tables that know no load: memory, cancellation, agreement."""
    from sqtool.report.facts import Table

    memory, probes, agree = [], [], []
    for arm in names(measured):
        entry = measured.report["arms"][arm]
        found = entry.get("memory") or {}
        peak = number(found.get("device_peak_bytes")) or number(found.get("rss_peak_bytes"))
        tokens = number(found.get("kv_cache_tokens"))
        start = number(entry.get("start_seconds"))
        memory.append(
            (
                arm_name(arm),
                *(_bytes(found.get(name)) for name in ("weights_bytes", "draft_bytes", "kv_cache_bytes")),
                NONE if tokens is None else f"{tokens:,.0f}",
                _bytes(peak),
                NONE if start is None else f"{start:.0f} s",
            )
        )
        probe = entry.get("probe")
        if isinstance(probe, Mapping):
            probes.append(_probe_row(arm, probe))
        for other in (measured.report.get("agreement") or {}).get(arm) or ():
            if other.get("of"):
                share = percent(other["identical"] / other["of"], 1)
                examples = ", ".join(map(str, list(other.get("different") or ())[:3]))
                agree.append(
                    (
                        arm_name(arm),
                        arm_name(str(other["with"])),
                        f"{other['identical']}/{other['of']}",
                        share,
                        examples,
                    )
                )
    headers = ("arm", "weights", "draft", "KV cache", "KV cache tokens", "peak", "start")
    cut = (
        "arm",
        "cut off / sent",
        "still running",
        "KV cache used before / after",
        "median before / after ms",
        "retries answered",
    )
    same = ("arm", "with", "identical", "share", "different, for example")
    return [
        ("Memory and start", Table(headers, tuple(row for row in memory if set(row[1:]) != {NONE}))),
        ("Streams that were cut off", Table(cut, tuple(probes))),
        ("Greedy answers that are identical (the A/A arm is the yardstick)", Table(same, tuple(agree))),
    ]


def _bytes(found: Any) -> str:
    known = number(found)
    return NONE if known is None else size(known)


def _probe_row(arm: str, probe: Mapping[str, Any]) -> tuple[str, ...]:
    running = probe.get("running_after_s") or []
    left = f"{running[-1][1]:g} after {running[-1][0]:.1f} s" if running else NONE
    usage = [number(probe.get(f"kv_usage_{when}")) for when in ("before", "after")]
    # The probe's file has seconds.
    times = [number(probe.get(f"e2e_p50_{when}")) for when in ("before", "after")]
    retries = probe.get("retries") or {}
    return (
        arm_name(arm),
        f"{probe.get('cancelled', NONE)} / {probe.get('sent', NONE)}",
        left,
        " / ".join(NONE if share is None else percent(share, 1) for share in usage),
        " / ".join(NONE if time is None else milliseconds(1000 * time) for time in times),
        f"{retries['answered']} / {retries['retried']}" if "answered" in retries and "retried" in retries else NONE,
    )


def _sampling(measured: Measured) -> list[str]:
    """The test that sampled answers have the distribution of the arm without speculation."""
    said = []
    for pair, found in (measured.report.get("sampling") or {}).items():
        p_value = number(found.get("p_value")) if isinstance(found, Mapping) else None
        if p_value is not None:
            adjusted = number(found.get("p_holm"))
            more = "" if adjusted is None else f", adjusted {adjusted:.3g}"
            test = found.get("test", "test not named")
            said.append(f"one distribution of sampled answers, {pair}: p = {p_value:.3g}{more} ({test})")
    return said


def _missing(measured: Measured) -> Table:
    from sqtool.report.facts import Table

    rows: dict[tuple[str, str], list[str]] = {}
    for entry in measured.report.get("missing") or ():
        key = str(entry.get("measure")), str(entry.get("reason"))
        where = " at ".join(str(part) for part in (entry.get("arm"), entry.get("load")) if part)
        rows.setdefault(key, []).append(where or "all")
    cells = tuple((measure, ", ".join(dict.fromkeys(places)), reason) for (measure, reason), places in rows.items())
    return Table(("measure", "where", "reason"), cells)


def _sentences(measured: Measured) -> list[str]:
    said = []
    for load in measured.loads:
        gains = {arm: measured.gain(arm, load) for arm in ("quantized", "speculative", "both")}
        floor = measured.floor(load)
        shown = [f"{arm_name(arm)} {gain}" for arm, gain in gains.items() if gain is not None]
        if shown:
            noise = f"; A/A up to {floor:.2f}" if measured.noise(load) is not None else ""
            said.append(f"median request at {load}, as a speed-up over the baseline: {', '.join(shown)}{noise}")
        said += _changed(measured, load)
    return said


def _changed(measured: Measured, load: str) -> Sequence[str]:
    overall = ((measured.report.get("acceptance_change") or {}).get(load) or {}).get("overall") or {}
    length = overall.get("mean_acceptance_length") or {}
    known, ends = number(length.get("value")), length.get("ci")
    if known is None:
        return []
    shown = f" [{ends[0]:+.2f}, {ends[1]:+.2f}]" if isinstance(ends, list | tuple) and len(ends) == 2 else ""
    return [f"quantizing the target changed the mean accepted length at {load} by {known:+.2f}{shown}"]
