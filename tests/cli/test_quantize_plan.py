"""`sqtool plan` about the quantize stage, and `sqtool backend`, over real recipes and models of headers only."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantize.kernels import Runtime
from tests.cli.conftest import Sqtool
from tests.contract.tiny import write_headers
from tests.unit.quantize.test_plan import llama

RECIPE = """
model: model
calibrate:
  sources: [{{path: data.jsonl}}]
  num_calibration_samples: 4
  contamination: "off"
  activations: null
  coverage: {{evals: false}}
quantize: {{{quantize}}}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_headers(tmp_path / "model", llama(2, 384, 1024, 512, 128), hidden_size=384)
    (tmp_path / "data.jsonl").write_text('{"messages": [{"role": "user", "content": "hello"}]}\n' * 8)
    here = Runtime("cuda", "0.32.0", capability=80)
    monkeypatch.setattr("sqtool.stages.runtime.runtime_of", lambda _inputs: here)
    return tmp_path


def recipe(project: Path, quantize: str) -> str:
    (project / "r.yaml").write_text(RECIPE.format(quantize=quantize))
    return "r.yaml"


def test_the_plan_says_layers_mappings_kernels_and_memory(sqtool_: Sqtool, project: Path) -> None:
    name = recipe(project, "methods: [{awq: {ignore: [lm_head, 're:.*down_proj']}}]")
    said = sqtool_("plan", name, "--until", "quantize")
    assert said.code == 0, said.err
    assert "methods.0.awq: W4A16_ASYM; 12 layers; targets: Linear 14; ignored: re:.*down_proj 2" in said.out
    assert "awq mappings: llm-compressor's for LlamaForCausalLM, 3 found" in said.out
    assert "served by vLLM 0.32.0, GPU (compute capability 8.0)" in said.out
    assert "12 layers: runs MarlinLinearKernel" in said.out
    assert "memory: host about" in said.out
    details = sqtool_("plan", name, "--until", "quantize", "--json").json["stages"][1]["details"]
    assert [k["kernel"] for k in details["kernels"]] == ["MarlinLinearKernel"]
    assert details["memory"]["rule"].startswith("host: ")


def test_a_fallback_is_a_warning_and_what_cannot_run_an_error(sqtool_: Sqtool, project: Path) -> None:
    said = sqtool_("plan", recipe(project, "methods: [fp8]"), "--until", "quantize")
    assert said.code == 0
    assert "warning: 14 layers, e.g. model.layers.0.self_attn.q_proj, fall back to MarlinFP8" in said.out
    said = sqtool_(
        "plan", recipe(project, "methods: [{rtn: {scheme: W8A16, symmetric: false}}]"), "--until", "quantize"
    )
    assert said.code == 2
    assert "vLLM 0.32.0 cannot run 14 layers on this GPU (compute capability 8.0)" in said.err


def test_a_backend_that_is_not_there(sqtool_: Sqtool, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQTOOL_BACKENDS", str(project / "none"))
    said = sqtool_("plan", recipe(project, "backend: gptqmodel, methods: [gptq]"), "--until", "quantize")
    assert said.code == 4
    assert "`sqtool backend install gptqmodel` makes it." in said.err
    listed = sqtool_("backend", "list", "--json").json["backends"]
    assert [(b["name"], b["installed"]) for b in listed] == [
        ("llmcompressor", True),
        ("autoawq", False),
        ("auto-gptq", False),
        ("gptqmodel", False),
    ]
    said = sqtool_("backend", "list")
    assert "not installed: sqtool backend install autoawq" in said.out
    said = sqtool_("backend", "install", "autoawk")
    assert said.code == 2
    assert "Did you mean 'autoawq'?" in said.err


def test_nothing_to_try(sqtool_: Sqtool, project: Path) -> None:
    said = sqtool_("plan", recipe(project, "methods: [fp8]"), "--until", "calibrate", "--trial")
    assert said.code == 0
    assert "nothing to quantize: no trial" in said.out
