"""Calibration coverage as sentences and a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqtool.report.facts import Facts


def add_coverage(facts: Facts, coverage: Mapping[str, Any]) -> None:
    """Put coverage.json of the calibrate stage into the report."""
    from sqtool.report.facts import Table

    minimum, tools = coverage["minimum"], coverage["tools"]
    facts.coverage.append(
        f"{coverage['verdict']}: {coverage['samples']} conversations, {coverage['tokens']} tokens; "
        f"asked for at least {minimum['per_kind']} of each kind and {minimum['per_tool']} of each tool"
    )
    facts.coverage.append(
        f"{tools['called']} tools are called ({tools['called_in_pool']} in the sources), {tools['offered']} offered"
    )
    for what, short in coverage["below_minimum"].items():
        for entry in short:
            facts.coverage.append(f"too few of {what[:-1]} {entry['name']}: {entry['samples']} of {entry['needed']}")
    rows = tuple(
        (kind, str(row["samples"]), str(row["tokens"]), str(row["in_pool"])) for kind, row in coverage["kinds"].items()
    )
    facts.coverage_table = Table(("kind", "conversations", "tokens", "in the sources"), rows)
