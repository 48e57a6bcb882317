"""Plots of calibration coverage, drawn as SVG files beside report.md.

The same figures give the same bytes: no date, ids from a fixed salt, text kept as text (which also keeps files small).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqtool.files import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RANGES, OVERLAP = "coverage-ranges.svg", "coverage-overlap.svg"
STYLE: Any = {"svg.hashsalt": "sqtool", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False,
         "axes.spines.right": False, "axes.axisbelow": True}  # fmt: skip
# Okabe and Ito's colours, which people with any colour vision tell apart, and a marker each for print in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")
MARKERS = "osD^vP*X"
CALIBRATION, TRAFFIC = COLOURS[0], COLOURS[1]
NEVER = 1e3
"""Where a ratio without a number (nothing was calibrated) is drawn."""
KINDS = 16
_LAYER = re.compile(r"^(?:.*?\.)?(\d+)\.(.+)$")


def alt_texts(activations: Mapping[str, Any]) -> dict[str, str]:
    """File name to what its plot shows, for the plots that these figures of the calibrate stage allow."""
    layers = [layer for layer in activations["layers"] if "ratio" in layer]
    if not layers:
        return {}
    worst = max(layers, key=lambda layer: math.inf if layer["ratio"] is None else layer["ratio"])
    said = "nothing was calibrated" if worst["ratio"] is None else f"{worst['ratio']:.3g} times"
    most = max(layers, key=lambda layer: layer["saturated"])
    overlap = activations["overlap"]
    return {
        RANGES: (
            f"Largest traffic activation over the calibrated maximum, layer by layer: highest at {worst['name']}, "
            f"{said}. Below it the share of traffic tokens beyond that maximum: most at {most['name']}, "
            f"{most['saturated']:.2%}"
        ),
        OVERLAP: (
            f"Calibration and traffic side by side: lengths overlap by {overlap['lengths']['overlap']:.0%}, kinds by "
            f"{overlap['kinds']['overlap']:.0%}; and how the maxima of channels compare"
        ),
    }


def draw_plots(folder: Path, activations: Mapping[str, Any]) -> None:
    """Write the plots that `alt_texts` names into `folder`."""
    drawers: dict[str, Callable[[Mapping[str, Any]], Figure]] = {RANGES: _ranges, OVERLAP: _overlap}
    wanted = alt_texts(activations)
    if not wanted:
        return
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        for name in wanted:
            text = StringIO()
            drawers[name](activations).savefig(text, format="svg", metadata={"Date": None, "Creator": None})
            write_text(folder / name, text.getvalue())


def figure_of(width: float, height: float) -> Figure:
    """An empty figure of so many inches, without a display."""
    from matplotlib.figure import Figure

    # Not pyplot: it keeps every figure and may look for a display.
    return Figure(figsize=(width, height), layout="constrained")


Point = tuple[int, float, float]


def series(activations: Mapping[str, Any]) -> dict[str, list[Point]]:
    """What enters which layer: name to (decoder layer, ratio, share of traffic tokens beyond) in the model's order.

    Layers that share an input are one; experts' own layers, of which there may be hundreds, are their worst."""
    found: dict[str, dict[int, tuple[float, float]]] = {}

    def add(name: str, layer: int, row: Mapping[str, Any]) -> None:
        ratio = NEVER if row["ratio"] is None else row["ratio"]
        known = found.setdefault(name, {}).get(layer, (0.0, 0.0))
        found[name][layer] = (max(known[0], ratio), max(known[1], row["saturated"]))

    for row in activations["layers"]:
        place = _LAYER.match(row["name"])
        if place is not None and "ratio" in row:
            names = [place[2], *(m[2] for other in row["also"] if (m := _LAYER.match(other)))]
            add(_short(names), int(place[1]), row)
    for row in activations["kv"]:
        for what in ("keys", "values"):
            if "ratio" in row[what]:
                add(f"KV cache: {what}", row["layer"], row[what])
    return {name: [(layer, *points[layer]) for layer in sorted(points)] for name, points in found.items()}


