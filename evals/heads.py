"""From final hidden states to logits, a few positions at a time, and the comparison of two such rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqtool.errors import InfrastructureError, UsageError

if TYPE_CHECKING:
    import torch

MAX_LOGITS = 1 << 26
"""Most elements of one logits array (256 MB of float32), whatever `chunk` says."""
SMALL_LOG_RATIO = 20.0
"""Below this largest shifted log ratio exp() is far from overflow and the accurate formula is used."""


@dataclass
class Head:
    """The output layer of a model. `weight` is float32 [vocab, hidden], or None when `module` computes the logits in
    its own way (a quantized output layer). Logits are scaled, then soft-capped, as the config says."""

    weight: torch.Tensor | None
    bias: torch.Tensor | None
    module: Any
    vocab: int
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [positions, vocab] from hidden [positions, hidden]."""
        import torch
        import torch.nn.functional as F

        out = self.module(hidden).float() if self.weight is None else F.linear(hidden.float(), self.weight, self.bias)
        if self.scale != 1.0:
            out = out * self.scale
        if self.softcap is not None:
            out = torch.tanh(out / self.softcap) * self.softcap
        return out


def head_of(model: Any) -> Head:
    """The output layer of a causal language model of transformers."""
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
    weight = None if quantized else module.weight.detach().float()
    bias = getattr(module, "bias", None)
    vocab = int(config.vocab_size if weight is None else weight.shape[0])
    return Head(
        weight,
        None if bias is None or quantized else bias.detach().float(),
        module if quantized else None,
        vocab,
        scale,
        None if softcap is None else float(softcap),
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
    tensors = {"weight": small if torch.equal(small.float(), head.weight) else head.weight}
    if head.bias is not None:
        tensors["bias"] = head.bias
    save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, path)


def load_head(path: Path, *, scale: float, softcap: float | None, device: str) -> Head:
    """The inverse of `save_head`."""
    from safetensors.torch import load_file

    tensors = load_file(path, device=device)
    weight = tensors["weight"].float()
    bias = tensors.get("bias")
    return Head(weight, None if bias is None else bias.float(), None, int(weight.shape[0]), scale, softcap)


@dataclass
class Rows:
    """Per position, float32 [positions] (agree: bool): KL(baseline || candidate) in nats, whether both give the same
    most likely token, negative log-likelihood of the next token under each, change of its probability."""

    kl: torch.Tensor
    agree: torch.Tensor
    nll_baseline: torch.Tensor
    nll_candidate: torch.Tensor
    delta_p: torch.Tensor


def compare(base: torch.Tensor, cand: torch.Tensor, target: torch.Tensor) -> Rows:
    """Compare float32 logits [positions, vocab] of two models; `target` [positions] are the next tokens' ids.

    KL = sum p (log p - log q). Taken literally, float32 loses it below 1e-6 in the difference of two log-sum-exps.
    With d = (logits p - logits q) minus its mean under p, KL = log(1 + sum p (exp(-d) - 1 + d)) holds exactly, and no
    term cancels; near-equal models, the case that matters, keep their digits.
    """
    import torch

    at = target.unsqueeze(-1)
    lse_base, lse_cand = torch.logsumexp(base, -1), torch.logsumexp(cand, -1)
    nll_base = lse_base - base.gather(-1, at).squeeze(-1)
    nll_cand = lse_cand - cand.gather(-1, at).squeeze(-1)
    p = torch.exp(base - lse_base.unsqueeze(-1))
    x = cand - base
    mean = -(p * x).sum(-1)
    plain = mean + lse_cand - lse_base
    x += mean.unsqueeze(-1)
    accurate = torch.log1p((p * (torch.expm1(x) - x)).sum(-1))
    kl = torch.where(x.amax(-1) < SMALL_LOG_RATIO, accurate, plain).clamp_min(0.0)
    return Rows(
        kl,
        base.argmax(-1) == cand.argmax(-1),
        nll_base,
        nll_cand,
        torch.exp(-nll_cand) - torch.exp(-nll_base),
    )
