"""Resolve every dependency anew and write constraints/*.txt, the full pins that set-up installs.

    .venv/bin/python scripts/lock.py [sqtool] [vllm-cpu] [vllm-gpu]

Takes about a minute each. Run it after changing dependencies in pyproject.toml or the vLLM version in
scripts/setup, then run the tests, then commit both. The resolution is for this Python on this platform;
set-up uses the result as constraints, so another Python may add a package but never take another version.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints"


def vllm_version() -> str:
    """The vLLM version that scripts/setup installs (the one place where it is written)."""
    found = re.search(r"^VLLM_VERSION=(\S+)$", (ROOT / "scripts" / "setup").read_text(), re.MULTILINE)
    if not found:
        raise SystemExit("scripts/setup has no line VLLM_VERSION=...")
    return found[1]


def requirements(name: str) -> list[str]:
    """What pip is asked for; everything else in the lock follows from it."""
    if name == "sqtool":
        return [f"{ROOT}[dev]"]
    return [f"{'vllm' if name == 'vllm-gpu' else name}=={vllm_version()}"]


def resolve(name: str) -> dict[str, str]:
    """Package name -> version, as pip resolves it in an empty environment."""
    environment = dict(os.environ)
    if name == "vllm-gpu":
        # A CPU build of torch that pip sees locally must not end up in the lock for GPU machines.
        environment.pop("PIP_FIND_LINKS", None)
        environment["PIP_CONFIG_FILE"] = os.devnull
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--ignore-installed", "--report", report]
        subprocess.run([*command, *requirements(name)], check=True, env=environment)
        found = json.loads(report.read_text())["install"]
    return {re.sub(r"[-_.]+", "-", i["metadata"]["name"]).lower(): i["metadata"]["version"] for i in found}


def write(name: str) -> None:
    """Write constraints/<name>.txt."""
    pins = resolve(name)
    pins.pop("sqtool", None)
    # Which build of torch (CPU or CUDA) is scripts/setup's choice: 2.13.0 admits 2.13.0+cpu.
    pins["torch"] = pins["torch"].partition("+")[0]
    lines = [f"{package}=={version}" for package, version in sorted(pins.items())]
    head = f"# Made by scripts/lock.py with Python {sys.version_info[0]}.{sys.version_info[1]}; do not edit.\n"
    (CONSTRAINTS / f"{name}.txt").write_text(head + "\n".join(lines) + "\n")
    print(f"constraints/{name}.txt: {len(lines)} packages")


if __name__ == "__main__":
    CONSTRAINTS.mkdir(exist_ok=True)
    for lock in sys.argv[1:] or ["sqtool", "vllm-cpu", "vllm-gpu"]:
        write(lock)
