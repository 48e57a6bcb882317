"""Where tool calls fail, on this machine's device: the table of `benchmarks.failure_layers`, recipes a few at once.

    python -m benchmarks.gpu.failure_layers --out results [--workers 4] [--budget 240]

The reference recipes as they are, but for the engine (each server gets a fixed KV cache, so that several run side by
side) and for what is not asked for here (A/A control, speculation). All tool-call items, greedy, nothing ended early.
Writes failure_layers.json and prints the table; exits 1 when a variant has fewer than 600 items.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.failure_layers import LEAST_ITEMS, TASK, VARIANTS, table
from benchmarks.gpu import pipeline
from benchmarks.gpu.timebox import TimeBox, heading, note
from benchmarks.reference_pair import RECIPES


def recipe(name: str, limit: int | None) -> dict[str, Any]:
    """A reference recipe for a server among others."""
    from ruamel.yaml import YAML

    path = pipeline.ROOT / RECIPES[name]
    with path.open(encoding="utf-8") as file:
        found: dict[str, Any] = dict(YAML(typ="safe").load(file))
    given = {name: value for name, value in found.items() if name not in ("draft", "speculate", "gate", "description")}
    return {
        **given,
        "name": f"gpu-layers-{path.stem}",
        "model": pipeline.TARGET,
        "engine": pipeline.engine(),
        "evaluate": {**(found.get("evaluate") or {}), "limit": limit, "control": None, "as_served": None},
        "speculate": {"enabled": False},
    }


def cell(name: str, limit: int | None) -> dict[str, Any]:
    """Both sides' part of the task."""
    document = pipeline.evaluate(recipe(name, limit))
    results = document["results"]
    sides = {side: results[side]["tasks"][TASK] for side in ("baseline", "evaluate")}
    return {**sides, "engine": pipeline.side(document, "evaluate")["engine"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of failure_layers.json")
    parser.add_argument("--only", default=",".join(["fp8_dynamic", *VARIANTS]), help="comma-separated variants")
    parser.add_argument("--budget", type=float, default=240, help="seconds after which no further recipe begins")
    parser.add_argument("--workers", type=int, default=4, help="recipes at once")
    parser.add_argument("--limit", type=int, help="items of each task; default all")
    args = parser.parse_args()
    box = TimeBox(args.out / "failure_layers.json", args.budget)
    names = args.only.split(",")
    box.run({name: partial(cell, name, args.limit) for name in names}, args.workers)
    good = {name: box.cells[name] for name in names if "error" not in box.cells.get(name, {"error": ""})}
    print(heading(box.facts, "python -m benchmarks.gpu.failure_layers"))
    print("greedy; items by the first layer at which they fail, then single arguments by how they are wrong\n")
    seen = {name: found["evaluate"] for name, found in good.items()}
    if good:
        seen = {"bf16": next(iter(good.values()))["baseline"], **seen}
        print(table(seen))
    for name in names:
        if "error" in box.cells.get(name, {}):
            print(f"\n{name}: {box.cells[name]['error']}")
    box.close()
    short = {name: summary["n"] for name, summary in seen.items() if summary["n"] < LEAST_ITEMS}
    for name, n in short.items():
        print(f"\n{name}: {n} items, fewer than {LEAST_ITEMS}")
    note(f"{box.spent:.0f} s")
    return 1 if short or not seen else 0


if __name__ == "__main__":
    raise SystemExit(main())
