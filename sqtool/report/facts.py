"""What a run found, read from its folder into plain texts and tables: the one source of report.md and the terminal.

Only stages of this run count: a folder whose digest is not the one in run.json belongs to an earlier recipe.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqtool.errors import UsageError
from sqtool.files import read_json
from sqtool.report.numbers import percent, size, span, value
from sqtool.runfolder import RunFolder

if TYPE_CHECKING:
    from sqtool.report.speculation import Section

AS_STORED = "as stored"
"""What the engine's facts say of weights that are served in the checkpoint's own form."""
HEADLINES = {
    "released": "RELEASED",
    "passed": "PASSED",
    "done": "DONE",
    "refused": "REFUSED",
    "inconclusive": "INCONCLUSIVE",
    "failed": "FAILED",
    "cancelled": "CANCELLED",
    "running": "RUNNING",
}


@dataclass(frozen=True)
class Table:
    """A table of texts; `notes` are sentences below it."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class WorseItem:
    """One item that got worse, with both answers as they came (hostile text)."""

    metric: str
    id: str
    kind: str
    expected: str
    baseline: str
    candidate: str


@dataclass(frozen=True)
class Plot:
    """A picture beside report.md, and what it shows in words."""

    file: str
    alt: str


@dataclass
class Facts:
    """Everything that the report shows; empty where the run has not come that far."""

    name: str
    headline: str
    why: list[str] = field(default_factory=list)
    remedy: str = ""
    metrics: Table | None = None
    slices: Table | None = None
    failures: Table | None = None
    tool_counts: Table | None = None
    worse: list[WorseItem] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)
    """What a reader must know to read the figures rightly."""
    saves: list[str] = field(default_factory=list)
    coverage: list[str] = field(default_factory=list)
    coverage_table: Table | None = None
    as_served: Table | None = None
    coverage_dimensions: Table | None = None
    plots: list[Plot] = field(default_factory=list)
    plots_from: str = ""
    """The file with the figures that `plots` are drawn from."""
    drift: Table | None = None
    changes: Table | None = None
    arms: Table | None = None
    speculation: list[str] = field(default_factory=list)
    speculation_status: str = ""
    """`speculation: approved (...)` or `speculation: not approved: why`; empty where nothing was measured."""
    speculation_sections: list[Section] = field(default_factory=list)
    speculation_from: str = ""
    """The file with the figures that the sections' plots are drawn from."""
    advice: Section | None = None
    measured: list[tuple[str, str]] = field(default_factory=list)
    stages: Table | None = None
    serve: str = ""
    serve_speculative: str = ""
    """The same with the drafter that was measured; empty unless speculation is approved."""
    release: str = ""
    model: str = ""
    recipe: str = ""
    unreadable: list[str] = field(default_factory=list)
    started: str = ""
    seconds: str = ""


def collect(path: Path) -> Facts:
    """The facts of the run in folder `path`; `DataError` when it has no readable run.json."""
    from sqtool.report.advice import add_advice
    from sqtool.report.drift import add_changes, add_drift
    from sqtool.report.failures import add_failures
    from sqtool.report.verdict import add_verdict

    folder = RunFolder(path)
    state = folder.state()
    finished = folder.finished(state)
    folders = {name: place for name, (place, _) in finished.items()}
    results = {name: summary for name, (_, summary) in finished.items()}
    facts = Facts(
        name=str(state["name"]),
        headline=HEADLINES.get(state["outcome"], str(state["outcome"]).upper()),
        model=str(state.get("model") or ""),
        recipe=str(state.get("recipe") or ""),
        started=str(state["started"]),
        seconds=span(state.get("seconds")),
    )
    _add_why(facts, state)
    _add_stages(facts, state)
    _add_caveats(facts, results)
    parts: dict[str, Callable[[], None]] = {
        "quantize": lambda: _add_saves(facts, results.get("quantize")),
        "calibrate": lambda: _add_coverage(facts, state, folders.get("calibrate"), folder.failed("calibrate")),
        "as served": lambda: _add_as_served(facts, results),
        "drift": lambda: add_drift(facts, results.get("evaluate", {}).get("drift")),
        "changes": lambda: add_changes(facts, results.get("evaluate", {}).get("changes")),
        "engine": lambda: _add_measured(facts, results),
        "release": lambda: _add_release(facts, results.get("release"), results.get("gate", {}).get("outcome")),
    }
    sides = [results.get(name, {}).get("tasks", {}) for name in ("baseline", "evaluate")]
    parts["failures"] = lambda: add_failures(facts, *sides)
    if "gate" in folders:
        parts["gate"] = lambda: add_verdict(facts, folders["gate"] / "verdict.json")
    if "speculate" in folders:
        parts["speculate"] = lambda: _add_speculation(facts, folders)
    if "gate" in folders or "speculate" in folders:
        parts["advice"] = lambda: add_advice(facts, folder)
    for name, add in parts.items():
        try:
            add()
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, UsageError) as error:
            # One stage's results in a shape of another version must not hide the verdict.
            facts.unreadable.append(f"the results of {name} cannot be shown ({type(error).__name__}: {error})")
    return facts


def _add_why(facts: Facts, state: Mapping[str, Any]) -> None:
    error = state.get("error")
    if error is not None:
        problems = [p["message"] for p in state.get("problems", [])]
        facts.why += problems or [error["message"]]
        facts.remedy = str(error.get("remedy") or "")
    elif state["outcome"] == "passed":
        until = state.get("until")
        facts.why.append("the gate lets the candidate be released" + (f"; the run ended at `{until}`" if until else ""))
    elif state["outcome"] == "done":
        facts.why.append(f"the run ended at `{state.get('until')}`, before the gate")


