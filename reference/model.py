"""A plain Llama in torch whose parameters are named and shaped as transformers does, so that saving is a rename."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int = 5120
    head_dim: int = 64
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    def transformers(self) -> dict[str, Any]:
        """Keyword arguments of `transformers.LlamaConfig`."""
        out = asdict(self)
        out["rope_parameters"] = {"rope_type": "default", "rope_theta": out.pop("rope_theta")}
        return out | {"tie_word_embeddings": True, "dtype": "bfloat16"}


TARGET = Config(
    hidden_size=384, num_hidden_layers=8, num_attention_heads=6, num_key_value_heads=2, intermediate_size=1024
)
DRAFT = Config(
    hidden_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=768
)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), self.eps).to(x.dtype)


def rotary(config: Config, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin, [length, head_dim], in transformers' half-split layout."""
    inv = config.rope_theta ** (-torch.arange(0, config.head_dim, 2, device=device).float() / config.head_dim)
    angle = torch.outer(torch.arange(length, device=device).float(), inv)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-b, a), dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.q_proj = nn.Linear(c.hidden_size, c.num_attention_heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.num_attention_heads * c.head_dim, c.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Any) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (
            p(x).view(b, t, -1, self.c.head_dim).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        if isinstance(mask, Tensor):
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        else:
            from torch.nn.attention.flex_attention import flex_attention

            y = flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


class MLP(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = MLP(c)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Any) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Token ids [rows, length] and a document mask to logits [rows, length, vocab]; embeddings are tied."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.config = c
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                scale = (
                    (2 * c.num_hidden_layers) ** -0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                )
                nn.init.normal_(p, std=0.02 * scale)

    def forward(self, ids: Tensor, mask: Any) -> Tensor:
        x = self.embed_tokens(ids)
        cos, sin = rotary(self.config, ids.shape[1], ids.device)
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return F.linear(self.norm(x), self.embed_tokens.weight)


def document_mask(documents: Tensor) -> Any:
    """Causal attention inside each document of a packed row; documents is int [rows, length]."""
    rows, length = documents.shape
    if documents.is_cuda:
        from torch.nn.attention.flex_attention import create_block_mask

        def allowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (q >= k) & (documents[b, q] == documents[b, k])

        return create_block_mask(allowed, rows, None, length, length, device="cuda", _compile=True)
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return same & torch.ones(length, length, dtype=torch.bool).tril()


def save(model: Llama, tokenizer: str, out: str, shard: str = "5GB") -> None:
    """Write a transformers folder in bf16 and check that transformers computes the same logits from it."""
    from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    state = {f"model.{k}": v.detach().to("cpu", torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    fast = AutoTokenizer.from_pretrained(tokenizer)
    config = LlamaConfig(
        **model.config.transformers(), eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id, bos_token_id=None
    )
    hf = LlamaForCausalLM(config).to(torch.bfloat16)
    missing, unexpected = hf.load_state_dict(state, strict=False)
    if unexpected or set(missing) > {"lm_head.weight"}:
        raise RuntimeError(f"parameters do not match: missing {missing}, unexpected {unexpected}")
    hf.tie_weights()
    hf.generation_config = GenerationConfig(eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id)
    hf.save_pretrained(out, max_shard_size=shard)
    fast.save_pretrained(out)
    torch.set_float32_matmul_precision("highest")
    ids = torch.randint(0, model.config.vocab_size, (1, 64))
    ours = Llama(model.config)
    ours.load_state_dict({k.removeprefix("model."): v.float() for k, v in state.items()})
    with torch.no_grad():
        theirs = hf.float()(ids).logits
        difference = (theirs - ours(ids, document_mask(torch.zeros_like(ids)))).abs().max() / theirs.abs().max()
    torch.set_float32_matmul_precision("high")
    print(f"{out}: transformers' logits differ by {difference:.1e} of the largest", flush=True)
    if difference > 1e-2:
        raise RuntimeError("the saved model does not compute what the trained one does")
