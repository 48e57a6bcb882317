"""What holds for every test: no network beyond this machine, no GPU or engine tests where there is none."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# Before any library reads them. Workers of pytest-xdist share the cores.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A time limit on each example fails tests on a busy machine and finds nothing.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

LOOPBACK = ("127.", "::1", "localhost")


def _gpu() -> bool:
    return shutil.which("nvidia-smi") is not None and (Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # `make e2e` sets this: there, a missing environment is a failure and never a silent skip.
    required = bool(os.environ.get("SQTOOL_REQUIRE_E2E"))
    no_engine = not required and not (ROOT / ".venv-vllm" / "bin" / "vllm").is_file()
    no_gpu = not _gpu()
    for item in items:
        if no_gpu and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU on this machine"))
        if no_engine and item.get_closest_marker("e2e"):
            item.add_marker(pytest.mark.skip(reason="no .venv-vllm; `make vllm` makes it"))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that would leave this machine fails at once, with the address."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and not str(address[0]).startswith(LOOPBACK):
            raise AssertionError(f"a test tried to reach {address[0]}:{address[1]}; tests stay on this machine")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