def _add_caveats(facts: Facts, results: Mapping[str, Mapping[str, Any]]) -> None:
    """A measurement that is not of the checkpoint's own bytes says so at the top."""
    weights = str(results.get("evaluate", {}).get("engine", {}).get("weights") or AS_STORED)
    if weights != AS_STORED:
        facts.caveats.append(
            f"the candidate was served {weights}. Its answers are the checkpoint's, for the values are the same; its "
            "latency here is not"
        )
    if results.get("quantize", {}).get("simulated"):
        facts.caveats.append("simulated: low-bit values in 16-bit weights, neither smaller nor faster")


def _add_saves(facts: Facts, quantize: Mapping[str, Any] | None) -> None:
    if quantize is None:
        return
    before, after = quantize.get("bytes_before"), quantize.get("bytes_after")
    if before and after:
        share = (
            f"{100 * (1 - after / before):.0f} % smaller" if after < before else f"{after / before:.2f} times the size"
        )
        facts.saves.append(f"weights {size(before)}, now {size(after)}, {share}")
    layers, bits = quantize.get("layers_quantized"), quantize.get("bits_per_weight")
    if layers:
        facts.saves.append(f"{layers} layers quantized" + (f", {bits:.2f} bits per weight in them" if bits else ""))
    _add_quantization_errors(facts, quantize)


def _add_quantization_errors(facts: Facts, quantize: Mapping[str, Any]) -> None:
    """What the backend measured while it worked."""
    for key, what in (("weight_error", "weights"), ("output_error", "outputs")):
        error = (quantize.get("layers") or {}).get(key)
        if error:
            worst = error["worst"][0]
            facts.saves.append(
                f"relative error of a layer's {what}: mean {value(error['mean'])}, most {value(worst[key])} in "
                f"{worst['name']}"
            )
    cache = (quantize.get("details") or {}).get("kv_cache")
    if cache:
        share = cache["saturated_share"]
        facts.saves.append(
            f"KV cache in FP8 with calibrated scales; of the calibration tokens, {percent(share['k'])} of keys and "
            f"{percent(share['v'])} of values lie outside of their range, at most "
            f"{percent(cache['worst']['saturated_share'])} in {cache['worst']['name']}"
        )
    facts.caveats += [str(note) for note in quantize.get("notes") or [] if "KV cache" in note or "FP8 scale" in note]


def _add_coverage(facts: Facts, state: Mapping[str, Any], folder: Path | None, failed: Path) -> None:
    place = folder or (failed if (failed / "coverage.json").is_file() else None)
    record = next((r for r in state["stages"] if r["name"] == "calibrate"), None)
    if place is None:
        if record is not None and record["state"] == "skipped":
            facts.coverage.append(f"unknown: no calibration set was built here ({record['why']})")
        return
    coverage = _read(place / "coverage.json")
    if not isinstance(coverage, Mapping):
        return
    from sqtool.report.activations import add_activations
    from sqtool.report.coverage import add_coverage

    add_coverage(facts, coverage)
    add_activations(facts, place)


def _add_speculation(facts: Facts, folders: Mapping[str, Path]) -> None:
    from sqtool.report.speculation import add_speculation

    path = folders["speculate"] / "speculate.json"
    approval = read_json(folders["approve"] / "speculation_verdict.json") if "approve" in folders else None
    add_speculation(facts, read_json(path), approval)
    facts.speculation_from = str(path)


def _add_as_served(facts: Facts, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Both sides' scores where no request named a sampling parameter."""
    sides = [results.get(stage, {}).get("as_served") or {} for stage in ("baseline", "evaluate")]
    rows = []
    for task, left in sides[0].items():
        right = sides[1].get(task, {}).get("metrics", {})
        for metric, score in left["metrics"].items():
            other = percent(right[metric]) if metric in right else ""
            rows.append((f"{task}.{metric}", percent(score), other, str(left["n"])))
    if rows:
        notes = ("Asked as a client does that trusts the server's sampling parameters. These scores decide nothing.",)
        facts.as_served = Table(("metric", "baseline", "candidate", "items"), tuple(rows), notes)


def _add_measured(facts: Facts, results: Mapping[str, Mapping[str, Any]]) -> None:
    engine = results.get("evaluate", results.get("baseline", {})).get("engine")
    if not engine:
        return
    rows = [
        ("engine", f"{engine.get('engine', '')} {engine.get('version', '')}".strip()),
        ("device", str(engine.get("device", ""))),
        ("candidate's weights", str(engine.get("weights", ""))),
        ("kernels", ", ".join(engine.get("kernels", []))),
        ("attention", ", ".join(engine.get("attention", []))),
        ("dtype", str(engine.get("dtype", ""))),
        ("KV cache", str(engine.get("kv_cache_dtype", ""))),
        ("server flags", " ".join(map(str, engine.get("flags", [])))),
    ]
    facts.measured = [(name, text) for name, text in rows if text]


def _add_stages(facts: Facts, state: Mapping[str, Any]) -> None:
    rows = []
    for record in state["stages"]:
        seconds = span(record.get("seconds")) if record["state"] != "skipped" else ""
        rows.append((record["name"], record["state"], seconds, record["why"], record["digest"][:12]))
    facts.stages = Table(("stage", "state", "time", "why", "digest"), tuple(rows))


def _add_release(facts: Facts, release: Mapping[str, Any] | None, verdict: str | None) -> None:
    if not release:
        return
    facts.release = str(release["path"])
    held = "every gated metric held its margin"
    if verdict == "INCONCLUSIVE":
        held = "the gate could NOT decide, and the recipe allows that (gate.inconclusive: allow)"
    facts.why.insert(0, f"{held}; published as {release['path']}")
    facts.serve = str(release.get("serve") or "")
    facts.serve_speculative = str(release.get("serve_speculative") or "")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
