"""Which vLLM kernel a quantized layer would get on a device, which would fall back, which would not run.

vLLM picks a kernel when it loads a checkpoint; this is its choice as a table, read from vLLM 0.32's source:

    model_executor/kernels/linear/__init__.py            the order in which kernels are asked, by platform
    kernels/linear/mixed_precision/{machete,marlin,cpu}  weight-only integers
    kernels/linear/scaled_mm/{cutlass,cpu,marlin}        8-bit weights and activations
    layers/quantization/compressed_tensors/schemes       least compute capability of each scheme
    layers/quantization/utils/{marlin,machete}_utils.py  group sizes and tiles

Rules that are not in a source file say where they come from. Kernels that need a further package (Humming, Conch,
FlashInfer, DeepGEMM) are left out, so a layer may get a faster one than this says, never a slower one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from quantize.schemes import Scheme

READ_FROM = "0.32"
"""The vLLM version that the table was read from."""

Status = Literal["runs", "fallback", "unpacked", "fails", "unknown"]
ORDER: tuple[Status, ...] = ("fails", "unknown", "unpacked", "fallback", "runs")
"""Worst first."""


@dataclass(frozen=True)
class Runtime:
    """Where the checkpoint will be served."""

    device: Literal["cpu", "cuda"]
    version: str
    """vLLM's own."""
    capability: int | None = None
    """CUDA compute capability without its dot (90 is Hopper); None on a CPU and where it could not be asked."""
    flags: frozenset[str] = frozenset()
    """Instruction sets of the CPU as Linux names them."""
    x86: bool = True
    tensor_parallel: int = 1
    unpacks: bool = True
    """Does the engine serve weight-only checkpoints unpacked where it has no kernel (engine.unpack)?"""

    @property
    def name(self) -> str:
        """The device in words."""
        if self.device == "cpu":
            return "CPU"
        return "GPU" if self.capability is None else f"GPU (compute capability {self.capability / 10:.1f})"


@dataclass(frozen=True)
class Kernel:
    """What would run a layer. `reason` says why it is not the best, or not at all; empty when all is well."""

    status: Status
    name: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Shape:
    """A layer as the runtime has it on one device: fused with its siblings, cut by tensor parallelism."""

    rows: int
    columns: int
    parts: tuple[int, ...] = ()
    """Output features of each layer that was merged into this one; empty for one that stands alone."""


def kernel(scheme: Scheme, shape: Shape, runtime: Runtime) -> Kernel:
    """The kernel of one layer."""
    if runtime.device == "cuda" and runtime.capability is None:
        return Kernel("unknown", reason="no GPU answered, so its compute capability is not known")
    if scheme.group_size and shape.columns % scheme.group_size:
        return Kernel("fails", reason=f"tensor parallelism cuts through groups of {scheme.group_size}")
    table = CPU if runtime.device == "cpu" else CUDA
    return table[kind(scheme)](scheme, shape, runtime)


def kind(scheme: Scheme) -> str:
    """The row of the tables below."""
    if scheme.bits == 4 and scheme.type == "float":
        return "fp4"
    if scheme.weight_only:
        return "weight-only"
    if scheme.type == "int":
        return "int8"
    if scheme.block:
        return "fp8-block"
    return "fp8-static" if scheme.calibrated else "fp8-dynamic"


# ---------------------------------------------------------------------------------------------------------- CUDA

MARLIN_GROUPS = (None, 32, 64, 128)
MACHETE_GROUPS = (None, 64, 128)
MACHETE_TILE = Shape(128, 64)
"""Rows and columns must be multiples (MACHETE_PREPACKED_BLOCK_SHAPE is [64, 128], columns first)."""
TURING, AMPERE, ADA, HOPPER, BLACKWELL = 75, 80, 89, 90, 100