def _short(names: list[str]) -> str:
    """`self_attn.q_proj`, `self_attn.k_proj` as `q, k`."""
    return ", ".join(dict.fromkeys(name.rsplit(".", 1)[-1].removesuffix("_proj") for name in names))


def _ranges(activations: Mapping[str, Any]) -> Figure:
    figure = figure_of(7.5, 5.2)
    above, below = figure.subplots(2, 1, sharex=True)
    limits = activations["limits"]
    for number, (name, points) in enumerate(series(activations).items()):
        style = {"color": COLOURS[number % 8], "marker": MARKERS[number % 8], "markersize": 4, "linewidth": 1.2}
        layers = [point[0] for point in points]
        above.plot(layers, [point[1] for point in points], label=name, **style)
        below.plot(layers, [100 * point[2] for point in points], **style)
    above.axhline(1, color="0.6", linewidth=0.8)
    above.axhline(limits["ratio"], color="0.2", linewidth=0.8, linestyle="--", label="limit")
    below.axhline(100 * limits["saturated"], color="0.2", linewidth=0.8, linestyle="--")
    if max(max(p[1] for p in points) for points in series(activations).values()) > 10:
        above.set_yscale("log")
    above.set_ylabel("traffic max / calibration max")
    below.set_ylabel("traffic tokens beyond, %")
    below.set_xlabel("decoder layer")
    below.set_ylim(bottom=0)
    below.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside right upper", frameon=False, title="input of")
    return figure


def _overlap(activations: Mapping[str, Any]) -> Figure:
    lengths, kinds = activations["overlap"]["lengths"], activations["overlap"]["kinds"]
    rows = min(KINDS, len(kinds["names"]))
    figure = figure_of(10, max(2.8, 1.2 + 0.24 * rows))
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1))
    places = range(len(lengths["edges"]))
    for name, colour in (("calibration", CALIBRATION), ("traffic", TRAFFIC)):
        left.bar(places, [100 * x for x in lengths[name]], width=1, alpha=0.5, color=colour, label=name)
    left.set_xticks([p - 0.5 for p in places], [str(edge) for edge in lengths["edges"]])
    left.set(xlabel="tokens of a conversation, from", ylabel="% of conversations")
    left.set_title(f"lengths: {lengths['overlap']:.0%} overlap", fontsize=9)
    left.legend(frameon=False)
    _kinds(middle, kinds, rows)
    _channels(right, activations["channel_ratios"])
    return figure


def _kinds(axes: Axes, kinds: Mapping[str, Any], rows: int) -> None:
    # The most frequent ones of the traffic, largest on top.
    order = sorted(range(len(kinds["names"])), key=lambda i: (-kinds["traffic"][i], -kinds["calibration"][i], i))[:rows]
    for name, colour, shift in (("calibration", CALIBRATION, -0.2), ("traffic", TRAFFIC, 0.2)):
        axes.barh([p + shift for p in range(rows)], [100 * kinds[name][i] for i in order], height=0.4, color=colour)
    # Names come from data files: a dollar sign is no mathematics.
    names = [kinds["names"][i][:24].replace("$", r"\$") for i in order]
    axes.set_yticks(range(rows), names)
    axes.invert_yaxis()
    axes.set_xlabel("% of conversations")
    more = len(kinds["names"]) - rows
    axes.set_title(f"kinds: {kinds['overlap']:.0%} overlap" + (f" ({more} more)" if more else ""), fontsize=9)


def _channels(axes: Axes, ratios: Mapping[str, Any]) -> None:
    edges, counts = ratios["edges"], ratios["counts"]
    total = max(1, sum(counts))
    colours = [TRAFFIC if edge >= 1 else CALIBRATION for edge in edges]
    axes.bar(range(len(edges)), [100 * n / total for n in counts], width=0.95, color=colours)
    axes.set_xticks([p - 0.5 for p in range(len(edges))], [f"{edge:g}" for edge in edges], rotation=60)
    axes.set(xlabel="traffic max / calibration max, from", ylabel="% of channels")
    beyond = sum(n for edge, n in zip(edges, counts, strict=True) if edge >= 1) / total
    axes.set_title(f"channels: {beyond:.0%} at or beyond", fontsize=9)
