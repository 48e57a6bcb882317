"""The bars that the reference pair has to meet, measured with the real quantizer and the real engine.

    .venv/bin/python benchmarks/reference_pair.py            # half an hour on 2 cores; finished stages are reused
    .venv/bin/python benchmarks/reference_pair.py --only rtn4,awq4
    .venv/bin/python benchmarks/reference_pair.py --records artifacts/damage/records

Greedy, on the shipped test items; with --records on those of benchmarks/gate/damage, which are more: a bar of half a
point is two items of the shipped ones. Prints one Markdown table of scores in % by kind, then each bar with what was
seen; exits 1 when a bar is missed. Acceptance comes from a finished `sqtool quantize recipes/awq4.yaml`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

RECIPES = {
    "fp8_dynamic": "recipes/fp8-dynamic.yaml",
    "w8a8_smoothquant": "recipes/smoothquant-w8a8.yaml",
    "w8a8_naive": "benchmarks/recipes/w8a8-naive.yaml",
    "awq4": "recipes/awq4.yaml",
    "gptq4": "recipes/gptq4.yaml",
    "rtn4": "recipes/rtn4-refused.yaml",
    "rtn3_simulated": "benchmarks/recipes/rtn3-simulated.yaml",
}
CALLS = ("tool_simple", "tool_multiple")
EXACT = ("lookup", "long_lookup", "arithmetic", "sorting", "string_edit", "date")


def run(recipe: str) -> Path:
    """Quantize by a recipe and evaluate all items (stages that are done are reused); its run folder."""
    # Not `quantize --until evaluate`: that ends an evaluation early where the regression is clear.
    command = [sys.executable, "-m", "sqtool", "eval", recipe, "--quiet"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return ROOT / "artifacts" / "runs" / Path(recipe).stem


def scores(evaluation: Path) -> dict[str, float]:
    """Exact answers in % by kind, and the share of schema-valid calls, from a stage's evaluation.json."""
    tasks = json.loads(evaluation.read_text())["tasks"]
    kinds = {k: v["metrics"] for t in ("tool_calls", "tasks", "recall") for k, v in tasks[t]["by_kind"].items()}
    out = {k: 100 * m["call_match" if "call_match" in m else "exact_match"] for k, m in kinds.items()}
    out["schema_valid"] = 100 * tasks["tool_calls"]["metrics"]["schema_valid"]
    out["n"] = sum(v["n"] for v in tasks.values())
    return out


FROM_RECORDS = {"bf16": "baseline", "fp8_dynamic": "fp8", "w8a8_smoothquant": "w8a8", "awq4": "awq4"}
"""Our names of the variants that benchmarks/gate/damage makes with the recipes shipped here."""


def recorded(folder: Path) -> dict[str, float]:
    """The same figures from a folder of records."""
    rows = [json.loads(line) for path in folder.rglob("*.jsonl") for line in path.read_text().splitlines()]
    kinds: dict[str, list[float]] = {}
    for row in rows:
        found = row["scores"]
        kinds.setdefault(row["kind"], []).append(found["call_match" if "call_match" in found else "exact_match"])
        if "schema_valid" in found:
            kinds.setdefault("schema_valid", []).append(found["schema_valid"])
    return {**{kind: 100 * sum(values) / len(values) for kind, values in kinds.items()}, "n": len(rows)}


