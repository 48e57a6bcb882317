"""Our table of kernels says what the installed vLLM chooses, on a CPU and, with another platform put in its place, on
GPUs of each generation."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from quantize.kernels import READ_FROM, Kernel, Runtime, Shape, kernel
from quantize.schemes import Scheme

PYTHON = Path(__file__).resolve().parents[2] / ".venv-vllm" / "bin" / "python"
ASK = """
import json, sys
import torch, vllm
from vllm.model_executor.kernels import linear as kernels
from vllm.platforms import CpuArchEnum, PlatformEnum
from vllm.platforms.interface import DeviceCapability
from vllm.scalar_type import scalar_types

class Platform:
    def __init__(self, capability):
        self.capability = capability
        self._enum = PlatformEnum.CPU if capability is None else PlatformEnum.CUDA
    def is_cpu(self): return self.capability is None
    def is_cuda(self): return not self.is_cpu()
    is_cuda_alike = is_cuda
    def is_rocm(self): return False
    def is_xpu(self): return False
    def is_zen_cpu(self): return False
    def get_cpu_architecture(self): return CpuArchEnum.X86
    def get_device_capability(self, device_id=0):
        return None if self.is_cpu() else DeviceCapability(*divmod(self.capability, 10))
    def is_device_capability(self, capability, device_id=0): return self.capability == capability
    def has_device_capability(self, capability, device_id=0): return self.is_cuda() and self.capability >= capability

TYPES = {(4, True): "uint4b8", (4, False): "uint4", (8, True): "uint8b128", (8, False): "uint8"}
said = []
for capability in (None, 75, 80, 89, 90, 100):
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("vllm") and "current_platform" in vars(module):
            module.current_platform = Platform(capability)
    for (bits, symmetric), name in TYPES.items():
        for group in (-1, 32, 64, 128, 256):
            for rows, columns in ((4096, 4096), (4160, 4096), (100, 4096), (4096, 96)):
                if group > 0 and columns % group:
                    continue
                asked = kernels.MPLinearLayerConfig(
                    (columns, rows), (columns, rows), getattr(scalar_types, name), torch.bfloat16, group, not symmetric
                )
                try:
                    chosen = kernels.choose_mp_linear_kernel(asked, capability).__name__
                except ValueError:
                    chosen = ""
                said.append([capability, bits, symmetric, group, rows, columns, chosen])
print("RESULT " + json.dumps({"version": vllm.__version__, "said": said}))
"""


@pytest.mark.e2e
@pytest.mark.slow
def test_vllm_chooses_the_kernels_of_the_table(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(PYTHON), "-c", ASK],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-2000:]
    answer = json.loads(lines[-1].removeprefix("RESULT "))
    assert answer["version"].startswith(READ_FROM), "read the table again from this version's source"
    assert len(answer["said"]) > 400
    wrong = []
    for capability, bits, symmetric, group, rows, columns, theirs in answer["said"]:
        runtime = Runtime(
            "cpu" if capability is None else "cuda", READ_FROM, capability, frozenset({"avx512f"}), unpacks=False
        )
        scheme = Scheme(bits, "int", None if group == -1 else group, symmetric)
        ours: Kernel = kernel(scheme, Shape(rows, columns), runtime)
        if ours.name != theirs:
            wrong.append((capability, bits, symmetric, group, rows, columns, theirs, ours))
    assert not wrong, wrong[:5]
