"""Where tool calls fail: the failure layers of the reference target in bf16, 8, 4 and 3 bits.

    .venv/bin/python -m benchmarks.failure_layers            # half an hour on 2 cores; finished stages are reused
    .venv/bin/python -m benchmarks.failure_layers --only rtn4,awq4
    .venv/bin/python -m benchmarks.failure_layers --no-run   # only what artifacts/runs has

Greedy, on all shipped tool-call items, nothing ended early. Prints one Markdown table of counts by layer, with the
arguments by how they are wrong; exits 1 when a variant has fewer than 600 items.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

from benchmarks.reference_pair import RECIPES, ROOT, run
from evals.scorers.tool_calls import ToolCalls

VARIANTS = ("w8a8_naive", "w8a8_smoothquant", "awq4", "gptq4", "rtn4", "rtn3_simulated")
TASK = "tool_calls"
LEAST_ITEMS = 600
WRONG = ("type", "value", "missing", "unexpected")


def tool_calls(evaluation: Path) -> dict[str, Any]:
    """The tool_calls part of a stage's evaluation.json."""
    found: dict[str, Any] = json.loads(evaluation.read_text(encoding="utf-8"))["tasks"][TASK]
    return found


def both_sides(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Baseline's and candidate's summaries of a run folder."""
    stages = json.loads((folder / "run.json").read_text(encoding="utf-8"))["stages"]
    baseline = next(stage["folder"] for stage in stages if stage["name"] == "baseline")
    return tool_calls(ROOT / baseline / "evaluation.json"), tool_calls(folder / "evaluate" / "evaluation.json")


def row(name: str, summary: dict[str, Any], layers: list[str]) -> str:
    """One line of the table: counts of items by layer, then of arguments by how they are wrong."""
    arguments = summary.get("arguments", {}).values()
    cells = [
        name,
        str(summary["n"]),
        f"{100 * summary['metrics']['schema_valid']:.1f}",
        f"{100 * summary['metrics']['call_match']:.1f}",
        *(str(summary["failures"].get(layer, 0)) for layer in layers),
        "/".join(str(sum(counts.get(wrong, 0) for counts in arguments)) for wrong in WRONG),
    ]
    return "| " + " | ".join(cells) + " |"


def table(seen: dict[str, dict[str, Any]]) -> str:
    """The whole table; a layer that no variant has is left out."""
    layers = [layer for layer in ToolCalls.failures if any(s["failures"].get(layer) for s in seen.values())]
    headers = ["variant", "items", "% schema_valid", "% call_match", *layers, f"arguments: {'/'.join(WRONG)}"]
    lines = ["| " + " | ".join(headers) + " |", "| --- " * len(headers) + "|"]
    return "\n".join([*lines, *(row(name, summary, layers) for name, summary in seen.items())])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(VARIANTS), help="comma-separated variants")
    parser.add_argument("--no-run", action="store_true", help="read finished runs, start nothing")
    args = parser.parse_args()
    seen: dict[str, dict[str, Any]] = {}
    for name in args.only.split(","):
        folder = ROOT / "artifacts" / "runs" / Path(RECIPES[name]).stem if args.no_run else run(RECIPES[name])
        baseline, seen[name] = both_sides(folder)
        seen = {"bf16": baseline, **seen}
    today = datetime.datetime.now(datetime.UTC).date()
    print(f"{today}, {platform.machine()}, {os.cpu_count()} cores, `python -m benchmarks.failure_layers`,")
    print("greedy; items by the first layer at which they fail, then single arguments by how they are wrong\n")
    print(table(seen))
    short = {name: summary["n"] for name, summary in seen.items() if summary["n"] < LEAST_ITEMS}
    for name, n in short.items():
        print(f"\n{name}: {n} items, fewer than {LEAST_ITEMS}")
    return 1 if short else 0


if __name__ == "__main__":
    raise SystemExit(main())
