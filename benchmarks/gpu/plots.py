"""The figures of `benchmarks.gpu.four_arms`, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.arms import pooled

PANELS = {"latency.png": ("e2e", "end to end p50 and p95, ms"), "throughput.png": ("tokens_per_s", "tokens per second")}


def draw(cells: dict[str, Any], formats: Sequence[str], loads: Sequence[int], out: Path, shape: str) -> list[Path]:
    """One figure for latency and one for throughput: a panel for each load, a pair of bars for each format (without a
    draft, with one). Error bars reach to the 95th percentile. Nothing is drawn of arms that were not measured."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    made = []
    for name, (measure, label) in PANELS.items():
        figure, axes = pyplot.subplots(1, len(loads), figsize=(3.2 * len(loads), 3.2), squeeze=False)
        seen = False
        for axis, load in zip(axes[0], loads, strict=True):
            for at, ending in enumerate(("", "+draft")):
                found = [pooled(cells, fmt + ending, load) for fmt in formats]
                places = [place + 0.4 * at for place, one in enumerate(found) if one and one[measure]]
                values = [one[measure] for one in found if one and one[measure]]
                heights = [value["p50"] if measure == "e2e" else value for value in values]
                above = [value["p95"] - value["p50"] for value in values] if measure == "e2e" else None
                seen = seen or bool(values)
                axis.bar(
                    places,
                    heights,
                    width=0.38,
                    label="with draft" if at else "plain",
                    yerr=None if above is None else [[0.0] * len(above), above],
                    error_kw={"linewidth": 0.8, "capsize": 2},
                )
            axis.set_xticks([place + 0.2 for place in range(len(formats))], formats)
            axis.set_title(f"{load} in flight", fontsize=10)
        axes[0][0].set_ylabel(label)
        figure.legend(*axes[0][0].get_legend_handles_labels(), fontsize=8, ncols=2, loc="upper right", frameon=False)
        title = "reference pair" if shape == "reference" else f"random weights, shape {shape}"
        figure.suptitle(title, fontsize=10)
        figure.tight_layout()
        if seen:
            figure.savefig(out / name, dpi=150)
            made.append(out / name)
        pyplot.close(figure)
    return made
