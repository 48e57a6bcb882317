"""Peak memory of drift for N, 4 N and 16 N tokens.

    python -m benchmarks.drift.memory --candidate CHECKPOINT [--items 24]

Each size runs in a process of its own: its peak resident memory (VmHWM, Linux), before (libraries and the reference
texts loaded, a few of them compared) and at the end. The texts are the reference tasks', again and again.

On a CPU, oneDNN and PyTorch cache kernels for each shape of a batch (up to 1,024 each), and glibc keeps freed blocks of
up to 32 MB in its heap, which fragments the more, the more shapes there were. More texts make more shapes. So each
size is run with the libraries as they are, and once more with these caches bounded by their environment variables,
which shows what drift itself holds.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.drift.pair import ROOT, TARGET

CACHES = {
    "as they are": {},
    "caches bounded": {
        "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "4",
        "LRU_CACHE_CAPACITY": "4",
    },
}


def peak() -> float:
    """Largest resident memory of this process so far, MB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM: this needs Linux")


def one(candidate: Path, items: int, copies: int, *, side: str) -> None:
    """Run one side over so many copies of the texts and print tokens, peak before, peak after."""
    import torch

    from evals.drift import baseline_states, drift, texts_of
    from evals.spec import DriftSpec, EvaluateSpec
    from evals.texts import Text

    torch.set_num_threads(1)
    spec = EvaluateSpec(drift=DriftSpec(items=items, prose_items=items // 4))
    texts = texts_of(spec, TARGET, ROOT)

    def run(which: list[Text], folder: Path) -> float:
        (folder / "states").mkdir(parents=True)
        baseline_states(spec, model=TARGET, texts=which, out=folder / "states")
        after = peak()
        if side == "candidate":
            drift(spec, baseline=TARGET, candidate=candidate, states=folder / "states", out=folder)
            after = peak()
        return after

    with tempfile.TemporaryDirectory() as name:
        some = texts[:: max(1, len(texts) // 4)]
        before = run(some, Path(name) / "warm")
        which = [replace(text, id=f"{text.id}-{n}") for text in texts for n in range(copies)]
        print(sum(len(text.tokens) for text in which), before, run(which, Path(name) / "run"), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidate", type=Path, required=True)
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--one", choices=("baseline", "candidate"), help=argparse.SUPPRESS)
    parser.add_argument("--copies", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.candidate, args.items, args.copies, side=args.one)
        return
    print("| side | libraries | tokens | peak after a few texts, MB | peak at the end, MB |\n|---|---|---|---|---|")
    ends: dict[tuple[str, str], list[float]] = {}
    for side, (name, extra) in itertools.product(("baseline", "candidate"), CACHES.items()):
        for copies in (1, 4, 16):
            command = [sys.executable, "-m", "benchmarks.drift.memory", "--candidate", str(args.candidate)]
            command += ["--items", str(args.items), "--copies", str(copies), "--one", side]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **extra})
            tokens, before, after = (float(x) for x in done.stdout.split()[-3:])
            ends.setdefault((side, name), []).append(after)
            print(f"| {side} | {name} | {tokens:.0f} | {before:.0f} | {after:.0f} |", flush=True)
    for (side, name), (first, *_, last) in ends.items():
        print(f"{side}, {name}: 16 times the tokens, {last / first:.3f} times the peak memory ({last - first:+.0f} MB)")


if __name__ == "__main__":
    main()
