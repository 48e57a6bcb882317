"""Plots of coverage, and what they are drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqtool.files import read_json

if TYPE_CHECKING:
    from sqtool.report.facts import Facts

ACTIVATIONS = "activations.json"


def add_activations(facts: Facts, folder: Path) -> None:
    """Put activations.json of the calibrate stage in `folder` into the report, where it is there."""
    from sqtool.report.facts import Plot
    from sqtool.report.plots import alt_texts

    path = folder / ACTIVATIONS
    if not path.is_file():
        return
    activations: Mapping[str, Any] = read_json(path)
    facts.coverage.append(
        f"{activations['calibration_tokens']} tokens of calibration and {activations['traffic_tokens']} of traffic "
        "went through the unmodified model"
    )
    facts.plots = [Plot(file, alt) for file, alt in alt_texts(activations).items()]
    facts.plots_from = str(path)
