"""From final hidden states to logits, a few positions at a time, and the comparison of two such rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqtool.errors import InfrastructureError, UsageError

if TYPE_CHECKING:
    import torch

MAX_LOGITS = 1 << 26
"""Most elements of one logits array on a GPU (256 MB of float32), whatever `chunk` says."""
CACHED_LOGITS = 1 << 19
"""Aim on a CPU (2 MB): arrays that stay in the cache make the comparison half as long. Fewer than LEAST_ROWS positions
would read the output layer from memory too often, though."""
LEAST_ROWS = 64
SMALL_LOG_RATIO = 20.0
"""Below this largest shifted log ratio exp() is far from overflow and the accurate formula is used."""


def rows_at_once(chunk: int, vocab: int, device: str) -> int:
    """Positions whose logits exist at once: at most `chunk`, fewer with a large vocabulary."""
    fit = MAX_LOGITS // vocab if device != "cpu" else max(CACHED_LOGITS // vocab, min(LEAST_ROWS, MAX_LOGITS // vocab))
    return max(1, min(chunk, fit))


@contextmanager
def _bf16_products(lossless: bool) -> Iterator[None]:
    """Float32 matrix products through the CPU's bf16 units, twice as fast, where the factors are bf16 numbers anyway:
    their products are exact in float32, and the sums are float32 as before."""
    import torch

    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    if lossless:
        matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@dataclass
class Head:
    """The output layer of a model. `weight` is [vocab, hidden], in float32 on a CPU and in its own type on a GPU, or
    None when `module` computes the logits in its own way (a quantized output layer). Logits are scaled, then
    soft-capped, as the config says. `bf16`: all weights are bf16 numbers."""

    weight: torch.Tensor | None
    bias: torch.Tensor | None
    module: Any
    vocab: int
    scale: float = 1.0
    softcap: float | None = None
    bf16: bool = False

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [positions, vocab] from hidden [positions, hidden], no value rounded to less than float32."""
        import torch
        import torch.nn.functional as F

        if self.weight is None:
            out = self.module(hidden).float()
        elif self.weight.dtype != torch.float32 and self.weight.dtype == hidden.dtype:
            out = torch.mm(hidden, self.weight.T, out_dtype=torch.float32)
            out = out if self.bias is None else out + self.bias
        else:
            with _bf16_products(self.bf16 and hidden.dtype == torch.bfloat16):
                out = F.linear(hidden.float(), self.weight.float(), self.bias)
        if self.scale != 1.0:
            out = out * self.scale
        if self.softcap is not None:
            out = torch.tanh(out / self.softcap) * self.softcap
        return out


def _kept(weight: torch.Tensor) -> torch.Tensor:
    """An output layer's weight as `Head` wants it: only GPUs multiply halves with float32 results."""
    return weight if weight.is_cuda else weight.float()


def head_of(model: Any) -> Head:
    """The output layer of a causal language model of transformers."""
    import torch

    module = model.get_output_embeddings()
    if module is None:
        raise UsageError(f"{type(model).__name__} has no output embeddings, so its drift cannot be measured")
    config = model.config.get_text_config()
    scale = 1.0
    if getattr(config, "logits_scaling", None):  # Granite divides, Cohere multiplies
        scale = 1.0 / float(config.logits_scaling)
    elif getattr(config, "logit_scale", None):
        scale = float(config.logit_scale)
    softcap = getattr(config, "final_logit_softcapping", None)
    quantized = getattr(module, "quantization_scheme", None) is not None
    weight = None if quantized else _kept(module.weight.detach())
    bias = getattr(module, "bias", None)
    vocab = int(config.vocab_size if weight is None else weight.shape[0])
    return Head(
        weight,
        None if bias is None or quantized else bias.detach().float(),
        module if quantized else None,
        vocab,
        scale,
        None if softcap is None else float(softcap),
        weight is not None and module.weight.dtype == torch.bfloat16,
    )


