"""layers.jsonl, its plot and the cache's ranges: what is written, when, and what stops a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantize.fake import unpack
from quantize.run import quantize
from quantize.spec import QuantizeSpec
from sqtool.errors import InfrastructureError, UsageError
from sqtool.progress import SILENT
from tests.contract.tiny import make_model, make_tokens


def run(methods: list[Any], model: Path, tokens: Path | None, out: Path, **spec: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    # The same on every processor.
    described = QuantizeSpec.model_validate({"methods": methods, "precision": "float32", **spec})
    return quantize(described, model=model, calibration=tokens, seed=0, out=out, progress=SILENT)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "layers.jsonl").read_text().splitlines()]


def damaged(folder: Path, name: str, change: Any) -> Path:
    from safetensors.torch import load_file, save_file

    model = make_model(folder)
    tensors = load_file(model / "model.safetensors")
    change(tensors[name])
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return model


def test_a_layers_error_is_that_of_the_weights_in_the_file(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    summary = run(["rtn"], tiny_model, None, tmp_path / "out")
    unpack(tmp_path / "out" / "checkpoint", tmp_path / "plain")
    before = load_file(tiny_model / "model.safetensors")
    after = load_file(tmp_path / "plain" / "model.safetensors")
    found = lines(tmp_path / "out")
    assert len(found) == 14
    for line in found:
        name = f"{line['name']}.weight"
        difference = after[name].double() - before[name].double()
        error = float(difference.norm() / before[name].double().norm())
        assert line["weight_error"] == pytest.approx(error, rel=1e-3)
        assert (line["rows"], line["columns"]) == tuple(before[name].shape)
        assert 0 < line["scale"]["min"] <= line["scale"]["median"] <= line["scale"]["max"]
        assert (line["method"], line["bits"], line["zero_groups"]) == ("rtn", 4, 0)
    worst = max(found, key=lambda line: line["weight_error"])
    assert summary["layers"]["weight_error"]["worst"][0] == {
        "name": worst["name"],
        "weight_error": worst["weight_error"],
    }


def test_gptq_gives_up_weights_for_outputs(tiny_model: Path, tiny_tokens: Path, tmp_path: Path) -> None:
    """The error that it minimizes is the outputs'; so the two columns are not the same thing twice."""
    errors = {}
    for name in ("rtn", "gptq"):
        run([name], tiny_model, tiny_tokens, tmp_path / name, layer_report="outputs")
        # Of the first decoder layer: the others see what each method made of it.
        found = [line for line in lines(tmp_path / name) if ".layers.0." in line["name"]]
        errors[name] = [sum(line[key] for line in found) for key in ("weight_error", "output_error")]
    assert errors["gptq"][0] > errors["rtn"][0]
    assert errors["gptq"][1] < errors["rtn"][1]


