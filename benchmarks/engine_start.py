"""What starting vLLM and answering cost, compiled and eager: CPU seconds of the whole server process tree.

    python benchmarks/engine_start.py [--limit 100] [--model FOLDER] ['{"enforce_eager": false}' ...]

Each argument is an `engine` section as JSON; without any, eager and compiled are compared. CPU seconds rather than
wall time, so that a busy machine gives the same answer. Needs the reference pair and `.venv-vllm` (`make vllm`).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import psutil

from evals.engines.vllm import VllmEngine
from evals.run import run_task
from evals.spec import EngineSpec, EvaluateSpec
from evals.tasks import load_tasks
from sqtool.progress import SILENT

ROOT = Path(__file__).resolve().parents[1]


def cpu_seconds() -> float:
    """User and system time of everything that this process started and that still runs."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return sum(t.user + t.system for t in times)


def measure(engine: EngineSpec, model: Path, limit: int) -> None:
    """Start one server, ask `limit` items of each task, print a table row."""
    spec = EvaluateSpec(limit=limit)
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        with VllmEngine(engine, model=model, out=out, root=ROOT, progress=SILENT) as answering:
            start_cpu = cpu_seconds()
            results = [run_task(task, answering, spec, key="", out=out)[0] for task in load_tasks(spec, ROOT)]
            asking = cpu_seconds() - start_cpu
            seconds = sum(r["seconds"] for r in results)
            items = sum(r["n"] for r in results)
            eager, start = answering.facts().get("enforce_eager"), answering.server.start_seconds
    print(
        f"| {eager} | {start:.1f} | {start_cpu:.1f} | {items} | {seconds:.1f} | {asking:.1f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="*", default=['{"enforce_eager": true}', '{"enforce_eager": false}'])
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--model", type=Path, default=ROOT / "artifacts/reference/target")
    args = parser.parse_args()
    print("| eager | start, s | start, CPU s | items | answering, s | answering, CPU s |\n|---|---|---|---|---|---|")
    for text in args.engines:
        measure(EngineSpec.model_validate(json.loads(text)), args.model, args.limit)


if __name__ == "__main__":
    main()
