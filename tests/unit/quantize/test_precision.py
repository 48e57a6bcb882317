"""What calibration computes in, by machine and model."""

from __future__ import annotations

import pytest

from quantize import precision
from quantize.precision import computed_in
from sqtool import cores


@pytest.mark.parametrize(
    ("asked", "stored", "accelerator", "instructions", "expected"),
    [
        ("auto", "bfloat16", True, False, "bfloat16"),
        ("auto", "float16", True, False, "float16"),
        ("auto", "bfloat16", False, True, "bfloat16"),
        ("auto", "bfloat16", False, False, "float32"),
        # Instructions for bf16 do not multiply fp16.
        ("auto", "float16", False, True, "float32"),
        ("auto", "float32", False, True, "float32"),
        ("float32", "bfloat16", True, True, "float32"),
        ("bfloat16", "float16", False, False, "bfloat16"),
    ],
)
def test_computed_in(
    asked: str, stored: str, accelerator: bool, instructions: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "multiplies_bf16", lambda: instructions)
    assert computed_in(asked, stored, accelerator=accelerator) == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [({"avx2"}, False), ({"avx512f"}, False), ({"avx512_bf16"}, True), ({"amx_bf16"}, True), ({"asimd", "bf16"}, True)],
)
def test_multiplies_bf16(flags: set[str], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "cpu_flags", lambda: frozenset(flags))
    assert cores.multiplies_bf16() == expected
