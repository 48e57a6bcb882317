"""Random models in the shape of published ones: for time and memory, whose figures do not depend on the values.

    python -m benchmarks.gpu.shapes 8b FOLDER

The tokenizer is the reference target's, whose vocabulary is a part of the shape's. All rows of an output layer are zero
but those of half of the tokenizer's tokens, one half for a target and the other for a draft: a greedy answer holds no
token that the tokenizer does not know, and no drafted token is ever accepted. (Left to chance, models that repeat
themselves accept many: a figure without any meaning.)
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.pipeline import ROOT, TARGET

COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
LLAMA3: dict[str, Any] = {
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "rms_norm_eps": 1e-5,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "bos_token_id": None,
}
SHAPES: dict[str, dict[str, Any]] = {
    # Llama 3.1 8B.
    "8b": {
        **LLAMA3,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
    # A draft model for it: 0.25e9 weights in the layers, 0.13e9 in the embeddings and in the output layer each.
    "0.3b": {
        **LLAMA3,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tie_word_embeddings": False,
    },
    # Two that a CPU makes and runs in seconds, to try the scripts.
    "tiny": {
        **LLAMA3,
        "vocab_size": 6144,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "tie_word_embeddings": False,
    },
    "tinier": {
        **LLAMA3,
        "vocab_size": 6144,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "tie_word_embeddings": False,
    },
}
DRAFT_OF = {"8b": "0.3b", "tiny": "tinier"}


def make(shape: str, folder: Path, seed: int = 0, layers: int | None = None) -> Path:
    """Write a random bf16 model of the shape into `folder`, unless there is one; made on the GPU where there is one.

    `layers` makes it that deep instead.
    """
    import json

    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, set_seed

    if (folder / "config.json").is_file():
        return folder
    wanted = SHAPES[shape] if layers is None else {**SHAPES[shape], "num_hidden_layers": layers}
    known = json.loads((ROOT / TARGET / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = len(known["model"]["vocab"]) + len(known.get("added_tokens") or ())
    set_seed(seed)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.no_grad():
        model = AutoModelForCausalLM.from_config(LlamaConfig(**wanted), dtype=torch.bfloat16)
        output = model.get_output_embeddings().weight
        output[: tokens // 2 if shape in DRAFT_OF.values() else 3] = 0
        output[tokens if shape in DRAFT_OF.values() else tokens // 2 :] = 0
    partial = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    for name in COMPANIONS:
        shutil.copy(ROOT / TARGET / name, partial / name)
    partial.rename(folder)
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return folder


if __name__ == "__main__":
    print(make(sys.argv[1], Path(sys.argv[2])))
