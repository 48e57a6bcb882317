"""From the records alone: what the gate said of each variant, beside two rules in common use. Prints Markdown.

    python -m benchmarks.gate.damage.table

Exits 1 when a target of protocol.yaml is missed or cannot be judged because variants are not measured.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from benchmarks.gate.damage.damages import BASELINE, TARGET, VARIANTS, checkpoint, groups
from benchmarks.gate.damage.judging import Shares, gate_spec, load_tasks, scored, shares
from benchmarks.gate.damage.measure import FINISHED, RECORDS
from benchmarks.gate.damage.population import protocol
from benchmarks.gate.damage.stale import caught
from sqtool.files import read_json

STALE = "stale_baseline"
MOST_AT_MARGIN = 18
"""Of 200 resamples, at a rate of 5 %, more have a chance below 1 % (protocol.yaml)."""


@dataclass(frozen=True)
class Row:
    """One measured variant. `effects` are candidate - baseline on the population; `worst` is the largest drop in
    margins; `diluted` are the shares at a true drop of exactly one margin, where the damage is larger."""

    name: str
    group: str
    effects: dict[str, float]
    discordant: float
    """Largest share of items, over the metrics, whose score differs."""
    worst: float
    shares: Shares
    diluted: Shares | None

    @property
    def label(self) -> str:
        """The name, and whether the variant was in the protocol."""
        return f"{self.name} (added)" if self.group == "added" else self.name

    @property
    def kind(self) -> str:
        """The protocol's class."""
        if self.group == "clean":
            return "clean"
        if self.discordant == 0:
            return "no observable effect"
        bounds = ((0.75, "under one margin"), (1.25 + 1e-9, "about one margin"), (2 - 1e-9, "between"))
        return next((name for bound, name in bounds if self.worst < bound), ">= 2 margins")


def measured(name: str) -> Row:
    """Judge one variant's records."""
    spec = gate_spec()
    records = VARIANTS[name].records
    baseline, candidate = records or (BASELINE, name)
    truth = load_tasks(RECORDS / BASELINE, RECORDS / candidate, spec)
    scores = scored(truth, spec)
    effects = {metric: float(c.mean() - b.mean()) for metric, (b, c) in scores.items()}
    worst = max(0.0 - effect / (spec.metrics[metric].absolute_margin or 1.0) for metric, effect in effects.items())
    tasks = truth if records is None else load_tasks(RECORDS / baseline, RECORDS / candidate, spec)
    group = groups()[name]
    dilute = worst > 1 and group != "clean" and records is None
    return Row(
        name=name,
        group=group,
        effects=effects,
        discordant=max(float(np.mean(b != c)) for b, c in scores.values()),
        worst=worst,
        shares=shares(tasks, spec, name),
        diluted=shares(tasks, spec, f"{name} diluted", keep=1 / worst) if dilute else None,
    )


def state(name: str) -> str:
    """`measured`, `not measured yet`, or `not runnable: why`."""
    for part in VARIANTS[name].records or (name,):
        path = RECORDS / part / FINISHED
        if not path.is_file():
            return "not measured yet"
        result = read_json(path)
        if result["status"] != "measured":
            return f"not runnable: {result['reason'].splitlines()[0]}"
    return "measured"


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def outcome_cells(found: Shares) -> list[str]:
    return [percent(x) for x in (found.passed, found.regressed, found.inconclusive, found.threshold, found.unpaired)]


