"""A recipe through `sqtool eval` in a process of its own, on this machine's device, and what a table needs of it.

Several such processes share the device, so each server gets a fixed KV cache instead of a share of all memory.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from sqtool.files import read_json

ROOT = Path(__file__).resolve().parents[2]
TARGET = "artifacts/reference/target"
DRAFT = "artifacts/reference/draft"
GIB = 1 << 30
SHARED: dict[str, Any] = {"kv_cache_memory_bytes": GIB, "enforce_eager": True}
ON_GPU: dict[str, Any] = {"gpu_memory_utilization": 0.05}
"""vLLM checks at its start that this share of the memory is free, also where the cache's size is given."""
METRICS = ("tool_calls.schema_valid", "tool_calls.call_match", "tasks.exact_match", "recall.exact_match")
TIMEOUT = 420.0
_WEIGHTS = re.compile(r"Model loading took ([\d.]+) GiB")
_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")


def engine(**own: Any) -> dict[str, Any]:
    """An engine section for servers that share this machine's device."""
    from sqtool.stages.runtime import has_gpu

    return {**SHARED, **(ON_GPU if has_gpu() else {}), **own}


def evaluate(recipe: dict[str, Any], timeout: float = TIMEOUT) -> dict[str, Any]:
    """The JSON document of `sqtool eval` on the recipe. `RuntimeError` with the command's own words when it fails."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", dir=ROOT, prefix=".gpu-") as file:
        json.dump(recipe, file)  # JSON is YAML
        file.flush()
        command = [sys.executable, "-m", "sqtool", "eval", file.name, "--json", "--quiet", "--wait"]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout, env=environment()
        )
    if done.returncode != 0:
        words = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        raise RuntimeError(words)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def environment() -> dict[str, str]:
    """This process's environment, with the checkout on the path of Python."""
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, "PYTHONPATH": path}


def side_folder(document: dict[str, Any], stage: str) -> Path:
    """Where a stage's files lie."""
    return ROOT / str(next(entry["folder"] for entry in document["stages"] if entry["name"] == stage))


def memory(log: Path) -> dict[str, Any]:
    """What a server's log says of memory: weights in GiB, tokens that its KV cache holds. Absent where it is silent."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    found: dict[str, Any] = {}
    if weights := _WEIGHTS.search(text):
        found["weights_gib"] = float(weights.group(1))
    if tokens := _TOKENS.search(text):
        found["kv_cache_tokens"] = int(tokens.group(1).replace(",", ""))
    return found


def scores(summary: dict[str, Any]) -> dict[str, float]:
    """The means of METRICS in an evaluation's summary, and how many items each has."""
    found: dict[str, float] = {}
    for metric in METRICS:
        task, _, name = metric.partition(".")
        if task in summary["tasks"]:
            found[metric] = summary["tasks"][task]["metrics"][name]
    return found


def side(document: dict[str, Any], stage: str) -> dict[str, Any]:
    """What a table shows of one side of an evaluation."""
    summary, folder = document["results"][stage], side_folder(document, stage)
    facts = summary["engine"]
    drift = summary.get("drift") or {}
    return {
        "scores": scores(summary),
        "items": sum(task["n"] for task in summary["tasks"].values()),
        "engine": {
            name: facts.get(name)
            for name in ("version", "device_class", "kernels", "attention", "kv_cache_dtype", "dtype", "start_seconds")
        },
        **memory(folder / "vllm.log"),
        "kl_mean": (drift.get("all") or {}).get("kl_mean"),
        "top1_agreement": (drift.get("all") or {}).get("top1_agreement"),
        "check": (drift.get("check") or {}).get("candidate"),
        "baseline_check": (drift.get("check") or {}).get("baseline"),
        "stability": drift.get("stability"),
        "tool_calls": summary["tasks"].get("tool_calls"),
        "folder": str(folder.relative_to(ROOT)),
    }


def pack(cells: dict[str, Any], archive: Path) -> None:
    """All records of the cells' sides into one archive, `<cell>/<task>.jsonl`."""
    with tarfile.open(archive, "w:gz") as packed:
        for name, cell in cells.items():
            records = ROOT / cell["folder"] / "records" if "folder" in cell else None
            if records is not None and records.is_dir():
                for path in sorted(records.glob("*.jsonl")):
                    packed.add(path, f"{name}/{path.name}")


def quantize_summary(document: dict[str, Any]) -> dict[str, Any]:
    """What a table shows of the quantize stage."""
    made = document["results"]["quantize"]
    return {name: made.get(name) for name in ("bits_per_weight", "bytes_before", "bytes_after", "seconds", "notes")}


def result_of(folder: Path) -> dict[str, Any]:
    """A stage's result.json."""
    found: dict[str, Any] = read_json(folder / "result.json")
    return found
