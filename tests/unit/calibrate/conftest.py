from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract.tiny import make_tokenizer

Write = Callable[..., Path]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as far as calibration looks at it: config and tokenizer."""
    folder = tmp_path_factory.mktemp("calibrate") / "model"
    make_tokenizer(folder)
    (folder / "config.json").write_text('{"vocab_size": 320}', encoding="utf-8")
    return folder


def item(number: int, kind: str, *, tool: str = "", text: str = "") -> dict[str, Any]:
    """A conversation; with `tool`, one that offers and calls it."""
    record: dict[str, Any] = {
        "id": f"{kind}-{number}",
        "kind": kind,
        "messages": [{"role": "user", "content": f"{text or 'Question'} {number}?"}],
    }
    if tool:
        call = {"type": "function", "function": {"name": tool, "arguments": {"n": number}}}
        record["messages"].append({"role": "assistant", "content": "", "tool_calls": [call]})
        record["tools"] = [{"type": "function", "function": {"name": tool, "parameters": {"type": "object"}}}]
    else:
        record["messages"].append({"role": "assistant", "content": f"Answer {number}"})
    return record


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write records (or raw lines) to a JSONL file."""

    def writer(*records: dict[str, Any] | str, name: str = "pool.jsonl") -> Path:
        path = tmp_path / name
        lines = (r if isinstance(r, str) else json.dumps(r) for r in records)
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return writer
