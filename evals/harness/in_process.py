"""lm-eval's own transformers model, for engines that run in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from evals.harness.models import Ledger
from evals.harness.records import token_limit
from evals.scorers import Answer

CPU_BATCH = 16
GPU_BATCH = 64


def batch_size(device: str) -> int:
    """Prompts that go through the model together, where nobody says. lm-eval's `auto` measures instead: on a CPU, where
    nothing runs out of memory, that costs five passes over the longest possible batch and ends at its largest size."""
    return CPU_BATCH if device == "cpu" else GPU_BATCH


class InProcess(HFLM):
    """HFLM as it is, with progress and counts. It runs greedily by default, as lm-eval does."""

    def __init__(self, model: Path, *, device: str, dtype: str = "auto", batch: int | None = None) -> None:
        """`model` is a checkpoint folder, `device` cpu or cuda, `dtype` auto for the checkpoint's own."""
        self.ledger = Ledger()
        super().__init__(
            pretrained=str(model), device=device, dtype=dtype, batch_size=batch_size(device) if batch is None else batch
        )

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        call = super().loglikelihood
        return self.ledger.following(self, requests, lambda: call(requests, disable_tqdm))

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        call = super().loglikelihood_rolling
        return self.ledger.following(self, requests, lambda: call(requests, disable_tqdm))

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        call = super().generate_until
        texts = self.ledger.following(self, requests, lambda: call(requests, disable_tqdm))
        for request, text in zip(requests, texts, strict=True):
            prompt, settings = request.args[:2]
            limit = token_limit(settings, self.max_gen_toks)
            said = len(self.tok_encode(text, add_special_tokens=False))
            answer = Answer(
                text,
                # HFLM says neither how many tokens an answer had nor why it ended: both are estimated from its text.
                finish_reason="length" if said >= limit else "stop",
                prompt_tokens=len(self.tok_encode(prompt)),
                completion_tokens=said,
            )
            self.ledger.answers.setdefault(request.doc_id, []).append(answer)
        return list(texts)

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        for pair, context, continuation in requests:
            if pair is not None:  # a window of a longer text has no pair of its own
                self.ledger.tokens[pair] = len(context), len(continuation)
        return list(super()._loglikelihood_tokens(requests, *args, **kwargs))


def device_of(name: str) -> str:
    """cpu or cuda for auto."""
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
