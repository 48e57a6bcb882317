"""vLLM runs what we write: one checkpoint of each storage format, greedy, compared with what transformers computes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from quantize.fake import unpack
from quantize.run import quantize
from quantize.spec import QuantizeSpec
from sqtool.progress import SILENT
from tests.contract.test_methods import METHODS, logits

PYTHON = Path(__file__).resolve().parents[2] / ".venv-vllm" / "bin" / "python"
SCRIPT = """
import json, sys
if __name__ == "__main__":
    from vllm import LLM, SamplingParams
    llm = LLM(sys.argv[1], dtype=sys.argv[2], enforce_eager=True, max_model_len=128, max_num_seqs=4, seed=0)
    asked = SamplingParams(max_tokens=1, temperature=0, logprobs=20)
    (answer,) = llm.generate([{"prompt_token_ids": list(range(3, 67))}], asked)
    found = {str(token): value.logprob for token, value in answer.outputs[0].logprobs[0].items()}
    print("RESULT " + json.dumps(found))
"""
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}


def has_avx512() -> bool:
    try:
        return "avx512f" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("name", ["awq-asym", "gptq", "smoothquant-gptq-reduced", "fp8"])
def test_vllm_computes_what_transformers_does(name: str, tiny_model: Path, tiny_tokens: Path, tmp_path: Path) -> None:
    import torch

    spec = QuantizeSpec.model_validate({"methods": METHODS[name]})
    quantize(spec, model=tiny_model, calibration=tiny_tokens, seed=0, out=tmp_path, progress=SILENT)
    checkpoint = served = tmp_path / "checkpoint"
    if name in ("awq-asym", "gptq") and not has_avx512():
        # vLLM's library for processors without AVX-512 has no kernel for packed 4-bit weights: the same values in
        # 16 bits are what it can run there.
        served = tmp_path / "unpacked"
        unpack(checkpoint, served)
    done = subprocess.run(
        [str(PYTHON), "-c", SCRIPT, str(served), "bfloat16"],
        env={**os.environ, **ENVIRONMENT},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-3000:]
    theirs = {int(token): value for token, value in json.loads(lines[-1].removeprefix("RESULT ")).items()}
    ours = torch.log_softmax(logits(checkpoint)[0, -1], -1)
    worst = max(abs(float(ours[token]) - value) for token, value in theirs.items())
    assert worst < 0.25, f"log-probabilities differ by {worst}"
