"""Calibration coverage as sentences and a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqtool.report.facts import Facts


def add_coverage(facts: Facts, coverage: Mapping[str, Any]) -> None:
    """Put coverage.json of the calibrate stage into the report."""
