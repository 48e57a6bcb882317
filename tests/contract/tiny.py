"""A tiny random Llama with a tokenizer and a chat template: seconds for every method, all of a real model's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{%- if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{%- endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def make_tokenizer(folder: Path, *, template: str = TEMPLATE) -> Any:
    """A byte-level tokenizer of 259 tokens, saved to `folder`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = template
    fast.save_pretrained(folder)
    return fast


def make_model(folder: Path, *, hidden: int = 128, layers: int = 2, seed: int = 0, **changes: Any) -> Path:
    """A bf16 Llama with tied embeddings and outlier channels, its tokenizer beside it; `folder` again."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    make_tokenizer(folder)
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "vocab_size": 320,
        "tie_word_embeddings": True,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **changes}))
    with torch.no_grad():
        for layer in model.model.layers:
            # As in real models: a few channels of the norms are far larger than the rest.
            layer.input_layernorm.weight[:3] *= 20
            layer.post_attention_layernorm.weight[:3] *= 20
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 2,   "temperature": 0.0}\n', encoding="utf-8")
    return folder


def make_tokens(path: Path, *, rows: int = 8, length: int = 64, seed: int = 0) -> Path:
    """Random token rows as the calibrate stage writes them, a few conversations in each."""
    import numpy as np
    from safetensors.numpy import save_file

    ids = np.random.default_rng(seed).integers(3, 259, (rows, length)).astype(np.int32)
    places = np.tile(np.arange(length, dtype=np.int32) % 24, (rows, 1))
    save_file({"input_ids": ids, "position_ids": places}, path)
    return path


def write_headers(folder: Path, shapes: dict[str, tuple[int, ...]], **config: Any) -> Path:
    """A checkpoint folder of real size in its headers only: the weights are a hole in the file."""
    import struct

    folder.mkdir(parents=True, exist_ok=True)
    header, offset = {}, 0
    for name, shape in shapes.items():
        count = 2
        for n in shape:
            count *= n
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + count]}
        offset += count
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        handle.truncate(8 + len(text) + offset)
    settings = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False, **config}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
