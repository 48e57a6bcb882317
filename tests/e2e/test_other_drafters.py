"""Drafters beside the draft model through a real `vllm serve`: an EAGLE-3 head, n-grams, an MTP head that quantizing
carried over, and another draft length.

The heads are random, so that they propose what no target would say: what is shown is that the arm runs, is counted, and
changes no greedy answer. A trained one differs in its weights only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.spec import EngineSpec
from quantize.run import quantize
from quantize.spec import QuantizeSpec
from sqtool.errors import UsageError
from sqtool.files import read_json
from sqtool.progress import SILENT
from sqtool.speculate.run import speculate
from sqtool.speculate.spec import SpeculateSpec

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "artifacts/reference"

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not (ROOT / ".venv-vllm/bin/python").exists(), reason="vLLM is not set up: run `make vllm`"),
    pytest.mark.skipif(not (REFERENCE / "target/config.json").exists(), reason="the reference pair is not there"),
]


def make_head(folder: Path, target: Path) -> Path:
    """An EAGLE-3 head of one layer with random weights for a Llama target, as vLLM reads it."""
    import torch
    from safetensors.torch import save_file

    config = read_json(target / "config.json")
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, kv = (config["head_dim"] * config[f"num_{name}_heads"] for name in ("attention", "key_value"))
    shapes = {
        "fc": (hidden, 3 * hidden),
        "midlayer.self_attn.q_proj": (heads, 2 * hidden),
        "midlayer.self_attn.k_proj": (kv, 2 * hidden),
        "midlayer.self_attn.v_proj": (kv, 2 * hidden),
        "midlayer.self_attn.o_proj": (hidden, heads),
        "midlayer.mlp.gate_proj": (inner, hidden),
        "midlayer.mlp.up_proj": (inner, hidden),
        "midlayer.mlp.down_proj": (hidden, inner),
        "lm_head": (vocab, hidden),
    }
    torch.manual_seed(0)
    weights = {f"{name}.weight": 0.02 * torch.randn(shape) for name, shape in shapes.items()}
    norms = ("norm", "midlayer.input_layernorm", "midlayer.hidden_norm", "midlayer.post_attention_layernorm")
    weights |= {f"{name}.weight": torch.ones(hidden) for name in norms}
    folder.mkdir()
    save_file({name: weight.bfloat16() for name, weight in weights.items()}, folder / "model.safetensors")
    changed = {"architectures": ["LlamaForCausalLMEagle3"], "num_hidden_layers": 1, "draft_vocab_size": vocab}
    changed |= {"tie_word_embeddings": False, "target_hidden_size": hidden}
    (folder / "config.json").write_text(json.dumps(config | changed))
    return folder


def make_mtp(folder: Path, target: Path) -> Path:
    """The target as a MiMo model, which is a Llama with biases (zeros here) and an MTP head (random here)."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    config = read_json(target / "config.json")
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv = (config["head_dim"] * config[f"num_{name}_heads"] for name in ("attention", "key_value"))
    shutil.copytree(target, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    weights = load_file(target / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    shapes = {
        "input_proj": (hidden, 2 * hidden),
        "self_attn.q_proj": (heads, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, heads),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    torch.manual_seed(0)
    head = {f"{name}.weight": 0.02 * torch.randn(shape) for name, shape in shapes.items()}
    norms = ("token_layernorm", "hidden_layernorm", "final_layernorm", "input_layernorm", "post_attention_layernorm")
    head |= {f"{name}.weight": torch.ones(hidden) for name in norms}
    weights |= {f"model.mtp_layers.0.{name}": weight.bfloat16() for name, weight in head.items()}
    places = [f"model.layers.{at}" for at in range(config["num_hidden_layers"])] + ["model.mtp_layers.0"]
    for place in places:
        for name, size in (("q", heads), ("k", kv), ("v", kv)):
            weights[f"{place}.self_attn.{name}_proj.bias"] = torch.zeros(size).bfloat16()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | MIMO | {"tie_word_embeddings": False}))
    return folder


SHORT: dict[str, Any] = {
    "requests": 16,
    "max_concurrency": 4,
    "max_tokens": 32,
    "warmup": 2,
    "repeats": 1,
    "control": False,
    "cancellation": None,
}
MIMO = {"architectures": ["MiMoForCausalLM"], "model_type": "qwen2", "num_nextn_predict_layers": 1}


def run(spec: SpeculateSpec, out: Path, baseline: Path = REFERENCE / "target", candidate: Path | None = None) -> None:
    """The stage; without a candidate it is the target itself, so that nothing has to be quantized."""
    speculate(
        spec,
        EngineSpec(kv_cache_memory_bytes=1 << 28),
        baseline=baseline,
        candidate=candidate or baseline,
        draft=REFERENCE / "draft",
        root=ROOT,
        out=out,
        progress=SILENT,
        seed=0,
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_heads_and_ngrams_are_arms_like_others(tmp_path: Path) -> None:
    head = make_head(tmp_path / "head", REFERENCE / "target")
    out = tmp_path / "out"
    out.mkdir()
    length = {"method": "eagle3", "model": str(head), "num_speculative_tokens": 3}
    spec = SpeculateSpec.model_validate(
        {
            **SHORT,
            "arms": {
                "eagle": {"target": "baseline", "speculative": length},
                "eagle_quantized": {"target": "quantized", "speculative": length},
                "ngram": {"target": "quantized", "speculative": {"method": "ngram", "num_speculative_tokens": 2}},
            },
        }
    )
    run(spec, out)
    arms = read_json(out / "speculate.json")["arms"]
    answers = {
        arm: {row["id"]: row["text"] for row in lines(out / "arms" / arm / "requests.jsonl")}
        for arm in ("baseline", "eagle", "eagle_quantized", "ngram", "speculative")
    }
    for arm, drafted in (("eagle", 3), ("eagle_quantized", 3), ("ngram", 2)):
        [block] = lines(out / "arms" / arm / "blocks.jsonl")
        counted = block["counters"]["speculation"]
        assert len(counted["accepted_per_position"]) == drafted
        assert 0 < counted["drafts"] <= counted["draft_tokens"]
        same = sum(answers[arm][name] == text for name, text in answers["baseline"].items())
        assert same >= 0.9 * len(answers["baseline"]), arm
        assert arms[arm]
    accepted = {
        arm: lines(out / "arms" / arm / "blocks.jsonl")[0]["counters"]["speculation"]
        for arm in ("eagle", "speculative")
    }
    rate = {arm: found["accepted_tokens"] / found["draft_tokens"] for arm, found in accepted.items()}
    assert rate["eagle"] < 0.05 < 0.4 < rate["speculative"]


def test_a_head_for_another_target_is_refused_before_anything_starts(tmp_path: Path) -> None:
    head = make_head(tmp_path / "head", REFERENCE / "target")
    config = read_json(head / "config.json") | {"target_hidden_size": 4096}
    (head / "config.json").write_text(json.dumps(config))
    spec = SpeculateSpec.model_validate({"method": "eagle3", "model": str(head)})
    with pytest.raises(UsageError, match="the head reads hidden states of size 4096 and the target's have 384"):
        run(spec, tmp_path)
    assert not list(tmp_path.glob("arms/*/server.log"))


def test_an_mtp_head_drafts_for_the_quantized_model_that_it_was_carried_to(tmp_path: Path) -> None:
    target = make_mtp(tmp_path / "target", REFERENCE / "target")
    quantized = tmp_path / "quantized"
    methods = QuantizeSpec.model_validate({"methods": [{"fp8": {"scheme": "FP8_DYNAMIC"}}]})
    made = quantize(methods, model=target, calibration=None, seed=0, out=quantized, progress=SILENT)
    assert any("MTP head (16 tensors)" in note for note in made["notes"])
    # MiMo's own code, which is not here, would have kept its name.
    config = quantized / "checkpoint/config.json"
    config.write_text(json.dumps(read_json(config) | MIMO))
    (tmp_path / "out").mkdir()
    spec = SpeculateSpec.model_validate({**SHORT, "method": "mtp", "num_speculative_tokens": 1})
    run(spec, tmp_path / "out", target, quantized / "checkpoint")
    arms = tmp_path / "out/arms"
    for arm, without in (("speculative", "baseline"), ("both", "quantized")):
        [block] = lines(arms / arm / "blocks.jsonl")
        counted = block["counters"]["speculation"]
        assert 0 < counted["drafts"] == counted["draft_tokens"]
        assert len(counted["accepted_per_position"]) == 1
        assert counted["accepted_tokens"] <= 0.05 * counted["drafts"]
        plain = {row["id"]: row["text"] for row in lines(arms / without / "requests.jsonl")}
        same = sum(plain[row["id"]] == row["text"] for row in lines(arms / arm / "requests.jsonl"))
        assert same >= 0.9 * len(plain), arm
    assert any(row["text"] for row in lines(arms / "both" / "requests.jsonl"))
