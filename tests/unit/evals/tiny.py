"""A tiny random Llama with a byte-level tokenizer and a ChatML template with tools, built in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEMPLATE = """\
{%- if tools %}{{- '<|im_start|>system\\n' }}{%- for t in tools %}{{- t | tojson + '\\n' }}{%- endfor %}\
{{- '<|im_end|>\\n' }}{%- endif %}\
{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\\n' + (m['content'] or '') }}\
{%- for c in m['tool_calls'] or [] %}{%- set f = c['function'] %}\
{{- '<tool_call>\\n{"name": ' + f['name'] | tojson + ', "arguments": ' }}\
{{- f['arguments'] if f['arguments'] is string else f['arguments'] | tojson }}{{- '}\\n</tool_call>' }}\
{%- endfor %}{{- '<|im_end|>\\n' }}{%- endfor %}\
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""


def save_tokenizer(folder: Path) -> int:
    """Write a tokenizer of bytes and five added tokens; returns its size."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the tool with the arguments"] * 4, trainer)
    tokenizer.add_tokens([AddedToken("<tool_call>"), AddedToken("</tool_call>")])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )
    fast.save_pretrained(folder)
    return len(fast)


def save_model(folder: Path, *, seed: int = 0, tied: bool = True, dtype: str = "bfloat16", **config: Any) -> Path:
    """Write a random two-layer Llama with its tokenizer; returns `folder`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    size = save_tokenizer(folder)
    torch.manual_seed(seed)
    values: dict[str, Any] = {
        "vocab_size": size,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
        # Large enough that the random distributions are far from uniform and differ between seeds.
        "initializer_range": 0.2,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**values, **config}))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder
