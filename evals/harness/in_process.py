"""lm-eval's own transformers model, for engines that run in this process."""

from __future__ import annotations

from typing import Any

from lm_eval.models.huggingface import HFLM

from evals.harness.models import Ledger
from evals.harness.quiet import quiet
from evals.harness.records import token_limit
from evals.scorers import Answer


class InProcess(HFLM):
    """HFLM as it is, around a model that is loaded already, with progress and counts."""

    def __init__(self, model: Any, *, batch_size: int) -> None:
        """`model` is a transformers model that came from a checkpoint folder, whose tokenizer is taken. The batch size
        is fixed: lm-eval's `auto` first runs the longest possible batches to find one, which takes long on a CPU."""
        self.ledger = Ledger()
        with quiet():
            super().__init__(pretrained=model, batch_size=batch_size)

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
