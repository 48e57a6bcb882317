"""Logs made of a few numbers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WriteLog = Callable[..., Path]


def lines(n: int, rates: dict[str, float], seed: int = 0, **more: Any) -> list[dict[str, Any]]:
    """n requests, each of an arm by chance, corrected at that arm's rate; a second apart."""
    rng = random.Random(seed)
    names = list(rates)
    found = []
    for number in range(n):
        arm = rng.choice(names)
        corrected = rng.random() < rates[arm]
        found.append(
            {
                "arm": arm,
                "timestamp": 1.79e9 + number,
                "corrected": corrected,
                "accepted": not corrected and rng.random() < 0.8,
                "retried": rng.random() < 0.02,
                "cancelled": rng.random() < 0.02,
                "failed": False,
                "e2e_ms": rng.lognormvariate(7, 0.5),
                "output_tokens": rng.randrange(10, 200),
                **more,
            }
        )
    return found


@pytest.fixture
def write_log(tmp_path: Path) -> WriteLog:
    """Write objects (or texts, as they are) as a JSONL file."""

    def write(records: list[Any], name: str = "log.jsonl") -> Path:
        path = tmp_path / name
        text = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records)
        path.write_text(text, encoding="utf-8")
        return path

    return write
