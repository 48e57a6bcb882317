"""Where a candidate will be served, for the table of kernels."""

from __future__ import annotations

import platform
import shutil
import subprocess
from functools import cache

from evals.engine_env import locate, resolve_env
from quantize.kernels import Runtime
from sqtool.cores import cpu_flags
from sqtool.errors import EngineError
from sqtool.stages.contract import Inputs
from sqtool.stages.sections import engine_section


def runtime_of(inputs: Inputs) -> Runtime | None:
    """The recipe's engine and this machine's device; None without a vLLM environment, and for another kind of engine:
    a vLLM that lies here says nothing about what that one runs."""
    engine = engine_section(inputs)
    if engine.kind != "vllm":
        return None
    try:
        env = locate(resolve_env(engine, inputs.root))
    except EngineError:
        return None
    return Runtime(
        device=env.device,
        version=env.version.partition("+")[0],
        capability=capability() if env.device == "cuda" else None,
        flags=cpu_flags() if env.device == "cpu" else frozenset(),
        x86=platform.machine() in ("x86_64", "AMD64"),
        tensor_parallel=engine.tensor_parallel_size,
        unpacks=engine.unpack == "auto",
    )


def has_gpu() -> bool:
    """Is there an NVIDIA GPU to quantize with? torch would know for sure, and takes seconds to ask."""
    return capability() is not None


@cache
def capability() -> int | None:
    """The least compute capability of this machine's GPUs (90 for Hopper), None where none answers."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return None
    try:
        done = subprocess.run(
            [smi, "--query-gpu=compute_cap", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return min(round(float(line) * 10) for line in done.stdout.split())
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
