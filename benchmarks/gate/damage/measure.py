"""Evaluates the baseline and every variant on the population, each in a real vLLM server.

    python -m benchmarks.gate.damage.measure [--only NAME,...] [--limit N] [--again]

Writes `artifacts/damage/records/<variant>/`; `finished.json` there is written last, so that an interrupted run goes on
where it stopped. A variant that the engine refuses is kept as not runnable, with the reason (`--again` tries it once
more), and does not stop the others. `--limit` is for trying: N items a task, written below `artifacts/damage/tries`.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

from benchmarks.gate.damage.damages import BASELINE, VARIANTS, Variant, checkpoint
from benchmarks.gate.damage.population import DAMAGE, ROOT, TASKS, task_file
from evals.records import remove_parts
from evals.run import evaluate
from evals.spec import EngineSpec, EvaluateSpec, GenerationSpec
from sqtool.errors import SqtoolError
from sqtool.files import digest_folder, read_json, write_json

RECORDS, TRIES = DAMAGE / "records", DAMAGE / "tries"
FINISHED = "finished.json"


def evaluation(variant: Variant, limit: int | None) -> EvaluateSpec:
    """How a variant is asked: `as_served` as by a client that trusts the server's defaults, otherwise greedily."""
    return EvaluateSpec(
        tasks=tuple(str(task_file(task)) for task in TASKS),
        limit=limit,
        drift=None,
        as_served=None,
        generation=GenerationSpec(as_served=variant.as_served),
    )


def measure(name: str, variant: Variant, out: Path, limit: int | None) -> dict[str, Any]:
    """Make and evaluate one variant into `out`; what `finished.json` says."""
    start = time.monotonic()
    spec = evaluation(variant, limit)
    engine = EngineSpec.model_validate(variant.engine)
    try:
        model = checkpoint(name)
        summary = evaluate(spec, engine, model=model, root=ROOT, out=out, resume_from=out)
        remove_parts(out)
    except SqtoolError as error:
        return {"status": "not_runnable", "reason": error.message, "seconds": round(time.monotonic() - start, 1)}
    return {
        "status": "measured",
        "checkpoint": digest_folder(model),
        "seconds": round(time.monotonic() - start, 1),
        "engine": summary["engine"],
        "metrics": {f"{task}.{k}": v for task, found in summary["tasks"].items() for k, v in found["metrics"].items()},
    }


def finished(name: str, again: bool = False) -> bool:
    """Whether there is nothing more to do for a variant."""
    path = RECORDS / name / FINISHED
    return path.is_file() and not (again and read_json(path)["status"] != "measured")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="comma-separated variants")
    parser.add_argument("--limit", type=int, help="items of each task, for trying")
    parser.add_argument("--again", action="store_true", help="try what was not runnable once more")
    args = parser.parse_args()
    everything = {BASELINE: Variant(lambda source, out: None), **VARIANTS}
    chosen = args.only.split(",") if args.only else [name for name, v in everything.items() if v.records is None]
    todo = [name for name in chosen if args.limit or not finished(name, args.again)]
    print(f"{len(chosen)} variants, {len(todo)} to do", flush=True)
    start = time.monotonic()
    for number, name in enumerate(todo, 1):
        out = (TRIES if args.limit else RECORDS) / name
        if args.limit:
            shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True, exist_ok=True)
        result = measure(name, everything[name], out, args.limit)
        write_json(out / FINISHED, result)
        spent = time.monotonic() - start
        left = spent / number * (len(todo) - number) / 60
        what = result.get("reason") or ", ".join(f"{k} {100 * v:.1f}" for k, v in result["metrics"].items())
        print(
            f"{number}/{len(todo)} {name}: {result['status']} in {result['seconds']:.0f} s, "
            f"about {left:.0f} min left; {what}",
            flush=True,
        )


if __name__ == "__main__":
    main()
