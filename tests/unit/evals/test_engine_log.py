"""Causes and facts from logs; the texts are from real vLLM 0.32 logs."""

from __future__ import annotations

from pathlib import Path

import pytest

from evals.engine_log import diagnose, facts, phase, telling_lines

CONFIG = (
    "(EngineCore pid=5779) INFO 11-23 01:15:47 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: "
    "model='/m', dtype=torch.bfloat16, max_seq_len=2048, quantization=None, enforce_eager=True, kv_cache_dtype=auto, "
    "enable_prefix_caching=True"
)


TOO_LONG = (
    "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
    "  Value error, User-specified max_model_len (100000) is greater than the derived max_model_len"
)
CPU_MEMORY = (
    "ValueError: Available memory on node 0 (12.52/13.96 GiB) on kv cache allocation is less than requested "
    "memory for kv (500.0 GiB)."
)
UNKNOWN_TYPE = (
    "  Value error, The checkpoint you are trying to load has model type `foo` but Transformers does not "
    "recognize this architecture."
)
HEADER = "safetensors._safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("OSError: [Errno 98] Address already in use", "port"),
        ("vllm: error: unrecognized arguments: --no-such-flag 1", "arguments"),
        ("KeyError: 'invalid tool call parser: hermess (chose from { hermes })'", "tool-call parser"),
        (TOO_LONG, "max_model_len"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20 MiB", "memory"),
        (CPU_MEMORY, "memory"),
        ("RuntimeError: operator torchvision::nms does not exist", "environment"),
        ("importlib.metadata.PackageNotFoundError: No package metadata was found for vllm", "environment"),
        (HEADER, "weights"),
        (UNKNOWN_TYPE, "model folder"),
        ("ValueError: Failed to find a kernel that can implement the WNA16 linear layer.", "no kernel"),
    ],
)
def test_known_causes(text: str, cause: str) -> None:
    noise = "(APIServer pid=1) INFO 11-23 01:15:24 [x.py:1] an address, a port, some memory, a kernel\n"
    found = diagnose(noise + text)
    assert found is not None
    assert cause in found.cause
    assert found.remedy
    assert any(text.splitlines()[-1].strip()[:60] in line for line in telling_lines(noise + text))


def test_an_unknown_cause_is_none_and_still_shows_lines() -> None:
    text = "INFO fine\n(EngineCore pid=1) ERROR 11-23 01:16:05 [core.py:1] the moon is in the wrong phase\nINFO fine"
    assert diagnose(text) is None
    assert telling_lines(text) == ["the moon is in the wrong phase"]


def test_without_errors_the_last_lines_are_shown() -> None:
    assert telling_lines("a\nb\n") == ["a", "b"]
    assert telling_lines("") == []


def test_many_errors_keep_first_and_last() -> None:
    lines = telling_lines("\n".join(f"ValueError: number {i}" for i in range(20)))
    assert lines[0] == "ValueError: number 0"
    assert lines[-1] == "ValueError: number 19"
    assert len(lines) == 6


def test_phases() -> None:
    assert phase("") == "importing vLLM"
    assert phase(CONFIG) == "starting the engine"
    assert phase(CONFIG + "\nStarting to load model /m...") == "loading weights"


def test_facts(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        CONFIG + "\n"
        "(W pid=1) INFO 11-23 01:15:59 [a.py:1] Using CPUWNA16LinearKernel for CompressedTensorsWNA16\n"
        "(W pid=1) INFO 11-23 01:15:59 [a.py:1] Using CPUWNA16LinearKernel for CompressedTensorsWNA16\n"
        "(W pid=1) INFO 11-23 01:15:59 [b:1] Selected CutlassInt8ScaledMMLinearKernel for CompressedTensorsW8A8Int8\n"
        "(W pid=1) INFO 11-23 01:15:59 [c.py:1] Using FLASH_ATTN attention backend out of potential backends: ['X'].\n",
        encoding="utf-8",
    )
    found = facts(log)
    assert found["kernels"] == [
        "CPUWNA16LinearKernel (CompressedTensorsWNA16)",
        "CutlassInt8ScaledMMLinearKernel (CompressedTensorsW8A8Int8)",
    ]
    assert found["attention"] == ["FLASH_ATTN"]
    assert found["dtype"] == "bfloat16"
    assert found["enforce_eager"] == "True"
