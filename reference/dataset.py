"""Write the data that ships: calibration pool, traffic sample, test items.

    python -m reference.dataset --facts 90000 --out artifacts/reference/data

Splits are disjoint in their slot combinations (`records.split_of`, `world.held`) and from training.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from reference import world
from reference.loader import make
from reference.records import Record
from reference.words import lexicon

TEST = {
    "tool_calls": {
        "tool_simple": 150,
        "tool_multiple": 240,
        "tool_parallel": 100,
        "tool_irrelevance": 80,
        "long_tools": 30,
    },
    "tasks": {"lookup": 90, "long_lookup": 30, "arithmetic": 90, "sorting": 90, "string_edit": 100, "date": 100},
    "recall": {"recall": 600},
    "prose": {"prose": 60},
}
TRAFFIC = {
    "tool_simple": 50, "tool_multiple": 60, "tool_parallel": 30, "tool_irrelevance": 20, "long_tools": 10, "lookup": 20,
    "long_lookup": 10, "arithmetic": 40, "sorting": 20, "string_edit": 20, "date": 20, "recall": 160, "prose": 40,
}  # fmt: skip
CALIBRATION = {
    "tool_simple": 120, "tool_multiple": 200, "tool_parallel": 100, "tool_irrelevance": 60, "long_tools": 20,
    "lookup": 60, "long_lookup": 20, "arithmetic": 100, "sorting": 80, "string_edit": 80, "date": 80, "recall": 700,
    "prose": 80,
}  # fmt: skip


def records(counts: dict[str, int], split: str, n_facts: int, seed: int) -> list[Record]:
    """Distinct records of a split, kinds in blocks."""
    rng, names = random.Random(seed), lexicon()
    facts = [f.record() for f in world.held(world.facts(n_facts), split)]
    out, seen = [], set()
    for kind, count in counts.items():
        kept = 0
        while kept < count:
            record = facts.pop() if kind == "recall" else make(rng, kind, names, split)
            key = record.prompt()
            if key not in seen:
                seen.add(key)
                out.append(record)
                kept += 1
    return out


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    print(f"{path}: {len(rows)} records, {path.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    for task, counts in TEST.items():
        chosen = records(counts, "test", args.facts, seed=11)
        write(args.out / "test" / f"{task}.jsonl", [r.item(f"{r.kind}-{i:05d}") for i, r in enumerate(chosen)])
    traffic = records(TRAFFIC, "traffic", args.facts, seed=12)
    random.Random(0).shuffle(traffic)
    write(args.out / "traffic.jsonl", [r.item(f"traffic-{r.kind}-{i:05d}") for i, r in enumerate(traffic)])
    pool = records(CALIBRATION, "calibration", args.facts, seed=13)
    random.Random(1).shuffle(pool)
    write(args.out / "calibration.jsonl", [r.conversation(f"calibration-{r.kind}-{i:05d}") for i, r in enumerate(pool)])


if __name__ == "__main__":
    main()
