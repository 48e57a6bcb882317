"""vLLM runs the AWQ and GPTQ formats that other quantizers write, and computes what their unpacked weights give."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from evals.unpacked import unpack
from quantize.run import quantize
from sqtool.cores import cpu_flags
from sqtool.progress import SILENT
from tests.contract.test_backends import CASES, installed
from tests.contract.test_methods import logits
from tests.contract.test_vllm_loads import ENVIRONMENT, PYTHON, SCRIPT
from tests.contract.tiny import make_model, make_tokens


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_vllm_computes_what_the_quantizer_wrote(name: str, tmp_path: Path) -> None:
    import torch

    if "avx512f" not in cpu_flags():
        pytest.skip("vLLM's CPU kernel for 4-bit weights needs AVX-512")
    spec = installed(name)
    model = make_model(tmp_path / "model")
    tokens = make_tokens(tmp_path / "tokens.safetensors")
    quantize(spec, model=model, calibration=tokens, seed=0, out=tmp_path, progress=SILENT)
    done = subprocess.run(
        [str(PYTHON), "-c", SCRIPT, str(tmp_path / "checkpoint"), "bfloat16"],
        env={**os.environ, **ENVIRONMENT},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-3000:]
    theirs = {int(token): value for token, value in json.loads(lines[-1].removeprefix("RESULT ")).items()}
    unpack(tmp_path / "checkpoint", tmp_path / "unpacked")
    ours = torch.log_softmax(logits(tmp_path / "unpacked")[0, -1], -1)
    worst = max(abs(float(ours[token]) - value) for token, value in theirs.items())
    assert worst < 0.25, f"log-probabilities differ by {worst}"
