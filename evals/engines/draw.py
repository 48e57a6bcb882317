"""How transformers' `generate` is made to draw each row's tokens with that row's own seed.

`generate` samples from one random stream for the whole batch, so an answer would depend on its neighbours and on what
was answered before an interruption. Here the last logits processor draws the token itself and leaves no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from evals.spec import GenerationSpec


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters as transformers names them; a temperature of 0 is greedy."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    @classmethod
    def of(cls, spec: GenerationSpec) -> Sampling:
        """The recipe's."""
        return cls(spec.temperature, spec.top_k, spec.top_p, spec.min_p, spec.repetition_penalty)

    @classmethod
    def of_config(cls, config: Any) -> Sampling:
        """What `generate` takes from a transformers GenerationConfig when a call names nothing."""
        penalty = config.repetition_penalty
        if not config.do_sample:
            return cls(repetition_penalty=penalty)
        # Its own default is 1.0 and the 50 likeliest tokens.
        top_k = 50 if config.top_k is None else config.top_k
        temperature = 1.0 if config.temperature is None else config.temperature
        return cls(temperature, top_k or None, config.top_p, config.min_p, penalty)

    def processors(self, seeds: Sequence[int], pads: Sequence[int], device: torch.device) -> list[LogitsProcessor]:
        """Logits processors for a batch whose rows have these seeds and so much padding on their left."""
        found: list[LogitsProcessor] = []
        if self.repetition_penalty not in (None, 1.0):
            found.append(_Penalty(float(self.repetition_penalty or 1.0), pads))
        if self.temperature == 0:
            return found
        if self.temperature != 1.0:
            found.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k is not None:
            found.append(TopKLogitsWarper(self.top_k))
        if self.top_p is not None and self.top_p < 1:
            found.append(TopPLogitsWarper(self.top_p))
        if self.min_p:
            found.append(MinPLogitsWarper(self.min_p))
        return [*found, _Draw(seeds, device)]


class _Penalty(LogitsProcessor):
    """transformers' repetition penalty, blind to padding."""

    def __init__(self, penalty: float, pads: Sequence[int]) -> None:
        self.penalty, self.pads = RepetitionPenaltyLogitsProcessor(penalty), list(pads)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        seen = input_ids.clone()
        for row, pad in zip(seen, self.pads, strict=True):
            row[:pad] = row[pad]  # the first token of the prompt, which is penalised anyway
        out: torch.FloatTensor = self.penalty(seen, scores)
        return out


class _Draw(LogitsProcessor):
    """Leaves one token a row, drawn from the scores' distribution with the row's own generator."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.generators = [torch.Generator(device=device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        chances = torch.softmax(scores.float(), -1)
        drawn = torch.stack(
            [torch.multinomial(row, 1, generator=g) for row, g in zip(chances, self.generators, strict=True)]
        )
        only = torch.full_like(scores, float("-inf"))
        return only.scatter_(-1, drawn, 0.0)