def hidden_states(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Final hidden states after the final norm, [batch, length, hidden]. `tokens` is padded on the right only: with
    causal attention what comes after a position cannot change it, so no mask is needed."""
    states: torch.Tensor = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    return states


def check_head(model: Any, head: Head, tokens: torch.Tensor) -> None:
    """`InfrastructureError` unless hidden states and head give the logits of the model's own forward pass.

    Architectures differ in what follows the final norm; this notices one that does something unknown to `head_of`.
    The tolerance is that of the model's own type, since its logits are rounded to it.
    """
    import torch

    own = model(input_ids=tokens, use_cache=False).logits[0].float()
    hidden = hidden_states(model, tokens)[0]
    ours = head.logits(hidden)
    gap = float((own - ours).abs().max())
    bound = 4 * max(float(torch.finfo(hidden.dtype).eps), 1e-6) * float(own.abs().max()) + 1e-5
    # A broken candidate gives NaN: that is a finding (`non_finite`), not a reason to stop.
    if bool(own.isfinite().all()) and gap > bound:
        raise InfrastructureError(
            f"the logits of {type(model).__name__} are not those of its output layer alone (gap {gap:.3g}, "
            f"allowed {bound:.3g})",
            remedy="Drift is not supported for this architecture: set `evaluate.drift: null`.",
        )


def save_head(head: Head, path: Path) -> None:
    """Keep a float output layer: the baseline's, so that comparing needs no second model in memory.

    Kept in bf16 when that is exact, which it is for a bf16 model."""
    import torch
    from safetensors.torch import save_file

    if head.weight is None:
        raise UsageError("the baseline's output layer is quantized; drift needs an unquantized baseline")
    small = head.weight.to(torch.bfloat16)
    tensors = {"weight": small if torch.equal(small.float(), head.weight.float()) else head.weight}
    if head.bias is not None:
        tensors["bias"] = head.bias
    save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, path)


def load_head(path: Path, *, scale: float, softcap: float | None, device: str) -> Head:
    """The inverse of `save_head`."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(path, device=device)
    weight, bias = tensors["weight"], tensors.get("bias")
    bf16 = weight.dtype == torch.bfloat16
    bias = None if bias is None else bias.float()
    return Head(_kept(weight), bias, None, int(weight.shape[0]), scale, softcap, bf16)


@dataclass
class Rows:
    """Per position, float32 [positions]: KL(baseline || candidate) in nats, negative log-likelihood of the next token
    under each; [positions] bool: whether the baseline's most likely token is the candidate's too."""

    kl: torch.Tensor
    agree: torch.Tensor
    nll_baseline: torch.Tensor
    nll_candidate: torch.Tensor


def compare(base: torch.Tensor, cand: torch.Tensor, target: torch.Tensor) -> Rows:
    """Compare float32 logits [positions, vocab] of two models; `target` [positions] are the next tokens' ids. `cand` is
    overwritten.

    KL = sum p (log p - log q). Taken literally, float32 loses it below 1e-6 in the difference of two log-sum-exps.
    With d = log ratio of the unnormalised probabilities (logits q - logits p) and m its mean under p,

        S = sum p (exp(d - m) - 1 - (d - m)),   KL = log(1 + S),   logsumexp(q) = logsumexp(p) + m + log(1 + S)

    hold exactly, every term of S is positive, and nothing cancels: near-equal models, the case that matters, keep their
    digits. Where some d - m is so large that exp overflows, the difference of the log-sum-exps is large enough itself.
    A position where either side has NaN or infinity gets NaN or infinity.
    """
    import torch

    at = target.unsqueeze(-1)
    top = base.argmax(-1, keepdim=True)
    p = torch.softmax(base, -1)
    # The largest p is exp(its logit - logsumexp), so neither a second exp nor a second sum is needed.
    lse_base = (base.gather(-1, top) - p.gather(-1, top).log()).squeeze(-1)
    nll_base = lse_base - base.gather(-1, at).squeeze(-1)
    cand_at = cand.gather(-1, at).squeeze(-1)
    agree = cand.gather(-1, top).squeeze(-1) == cand.amax(-1)
    d = cand.sub_(base)
    mean = torch.linalg.vecdot(p, d)
    d.sub_(mean.unsqueeze(-1))
    far = d.amax(-1) >= SMALL_LOG_RATIO
    kl = torch.log1p(torch.linalg.vecdot(p, torch.expm1(d).sub_(d)))
    lse_cand = lse_base + mean + kl
    if bool(far.any()):
        rows = far.nonzero().squeeze(-1)
        lse_cand[rows] = torch.logsumexp(d[rows] + base[rows], -1) + mean[rows]
        kl[rows] = lse_cand[rows] - lse_base[rows] - mean[rows]
    return Rows(kl.clamp_min(0.0), agree, nll_base, lse_cand - cand_at)
