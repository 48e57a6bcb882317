"""Drafters beside the draft model through a real `vllm serve`: an EAGLE-3 head, n-grams, and another draft length.

The head is random, so that it proposes what no target would say: what is shown is that the arm runs, is counted, and
changes no greedy answer. A trained one differs in its weights only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.spec import EngineSpec
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


def run(spec: SpeculateSpec, out: Path) -> None:
    """The stage; the candidate is the target itself, so that nothing has to be quantized."""
    speculate(
        spec,
        EngineSpec(kv_cache_memory_bytes=1 << 28),
        baseline=REFERENCE / "target",
        candidate=REFERENCE / "target",
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
            "requests": 16,
            "max_concurrency": 4,
            "max_tokens": 32,
            "warmup": 2,
            "repeats": 1,
            "control": False,
            "cancellation": None,
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
