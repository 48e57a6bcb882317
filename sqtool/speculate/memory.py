"""What an arm takes of the machine's memory: weights, drafter, KV cache, and the peak of its processes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evals.gpus import visible
from quantize.headers import read_checkpoint
from sqtool.errors import DataError
from sqtool.speculate.arms import Arm
from sqtool.speculate.counters import Counters

_KV_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")
_KV_GIB = re.compile(r"Available KV cache memory: ([\d.]+) GiB")
GIB = 1 << 30


def weights_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's tensors, by the headers of its safetensors files; for another format, of its files."""
    try:
        return sum(tensor.nbytes for tensor in read_checkpoint(folder).values())
    except DataError:
        return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())


def memory(arm: Arm, *, log: str, flags: list[str], counters: Counters, pid: int | None, device: str) -> dict[str, Any]:
    """The arm's memory in bytes and tokens; what the runtime does not say stands under `missing` with the reason.

    `log` is the server's log, `flags` its arguments, `pid` the process above all of its processes.
    """
    found: dict[str, Any] = {"weights_bytes": weights_bytes(arm.model)}
    missing: dict[str, str] = {}

    def take(name: str, value: int | None, reason: str) -> None:
        if value is None:
            missing[name] = reason
        else:
            found[name] = value

    if arm.drafter is not None:
        found["draft_bytes"] = weights_bytes(arm.drafter)
    else:
        missing["draft_bytes"] = "no separate drafter" if arm.speculates else "the arm does not speculate"
    take("kv_cache_tokens", _kv_tokens(log, counters), "neither the server's log nor its /metrics says it")
    take("kv_cache_bytes", _kv_bytes(log, flags), "neither the server's arguments nor its log say it")
    if device == "cpu":
        take("rss_peak_bytes", rss_peak(pid), "the server's processes could not be read")
    else:
        missing["rss_peak_bytes"] = "the weights and the cache are in the GPU's memory"
        take("device_peak_bytes", device_bytes(pid), "NVML does not tell this machine's processes apart")
    return {**found, "missing": missing}


def _kv_tokens(log: str, counters: Counters) -> int | None:
    said = _KV_TOKENS.findall(log)
    if said:
        return int(said[-1].replace(",", ""))
    try:
        return int(counters.cache["num_gpu_blocks"]) * int(counters.cache["block_size"])
    except (KeyError, ValueError):
        return None


def _kv_bytes(log: str, flags: list[str]) -> int | None:
    if "--kv-cache-memory-bytes" in flags[:-1]:
        return int(flags[flags.index("--kv-cache-memory-bytes") + 1])
    said = _KV_GIB.findall(log)
    return int(float(said[-1]) * GIB) if said else None


def rss_peak(pid: int | None) -> int | None:
    """Peak resident memory of a process and everything below it, in bytes: the kernel's own high-water marks, added up
    (so pages that two of them share count twice)."""
    total = 0
    for process in _tree(pid):
        try:
            status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
        except OSError:
            continue
        peak = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
        total += int(peak.group(1)) * 1024 if peak else 0
    return total or None


def device_bytes(pid: int | None) -> int | None:
    """GPU memory of a process and everything below it, in bytes, as it stands. vLLM takes its memory at the start and
    gives none back, so after the traffic this is the peak."""
    tree = set(_tree(pid))
    try:
        with visible() as (pynvml, gpus):
            running = [process for gpu in gpus for process in _running(pynvml, gpu.handle)]
    except Exception:  # noqa: BLE001 - whatever NVML lacks, the measure is absent then
        return None
    return sum(used for process, used in running if process in tree and used) or None


def _running(pynvml: Any, handle: Any) -> list[tuple[int, int | None]]:
    listing: Callable[[Any], list[Any]] = pynvml.nvmlDeviceGetComputeRunningProcesses
    return [(int(process.pid), process.usedGpuMemory) for process in listing(handle)]


def _tree(pid: int | None) -> list[int]:
    import psutil

    if pid is None:
        return []
    try:
        top = psutil.Process(pid)
        return [pid, *(child.pid for child in top.children(recursive=True))]
    except psutil.Error:
        return []
