"""What a calibration set covers: its minimum of every kind and tool, its text against the traffic, and the verdict.

coverage.json has `verdict` (the worst of all), `text` (see `calibrate.text_coverage`), `model` where the model was
looked at, each with {score, threshold, verdict, missing} by dimension, and the counts behind the minimum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from calibrate.conversation import NO_KIND, Record, tools_called, tools_offered
from calibrate.pool import Pool
from calibrate.spec import CoverageSpec
from calibrate.text_coverage import lacking, worst
from sqtool.errors import CoverageError

PARTS = ("text", "model")
SHOWN = 8


def measure(
    spec: CoverageSpec, pool: Pool, records: Sequence[Record], lengths: Sequence[int], text: Mapping[str, Any]
) -> dict[str, Any]:
    """The coverage of `records` (with `lengths` tokens each): counts, what is below the minimum, and `text`."""
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
    in_pool = sum(pool.kinds, Counter[str]())
    tools_in_pool = Counter(t for entry in pool.all() for t in entry.tools_called)
    wanted_kinds = set(in_pool) | set(spec.kinds or [])
    wanted_tools = set(tools_in_pool) | set(spec.tools or [])
    # A name that the recipe lists must be there even when the minimum asks for nothing.
    report: dict[str, Any] = {
        "verdict": "",
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
        "below_minimum": {
            "kinds": _short(wanted_kinds, spec.kinds, kinds, in_pool, spec.min_per_kind),
            "tools": _short(wanted_tools, spec.tools, called, tools_in_pool, spec.min_per_tool),
        },
        "text": dict(text),
    }
    return conclude(report)


def conclude(report: dict[str, Any]) -> dict[str, Any]:
    """The report with its verdict: the worst of the minimum and of every dimension of every part."""
    short = any(report["below_minimum"].values())
    found = [d["verdict"] for part in PARTS for d in report.get(part, {}).values()]
    report["verdict"] = worst([*found, "THIN" if short else "COVERED"])
    return report


def _short(
    wanted: set[str], listed: list[str] | None, have: Counter[str], pool: Counter[str], minimum: int
) -> list[dict[str, Any]]:
    listed = listed or []
    return [
        {"name": name, "samples": have[name], "needed": needed, "in_pool": pool[name]}
        for name in sorted(wanted)
        if have[name] < (needed := max(minimum, 1 if name in listed else 0))
    ]


def refused(spec: CoverageSpec, report: Mapping[str, Any]) -> bool:
    """Does the recipe let nothing be quantized on this verdict?"""
    verdicts = {"thin": ("THIN", "UNCOVERED"), "uncovered": ("UNCOVERED",), "never": ()}
    return report["verdict"] in verdicts[spec.refuse]


def demand(spec: CoverageSpec, report: Mapping[str, Any]) -> None:
    """Raises CoverageError that names what is missing and what would mend it, where the recipe refuses the verdict."""
    if not refused(spec, report):
        return
    kinds, tools = report["below_minimum"]["kinds"], report["below_minimum"]["tools"]
    parts = []
    for what, short in (("kind", kinds), ("tool", tools)):
        shown = [f"{s['name']} {s['samples']} of {s['needed']}" for s in short[:SHOWN]]
        if len(short) > len(shown):
            shown.append(f"and {len(short) - len(shown)} more")
        if shown:
            parts.append(f"{what}s below the minimum: {', '.join(shown)}")
    for part in PARTS:
        for name, found in lacking(report.get(part, {})).items():
            # Shares of what must hardly ever happen are close to 1.
            digits = 4 if found["threshold"] > 0.99 else 2
            scores = f"{found['score']:.{digits}f} of {found['threshold']:.{digits}f}"
            parts.append(f"{name} {scores}{_examples(found['missing'])}")
    said = "is too thin" if report["verdict"] == "THIN" else "does not cover the traffic"
    raise CoverageError(f"the calibration set {said}: {'; '.join(parts)}", remedy=_remedy(report, kinds + tools))


def _examples(missing: Sequence[Any]) -> str:
    named = [m for m in missing if isinstance(m, Mapping) and "name" in m and "share" in m][:3]
    if named:
        return f" (missing: {', '.join(in_words(m) for m in named)})"
    return f" ({missing[0]})" if missing and isinstance(missing[0], str) else ""


def in_words(missing: Mapping[str, Any]) -> str:
    """One missing feature: `Han, 12 % of the traffic`."""
    share = 100 * missing["share"]
    return f"{missing['name']}, {share:.0f} % of the {missing['against']}" if share >= 1 else str(missing["name"])


def _remedy(report: Mapping[str, Any], short: list[dict[str, Any]]) -> str:
    absent = [s["name"] for s in short if s["in_pool"] < s["needed"]]
    missing = [m for f in lacking(report.get("text", {})).values() for m in f["missing"]]
    absent += [m["name"] for m in missing if not m.get("in_pool", 1)]
    there = [s for s in short if s["in_pool"] >= s["needed"]] + [m for m in missing if m.get("in_pool")]
    said = []
    if absent:
        said.append(
            f"The sources themselves have too few of {', '.join(absent[:SHOWN])}: add a source with them to "
            "calibrate.sources, or lower calibrate.coverage."
        )
    if there:
        said.append(
            "`sqtool calibrate RECIPE --fix` adds conversations that the sources have of what is missing; or raise "
            "calibrate.num_calibration_samples, give their source more weight, or lower calibrate.coverage."
        )
    if lacking(report.get("model", {})):
        said.append(
            "`sqtool calibrate RECIPE --fix` looks through the sources for conversations that reach as far; where they "
            "have none, add some like the traffic that goes beyond to calibrate.sources. Or raise "
            "calibrate.num_calibration_samples, or change the limits in calibrate.activations (activations.json has "
            "every layer)."
        )
    return " ".join(said) or "Change the sources, or lower calibrate.coverage."
