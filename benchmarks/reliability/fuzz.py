"""Hostile input in large numbers: how often each reader of sqtool ended how. Prints a Markdown table.

    python -m benchmarks.reliability.fuzz [--recipes 10000] [--others 2000] [--seed 0] [--only recipes,verify]

Exit code 1 when any case ended as it must not: a traceback, an error without a remedy, or a recipe's problem without a
line. The first such cases are printed with the bytes that cause them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before any library reads it: a mutated name must not be looked up anywhere

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from benchmarks.reliability.fuzzing import Ending, answers, headers, recipes, records, releases, rollouts

SHOWN = 5
TOLD_SECONDS = 30.0
KINDS = ("recipes", "records", "headers", "answers", "rollout", "verify")


def count(
    name: str, cases: Any, attempt: Callable[[Any], Ending], examples: int, number: int
) -> tuple[Counter[str], list[tuple[str, Any]]]:
    """Put `examples` cases to `attempt`; how often each outcome came, and the first faults with their cases."""
    outcomes: Counter[str] = Counter()
    faults: list[tuple[str, Any]] = []
    began = told = time.monotonic()

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(cases)
    def run(case: Any) -> None:
        nonlocal told
        ending = attempt(case)
        outcomes[ending.outcome + (" FAULT" if ending.fault else "")] += 1
        if ending.fault:
            faults.append((ending.fault, case))
        now = time.monotonic()
        if now - told > TOLD_SECONDS:
            told = now
            done = outcomes.total()
            left = (now - began) / done * (examples - done)
            print(f"{name}: {done} of {examples}, {left:.0f} s left", file=sys.stderr, flush=True)

    run()
    return outcomes, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", type=int, default=10_000, help="mutated recipes (default 10,000)")
    parser.add_argument("--others", type=int, default=2_000, help="cases of each other kind (default 2,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(KINDS), help=f"some of {', '.join(KINDS)}, with commas between them")
    given_ = parser.parse_args()
    only = given_.only.split(",")
    if not set(only) <= set(KINDS):
        parser.error(f"--only {given_.only}: choose from {', '.join(KINDS)}")
    failed = 0
    print("| input | outcome | cases |\n| --- | --- | ---: |", flush=True)
    with tempfile.TemporaryDirectory(prefix="sqtool-fuzz-") as place, answers.serving() as server:
        root = recipes.project(Path(place))
        folder = Path(place) / "data"
        folder.mkdir()
        published = Path(place) / "published"
        published.mkdir()
        good = releases.release(published)
        kinds: dict[str, tuple[Any, Callable[[Any], Ending], int]] = {
            "recipes": (recipes.cases(), lambda case: recipes.attempt(case, root), given_.recipes),
            "records": (records.cases(), lambda case: records.attempt(case, folder), given_.others),
            "headers": (headers.cases(), lambda case: headers.attempt(case, folder), given_.others),
            "answers": (answers.cases(), lambda case: answers.attempt(case, server), given_.others),
            "rollout": (rollouts.cases(), lambda case: rollouts.attempt(case, folder), given_.others),
            "verify": (releases.cases(good), lambda case: releases.attempt(case, good), given_.others),
        }
        for name, (cases, attempt, examples) in kinds.items():
            if name not in only:
                continue
            began = time.process_time()
            outcomes, faults = count(name, cases, attempt, examples, given_.seed)
            spent = 1000 * (time.process_time() - began) / max(outcomes.total(), 1)
            print(f"{name}: {spent:.0f} ms of processor time a case", file=sys.stderr, flush=True)
            for outcome, number in outcomes.most_common():
                print(f"| {name} | {outcome} | {number:,} |", flush=True)
            print(f"| {name} | **all** | {outcomes.total():,} |", flush=True)
            failed += len(faults)
            for fault, case in faults[:SHOWN]:
                print(f"{name}: {fault}\n    {str(case)[:2000]}", file=sys.stderr, flush=True)
    print(f"\nCases that ended as they must not: {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
