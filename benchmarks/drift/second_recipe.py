"""What a second recipe over the same model costs, measured by the first.

    python -m benchmarks.drift.second_recipe FIRST SECOND [--limit 100]

FIRST and SECOND are checkpoints of the reference target. Both go through the pipeline (`sqtool quantize` of a recipe
that names a finished checkpoint, until `evaluate`) in a fresh project folder, so that the first makes the baseline, the
control and its own evaluation, and the second finds the first two in the cache. Seconds of the stages, from `run.json`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.drift.pair import ROOT, TARGET

RECIPE = """\
name: {name}
model: {model}
quantize: {{checkpoint: {checkpoint}}}
evaluate: {{limit: {limit}{control}}}
gate: {{early_stop: "off", metrics: {{recall.exact_match: {{max_drop: 0.02}}}}}}
speculate: {{enabled: false}}
"""


def stages(folder: Path, name: str, checkpoint: Path, limit: str, control: str) -> dict[str, float]:
    """Seconds of each stage that ran."""
    recipe = folder / f"{name}.yaml"
    recipe.write_text(
        RECIPE.format(name=name, model=TARGET, checkpoint=checkpoint.resolve(), limit=limit, control=control)
    )
    command = [sys.executable, "-m", "sqtool", "quantize", str(recipe), "--until", "evaluate", "--root", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    state = json.loads((folder / f"artifacts/runs/{name}/run.json").read_text())
    return {s["name"]: s["seconds"] for s in state["stages"] if s["state"] == "done"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs=2, type=Path)
    parser.add_argument("--limit", default="null", help="items of each task; default: all")
    parser.add_argument("--control", action="store_true", help="with the A/A control, which is made once as well")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for linked in ("artifacts/reference", ".venv-vllm"):
            (folder / linked).parent.mkdir(parents=True, exist_ok=True)
            (folder / linked).symlink_to(ROOT / linked)
        control = "" if args.control else ", control: null"
        runs = [
            stages(folder, f"recipe{at}", checkpoint, args.limit, control)
            for at, checkpoint in enumerate(args.checkpoints)
        ]
    print("| recipe | baseline, s | control, s | evaluate, s | together, s |\n|---|---|---|---|---|")
    totals = []
    for number, run in enumerate(runs, 1):
        totals.append(sum(run.get(stage, 0.0) for stage in ("baseline", "control", "evaluate")))
        cells = [f"{run[stage]:.1f}" if stage in run else "" for stage in ("baseline", "control", "evaluate")]
        print(f"| {number} | {' | '.join(cells)} | {totals[-1]:.1f} |")
    print(f"second by first: {totals[1] / totals[0]:.3f} (target: at most 0.55)")


if __name__ == "__main__":
    main()