def test_the_outputs_error_is_a_forward_pass(tiny_model: Path, tiny_tokens: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from quantize.backends.rows import read_rows

    summary = run(["rtn"], tiny_model, tiny_tokens, tmp_path / "out", layer_report="outputs")
    assert set(summary["layers"]) >= {"file", "weight_error", "output_error"}
    unpack(tmp_path / "out" / "checkpoint", tmp_path / "plain")
    after = load_file(tmp_path / "plain" / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    layer, seen = model.model.layers[0].self_attn.q_proj, []
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    with torch.no_grad():
        for row in read_rows(model, tiny_tokens):
            model(**{name: values[None] for name, values in row.items()}, use_cache=False)
    inputs, name = torch.cat(seen), "model.layers.0.self_attn.q_proj"
    reference = inputs @ layer.weight.detach().T
    error = (inputs @ after[f"{name}.weight"].float().T - reference).norm() / reference.norm()
    (line,) = [line for line in lines(tmp_path / "out") if line["name"] == name]
    assert line["output_error"] == pytest.approx(float(error), rel=0.01)


def test_nothing_is_reported_when_nothing_is_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    assert "layers" not in run(["rtn"], tiny_model, None, tmp_path / "out", layer_report="off")
    assert not (tmp_path / "out" / "layers.jsonl").exists()


def test_the_report_does_not_change_the_checkpoint(tiny_model: Path, tiny_tokens: Path, tmp_path: Path) -> None:
    written = []
    for report in ("off", "weights", "outputs"):
        run(["gptq", "kv_cache"], tiny_model, tiny_tokens, tmp_path / report, layer_report=report)
        written.append((tmp_path / report / "checkpoint" / "model.safetensors").read_bytes())
    assert written[0] == written[1] == written[2]


def test_the_plot_is_an_svg_and_the_same_each_time(tiny_model: Path, tiny_tokens: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plots = []
    for name in ("first", "second"):
        assert run(["gptq"], tiny_model, tiny_tokens, tmp_path / name)["layers"]["plot"] == "layers.svg"
        plots.append((tmp_path / name / "layers.svg").read_text())
    assert plots[0] == plots[1]
    assert "<svg" in plots[0]


@pytest.mark.parametrize("method", ["rtn", "gptq", "fp8", "fp4"])
def test_a_run_stops_at_the_layer_and_keeps_what_it_wrote(method: str, tiny_tokens: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj"

    def zero(weight: Any) -> None:
        weight[5, : 16 if method == "fp4" else 128] = 0

    model = damaged(tmp_path / "model", f"{name}.weight", zero)
    with pytest.raises(InfrastructureError, match=rf"{name}: 1 of its \d+ groups") as caught:
        run([method], model, tiny_tokens, tmp_path / "out")
    assert "zero_groups: allow" in caught.value.remedy
    assert len(lines(tmp_path / "out")) >= 7, "the layers before it are in the file"
    assert name not in [line["name"] for line in lines(tmp_path / "out")]
    summary = run([method], model, tiny_tokens, tmp_path / "again", zero_groups="allow")
    assert summary["layers"]["zero_groups"] == 1


def test_nan_stops_a_method_with_data_while_it_works(tiny_tokens: Path, tmp_path: Path) -> None:
    import torch

    def spoil(weight: Any) -> None:
        weight[3, 5] = torch.nan

    model = damaged(tmp_path / "model", "model.layers.0.mlp.gate_proj.weight", spoil)
    with pytest.raises(InfrastructureError, match=r"model\.layers\.0\.mlp\.gate_proj got a scale"):
        run([{"fp8": {"scheme": "FP8"}}], model, tiny_tokens, tmp_path / "out")


@pytest.mark.parametrize(("strategy", "scales"), [("tensor", 1), ("attn_head", 2)])
def test_a_caches_scales_hold_what_calibration_saw(strategy: str, scales: int, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from quantize.backends.rows import read_rows

    model = make_model(tmp_path / "model", num_key_value_heads=2)
    tokens = make_tokens(tmp_path / "tokens.safetensors")
    summary = run([{"kv_cache": {"strategy": strategy}}], model, tokens, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "checkpoint" / "model.safetensors")
    original = load_file(model / "model.safetensors")
    assert {name for name in stored if name not in original} == {
        f"model.layers.{n}.self_attn.{part}_scale" for n in (0, 1) for part in "kv"
    }
    assert all(stored[name].equal(original[name]) for name in original), "weights stay as they are"
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    seen: list[Any] = []
    loaded.model.layers[0].self_attn.v_proj.register_forward_hook(lambda *found: seen.append(found[2]))
    with torch.no_grad():
        for row in read_rows(loaded, tokens):
            loaded(**{name: values[None] for name, values in row.items()}, use_cache=False)
    largest = torch.cat(seen).unflatten(-1, (2, 64)).abs().amax((0, 1, 3))
    largest = largest if strategy == "attn_head" else largest.max()[None]
    got = stored["model.layers.0.self_attn.v_scale"].float().flatten()
    torch.testing.assert_close(got, largest / 448, rtol=0.01, atol=0)
    cache = summary["details"]["kv_cache"]
    assert (cache["layers"], cache["scales_per_layer"]) == (2, scales)
    assert cache["saturated_share"] == {"k": 0.0, "v": 0.0}
    assert [line["name"] for line in lines(tmp_path / "out")] == [f"model.layers.{n}.self_attn" for n in (0, 1)]


def test_saturation_is_counted_exactly(tiny_model: Path, tiny_tokens: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Scales half as large as they should be: the share is that of the values beyond half of the largest."""
    import torch
    from llmcompressor.observers.min_max import StaticMinMaxObserver

    found = StaticMinMaxObserver.get_qparams

    def half(self: Any) -> Any:
        parameters = found(self)
        return {**parameters, "scale": parameters["scale"] / 2} if self.base_name in ("k", "v") else parameters

    monkeypatch.setattr(StaticMinMaxObserver, "get_qparams", half)
    summary = run(["kv_cache"], tiny_model, tiny_tokens, tmp_path / "out")
    line = lines(tmp_path / "out")[0]["v"]
    assert line["largest"] == pytest.approx(2 * 448 * line["scale"]["max"], rel=1e-5)
    assert 0 < line["saturated"] == round(line["saturated_share"] * line["seen"])
    assert line["seen"] == 8 * 64 * 64
    assert any("larger than its FP8 scale can hold" in note for note in summary["notes"])
    assert torch.is_grad_enabled()


def test_scales_of_one_are_warned_of() -> None:
    from quantize.backends.cache_watch import summarize

    part = {"scale": {"min": 1.0, "max": 1.0}, "scales": 1, "seen": 10, "saturated": 0, "saturated_share": 0.0}
    _, notes = summarize([{"name": "model.layers.0.self_attn", "k": part, "v": part}])
    assert notes == ["the KV cache of model.layers.0.self_attn has a scale of 1, as if it was never calibrated"]


def test_large_checkpoints_are_split(tiny_model: Path, tmp_path: Path) -> None:
    from quantize.headers import read_checkpoint

    run(["fp8"], tiny_model, None, tmp_path / "one")
    run(["fp8"], tiny_model, None, tmp_path / "many", max_shard_size="100KB")
    folder = tmp_path / "many" / "checkpoint"
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2
    assert (folder / "model.safetensors.index.json").is_file()
    assert read_checkpoint(folder).keys() == read_checkpoint(tmp_path / "one" / "checkpoint").keys()


def test_code_that_came_with_a_model_is_not_run(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UsageError, match="running Python code that came with it") as caught:
        run(["fp8"], model, None, tmp_path / "out")
    assert "trust_remote_code" in caught.value.remedy
    assert not (tmp_path / "ran").exists()