def _cuda_weight_only(scheme: Scheme, shape: Shape, runtime: Runtime) -> Kernel:
    bits, group = scheme.bits, scheme.group_size
    if _capability(runtime) < TURING:
        return _too_old(runtime, TURING)
    if bits not in (4, 8):
        return Kernel("fails", reason=f"no kernel for {bits}-bit weights")
    if _capability(runtime) == HOPPER:
        if group in MACHETE_GROUPS and not shape.rows % MACHETE_TILE.rows and not shape.columns % MACHETE_TILE.columns:
            return Kernel("runs", "MacheteLinearKernel")
        rows, columns = MACHETE_TILE.rows, MACHETE_TILE.columns
        why = f"Machete takes groups of 64 or 128, multiples of {rows} output and {columns} input features"
    else:
        why = ""
    # Marlin has zero points for 4 bits only (query_marlin_supported_quant_types).
    if group in MARLIN_GROUPS and (scheme.symmetric or bits == 4):
        if (shape.rows % 64 or shape.columns % 128) and (shape.rows % 128 or shape.columns % 64):
            why = "Marlin pads these shapes to its tiles at every call"
        return Kernel("fallback" if why else "runs", "MarlinLinearKernel", why)
    if bits == 4 and group in (None, 32, 64, 128, 256) and shape.rows % 8 == 0:
        return Kernel("fallback", "TritonW4A16LinearKernel", f"Marlin has no group size {group}")
    if scheme.symmetric is False and bits == 8:
        return Kernel("fails", reason="no kernel for 8-bit weights with zero points here")
    return Kernel("fails", reason=f"no kernel for group size {group}")


def _cuda_int8(_scheme: Scheme, _shape: Shape, runtime: Runtime) -> Kernel:
    if _capability(runtime) < TURING:
        return _too_old(runtime, TURING)
    if _capability(runtime) >= BLACKWELL:
        # https://docs.vllm.ai/en/latest/features/quantization/int8/ ("Blackwell GPU limitation").
        return Kernel("fails", reason="vLLM has no INT8 on Blackwell: use FP8")
    return Kernel("runs", "CutlassInt8ScaledMMLinearKernel")


def _cuda_fp8(_scheme: Scheme, _shape: Shape, runtime: Runtime) -> Kernel:
    if _capability(runtime) < TURING:
        return _too_old(runtime, TURING)
    if _capability(runtime) < ADA:
        return _marlin_fp8("this GPU has no FP8 arithmetic: weights stay FP8, activations stay in 16 bits")
    return Kernel("runs", "CutlassFP8ScaledMMLinearKernel")


def _cut_blocks(scheme: Scheme, shape: Shape, runtime: Runtime) -> Kernel | None:
    """A kernel's failure where blocks do not fit the merged or divided layer (`validate_fp8_block_shape`)."""
    assert scheme.block is not None
    rows, columns = scheme.block
    divided = runtime.tensor_parallel > 1
    parts = (shape.parts or (shape.rows,)) if divided else shape.parts[:-1]
    if any(part % rows for part in parts) or (divided and shape.columns % columns):
        return Kernel("fails", reason=f"blocks of {rows} x {columns} do not fit the parts of the layer as vLLM has it")
    return None


def _cuda_fp8_block(scheme: Scheme, shape: Shape, runtime: Runtime) -> Kernel:
    if _capability(runtime) < TURING:
        return _too_old(runtime, TURING)
    if (cut := _cut_blocks(scheme, shape, runtime)) is not None:
        return cut
    if _capability(runtime) < HOPPER:
        return _marlin_fp8("CUTLASS has FP8 blocks from Hopper on: activations stay in 16 bits")
    return Kernel("runs", "CutlassFp8BlockScaledMMKernel")


def _cuda_fp4(scheme: Scheme, _shape: Shape, runtime: Runtime) -> Kernel:
    nvidia = scheme.group_size == 16
    least = TURING if nvidia else AMPERE
    if _capability(runtime) < least:
        return _too_old(runtime, least)
    marlin = "MarlinNvFp4LinearKernel" if nvidia else "MarlinMxFp4LinearKernel"
    if scheme.weight_only:
        return Kernel("runs", marlin)
    if nvidia and _capability(runtime) >= BLACKWELL:
        return Kernel("runs", "CutlassNvFp4LinearKernel")
    return Kernel("fallback", marlin, "weights are FP4, activations stay in 16 bits")


def _marlin_fp8(reason: str) -> Kernel:
    return Kernel("fallback", "MarlinFP8ScaledMMLinearKernel", reason)


