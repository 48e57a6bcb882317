"""Every method runs on a tiny random Llama, and what it writes loads in transformers and computes."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from quantize.fake import fake_quantize, unpack
from quantize.plan import plan
from quantize.run import quantize
from quantize.spec import QuantizeSpec
from sqtool.errors import UsageError
from sqtool.progress import SILENT
from tests.contract.tiny import make_model

METHODS: dict[str, list[Any]] = {
    "awq-asym": [{"awq": {"n_grid": 6}}],
    "awq-sym": [{"awq": {"scheme": "W4A16", "n_grid": 6}}],
    "awq-g64-both": [{"awq": {"scheme": "W4A16", "group_size": 64, "n_grid": 6, "duo_scaling": "both"}}],
    "gptq": ["gptq"],
    "gptq-g32": [{"gptq": {"group_size": 32, "actorder": None}}],
    "gptq-w8a16": [{"gptq": {"scheme": "W8A16"}}],
    "smoothquant-gptq": ["smoothquant", {"gptq": {"scheme": "W8A8"}}],
    "smoothquant-rtn": ["smoothquant", {"rtn": {"scheme": "W8A8"}}],
    "fp8": ["fp8"],
    "rtn4": ["rtn"],
    "rtn4-asym": [{"rtn": {"scheme": "W4A16_ASYM"}}],
    "rtn-w8a8": [{"rtn": {"scheme": "W8A8"}}],
    "rtn-w8a8-reduced": [{"rtn": {"scheme": "W8A8", "reduce_range": True}}],
    "smoothquant-gptq-reduced": ["smoothquant", {"gptq": {"scheme": "W8A8", "reduce_range": True}}],
    "rtn3-simulated": [{"rtn": {"scheme": "W3A16", "simulate": True}}],
    "gptq-asym-g64": [{"gptq": {"scheme": "W4A16_ASYM", "group_size": 64, "dampening_frac": 0.1, "block_size": 64}}],
    "gptq-w8a8-as-they-come": [{"gptq": {"scheme": "W8A8", "actorder": None}}],
    "awq-g32-activations": [{"awq": {"group_size": 32, "n_grid": 6, "duo_scaling": False}}],
    "fp8-static": [{"fp8": {"scheme": "FP8"}}],
    "fp8-block": [{"fp8": {"scheme": "FP8_BLOCK"}}],
    "smoothquant-fp8-static": ["smoothquant", {"fp8": {"scheme": "FP8"}}],
    "fp8-kv": ["fp8", "kv_cache"],
    "awq-kv-heads": [{"awq": {"n_grid": 6}}, {"kv_cache": {"strategy": "attn_head"}}],
    "nvfp4": ["fp4"],
    "nvfp4a16": [{"fp4": {"scheme": "NVFP4A16"}}],
    "mxfp4": [{"fp4": {"scheme": "MXFP4"}}],
    "mxfp4a16": [{"fp4": {"scheme": "MXFP4A16"}}],
    "gptq-nvfp4a16": [{"gptq": {"scheme": "NVFP4A16"}}],
    "awq-mlp-fp8-attention-kv": [
        {"awq": {"targets": ["re:.*mlp.*"], "n_grid": 6}},
        {"fp8": {"targets": ["re:.*self_attn.*"]}},
        "kv_cache",
    ],
    "mixed": [{"gptq": {"targets": ["re:.*mlp.*"]}}, {"fp8": {"targets": ["re:.*self_attn.*"]}}],
}


class Recorder:
    """A progress that remembers what was said and how far each task got."""

    def __init__(self) -> None:
        self.tasks: dict[str, list[float | None]] = {}
        self.notes: list[str] = []

    @contextmanager
    def task(self, description: str, total: float | None = None) -> Iterator[Any]:
        state: list[float | None] = [0.0, total]
        self.tasks[description] = state

        class Task:
            def advance(self, n: float = 1) -> None:
                state[0] = (state[0] or 0) + n

            def describe(self, text: str) -> None:
                return None

        yield Task()

    def note(self, text: str) -> None:
        self.notes.append(text)


def run(methods: list[Any], model: Path, tokens: Path | None, out: Path, progress: Any = SILENT) -> dict[str, Any]:
    # The same on every processor.
    spec = QuantizeSpec.model_validate({"methods": methods, "precision": "float32"})
    return quantize(spec, model=model, calibration=tokens, seed=0, out=out, progress=progress)


def logits(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    with torch.no_grad():
        return model(torch.arange(3, 67)[None]).logits.float()


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_writes_what_transformers_runs(
    name: str, tiny_model: Path, tiny_tokens: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    progress = Recorder()
    summary = run(METHODS[name], tiny_model, tiny_tokens, tmp_path, progress)
    assert capfd.readouterr() == ("", ""), "a library wrote to the terminal"
    planned = plan(QuantizeSpec.model_validate({"methods": METHODS[name]}), model=tiny_model)
    checkpoint = tmp_path / "checkpoint"
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (checkpoint / file).read_bytes() == (tiny_model / file).read_bytes()
    assert summary["layers_quantized"] == planned["layers_quantized"] == 14
    assert summary["layers_left"] == planned["layers_left"] == ["lm_head"]
    # Besides weights and scales there are eight bytes of shape a dimension for each packed layer.
    assert summary["bytes_after"] == pytest.approx(planned["bytes_after"], abs=16 * 14 + 16)
    assert not list(checkpoint.glob("*.bin"))
    for description, (done, total) in progress.tasks.items():
        assert total is None or done == total, f"{description}: {done} of {total}"
    baseline, got = logits(tiny_model), logits(checkpoint)
    assert torch.isfinite(got).all()
    near = torch.nn.functional.cosine_similarity(baseline, got, dim=-1).mean()
    assert near > (0.6 if "rtn3" in name else 0.8 if "fp4" in name else 0.9)


@pytest.mark.parametrize(
    "name", ["awq-asym", "gptq", "smoothquant-gptq", "rtn3-simulated", "nvfp4", "fp8-block", "fp8-kv"]
)
def test_the_same_twice_is_the_same_bytes(name: str, tiny_model: Path, tiny_tokens: Path, tmp_path: Path) -> None:
    digests = []
    for place in ("first", "second"):
        (tmp_path / place).mkdir()
        run(METHODS[name], tiny_model, tiny_tokens, tmp_path / place)
        folder = tmp_path / place / "checkpoint"
        files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".json"))
        digests.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files})
    assert digests[0] == digests[1]


@pytest.mark.parametrize("name", ["rtn-w8a8-reduced", "smoothquant-gptq-reduced"])
def test_the_reduced_range_is_int8_that_cannot_saturate(
    name: str, tiny_model: Path, tiny_tokens: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    run(METHODS[name], tiny_model, tiny_tokens, tmp_path)
    codes = {n: t for n, t in load_file(tmp_path / "checkpoint" / "model.safetensors").items() if t.dtype == torch.int8}
    assert len(codes) == 14
    # An unsigned activation code is at most 255; a pair of products has to stay below 2**15.
    assert all(2 * 255 * int(t.int().abs().max()) < 2**15 for t in codes.values())
    assert all(int(t.int().abs().max()) >= 60 for t in codes.values())
    groups = json.loads((tmp_path / "checkpoint" / "config.json").read_text())["quantization_config"]["config_groups"]
    assert [group["weights"]["num_bits"] for group in groups.values()] == [8]
    assert [group["format"] for group in groups.values()] == ["int-quantized"]


@pytest.mark.parametrize("name", ["gptq", "awq-asym", "smoothquant-gptq", "fp8", "fp8-static"])
def test_nothing_keeps_the_model(name: str, tiny_model: Path, tiny_tokens: Path, tmp_path: Path) -> None:
    """The stages after this one serve the checkpoint and need the memory."""

    def models() -> int:
        gc.collect()
        return sum(type(found).__name__ == "LlamaForCausalLM" for found in gc.get_objects())

    before = models()
    run(METHODS[name], tiny_model, tiny_tokens, tmp_path)
    assert models() <= before


def test_without_an_accelerator_freed_memory_stays(
    tiny_model: Path, tiny_tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantize.backends import heap, llmcompressor

    inside: list[bool] = []
    real = llmcompressor._run

    @contextmanager
    def kept() -> Iterator[None]:
        inside.append(True)
        yield
        inside.pop()

    def run_inside(*args: Any) -> Any:
        assert inside
        return real(*args)

    monkeypatch.setattr(heap, "kept_heap", kept)
    monkeypatch.setattr(llmcompressor, "_run", run_inside)
    run(METHODS["fp8"], tiny_model, tiny_tokens, tmp_path)
    assert not inside


def test_awq_looks_at_the_data(tiny_model: Path, tiny_tokens: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run([{"awq": {"scheme": "W4A16", "n_grid": 6}}], tiny_model, tiny_tokens, tmp_path)
    norm = "model.layers.0.input_layernorm.weight"
    before = load_file(tiny_model / "model.safetensors")[norm]
    after = load_file(tmp_path / "checkpoint" / "model.safetensors")[norm]
    assert not before.equal(after), "AWQ scales the norm; an unchanged one means that it never ran"


@pytest.mark.parametrize("symmetric", [True, False])
def test_our_arithmetic_is_llm_compressors(symmetric: bool, tiny_model: Path, tmp_path: Path) -> None:
    """Two ways to the same values: round in 16 bits by our own code, or let llm-compressor pack and unpack by hand."""
    from safetensors.torch import load_file

    fake_quantize(tiny_model, tmp_path / "ours", bits=4, symmetric=symmetric)
    run([{"rtn": {"scheme": "W4A16" if symmetric else "W4A16_ASYM"}}], tiny_model, None, tmp_path)
    unpack(tmp_path / "checkpoint", tmp_path / "theirs")
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.equal(theirs[name]), name


@pytest.mark.parametrize("name", ["gptq", "awq-asym", "gptq-g32"])
def test_unpacked_weights_are_what_transformers_computes_with(
    name: str, tiny_model: Path, tiny_tokens: Path, tmp_path: Path
) -> None:
    import torch

    run(METHODS[name], tiny_model, tiny_tokens, tmp_path)
    unpack(tmp_path / "checkpoint", tmp_path / "unpacked")
    packed, plain = logits(tmp_path / "checkpoint"), logits(tmp_path / "unpacked")
    assert torch.allclose(packed, plain, atol=1e-3, rtol=1e-2)


def test_activations_cannot_be_unpacked(tiny_model: Path, tmp_path: Path) -> None:
    run(["fp8"], tiny_model, None, tmp_path)
    with pytest.raises(UsageError, match="quantizes activations"):
        unpack(tmp_path / "checkpoint", tmp_path / "unpacked")


def test_a_method_that_needs_data_says_so(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="awq needs calibration data"):
        run(["awq"], tiny_model, None, tmp_path)
    with pytest.raises(UsageError, match="there is no"):
        run(["awq"], tiny_model, tmp_path / "nowhere", tmp_path)
    spec = QuantizeSpec.model_validate({"methods": ["rtn"], "layer_report": "outputs"})
    with pytest.raises(UsageError, match="layer_report: outputs needs calibration data"):
        quantize(spec, model=tiny_model, calibration=None, seed=0, out=tmp_path, progress=SILENT)


def test_nan_in_the_weights_stops_with_the_layers_name(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from sqtool.errors import InfrastructureError

    model = make_model(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = torch.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InfrastructureError, match=r"model\.layers\.1\.mlp\.down_proj"):
        run(["rtn"], model, None, tmp_path / "out")
