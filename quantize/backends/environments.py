"""Where the environments of other quantizers are, what is in them, and how they are made.

`scripts/setup NAME` makes `.backends/NAME`; a stamp in it, written last, says that it is whole.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from sqtool.errors import InfrastructureError, UsageError, did_you_mean

CHECKOUT = Path(__file__).resolve().parents[2]
FOLDER = "SQTOOL_BACKENDS"
"""Environment variable that names the folder of the environments."""
STAMP = ".sqtool-setup"


@dataclass(frozen=True)
class Quantizer:
    """A quantizer that needs an environment of its own."""

    name: str
    methods: tuple[str, ...]
    upstream: str
    """What its maintainers say of it."""


QUANTIZERS: dict[str, Quantizer] = {
    q.name: q
    for q in (
        Quantizer("autoawq", ("awq",), "deprecated, merged into llm-compressor"),
        Quantizer("auto-gptq", ("gptq",), "archived"),
        Quantizer("gptqmodel", ("gptq", "awq"), "maintained, successor of auto-gptq"),
    )
}


@dataclass(frozen=True)
class State:
    """One row of `sqtool backend list`."""

    name: str
    installed: bool
    methods: tuple[str, ...]
    upstream: str
    folder: str
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """The row as a JSON object."""
        return asdict(self)


def folder(name: str) -> Path:
    """The environment's folder; it need not exist. An absolute SQTOOL_BACKENDS wins, else it is in the checkout."""
    return CHECKOUT / os.environ.get(FOLDER, ".backends") / name


def python(name: str) -> Path:
    """The environment's interpreter. Raises InfrastructureError with the command that makes it when there is none."""
    place = folder(name)
    if not (place / STAMP).is_file():
        raise InfrastructureError(
            f"backend {name} is not installed: there is no finished environment in {place}",
            remedy=f"`sqtool backend install {name}` makes it.",
        )
    return place / "bin" / "python"


def state(name: str) -> State:
    """What is known of a quantizer without starting it."""
    quantizer, place = QUANTIZERS[name], folder(name)
    installed = (place / STAMP).is_file()
    sites = [str(path) for path in sorted(place.glob("lib/python3*/site-packages"))] if installed else []
    found = {d.metadata["Name"].replace("_", "-").lower(): d.version for d in metadata.distributions(path=sites)}
    versions = {package: found[package] for package in (name, "torch", "transformers") if package in found}
    return State(name, installed, quantizer.methods, quantizer.upstream, str(place), versions)


def install(name: str) -> None:
    """Make the environment, or finish one that was begun; nothing happens when it is there. pip's output is shown.

    Raises UsageError for an unknown name or a sqtool without its scripts, InfrastructureError when set-up fails.
    """
    if name not in QUANTIZERS:
        raise UsageError(
            f"there is no backend {name!r} to install", remedy=did_you_mean(name, list(QUANTIZERS)).capitalize()
        )
    script = CHECKOUT / "scripts" / "setup"
    if not script.is_file():
        raise UsageError(
            f"{script} is not there: this sqtool was installed without its checkout",
            remedy="Run it from a checkout of the project.",
        )
    done = subprocess.run(["bash", str(script), name], stdin=subprocess.DEVNULL, stdout=2, check=False)
    if done.returncode:
        raise InfrastructureError(
            f"backend {name} could not be installed", remedy="The reason is above; the same command goes on from there."
        )
