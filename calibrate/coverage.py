"""What a calibration set covers, by kind of conversation and by tool, and what it lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from calibrate.pool import NO_KIND, Pool, Record, tools_called, tools_offered
from calibrate.spec import CoverageSpec
from sqtool.errors import CoverageError


def measure(spec: CoverageSpec, pool: Pool, records: Sequence[Record], lengths: Sequence[int]) -> dict[str, Any]:
    """The coverage of `records` (with `lengths` tokens each): counts, and what is below the minimum."""
    kinds: Counter[str] = Counter()
    kind_tokens: Counter[str] = Counter()
    called: Counter[str] = Counter()
    offered: Counter[str] = Counter()
    for record, length in zip(records, lengths, strict=True):
        kind = record.get("kind") or NO_KIND
        kinds[kind] += 1
        kind_tokens[kind] += length
        called.update(tools_called(record))
        offered.update(tools_offered(record))
    wanted_kinds = pool.kinds() | set(spec.kinds or [])
    wanted_tools = pool.tools_called() | set(spec.tools or [])
    in_pool = Counter(e.kind for entries in pool.entries for e in entries)
    tools_in_pool = Counter(t for entries in pool.entries for e in entries for t in e.tools_called)
    # A name that the recipe lists must be there even when the minimum asks for nothing.
    kinds_short = _short(wanted_kinds, spec.kinds, kinds, in_pool, spec.min_per_kind)
    tools_short = _short(wanted_tools, spec.tools, called, tools_in_pool, spec.min_per_tool)
    return {
        "verdict": "THIN" if kinds_short or tools_short else "COVERED",
        "samples": len(records),
        "tokens": sum(lengths),
        "minimum": {"per_kind": spec.min_per_kind, "per_tool": spec.min_per_tool},
        "kinds": {
            kind: {"samples": kinds[kind], "tokens": kind_tokens[kind], "in_pool": in_pool[kind]}
            for kind in sorted(wanted_kinds)
        },
        "tools": {
            "called": len(called),
            "offered": len(offered),
            "called_in_pool": len(tools_in_pool),
            "by_name": {
                name: {"called": called[name], "offered": offered[name]} for name in sorted(set(called) | set(offered))
            },
        },
        "below_minimum": {"kinds": kinds_short, "tools": tools_short},
    }


def _short(
    wanted: set[str], listed: list[str] | None, have: Counter[str], pool: Counter[str], minimum: int
) -> list[dict[str, Any]]:
    listed = listed or []
    return [
        {"name": name, "samples": have[name], "needed": needed, "in_pool": pool[name]}
        for name in sorted(wanted)
        if have[name] < (needed := max(minimum, 1 if name in listed else 0))
    ]


def demand(report: dict[str, Any]) -> None:
    """Raises CoverageError that names what is missing and what would mend it."""
    kinds, tools = report["below_minimum"]["kinds"], report["below_minimum"]["tools"]
    if not kinds and not tools:
        return
    parts = []
    for what, short in (("kind", kinds), ("tool", tools)):
        shown = [f"{s['name']} {s['samples']} of {s['needed']}" for s in short[:8]]
        if len(short) > len(shown):
            shown.append(f"and {len(short) - len(shown)} more")
        if shown:
            parts.append(f"{what}s below the minimum: {', '.join(shown)}")
    raise CoverageError(f"the calibration set is too thin: {'; '.join(parts)}", remedy=_remedy(kinds + tools))


def _remedy(short: list[dict[str, Any]]) -> str:
    absent = [s["name"] for s in short if s["in_pool"] < s["needed"]]
    if absent:
        return (
            f"The sources themselves have too few of {', '.join(absent[:8])}: add a source with them to "
            "calibrate.sources, or lower calibrate.coverage."
        )
    return (
        "The sources have enough of them: raise calibrate.num_calibration_samples, give their source more weight, or "
        "lower calibrate.coverage."
    )
