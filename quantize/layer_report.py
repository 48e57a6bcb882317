"""What layers.jsonl says, in short and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqtool.files import read_jsonl, write_text

WORST = 5
ERRORS = {"weight_error": "weights", "output_error": "outputs"}


def summarize_layers(path: Path, plot: Path) -> dict[str, Any]:
    """The file's name, the mean error and the layers with the largest; {} when there is no such file.

    Draws the errors of all layers to `plot` (SVG) when matplotlib is installed.
    """
    if not path.is_file():
        return {}
    lines = [line for _, line in read_jsonl(path) if "weight_error" in line]
    found: dict[str, Any] = {"file": path.name}
    for key in ERRORS:
        errors = [(float(line[key]), str(line["name"])) for line in lines if key in line]
        if errors:
            found[key] = {
                "mean": sum(error for error, _ in errors) / len(errors),
                "worst": [{"name": name, key: error} for error, name in sorted(errors, reverse=True)[:WORST]],
            }
    if any(line["zero_groups"] for line in lines):
        found["zero_groups"] = sum(line["zero_groups"] for line in lines)
    if lines and draw(lines, plot):
        found["plot"] = plot.name
    return found


def draw(lines: list[dict[str, Any]], plot: Path) -> bool:
    """Draw the errors of `lines` in their order to the SVG file `plot`; False when matplotlib is not installed."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        return False
    from io import StringIO

    # No fonts as paths and no random ids: a smaller file, and the same for the same numbers.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "sqtool"}):
        figure = Figure(figsize=(10, 4))
        axes = figure.subplots(gridspec_kw={"left": 0.07, "right": 0.98, "bottom": 0.12, "top": 0.96})
        for key, label in ERRORS.items():
            points = [(place, line[key]) for place, line in enumerate(lines) if key in line]
            if points:
                axes.plot(*zip(*points, strict=True), ".", label=label)
        axes.set_xlabel("layer, in the order of work")
        axes.set_ylabel("relative error (RMS)")
        axes.set_ylim(bottom=0)
        axes.legend()
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    write_text(plot, text.getvalue())
    return True
