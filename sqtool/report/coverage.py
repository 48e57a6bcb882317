"""Calibration coverage as sentences and a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqtool.report.facts import Facts

DIMENSION_HEADERS = ("coverage of", "score", "at least", "verdict", "against")
SHOWN = 5


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
    _add_dimensions(facts, coverage)
    rows = tuple(
        (kind, str(row["samples"]), str(row["tokens"]), str(row["in_pool"])) for kind, row in coverage["kinds"].items()
    )
    facts.coverage_table = Table(("kind", "conversations", "tokens", "in the sources"), rows)


def _add_dimensions(facts: Facts, coverage: Mapping[str, Any]) -> None:
    """Scores against the traffic and the test items, and in words what is missing where one is too low."""
    from sqtool.report.facts import Table

    found = dimensions(coverage)
    if found:
        facts.coverage_dimensions = Table(DIMENSION_HEADERS, dimension_rows(found))
    for line in missing_lines(found):
        facts.coverage.append(line)
    contamination = coverage.get("contamination", {})
    if contamination.get("verdict") in ("CLEAN", "CONTAMINATED"):
        facts.coverage.append(
            f"test items: {contamination['items']} compared, "
            f"{len(contamination['found'])} conversations share a question or 13 words with one"
        )
        for hit in contamination["found"][:SHOWN]:
            facts.coverage.append(f"{hit['conversation']} and {hit['item']} share {hit['how']}: {hit['text']}")


def dimensions(coverage: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The scored dimensions of coverage.json, text before model."""
    return {name: found for part in ("text", "model") for name, found in coverage.get(part, {}).items()}


def dimension_rows(found: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[str, ...], ...]:
    """One row of text for each dimension: name, score, minimum, verdict, score against each reference."""
    return tuple(
        (
            name.replace("_", " "),
            # Shares of what must hardly ever happen are close to 1.
            f"{one['score']:.4f}" if one["threshold"] > 0.99 else f"{one['score']:.3f}",
            f"{one['threshold']:.3f}" if one["threshold"] > 0.99 else f"{one['threshold']:.2f}",
            "measured only" if one.get("open") and not one["threshold"] else one["verdict"],
            ", ".join(f"{side} {score:.3f}" for side, score in one.get("against", {}).items()),
        )
        for name, one in found.items()
    )


def missing_lines(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """In words, what is missing of each dimension whose score is too low, and which conversations would fill it."""
    lines = []
    for name, one in found.items():
        if one["verdict"] == "COVERED":
            continue
        for entry in one["missing"][:SHOWN]:
            if not isinstance(entry, Mapping):
                lines.append(f"missing of {name.replace('_', ' ')}: {entry}")
                continue
            there = entry.get("in_pool", 0)
            filled = f"{there} in the sources, e.g. {', '.join(entry['items'])}" if there else "none in the sources"
            lines.append(
                f"missing of {name.replace('_', ' ')}: {entry['name']}, "
                f"{100 * entry['share']:.1f} % of the {entry['against']}; {filled}"
            )
    return lines
