"""What a pool of a million conversations costs to calibrate from: peak memory and time of each part.

    python benchmarks/calibration/pool.py [--items 1000000] [--kept FOLDER]

Generates a pool of short conversations of several kinds with a few tools and repetitions, then builds a calibration
set from it with the reference tokenizer in processes of their own, one for each selection, and prints their peak
resident memory beside that of a pool of a hundredth of the size. `--kept` keeps the generated file for next time.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "artifacts/reference/target"
KINDS = ("chat", "lookup", "summary", "tool", "translate", "rare")
WORDS = [f"{a}{b}{c}" for a in ("ba", "de", "ki", "mo", "su") for b in ("la", "ne", "ri", "to") for c in ("", "n", "s")]


def conversation(number: int, rng: random.Random) -> dict[str, object]:
    """One conversation of 100 to 600 characters; every hundredth repeats an earlier one."""
    if number % 100 == 99:
        rng = random.Random(f"{number - 50}")
    kind = "rare" if number % 100_000 == 7 else rng.choice(KINDS[:-1])
    question = " ".join(rng.choices(WORDS, k=rng.randrange(8, 60)))
    answer: dict[str, object] = {"role": "assistant", "content": " ".join(rng.choices(WORDS, k=rng.randrange(3, 40)))}
    record: dict[str, object] = {"id": str(number), "kind": kind}
    if kind == "tool":
        name = f"tool_{rng.randrange(40)}"
        call = {"name": name, "arguments": {"query": question[:20], "unit": rng.choice(("km", "mile"))}}
        answer = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}
        unit = {"type": "string", "enum": ["km", "mile"]}
        schema = {"type": "object", "properties": {"query": {"type": "string"}, "unit": unit}}
        record["tools"] = [{"type": "function", "function": {"name": name, "description": "", "parameters": schema}}]
    return {**record, "messages": [{"role": "user", "content": question}, answer]}


def generate(path: Path, items: int) -> None:
    """Write `items` conversations."""
    with path.open("w", encoding="utf-8") as handle:
        for number in range(items):
            handle.write(json.dumps(conversation(number, random.Random(f"{number}"))) + "\n")


def build(path: Path, selection: str) -> None:
    """Build a set from the pool and print one JSON line: seconds, memory, counts."""
    from calibrate.build import build
    from calibrate.render import load_tokenizer
    from calibrate.spec import CalibrateSpec
    from quantize.run import peak_memory, reset_peak_memory
    from sqtool.progress import SILENT

    load_tokenizer(MODEL)  # what importing the libraries takes is not the pool's
    before = peak_memory()
    reset_peak_memory()
    spec = CalibrateSpec.model_validate(
        {
            "sources": [{"path": str(path)}],
            "num_calibration_samples": 256,
            "selection": selection,
            "coverage": {"refuse": "never"},
        }
    )
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as out:
        summary = build(spec, model=MODEL, seed=0, out=Path(out), progress=SILENT)
    keys = ("read", "pool", "duplicates", "near_duplicates", "samples")
    found = {key: summary[key] for key in keys}
    print(json.dumps({**found, "seconds": time.monotonic() - started, "peak": peak_memory(), "before": before}))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--kept", type=Path, default=None)
    parser.add_argument("--build", nargs=2, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build:
        build(Path(arguments.build[0]), arguments.build[1])
        return
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.kept or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        print("| records | file | selection | considered | repeated | seconds | records/s | peak | libraries |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for items in (arguments.items // 100, arguments.items):
            path = folder / f"pool-{items}.jsonl"
            if not path.is_file():
                generate(path, items)
            for selection in ("stratified", "coverage"):
                command = [sys.executable, __file__, "--build", str(path), selection]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
                row = json.loads(done.stdout.splitlines()[-1])
                print(
                    f"| {row['read']:,} | {path.stat().st_size / 1e6:.0f} MB | {selection} | {row['pool']:,} | "
                    f"{row['duplicates']:,} | {row['seconds']:.1f} | {row['read'] / row['seconds']:,.0f} | "
                    f"{row['peak'] / 1e6:.0f} MB | {row['before'] / 1e6:.0f} MB |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
