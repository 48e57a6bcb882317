"""Quantizers compared at equal bits: size, time, drift and scores of the reference target.

    python -m benchmarks.backends [--samples 128] [--limit 200] [--out benchmarks/backends.md]

For each format llm-compressor and every other installed backend that writes it get the same recipe but for
`quantize.backend`: same calibration set, group size and bits. Each goes through `sqtool quantize --until gate`, so
scores come from vLLM, with the baseline's records shared; the gate's margins are wide on purpose, as the table is what
is asked for. Backends that are not installed have a row that says so. Takes tens of minutes on two cores (AutoAWQ is
the slow one).
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from quantize.backends.environments import QUANTIZERS, state

ROOT = Path(__file__).resolve().parents[1]
FORMATS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "AWQ, 4 bits, zero points": ({"awq": {"scheme": "W4A16_ASYM"}}, ("llmcompressor", "autoawq", "gptqmodel")),
    "GPTQ, 4 bits, symmetric": ({"gptq": {"scheme": "W4A16"}}, ("llmcompressor", "auto-gptq", "gptqmodel")),
}
METRICS = ("tool_calls.call_match", "tasks.exact_match", "recall.exact_match")


def recipe(backend: str, method: dict[str, Any], samples: int, limit: int) -> dict[str, Any]:
    """The recipe of one row."""
    (name,) = method
    return {
        "name": f"backends-{backend}-{name}",
        "model": "artifacts/reference/target",
        "calibrate": {"num_calibration_samples": samples, "max_seq_length": 512},
        "quantize": {"backend": backend, "methods": [method]},
        "evaluate": {"limit": limit},
        "gate": {"metrics": {metric: {"max_drop": 0.5} for metric in METRICS}},
    }


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """The results of `sqtool quantize --until gate`, by stage. Exits with the command's error when it fails."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", dir=ROOT, prefix=".backends-") as file:
        json.dump(spec, file)  # JSON is YAML
        file.flush()
        command = [sys.executable, "-m", "sqtool", "quantize", file.name, "--until", "gate", "--json"]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    # 1 and 3 are verdicts, and a verdict is not what is asked here.
    if done.returncode not in (0, 1, 3):
        raise SystemExit(f"{spec['name']} ended with exit code {done.returncode}")
    results: dict[str, Any] = json.loads(done.stdout)["results"]
    return results


def row(backend: str, results: dict[str, Any]) -> str:
    """One line of the table."""
    made, seen = results["quantize"], results["evaluate"]
    drift = (seen.get("drift") or {}).get("all") or {}
    cells = [
        backend,
        f"{made['bits_per_weight']:.2f}",
        f"{made['bytes_after'] / 1e6:.1f}",
        f"{made['seconds']:.0f}",
        f"{drift['kl_mean']:.4f}" if drift else "-",
        f"{100 * drift['top1_agreement']:.1f}" if drift else "-",
        *scores(seen),
    ]
    return "| " + " | ".join(cells) + " |"


def baseline_row(results: dict[str, Any]) -> str:
    """The bf16 model's scores."""
    return "| bf16 | 16 | - | - | 0 | 100 | " + " | ".join(scores(results["baseline"])) + " |"


def scores(summary: dict[str, Any]) -> list[str]:
    """The means of METRICS in an evaluation's summary, in %."""
    pairs = (metric.partition(".") for metric in METRICS)
    return [f"{100 * summary['tasks'][task]['metrics'][name]:.1f}" for task, _, name in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--limit", type=int, default=200, help="items of each task")
    parser.add_argument("--out", type=Path, help="also write the tables here")
    args = parser.parse_args()
    today = datetime.datetime.now(datetime.UTC).date()
    lines = [f"{today}, {args.samples} calibration samples, {args.limit} items a task, scores in %"]
    for title, (method, backends) in FORMATS.items():
        lines += ["", f"### {title}", ""]
        lines.append("| backend | bits per weight | MB | seconds | KL (nats) | top-1 % | " + " | ".join(METRICS) + " |")
        lines.append("| --- |" + " --- |" * (5 + len(METRICS)))
        for backend in backends:
            if backend in QUANTIZERS and not state(backend).installed:
                lines.append(f"| {backend} | not installed |" + " |" * (4 + len(METRICS)))
                continue
            results = run(recipe(backend, method, args.samples, args.limit))
            if backend == backends[0]:
                lines.append(baseline_row(results))
            lines.append(row(backend, results))
            print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
