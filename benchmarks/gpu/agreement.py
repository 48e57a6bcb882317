"""Whether two machines give a checkpoint the same scores: both sides' answers through the paired gate.

    python -m benchmarks.gpu.agreement --one gpu/records.tar.gz --other cpu/records.tar.gz [--max-drop 0.02]

Each archive is what `benchmarks.gpu.methods` wrote on one machine, or a folder with one of records for each cell
(`sqtool eval` leaves them in artifacts/cache/baseline-.../records). Every cell that both have is judged twice, each
machine as the baseline of the other: agreement is two PASSes at the margin. Another version of vLLM and other kernels
give other answers here and there; that the scores agree is the claim, not that the answers do.
"""

from __future__ import annotations

import argparse
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu.pipeline import METRICS
from benchmarks.gpu.timebox import markdown
from sqtool.gate.judge import judge
from sqtool.gate.spec import GateSpec


def unpacked(archive: Path, folder: Path) -> dict[str, Path]:
    """Records folder of each cell."""
    if archive.is_dir():
        return {path.name: path for path in sorted(archive.iterdir()) if path.is_dir()}
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}


def judged(one: Path, other: Path, max_drop: float) -> list[list[Any]]:
    """For each metric: its mean on both sides, the change with its interval, and both outcomes."""
    known = [metric for metric in METRICS if (one / f"{metric.partition('.')[0]}.jsonl").is_file()]
    rules = {metric: {"max_drop": max_drop} for metric in known}
    spec = GateSpec.model_validate({"metrics": rules})
    verdicts = [judge(spec, *sides) for sides in ((one, other), (other, one))]
    back = {metric.metric: metric for metric in verdicts[1].metrics}
    rows = []
    for metric in verdicts[0].metrics:
        if metric.metric not in rules:
            continue
        outcomes = f"{metric.outcome} / {back[metric.metric].outcome}"
        change = f"{100 * metric.difference:+.2f} ({100 * metric.lower:+.2f} to {100 * metric.upper:+.2f})"
        means = (f"{100 * metric.baseline:.2f}", f"{100 * metric.candidate:.2f}")
        rows.append([metric.metric, str(metric.items), *means, change, outcomes])
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", type=Path, required=True)
    parser.add_argument("--other", type=Path, required=True)
    parser.add_argument("--max-drop", type=float, default=0.02)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        left, right = (unpacked(archive, Path(folder, side)) for archive, side in ((args.one, "1"), (args.other, "2")))
        both = [name for name in left if name in right]
        if not both:
            raise SystemExit("the two archives have no cell in common")
        rows = [[name, *row] for name in both for row in judged(left[name], right[name], args.max_drop)]
    headers = ("cell", "metric", "items", "% one", "% other", "change (interval)", "outcome, each way")
    print(markdown(headers, rows))
    return 0 if all(row[-1] == "PASS / PASS" for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
