from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize.kernels import Kernel, Runtime, Shape, kernel
from quantize.schemes import SCHEMES, Scheme

CPU = Runtime("cpu", "0.32.0", flags=frozenset({"avx512f", "avx512_vnni"}))
OLD_CPU = replace(CPU, flags=frozenset({"avx2"}))
HOPPER = Runtime("cuda", "0.32.0", capability=90)
BIG = Shape(4096, 4096)
W4, W4Z, W8, INT8, FP8 = (SCHEMES[n] for n in ("W4A16", "W4A16_ASYM", "W8A16", "W8A8", "FP8_DYNAMIC"))


def gpu(capability: int) -> Runtime:
    return replace(HOPPER, capability=capability)


@pytest.mark.parametrize(
    ("scheme", "shape", "runtime", "status", "said"),
    [
        (W4, BIG, CPU, "runs", "CPUWNA16"),
        (W4, Shape(48, 4096), CPU, "fails", "multiples of 32"),
        (W4, BIG, OLD_CPU, "unpacked", "AVX-512"),
        (W4, BIG, replace(OLD_CPU, unpacks=False), "fails", "AVX-512"),
        (W4, BIG, replace(OLD_CPU, x86=False), "runs", "CPUWNA16"),
        (W8, BIG, CPU, "unpacked", "4-bit weights, not 8"),
        (INT8, BIG, CPU, "runs", "CPUInt8"),
        (INT8, BIG, OLD_CPU, "fallback", "reduce_range"),
        (FP8, BIG, CPU, "runs", "ChannelWiseTorch"),
        (W4, BIG, HOPPER, "runs", "Machete"),
        (replace(W4, group_size=32), BIG, HOPPER, "fallback", "Marlin"),
        (W4, Shape(4160, 4096), HOPPER, "fallback", "128 output"),
        (W4Z, BIG, gpu(80), "runs", "Marlin"),
        (W4, Shape(100, 4096), gpu(80), "fallback", "pads"),
        (replace(W8, symmetric=False), BIG, gpu(80), "fails", "zero points"),
        (replace(W8, symmetric=False), BIG, HOPPER, "runs", "Machete"),
        (W4, BIG, gpu(70), "fails", "compute capability 7.5"),
        (FP8, BIG, gpu(80), "fallback", "no FP8 arithmetic"),
        (FP8, BIG, gpu(89), "runs", "CutlassFP8"),
        (INT8, BIG, HOPPER, "runs", "CutlassInt8"),
        (INT8, BIG, gpu(100), "fails", "Blackwell"),
        (SCHEMES["FP8"], BIG, CPU, "fails", "need a GPU"),
        (SCHEMES["FP8"], BIG, HOPPER, "runs", "CutlassFP8"),
        (SCHEMES["FP8_BLOCK"], BIG, HOPPER, "runs", "CutlassFp8Block"),
        (SCHEMES["FP8_BLOCK"], BIG, gpu(89), "fallback", "16 bits"),
        (SCHEMES["FP8_BLOCK"], BIG, CPU, "fails", "AMX"),
        (SCHEMES["FP8_BLOCK"], Shape(640, 384, (384, 64, 192)), HOPPER, "fails", "blocks of 128 x 128"),
        (SCHEMES["FP8_BLOCK"], Shape(640, 384, (384, 128, 64)), HOPPER, "runs", ""),
        (SCHEMES["NVFP4"], BIG, gpu(100), "runs", "CutlassNvFp4"),
        (SCHEMES["NVFP4"], BIG, HOPPER, "fallback", "activations stay"),
        (SCHEMES["MXFP4A16"], BIG, gpu(80), "runs", "MarlinMxFp4"),
        (SCHEMES["NVFP4A16"], BIG, CPU, "fails", "no FP4"),
        (W4, BIG, replace(HOPPER, capability=None), "unknown", "no GPU answered"),
        (W4, Shape(4096, 4096 // 64), HOPPER, "fails", "cuts through groups"),
    ],
)
def test_the_kernel_of_a_layer(scheme: Scheme, shape: Shape, runtime: Runtime, status: str, said: str) -> None:
    got = kernel(scheme, shape, runtime)
    assert got.status == status
    assert said in f"{got.name} {got.reason}"


@given(
    st.sampled_from(sorted(SCHEMES)),
    st.integers(1, 64),
    st.integers(1, 64),
    st.sampled_from([None, 70, 75, 80, 89, 90, 100, 120]),
)
def test_every_scheme_has_an_answer_with_its_reason(name: str, rows: int, groups: int, capability: int | None) -> None:
    runtime = CPU if capability is None else gpu(capability)
    got: Kernel = kernel(SCHEMES[name], Shape(rows * 8, groups * 128), runtime)
    assert bool(got.name) == (got.status in ("runs", "fallback"))
    assert bool(got.reason) == (got.status != "runs")
