"""Time and memory of `sqtool rollout` on long logs. Prints a Markdown table.

    python benchmarks/rollout/reading.py [--lines 100000 1000000]

Writes logs of a rollout with users and all fields (a third of the lines the candidate's) into a temporary folder, runs
the command on each in a process of its own, and prints processor seconds and the largest resident memory.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec


def write_log(path: Path, lines: int, seed: int = 0) -> None:
    """About eight requests a user, two a second."""
    rng = random.Random(seed)
    now = 1.79e9
    with path.open("wb") as handle:
        for number in range(lines):
            now += rng.expovariate(2)
            user = number // 8 + rng.randrange(40)
            record = {
                "arm": "w4a16" if user % 3 == 0 else "baseline",
                "timestamp": round(now, 3),
                "kind": rng.choice(("chat", "tools", "search")),
                "cluster": f"user-{user}",
                "ttft_ms": round(rng.lognormvariate(4, 0.4), 2),
                "e2e_ms": round(rng.lognormvariate(7, 0.6), 1),
                "prompt_tokens": rng.randrange(50, 800),
                "output_tokens": rng.randrange(10, 300),
                "failed": rng.random() < 0.005,
                "cancelled": rng.random() < 0.02,
                "retried": rng.random() < 0.03,
                "corrected": rng.random() < 0.05,
                "accepted": rng.random() < 0.7,
                "device_seconds": round(rng.random(), 3),
            }
            handle.write(msgspec.json.encode(record) + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, nargs="+", default=[100_000, 1_000_000])
    args = parser.parse_args()
    print("| lines | MB | options | processor s | wall s | peak memory, MB |\n|" + " --- |" * 6)
    with tempfile.TemporaryDirectory() as folder:
        for lines in args.lines:
            path = Path(folder) / f"{lines}.jsonl"
            write_log(path, lines)
            for options in ([], ["--by", "kind", "--slo", "e2e_ms=4000"]):
                began = time.perf_counter()
                command = [sys.executable, "-m", "sqtool", "rollout", str(path), "--quiet", *options]
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
                _, status, usage = os.wait4(process.pid, 0)
                if status:
                    sys.exit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
                spent = usage.ru_utime + usage.ru_stime
                cells = [f"{lines:,}", f"{path.stat().st_size / 1e6:.0f}", " ".join(options) or "-", f"{spent:.0f}"]
                cells += [f"{time.perf_counter() - began:.0f}", f"{usage.ru_maxrss / 1024:.0f}"]
                print(f"| {' | '.join(cells)} |", flush=True)
            path.unlink()


if __name__ == "__main__":
    main()
