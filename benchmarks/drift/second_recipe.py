"""What a second recipe over the same model costs, measured by the first.

    python -m benchmarks.drift.second_recipe FIRST SECOND --control [--limit 100]

FIRST and SECOND are checkpoints of the reference target. Both go through the pipeline (`sqtool quantize` of a recipe
that names a finished checkpoint, until `evaluate`) in a fresh project folder, so that the first makes the baseline, the
control and its own evaluation, and the second finds the first two in the cache. Then both once more, the second
first: neither its checkpoint nor a machine that slows down counts on one side only. Seconds of the stages, from
`run.json`; the ratio is that of the sums.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.drift.pair import ROOT, TARGET

STAGES = ("baseline", "control", "evaluate")
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


def pair(checkpoints: Sequence[Path], limit: str, control: str) -> list[dict[str, float]]:
    """Both recipes one after the other in a fresh project folder; seconds of the stages that each ran."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for linked in ("artifacts/reference", ".venv-vllm"):
            (folder / linked).parent.mkdir(parents=True, exist_ok=True)
            (folder / linked).symlink_to(ROOT / linked)
        return [stages(folder, f"recipe{at}", found, limit, control) for at, found in enumerate(checkpoints)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs=2, type=Path)
    parser.add_argument("--limit", default="null", help="items of each task; default: all")
    parser.add_argument("--control", action="store_true", help="with the A/A control, which is made once as well")
    args = parser.parse_args()
    control = "" if args.control else ", control: null"
    print("| order | recipe | baseline, s | control, s | evaluate, s | together, s |\n|---|---|---|---|---|---|")
    totals = [0.0, 0.0]
    for order, checkpoints in enumerate((args.checkpoints, args.checkpoints[::-1]), 1):
        for place, run in enumerate(pair(checkpoints, args.limit, control)):
            together = sum(run.get(stage, 0.0) for stage in STAGES)
            totals[place] += together
            cells = [f"{run[stage]:.1f}" if stage in run else "" for stage in STAGES]
            number = 1 + (place if order == 1 else 1 - place)
            print(f"| {order} | {number} | {' | '.join(cells)} | {together:.1f} |", flush=True)
    print(f"second by first: {totals[1] / totals[0]:.3f} (target: at most 0.55)")


if __name__ == "__main__":
    main()
