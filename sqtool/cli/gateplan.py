"""What the gate can decide, in tables and sentences. Everything is read from the plan's JSON form, so that `--json`
holds at least what is shown here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqtool.cli.terminal import Terminal
from sqtool.report.numbers import percent, signed_points

HEADERS = ("metric", "items", "margin", "answers that change", "PASS if no worse", "REGRESSED from", "items for {}")
SLICE_HEADERS = ("slice", "metric", "items", "require", "judged")
STOP_HEADERS = ("true drop", "items asked on average", "PASS", "REGRESSED")
MEASURED_HEADERS = (
    "metric", "items", "better/worse", "answers that change", "difference", "PASS if no worse", "REGRESSED from",
    "items for {}",
)  # fmt: skip


def show_gate(terminal: Terminal, gate: Mapping[str, Any]) -> None:
    """A gate's plan (`GatePlan.to_dict()`): powers at assumed discordances, slices, stopping early, notes."""
    _powers(terminal, gate)
    _slices(terminal, gate)
    _stopping(terminal, gate)
    for note in gate["notes"]:
        terminal.say(f"  note: {note}")


def show_measured(terminal: Terminal, measured: Mapping[str, Any], gate: Mapping[str, Any], title: str) -> None:
    """A measured discordance (`Measured.to_dict()`) and the plan that follows from it."""
    power = _share(gate["power"]["power"])
    rows = []
    for metric in measured["metrics"]:
        seen, worst = metric["at_estimate"], metric["at_upper"]
        rows.append(
            (
                metric["metric"],
                f"{metric['items']:,}",
                f"{metric['improved']}/{metric['worsened']}",
                f"{percent(metric['discordance'])} ({100 * metric['lower']:.2f} to {100 * metric['upper']:.2f})",
                signed_points(metric["difference"]),
                f"{_chance(seen['power_to_pass'])} / {_chance(worst['power_to_pass'])}",
                f"{_points(seen['detectable_drop'])} / {_points(worst['detectable_drop'])}",
                f"{_count(seen['items_for_power'])} / {_count(worst['items_for_power'])}",
            )
        )
    terminal.say()
    terminal.table((*MEASURED_HEADERS[:-1], MEASURED_HEADERS[-1].format(power)), tuple(rows), title)
    levels = sorted({100 * (1 - 2 * metric["alpha"]) for metric in measured["metrics"]})
    level = " or ".join(f"{value:g} %" for value in levels)
    terminal.say(f"  In brackets the {level} interval. Of two figures the second holds at its upper end.")
    seen, worst = measured["all_pass"], measured["all_pass_at_upper"]
    terminal.say(
        f"  {_what(gate)} a candidate that is no worse with a chance of at least {_chance(seen['at_least'])}"
        f" ({_chance(seen['if_independent'])} were they independent) at these shares of changed answers, "
        f"{_chance(worst['at_least'])} ({_chance(worst['if_independent'])}) at their upper ends."
    )


def _powers(terminal: Terminal, gate: Mapping[str, Any]) -> None:
    power = gate["power"]
    rows: list[tuple[str, ...]] = []
    metrics = {metric["metric"]: metric for metric in gate["metrics"]}
    for name in _names(gate):
        metric = metrics.get(name)
        found = [row for row in power["rows"] if row["metric"] == name]
        if metric is not None and not found:
            rows.append((name, _items(metric), "relative", "", "when the baseline is known", "", ""))
        for at, row in enumerate(found):
            head = (name, _items(metric or row), f"{100 * row['margin']:.2f}") if at == 0 else ("", "", "")
            figures = (_chance(row["power_to_pass"]), _points(row["detectable_drop"]), _count(row["items_for_power"]))
            rows.append((*head, _share(row["discordance"]), *figures))
    share = _share(power["power"])
    terminal.table((*HEADERS[:-1], HEADERS[-1].format(share)), tuple(rows), "What the gate can decide")
    terminal.say(
        "  PASS if no worse: the chance that a candidate as good as the baseline passes. REGRESSED from: the smallest "
        f"true drop that is refused with a chance of {share}. Margin and drop in points."
    )
    if power["rows"]:
        each = [f"{_chance(at['at_least'])} at {_share(at['discordance'])}" for at in power["all_pass"]]
        free = ", ".join(_chance(at["if_independent"]) for at in power["all_pass"])
        terminal.say(
            f"  {_what(gate)} a candidate that is no worse with a chance of at least {', '.join(each)} "
            f"of answers that change ({free} were they independent)."
        )


def _slices(terminal: Terminal, gate: Mapping[str, Any]) -> None:
    if not gate["slices"]:
        return
    rows = [
        (f"{part['field']}={part['value']}", part["metric"], f"{part['items']:,}", part["require"], _judged(part))
        for part in gate["slices"]
    ]
    terminal.say()
    terminal.table(SLICE_HEADERS, tuple(rows), "Slices")
    lost = sum(part["can_pass"] is False for part in gate["slices"])
    if lost:
        terminal.say(
            f"  {lost} of {len(rows)} slices have too few items to pass even if no answer changes; they are not "
            "judged, unless they regressed."
        )


def _stopping(terminal: Terminal, gate: Mapping[str, Any]) -> None:
    """One table, for the metric with the most items."""
    rows = gate["stopping"]
    if not rows:
        return
    shown = [
        (
            f"{100 * row['drop']:.2f}",
            f"{row['expected_items']:,.0f} of {row['items']:,}",
            f"{_chance(row['passes'])} / {_chance(row['passes_if_off'])}",
            f"{_chance(row['regressed'])} / {_chance(row['regressed_if_off'])}",
        )
        for row in rows
    ]
    terminal.say()
    terminal.table(STOP_HEADERS, tuple(shown), f"Stopping early: {rows[0]['metric']}, 3 % of answers change")
    terminal.say("  Simulated, to about a point. Of two figures the second is without stopping early.")


def _judged(part: Mapping[str, Any]) -> str:
    if part["can_pass"] is None:
        return "known with the baseline"
    if part["can_pass"]:
        return "yes"
    need = f"needs {part['items_needed']:,} items" if part["items_needed"] else "no number of items suffices"
    return f"not judged: {need}"


def _names(gate: Mapping[str, Any]) -> Sequence[str]:
    """Names in the table: all metrics, then slices that must pass."""
    return list(dict.fromkeys([m["metric"] for m in gate["metrics"]] + [r["metric"] for r in gate["power"]["rows"]]))


def _what(gate: Mapping[str, Any]) -> str:
    """The subject of a sentence about everything that must pass."""
    known = sum(metric["margin"] is not None for metric in gate["metrics"])
    must = len({row["metric"] for row in gate["power"]["rows"]}) - known
    metrics = f"The {known} gated metrics together pass" if known > 1 else "The gated metric passes"
    return metrics if not must else f"The gated metrics ({known}) and required slices ({must}) together pass"


def _items(value: Mapping[str, Any]) -> str:
    return ("at most " if value.get("counted") == "at_most" else "") + f"{value['items']:,}"


def _share(value: float) -> str:
    return f"{100 * value:g} %"


def _chance(value: float) -> str:
    """A probability; what is not certain never looks so."""
    if 0.999 < value < 1:
        return "> 99.9 %"
    return "< 0.1 %" if 0 < value < 0.001 else percent(value, 1)


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