def table(title: str, head: list[str], rows: list[list[str]]) -> None:
    print(f"\n### {title}\n\n| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


@dataclass(frozen=True)
class Target:
    """One of the protocol's targets, over the rows that it speaks of."""

    text: str
    met: bool
    seen: str


Refuses = Callable[[Shares], float]


def each(text: str, rows: list[Row], of: Callable[[Row], float], good: Callable[[float], bool]) -> Target:
    """A target that every row has to meet; without a row it is not met."""
    bad = [row for row in rows if not good(of(row))]
    failing = ", ".join(f"{row.name} {percent(of(row))}" for row in bad)
    values = sorted(of(row) for row in rows)
    spread = f" ({percent(values[0])} to {percent(values[-1])})" if values else ""
    seen = f"{len(rows) - len(bad)} of {len(rows)}{spread}" + (f"; missed by {failing}" if failing else "")
    seen = seen if rows else "no such variant was measured"
    return Target(text, bool(rows) and not bad, seen)


def at_margin(rows: list[Row]) -> Target:
    """The target over the damages that were diluted to exactly one margin."""
    passed = {row.name: row.diluted.passed for row in rows if row.diluted is not None}
    draws = protocol()["resampling"]["resamples"]
    together = sum(passed.values()) / len(passed) if passed else 1.0
    above = [f"{name} {percent(p)}" for name, p in passed.items() if round(p * draws) > MOST_AT_MARGIN]
    seen = f"{percent(together)} over {len(passed)} variants, most {percent(max(passed.values(), default=1.0))}"
    seen = seen if passed else "no such variant was measured"
    seen += f"; above resampling error: {', '.join(above)}" if above else ""
    text = "diluted to exactly one margin: PASS <= 5 % together, none above resampling error"
    return Target(text, bool(passed) and together <= 0.05 and not above, seen)


def targets(rows: list[Row]) -> list[Target]:
    """The protocol's targets, as seen."""
    clean = [row for row in rows if row.group == "clean"]
    hurt = [row for row in rows if row.group != "clean" and row.name != STALE]
    large = [row for row in hurt if row.kind == ">= 2 margins"]
    about = [row for row in hurt if row.kind == "about one margin" and row.worst >= 1]
    found = [
        each("damage >= 2 margins: REGRESSED >= 95 %", large, lambda r: r.shares.regressed, lambda x: x >= 0.95),
        each("damage of 1.00 to 1.25 margins: PASS <= 5 %", about, lambda r: r.shares.passed, lambda x: x <= 0.05),
        at_margin(hurt),
        each("clean: REGRESSED <= 5 %", clean, lambda r: r.shares.regressed, lambda x: x <= 0.05),
    ]
    if any(row.name == STALE for row in rows):
        why = caught(TARGET, checkpoint((VARIANTS[STALE].records or (BASELINE,))[0]))
        found.append(Target("stale baseline: not taken by the pipeline", bool(why), why or "it was taken"))
    return found


def others(rows: list[Row]) -> list[list[str]]:
    """How the rules compare: refused damage, accepted damage at the margin, refused sound checkpoints."""
    sets = {
        "damage >= 2 margins, refused": [r.shares for r in rows if r.kind == ">= 2 margins" and r.name != STALE],
        "diluted to one margin, refused": [r.diluted for r in rows if r.diluted is not None],
        "clean, refused": [r.shares for r in rows if r.kind == "clean"],
    }
    rules: tuple[Refuses, ...] = (
        lambda s: s.regressed,
        lambda s: 1 - s.passed,
        lambda s: s.threshold,
        lambda s: s.unpaired,
    )
    return [
        [what, str(len(found)), *(percent(float(np.mean([rule(s) for s in found]))) for rule in rules)]
        for what, found in sets.items()
        if found
    ]


def main() -> int:
    states = {name: state(name) for name in VARIANTS}
    names = [name for name, found in states.items() if found == "measured"]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        rows = sorted(pool.map(measured, names), key=lambda row: (row.group == "clean", -row.worst))
    fixed = protocol()["resampling"]
    print(
        f"{len(rows)} of {len(VARIANTS)} variants; {fixed['resamples']} resamples of {fixed['items_per_task']} items a "
        "task; effects in points on the population; outcomes in % of the resamples"
    )
    rules = ["PASS", "REGRESSED", "INCONCLUSIVE", "1-point threshold refuses", "unpaired z refuses"]
    effects = [metric.replace("exact_match", "exact") for metric in gate_spec().gated]
    body = [
        [
            *(row.label, "stale baseline" if row.name == STALE else row.kind, f"{row.worst:+.2f}"),
            *(f"{100 * effect:+.2f}" for effect in row.effects.values()),
            *(percent(row.discordant), *outcome_cells(row.shares)),
        ]
        for row in rows
    ]
    head = ["variant", "class", "worst drop, margins", *effects, "scores changed, %", *rules]
    body += [[name, found, *["-"] * (len(head) - 2)] for name, found in states.items() if name not in names]
    table("Each variant", head, body)
    diluted = [[r.label, *outcome_cells(r.diluted)] for r in rows if r.diluted is not None]
    table("Diluted to a true drop of exactly one margin", ["variant", *rules], diluted)
    table(
        "The rules beside each other, mean over variants, %",
        ["what", "variants", "gate: REGRESSED", "gate: not PASS", "1-point threshold", "unpaired z"],
        others(rows),
    )
    judged = targets(rows)
    missing = [name for name, found in states.items() if found == "not measured yet"]
    table("Targets", ["target", "met", "seen"], [[t.text, "met" if t.met else "NOT met", t.seen] for t in judged])
    if missing:
        print(f"\nNot measured yet: {', '.join(missing)}. The targets are not judged in full.")
    return 0 if judged and all(t.met for t in judged) and not missing else 1


if __name__ == "__main__":
    raise SystemExit(main())
