"""`sqtool plan --trial` against the quantize stage that it speaks of: predicted and real seconds.

    python -m benchmarks.gpu.trial_time --out results --work scratch --shape 8b --methods fp8-dynamic,gptq
    python -m benchmarks.gpu.trial_time --out tried --shape tiny --layers 6 --samples 8 --batch 2       # on a CPU too

Each method's recipe is planned with a trial and then quantized, each in a process of its own as a user would; the time
of the stage is that which its result states. Weights are random: only the time is of interest.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu import pipeline
from benchmarks.gpu.batch_speed import METHODS
from benchmarks.gpu.shapes import make
from benchmarks.gpu.timebox import TimeBox, heading, markdown, note, shown


def recipe(name: str, model: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Calibrate on the shipped traffic and quantize with one method."""
    calibrate = {
        "sources": [{"path": "artifacts/reference/data/calibration.jsonl"}],
        "num_calibration_samples": args.samples,
        "max_seq_length": args.length,
        "coverage": {"refuse": "never"},
    }
    return {
        "name": f"trial-{args.shape}-{name}",
        "model": str(model),
        "calibrate": calibrate,
        "quantize": {"methods": METHODS[name], "batch_size": args.batch},
        "engine": pipeline.engine(),
        "speculate": {"enabled": False},
    }


def sqtool(*words: str, timeout: float) -> dict[str, Any]:
    """The JSON document of a command; RuntimeError with its own words when it fails."""
    command = [sys.executable, "-m", "sqtool", *words, "--json", "--quiet", "--root", str(pipeline.ROOT)]
    done = subprocess.run(
        command,
        cwd=pipeline.ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env=pipeline.environment(),
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compared(name: str, model: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One method: its trial and its stage."""
    path = args.work / f"{name}.yaml"
    made = recipe(name, model, args)
    path.write_text(json.dumps(made), encoding="utf-8")  # JSON is YAML
    # Where the stage is done already, nothing is left to try.
    shutil.rmtree(pipeline.ROOT / "artifacts/runs" / made["name"], ignore_errors=True)
    tried = sqtool("plan", str(path), "--trial", timeout=args.timeout)["trial"]
    document = sqtool("quantize", str(path), "--until", "quantize", timeout=args.timeout)
    stage = next(entry for entry in document["stages"] if entry["name"] == "quantize")
    spent = sum(tried[key] for key in ("first", "one_few", "two_few", "one_many", "two_many"))
    return {"trial": tried, "predicted": tried["seconds"], "spent": spent, "real": stage["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of trial_time.json")
    parser.add_argument("--work", type=Path, default=Path("artifacts/scratch"), help="folder for the model")
    parser.add_argument("--shape", choices=("8b", "tiny"), default="8b")
    parser.add_argument("--layers", type=int, help="decoder layers; default the shape's own")
    parser.add_argument("--methods", default="fp8-dynamic,gptq,awq", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--budget", type=float, default=400, help="seconds after which no further method begins")
    parser.add_argument("--timeout", type=float, default=400, help="seconds for one command")
    args = parser.parse_args()
    given = {name: str(value) for name, value in vars(args).items()}
    box = TimeBox(args.out / "trial_time.json", args.budget, {"arguments": given})
    folder = args.work / (args.shape if args.layers is None else f"{args.shape}-{args.layers}") / "target"
    folder.parent.mkdir(parents=True, exist_ok=True)
    model = make(args.shape, folder, layers=args.layers).resolve()
    note(f"the model is there after {box.spent:.0f} s")
    names = args.methods.split(",")
    box.run({name: partial(compared, name, model, args) for name in names})
    print(heading(box.facts, f"python -m benchmarks.gpu.trial_time --shape {args.shape}"))
    rows = []
    for name in names:
        cell = box.cells.get(name, {})
        if "predicted" not in cell:
            rows.append([name, cell.get("error", "left out"), *["-"] * 5])
            continue
        figures = (cell["trial"]["layers"], cell["trial"]["rows"], shown(cell["spent"], 1), shown(cell["predicted"], 1))
        rows.append([name, *figures, shown(cell["real"], 1), shown(cell["predicted"] / cell["real"], 3)])
    print(markdown(("method", "layers", "rows", "trial took, s", "predicted, s", "real, s", "ratio"), rows))
    box.close()


if __name__ == "__main__":
    main()