def _capability(runtime: Runtime) -> int:
    assert runtime.capability is not None
    return runtime.capability


def _too_old(runtime: Runtime, least: int) -> Kernel:
    return Kernel("fails", reason=f"it needs compute capability {least / 10:.1f}, this is {runtime.name}")


# ----------------------------------------------------------------------------------------------------------- CPU

WNA16_TILE = 32


def _cpu_weight_only(scheme: Scheme, shape: Shape, runtime: Runtime) -> Kernel:
    if scheme.type != "int":
        return Kernel("fails", reason="no kernel for FP8 weights alone on a CPU")
    if scheme.bits != 4:
        return _unpacked(runtime, f"vLLM's CPU kernel takes 4-bit weights, not {scheme.bits}")
    if runtime.x86 and "avx512f" not in runtime.flags:
        # Not in Python: the library for processors without AVX-512 lacks the operator, and the first request ends the
        # engine (evals.engine_env.unsupported).
        return _unpacked(runtime, "vLLM's CPU kernel for 4-bit weights needs AVX-512")
    if shape.rows % WNA16_TILE or shape.columns % WNA16_TILE:
        return Kernel("fails", reason=f"CPUWNA16LinearKernel needs multiples of {WNA16_TILE} input and output features")
    return Kernel("runs", "CPUWNA16LinearKernel")


def _cpu_int8(_scheme: Scheme, _shape: Shape, runtime: Runtime) -> Kernel:
    if runtime.x86 and not runtime.flags & {"avx512_vnni", "avx_vnni", "amx_int8"}:
        why = "this processor lacks VNNI: sums of the full range saturate (reduce_range: true avoids it)"
        return Kernel("fallback", "CPUInt8ScaledMMLinearKernel", why)
    return Kernel("runs", "CPUInt8ScaledMMLinearKernel")


def _cpu_fp8_dynamic(_scheme: Scheme, _shape: Shape, _runtime: Runtime) -> Kernel:
    return Kernel("runs", "ChannelWiseTorchFP8ScaledMMLinearKernel")


def _cpu_fp8_static(_scheme: Scheme, _shape: Shape, _runtime: Runtime) -> Kernel:
    # With AMX, CPUFp8PerTensorScaledMMLinearKernel ignores the activations' scales (W8A16): what would be measured is
    # not what the recipe says. Without, the first request ends the engine.
    return Kernel("fails", reason="static FP8 activations need a GPU: use FP8_DYNAMIC on a CPU")


def _cpu_fp8_block(scheme: Scheme, shape: Shape, runtime: Runtime) -> Kernel:
    if "amx_tile" not in runtime.flags:
        return Kernel("fails", reason="FP8 blocks on a CPU need AMX")
    if (cut := _cut_blocks(scheme, shape, runtime)) is not None:
        return cut
    return Kernel("fallback", "CPUFp8BlockScaledMMKernel", "activations stay in 16 bits")


def _cpu_fp4(_scheme: Scheme, _shape: Shape, _runtime: Runtime) -> Kernel:
    return Kernel("fails", reason="vLLM has no FP4 kernel for CPUs")


def _unpacked(runtime: Runtime, reason: str) -> Kernel:
    if not runtime.unpacks:
        return Kernel("fails", reason=reason)
    return Kernel("unpacked", reason=f"{reason}: served as the same weights in 16 bits")


Rule = Callable[[Scheme, Shape, Runtime], Kernel]
CUDA: dict[str, Rule] = {
    "weight-only": _cuda_weight_only,
    "int8": _cuda_int8,
    "fp8-dynamic": _cuda_fp8,
    "fp8-static": _cuda_fp8,
    "fp8-block": _cuda_fp8_block,
    "fp4": _cuda_fp4,
}
CPU: dict[str, Rule] = {
    "weight-only": _cpu_weight_only,
    "int8": _cpu_int8,
    "fp8-dynamic": _cpu_fp8_dynamic,
    "fp8-static": _cpu_fp8_static,
    "fp8-block": _cpu_fp8_block,
    "fp4": _cpu_fp4,
}
