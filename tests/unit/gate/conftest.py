"""Writing small records folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

Write = Callable[..., Path]


@pytest.fixture
def write_records(tmp_path: Path) -> Write:
    """write(side, {metric: [score or None, ...]}, task="recall", ids=..., clusters=..., kinds=..., fields=...)."""

    def write(
        side: str,
        scores: Mapping[str, Sequence[float | None]],
        *,
        task: str = "recall",
        ids: Sequence[str] | None = None,
        clusters: Sequence[str | None] | None = None,
        kinds: Sequence[str] | None = None,
        fields: Sequence[Mapping[str, Any]] | None = None,
        order: Sequence[int] | None = None,
    ) -> Path:
        folder = tmp_path / side / "records"
        folder.mkdir(parents=True, exist_ok=True)
        n = len(next(iter(scores.values())))
        lines = []
        for i in range(n) if order is None else order:
            record = {
                "task": task,
                "id": ids[i] if ids else f"{task}-{i:05d}",
                "kind": kinds[i] if kinds else task,
                "cluster": clusters[i] if clusters else None,
                "fields": dict(fields[i]) if fields else {},
                "scores": {name: column[i] for name, column in scores.items() if column[i] is not None},
                "failure": None,
                "output": {"text": f"{side} says {i}", "tool_calls": [], "finish_reason": "stop"},
                "expected": {"text": str(i)},
            }
            lines.append(json.dumps(record))
        (folder / f"{task}.jsonl").write_text("\n".join(lines) + "\n")
        return folder

    return write
