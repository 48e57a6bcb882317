"""A project folder to attack."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.ci.conftest import ended
from tests.unit.evals.conftest import fake_env, fake_model
from tests.unit.report.conftest import make_run

__all__ = ["ended", "fake_env", "fake_model", "make_run"]

PLAIN: dict[str, Any] = {"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}
METHODS = "quantize:\n  methods:\n    - rtn: {scheme: W4A16}\n"


def safetensors(header: Any, data: bytes = b"\0\0\0\0", *, length: int | None = None) -> bytes:
    """A safetensors file with any header, also one that lies about its length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder that passes."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(safetensors(PLAIN))
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str | bytes], Path]:
    """Writes a recipe into a project folder of its own."""
    (tmp_path / "pyproject.toml").touch()

    def write(content: str | bytes) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write
