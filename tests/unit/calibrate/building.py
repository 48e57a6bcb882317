"""What the tests of building a calibration set share."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from calibrate.build import build
from calibrate.spec import CalibrateSpec
from sqtool.progress import SILENT

from .conftest import item

Write = Callable[..., Path]


class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []

    @contextmanager
    def task(self, description: str, total: float | None = None) -> Any:
        with SILENT.task(description, total) as task:
            yield task

    def note(self, text: str) -> None:
        self.notes.append(text)


def make(
    model: Path,
    out: Path,
    path: Path,
    progress: Any = SILENT,
    seed: int = 0,
    evals: dict[str, Path] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    out.mkdir(exist_ok=True, parents=True)
    # The model's folder has a tokenizer and no weights.
    values = {"sources": [{"path": str(path)}], "max_seq_length": 256, "activations": None, **settings}
    if "target_tokens" not in values:
        values.setdefault("num_calibration_samples", 12)
    return build(CalibrateSpec.model_validate(values), model=model, seed=seed, out=out, progress=progress, evals=evals)


def chosen_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "calibration.jsonl").read_text().splitlines()]


@pytest.fixture
def pool(write: Write) -> Path:
    return write(*[item(n, "plain") for n in range(30)], *[item(n, "tool", tool=f"tool_{n % 3}") for n in range(10)])