def bars(s: dict[str, dict[str, float]]) -> list[tuple[str, bool, str]]:
    """(bar, met, what was seen) for each that the measured variants allow to judge."""
    out: list[tuple[str, bool, str]] = []
    base = s["bf16"]
    exact = sum(base[k] for k in EXACT) / len(EXACT)
    out.append(("schema-valid calls >= 95", base["schema_valid"] >= 95, f"{base['schema_valid']:.1f}"))
    out += [(f"{k} calls exact >= 90", base[k] >= 90, f"{base[k]:.1f}") for k in CALLS]
    out.append(("exact-match tasks >= 85 on average", exact >= 85, f"{exact:.1f}"))
    out.append(("recall >= 95", base["recall"] >= 95, f"{base['recall']:.1f}"))
    groups = {"schema_valid": ("schema_valid",), "calls": CALLS, "exact match": EXACT, "recall": ("recall",)}

    def down(name: str, kinds: tuple[str, ...]) -> float:
        return sum(base[k] - s[name][k] for k in kinds) / len(kinds)

    for name in ("fp8_dynamic", "w8a8_smoothquant"):
        if name in s:
            worst = max(groups, key=lambda g: abs(down(name, groups[g])))
            lost = down(name, groups[worst])
            out.append((f"{name} within 0.5 points everywhere", abs(lost) <= 0.5, f"{worst} {-lost:+.2f}"))
    for name in ("w8a8_naive", "rtn4"):
        if name in s:
            kind = max((k for k in base if k != "n"), key=lambda k: base[k] - s[name][k])
            out.append(
                (f"{name} down >= 3 on some kind", down(name, (kind,)) >= 3, f"{kind} {-down(name, (kind,)):+.1f}")
            )
    fours = [n for n in ("awq4", "gptq4") if n in s]
    if "rtn4" in s and fours:
        lost = down("rtn4", ("recall",))
        for name in fours:
            rest = down(name, ("recall",))
            out.append((f"{name} at least half-way back on recall", rest <= lost / 2, f"{-rest:+.2f} of {-lost:+.2f}"))
        best = min(fours, key=lambda n: down(n, ("recall",)))
        out.append(
            ("one of them within 1 point", down(best, ("recall",)) <= 1, f"{best} {-down(best, ('recall',)):+.2f}")
        )
    if "rtn3_simulated" in s:
        seen = s["rtn3_simulated"]["recall"]
        out.append(("3 bits ruined (recall under 50)", seen < 50, f"{seen:.1f}"))
    return out


def acceptance(path: Path) -> list[tuple[str, bool, str]]:
    """The bars on mean acceptance length, from a run's speculate.json."""
    if not path.exists():
        return [("acceptance", False, f"no {path.relative_to(ROOT)}: run `sqtool quantize recipes/awq4.yaml` first")]
    arm = json.loads(path.read_text())["arms"]["speculative"]
    overall = arm["speculation"]["mean_acceptance_length"]
    kinds = {k: v["speculation"] for k, v in arm["kinds"].items()}
    lengths = {k: v["mean_acceptance_length"] for k, v in kinds.items() if v["drafts"] >= 20}
    low, high = min(lengths, key=lengths.__getitem__), max(lengths, key=lengths.__getitem__)
    apart = lengths[high] - lengths[low]
    seen = f"{high} {lengths[high]:.2f}, {low} {lengths[low]:.2f}"
    return [
        ("mean acceptance length 2.5 to 4.3", 2.5 <= overall <= 4.3, f"{overall:.2f}"),
        ("easiest and hardest kind >= 0.8 apart", apart >= 0.8, seen),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, help="folder of variants' records, measured before")
    parser.add_argument("--only", default=",".join(RECIPES), help="comma-separated variants")
    args = parser.parse_args()
    seen: dict[str, dict[str, float]] = {}
    if args.records is not None:
        there = {name: args.records / variant for name, variant in FROM_RECORDS.items()}
        seen = {name: recorded(folder) for name, folder in there.items() if folder.is_dir()}
    for name in args.only.split(",") if args.records is None else ():
        folder = run(RECIPES[name])
        stages = json.loads((folder / "run.json").read_text())["stages"]
        baseline = next(stage["folder"] for stage in stages if stage["name"] == "baseline")
        seen.setdefault("bf16", scores(ROOT / baseline / "evaluation.json"))
        seen[name] = scores(folder / "evaluate" / "evaluation.json")
    kinds = sorted(k for k in seen["bf16"] if k != "n")
    today = datetime.datetime.now(datetime.UTC).date()
    print(f"{today}, {platform.machine()}, {os.cpu_count()} cores, `python benchmarks/reference_pair.py`,")
    print(f"{seen['bf16']['n']:.0f} items, greedy, % exact by kind and % schema-valid calls\n")
    print("| " + " | ".join(["variant", *kinds]) + " |\n" + "| --- " * (len(kinds) + 1) + "|")
    for name, values in seen.items():
        print(f"| {name} | " + " | ".join(f"{values[k]:.1f}" for k in kinds) + " |")
    print("\n| bar | met | seen |\n| --- | --- | --- |")
    judged = bars(seen)
    if args.records is None:
        judged += acceptance(ROOT / "artifacts/runs/awq4/speculate/speculate.json")
    for bar, met, found in judged:
        print(f"| {bar} | {'yes' if met else 'NO'} | {found} |")
    return 0 if all(met for _, met, _ in judged) else 1


if __name__ == "__main__":
    raise SystemExit(main())
