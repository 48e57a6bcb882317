"""Plots of the arms, as SVG files beside report.md: acceptance by draft position, latency by load, cost by arm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqtool.advise.measured import CONTROL, Measured, number, pair
from sqtool.files import write_text
from sqtool.report.plots import COLOURS, MARKERS, STYLE, figure_of
from sqtool.report.speculation_loads import arm_name, load_words, names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POSITIONS, LATENCY, COST = "speculation-positions.svg", "speculation-latency.svg", "speculation-cost.svg"


def alt_texts(report: Mapping[str, Any]) -> dict[str, str]:
    """File name to what its plot shows, for the plots that these figures allow."""
    measured = Measured(report)
    found = {}
    places = _positions(measured)
    if places:
        last = ", ".join(f"{arm_name(arm)} {points[-1][1]:.0%}" for (arm, _), points in places.items())
        found[POSITIONS] = f"Acceptance by draft position; at the last one: {last}"
    times = _latency(measured)
    if len(measured.loads) > 1 and times:
        found[LATENCY] = f"Median and p99 of a whole request by load ({', '.join(measured.loads)}), arm by arm"
    costs = _costs(measured)
    if costs:
        load = measured.loads[0]
        shown = ", ".join(f"{arm_name(arm)} {cost[0]:.3g}" for (arm, at), cost in costs.items() if at == load)
        found[COST] = f"Cost per accepted answer with its interval; at {load}: {shown}"
    return found


def draw_speculation(folder: Path, report: Mapping[str, Any]) -> None:
    """Write the plots that `alt_texts` names into `folder`."""
    wanted = alt_texts(report)
    if not wanted:
        return
    import matplotlib as mpl

    drawers: dict[str, Callable[[Measured], Figure]] = {
        POSITIONS: _draw_positions,
        LATENCY: _draw_latency,
        COST: _draw_costs,
    }
    with mpl.rc_context(STYLE):
        for name in wanted:
            text = StringIO()
            drawers[name](Measured(report)).savefig(text, format="svg", metadata={"Date": None, "Creator": None})
            write_text(folder / name, text.getvalue())


def _label(name: str) -> str:
    # Names come from recipes: a dollar sign is no mathematics.
    return arm_name(name)[:32].replace("$", r"\$")


def _style(measured: Measured, arm: str) -> dict[str, Any]:
    at = names(measured).index(arm) % len(COLOURS)
    return {"color": COLOURS[at], "marker": MARKERS[at]}


Point = tuple[int, float, tuple[float, float] | None]


def _positions(measured: Measured) -> dict[tuple[str, str], list[Point]]:
    """(arm, load) -> (position from 1, rate, interval); only the lightest load, so that lines stay apart."""
    found: dict[tuple[str, str], list[Point]] = {}
    for arm in names(measured):
        if arm == CONTROL or not measured.speculates(arm):
            continue
        for load in measured.loads[:1]:
            spoken = measured.speculation(arm, load)
            rates = [number(rate) for rate in spoken.get("per_position_rate") or ()]
            ends = (spoken.get("ci") or {}).get("per_position_rate") or [None] * len(rates)
            points = [
                (at, rate, pair(end))
                for at, (rate, end) in enumerate(zip(rates, ends, strict=False), 1)
                if rate is not None
            ]
            if points:
                found[arm, load] = points
    return found


def _latency(measured: Measured) -> dict[tuple[str, str], list[tuple[str, float, tuple[float, float] | None]]]:
    """(arm, percentile) -> (load, milliseconds, interval)."""
    found = {}
    for arm in names(measured):
        for name in ("p50", "p99"):
            points = [
                (load, ms, measured.interval(arm, load, "e2e_ms", name))
                for load in measured.loads
                if (ms := measured.figure(arm, load, "e2e_ms", name)) is not None
            ]
            if points:
                found[arm, name] = points
    return found


def _costs(measured: Measured) -> dict[tuple[str, str], tuple[float, tuple[float, float] | None, str]]:
    return {
        (arm, load): cost
        for load in measured.loads
        for arm in names(measured)
        if (cost := measured.cost(arm, load)) is not None
    }


def _error(points: list[tuple[float, tuple[float, float] | None]]) -> Any:
    """Lengths below and above for error bars; a percentile's interval may not contain it, and a bar has no negative
    length."""
    below = [max(0.0, middle - ends[0]) if ends else 0.0 for middle, ends in points]
    above = [max(0.0, ends[1] - middle) if ends else 0.0 for middle, ends in points]
    return [below, above]


def _draw_positions(measured: Measured) -> Figure:
    figure = figure_of(6.2, 3.4)
    axes = figure.subplots()
    found = _positions(measured)
    for number_, ((arm, _), points) in enumerate(found.items()):
        shift = 0.06 * (number_ - (len(found) - 1) / 2)
        axes.errorbar(
            [at + shift for at, _, _ in points],
            [100 * rate for _, rate, _ in points],
            yerr=_error(
                [(100 * rate, None if ends is None else (100 * ends[0], 100 * ends[1])) for _, rate, ends in points]
            ),
            label=_label(arm),
            capsize=3,
            markersize=5,
            linewidth=1.2,
            **_style(measured, arm),
        )
    axes.set(xlabel="draft position", ylabel="accepted, % of verifications", ylim=(0, 103))
    axes.set_xticks(sorted({at for points in found.values() for at, _, _ in points}))
    axes.set_title(f"at {measured.loads[0]}: {load_words(measured.loads[0])}", fontsize=9)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def _draw_latency(measured: Measured) -> Figure:
    figure = figure_of(8.6, 3.6)
    sides = figure.subplots(1, 2, sharex=True)
    places = {load: at for at, load in enumerate(measured.loads)}
    for axes, name in zip(sides, ("p50", "p99"), strict=True):
        for (arm, percentile), points in _latency(measured).items():
            if percentile != name:
                continue
            axes.errorbar(
                [places[load] for load, _, _ in points],
                [ms for _, ms, _ in points],
                yerr=_error([(ms, ends) for _, ms, ends in points]),
                label=_label(arm) if name == "p50" else None,
                capsize=3,
                markersize=5,
                linewidth=1.2,
                **_style(measured, arm),
            )
        axes.set_xticks(list(places.values()), list(places))
        axes.set(xlabel="load", ylabel=f"end to end {name}, ms")
        axes.set_ylim(bottom=0)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def _draw_costs(measured: Measured) -> Figure:
    costs = _costs(measured)
    loads = [load for load in measured.loads if any(at == load for _, at in costs)]
    arms = [arm for arm in names(measured) if any(name == arm for name, _ in costs)]
    figure = figure_of(7.2, max(2.2, 1.0 + 0.28 * len(arms) * len(loads)))
    axes = figure.subplots()
    rows = [(load, arm) for load in loads for arm in arms if (arm, load) in costs]
    for at, (load, arm) in enumerate(rows):
        middle, ends, _ = costs[arm, load]
        axes.errorbar(
            [middle],
            [at],
            xerr=_error([(middle, ends)]),
            capsize=3,
            markersize=6,
            linewidth=1.4,
            **_style(measured, arm),
        )
    several = len(loads) > 1
    axes.set_yticks(range(len(rows)), [f"{load}, {_label(arm)}" if several else _label(arm) for load, arm in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    unit = next(iter(costs.values()))[2]
    axes.set_xlabel(f"{'device-seconds' if unit == 'device_seconds' else unit} per accepted answer")
    axes.set_xlim(left=0)
    return figure
