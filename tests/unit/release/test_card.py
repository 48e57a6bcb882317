"""The model card and what goes into it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from ruamel.yaml import YAML

from sqtool.gate.verdict import Verdict
from sqtool.release.card import model_card, quantization
from sqtool.release.provenance import collect, git_commit
from sqtool.release.spec import ReleaseSpec

from .conftest import Case


def card(case: Case, **provenance: Any) -> str:
    verdict = Verdict.from_json(case.verdict.read_text())
    return model_card(
        name="awq4",
        version="v1",
        checkpoint=case.checkpoint,
        verdict=verdict,
        provenance=provenance,
        files=["verdict.json"],
    )


def front_matter(text: str) -> dict[str, Any]:
    value: dict[str, Any] = YAML(typ="safe").load(text.split("---\n")[1])
    return value


def test_card_of_a_hub_model(case: Case) -> None:
    text = card(case, model="meta-llama/Llama-3.2-1B", seed=0, serve_flags=["--tool-call-parser", "hermes"])
    front = front_matter(text)
    (entry,) = front.pop("model-index")
    assert entry["name"] == "awq4"
    (result,) = entry["results"]
    assert result["dataset"] == {"name": "recall", "type": "recall", "args": {"items": 400}}
    (metric,) = result["metrics"]
    assert (metric["type"], metric["value"], metric["args"]["verdict"]) == ("exact_match", 1.0, "PASS")
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "meta-llama/Llama-3.2-1B",
        "base_model_relation": "quantized",
        "tags": ["vllm", "quantized", "compressed-tensors", "sqtool"],
    }
    assert "vllm serve . --tool-call-parser hermes" in text
    assert "weights 4-bit int group, groups of 128, asymmetric" in text
    assert "| recall.exact_match | 400 | 100.00% | 100.00% | +0.00 points |" in text
    assert "- seed: 0" in text
    assert "- engine: vllm 0.32.0+cpu" in text


def test_the_hub_library_reads_the_card_back(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(card(case, model="meta-llama/Llama-3.2-1B"))
    data = ModelCard.load(path).data
    assert (data.model_name, data.base_model) == ("awq4", "meta-llama/Llama-3.2-1B")
    (result,) = data.eval_results
    assert (result.dataset_type, result.metric_type, result.metric_value) == ("recall", "exact_match", 1.0)


def test_card_of_an_unsigned_release_says_so(case: Case, key: Path) -> None:
    text = (case.published() / "README.md").read_text()
    assert "**The release is not signed**" in text
    signed = (case.published(key=key, spec={"version": "v2"}) / "README.md").read_text()
    assert "not signed" not in signed
    assert "sqtool verify . --key" in signed


COVERED = {
    "verdict": "COVERED",
    "samples": 32,
    "tokens": 4222,
    "kinds": {"recall": {"samples": 16}, "<b>": {"samples": 16}},
    "text": {"tools": {"score": 0.913, "threshold": 0.8, "verdict": "COVERED", "against": {"traffic": 0.913}}},
}


def test_card_says_what_the_calibration_covers(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "coverage.json"
    path.write_text(json.dumps(COVERED))
    text = (case.published(extras={"coverage.json": path}) / "README.md").read_text()
    assert "**COVERED**: 32 conversations, 4222 tokens." in text
    assert "| tools | 0.913 | 0.80 | COVERED | traffic 0.913 |" in text
    assert "<b>" not in text.replace("\\<b\\>", "")


def arm(ttft: float, accepted: float | None = None) -> dict[str, Any]:
    spoken = None if accepted is None else {"mean_acceptance_length": accepted}
    return {"latency": {"ttft_ms": {"p50": ttft}, "e2e_ms": {"p50": 10.0, "p95": 20.0}}, "speculation": spoken}


FOUR = {"baseline": arm(6.8), "quantized": arm(5.5), "speculative": arm(7.0, 3.125), "both": arm(6.0, 2.5)}


def test_card_has_the_four_arms(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "speculate.json"
    path.write_text(json.dumps({"arms": FOUR}))
    text = (case.published(extras={"speculate.json": path}) / "README.md").read_text()
    assert "| baseline | - | 6.80 | - | 10.00 | 20.00 | - |" in text
    assert "| both | - | 6.00 | - | 10.00 | 20.00 | 2.50 |" in text
    several = {"arms": {name: {"loads": {"c4": one, "c16": one}} for name, one in FOUR.items()}}
    path.write_text(json.dumps(several))
    case.recipe_text += "description: several loads\n"
    text = (case.published(extras={"speculate.json": path}, spec={"version": "v2"}) / "README.md").read_text()
    assert "| speculative | c16 | 7.00 | - | 10.00 | 20.00 | 3.12 |" in text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"arms": {"both": 1}}', '{"arms": []}'])
def test_arms_that_cannot_be_read_are_left_out(case: Case, tmp_path: Path, text: str) -> None:
    path = tmp_path / "speculate.json"
    path.write_text(text)
    assert "four arms" not in (case.published(extras={"speculate.json": path}) / "README.md").read_text()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"verdict": "COVERED", "samples": "many"}'])
def test_coverage_that_cannot_be_read_is_left_out(case: Case, tmp_path: Path, text: str) -> None:
    path = tmp_path / "coverage.json"
    path.write_text(text)
    assert "## Calibration" not in (case.published(extras={"coverage.json": path}) / "README.md").read_text()


def test_limits_name_the_margins(case: Case) -> None:
    text = card(case)
    assert "It bounds the loss (margins: 2.00 points on recall.exact_match)" in text


def test_serving_uses_the_flags_that_were_measured(case: Case) -> None:
    flags = "--host 127.0.0.1 --dtype auto --kv-cache-dtype fp8 --enable-auto-tool-choice --tool-call-parser hermes"
    engine = {"engine": "vllm", "version": "0.32.0", "flags": flags.split(), "environment": {"VLLM_X": "1"}}
    case.edit_verdict(lambda v: v["bindings"].update(engine=engine, baseline_engine=engine))
    text = card(case)
    assert "vllm serve . --kv-cache-dtype fp8 --enable-auto-tool-choice --tool-call-parser hermes\n" in text
    assert "- engine: engine vllm, version 0.32.0\n" in text
    assert "baseline engine" not in text
    case.edit_verdict(lambda v: v["bindings"]["baseline_engine"].update(version="0.31.0"))
    assert "- baseline engine: engine vllm, version 0.31.0\n" in card(case)


@pytest.mark.parametrize("model", ["", "artifacts/reference/target", "/models/x", "./x/y", "a: b\nc: d/e\n---"])
def test_only_a_hub_id_becomes_base_model(case: Case, model: str) -> None:
    found = front_matter(card(case, model=model))
    assert "base_model" not in found or found["base_model"] == model


def test_on_a_cpu_the_command_says_how_much_memory_the_cache_gets(case: Case) -> None:
    """Without it vLLM asks for 92 % of the memory and does not start on a machine where anything else runs."""
    words = "--kv-cache-memory-bytes 2147483648 --tool-call-parser hermes"
    engine = {"engine": "vllm", "version": "0.32.0+cpu", "flags": words.split()}
    case.edit_verdict(lambda v: v["bindings"].update(engine=engine, baseline_engine=engine))
    assert f"vllm serve . {words}\n" in card(case)


def test_quantization_of_something_else(tmp_path: Path) -> None:
    assert quantization(tmp_path) == {}
    for config in ("{", "[]", "{}", json.dumps({"quantization_config": None})):
        (tmp_path / "config.json").write_text(config)
        assert quantization(tmp_path) == {}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    assert quantization(tmp_path)["method"] == "gptq"


def test_provenance_is_json_and_has_the_commit(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None

    def git(*words: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.invalid"]
        subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True)

    git("init")
    (tmp_path / "a").write_text("a")
    git("add", "a")
    git("commit", "-m", "a")
    found = collect(tmp_path)
    json.dumps(found, allow_nan=False)
    assert len(found["git"]["commit"]) == 40
    assert found["git"]["modified"] is False
    (tmp_path / "a").write_text("b")
    assert collect(tmp_path)["git"]["modified"] is True
    (tmp_path / "inner").mkdir()
    assert git_commit(tmp_path / "inner") is None


@pytest.mark.parametrize("field", ["name", "version"])
@pytest.mark.parametrize("value", ["../x", "a/b", ".hidden", "-x", "a~b", "a b", "x" * 81])
def test_names_that_could_leave_the_folder(field: str, value: str) -> None:
    with pytest.raises(ValueError, match=field):
        ReleaseSpec(**{field: value})


def test_latest_is_no_version() -> None:
    with pytest.raises(ValueError, match="pointer"):
        ReleaseSpec(version="latest")
