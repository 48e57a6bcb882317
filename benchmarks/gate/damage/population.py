"""The large item set: what a true effect is measured on, and what the resamples are drawn from.

    python -m benchmarks.gate.damage.population

Writes `artifacts/damage/population/<task>.jsonl` and, beside each, the task's YAML file over it. Items are of the test
split (no slot combination of training or calibration is in it) and none is among the shipped test items.
"""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from reference import world
from reference.loader import make
from reference.records import Record
from reference.words import lexicon
from sqtool.files import canonical_json, read_jsonl, write_text

ROOT = Path(__file__).resolve().parents[3]
DAMAGE = ROOT / "artifacts/damage"
POPULATION = DAMAGE / "population"
TASKS = ("tool_calls", "tasks", "recall")


@cache
def protocol() -> dict[str, Any]:
    """What was fixed before anything was measured."""
    return _yaml("protocol.yaml")


@cache
def addendum() -> dict[str, Any]:
    """Variants that were added later, and why."""
    return _yaml("addendum.yaml")


def _yaml(name: str) -> dict[str, Any]:
    value: dict[str, Any] = YAML(typ="safe").load(Path(__file__).with_name(name))
    return value


def question(item: dict[str, Any]) -> str:
    """What makes two items the same question."""
    return canonical_json([item["messages"], item.get("tools")])


def records(counts: dict[str, int], n_facts: int, seed: int, seen: set[str]) -> list[Record]:
    """Distinct records of the test split, kinds in blocks; `seen` holds the questions that are taken."""
    rng, names = random.Random(seed), lexicon()
    facts = [fact.record() for fact in world.held(world.facts(n_facts), "test")]
    rng.shuffle(facts)
    out: list[Record] = []
    for kind, count in counts.items():
        left = count
        while left:
            record = facts.pop() if kind == "recall" else make(rng, kind, names, "test")
            key = question(record.item(""))
            if key not in seen:
                seen.add(key)
                out.append(record)
                left -= 1
    return out


def task_file(task: str) -> Path:
    """The YAML file of a population task."""
    return POPULATION / f"{task}.yaml"


def write(task: str, seed: int) -> int:
    """Write one task's items and its YAML file; the number of items."""
    fixed = protocol()["population"]
    shipped = ROOT / "artifacts/reference/data/test" / f"{task}.jsonl"
    seen = {question(item) for _, item in read_jsonl(shipped)}
    made = records(fixed[task], fixed["facts"], seed, seen)
    rows = [record.item(f"{record.kind}-{number:05d}") for number, record in enumerate(made)]
    items = POPULATION / f"{task}.jsonl"
    items.parent.mkdir(parents=True, exist_ok=True)
    write_text(items, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    yaml = YAML(typ="safe", pure=True)
    value = {**yaml.load(ROOT / "evals/tasks" / f"{task}.yaml"), "items": items.name}
    with task_file(task).open("w", encoding="utf-8") as handle:
        yaml.dump(value, handle)
    return len(rows)


def main() -> None:
    for number, task in enumerate(TASKS):
        print(f"{task}: {write(task, protocol()['population']['seed'] + number)} items below {POPULATION}")


if __name__ == "__main__":
    main()
