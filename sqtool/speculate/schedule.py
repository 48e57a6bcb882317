"""In which order arms, loads and blocks are measured, and whether all servers are up at once."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evals.engine_env import GIB, VllmEnv, cpu_kv_bytes
from evals.gpus import visible
from evals.spec import EngineSpec
from sqtool.errors import UsageError
from sqtool.speculate.arms import Arm
from sqtool.speculate.loads import Load
from sqtool.speculate.memory import weights_bytes
from sqtool.speculate.spec import CONTROL, SpeculateSpec

CPU_PROCESS_BYTES = int(1.9 * GIB)
"""What a vLLM server takes on a CPU beside weights and KV cache: seen 1.6 to 1.9 GiB for its three processes."""
GPU_PROCESS_BYTES = 4 * GIB
"""The same on a GPU: CUDA context, workspace, captured graphs and activations of a batch."""
WEIGHTS_MARGIN = 2
"""Weights may be unpacked or repacked while loading."""
USABLE = 0.85
"""Share of the free memory that all servers together may take."""


@dataclass(frozen=True)
class Slot:
    """One block of one load in one round: what every arm is sent before the next one's turn."""

    round: int
    load: str
    block: int


@dataclass(frozen=True)
class Turn:
    """A slot in one arm."""

    round: int
    load: str
    arm: str
    block: int

    @property
    def slot(self) -> Slot:
        return Slot(self.round, self.load, self.block)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def schedule(
    arms: Sequence[str], loads: Sequence[Load], rounds: int, seed: int, *, interleaved: bool
) -> tuple[Turn, ...]:
    """Every turn in order. Interleaved, the arms take turns in each slot, in an order drawn anew for each; otherwise
    one arm is measured whole before the next."""
    rng = random.Random(f"schedule {seed}")
    slots = [
        Slot(round_, load.name, block)
        for round_ in range(rounds)
        for load in rng.sample(loads, len(loads))
        for block in range(len(load.batches))
    ]
    if not interleaved:
        return tuple(Turn(slot.round, slot.load, arm, slot.block) for arm in arms for slot in slots)
    return tuple(Turn(slot.round, slot.load, arm, slot.block) for slot in slots for arm in rng.sample(arms, len(arms)))


def needed_bytes(arm: Arm, env: VllmEnv) -> int | None:
    """Memory that the arm's server takes, in bytes; None where nobody says how large its KV cache will be."""
    weights = weights_bytes(arm.model) + (weights_bytes(arm.drafter) if arm.drafter is not None else 0)
    engine = arm.engine
    kv = engine.kv_cache_memory_bytes
    if env.device == "cpu":
        space = os.environ.get("VLLM_CPU_KVCACHE_SPACE")
        if kv is None:
            kv = int(float(space) * GIB) if space else cpu_kv_bytes(arm.model, engine)
        return weights * WEIGHTS_MARGIN + kv + CPU_PROCESS_BYTES
    return None if kv is None else weights + kv + GPU_PROCESS_BYTES


def free_bytes(env: VllmEnv) -> int | None:
    """Free memory of the device in bytes (the least of all GPUs), None where nobody says."""
    if env.device == "cpu":
        import psutil

        return int(psutil.virtual_memory().available)
    try:
        with visible() as (_, gpus):
            return min((gpu.free for gpu in gpus), default=None)
    except Exception:  # noqa: BLE001 - whatever NVML lacks, the answer is that nobody knows
        return None


def interleaving(spec: SpeculateSpec, arms: Sequence[Arm], env: VllmEnv | None) -> tuple[bool, str]:
    """Whether all servers are up at once, and why in words. `UsageError` when the recipe wants it always and it cannot
    be."""
    if spec.interleave == "never":
        return False, "speculate.interleave is never"
    servers = [arm for arm in arms if arm.name != CONTROL and arm.url is None]
    if not servers or env is None:
        return True, "every server runs already"
    found = [needed_bytes(arm, env) for arm in servers]
    free = free_bytes(env)
    unknown = [arm.name for arm, need in zip(servers, found, strict=True) if need is None]
    if unknown:
        reason = f"engine.kv_cache_memory_bytes is not given, so what {len(servers)} servers take is not known"
    elif free is None:
        reason = "the free memory of the device is not known"
    else:
        total = sum(need for need in found if need is not None)
        sizes = f"{len(servers)} servers take about {total / GIB:.1f} GiB, {free / GIB:.1f} GiB are free"
        if total <= USABLE * free:
            return True, sizes
        reason = sizes
    if spec.interleave == "always":
        raise UsageError(
            f"speculate.interleave is always, and not all servers can be up at once: {reason}",
            remedy="Lower `engine.max_num_seqs` or `engine.max_model_len`, give `engine.kv_cache_memory_bytes`, "
            "measure fewer arms, or leave `interleave` at auto.",
        )
    return False, reason


def shared_utilization(arms: Sequence[Arm], env: VllmEnv | None) -> dict[str, EngineSpec]:
    """Engines by arm for servers that share GPUs. vLLM refuses to start where less than its gpu_memory_utilization (0.9
    by default) is free, even when the size of the KV cache is given; so each is told its own share."""
    if env is None or env.device == "cpu":
        return {}
    try:
        with visible() as (_, gpus):
            total = min(gpu.total for gpu in gpus)
    except Exception:  # noqa: BLE001 - then vLLM itself says what is wrong
        return {}
    engines = {}
    for arm in arms:
        need = needed_bytes(arm, env) if arm.url is None else None
        if need is not None and arm.engine.gpu_memory_utilization is None:
            share = round(min(0.9, need / total), 4)
            engines[arm.name] = arm.engine.model_copy(update={"gpu_memory_utilization": share})
    return engines
