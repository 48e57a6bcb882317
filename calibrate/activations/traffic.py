"""The traffic sample: served conversations as the model sees them, a bounded number of tokens."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from calibrate.conversation import NO_KIND, Record
from calibrate.render import render
from sqtool.files import canonical_json, sha256_text


@dataclass(frozen=True)
class Sample:
    """Token ids of one conversation."""

    tokens: tuple[int, ...]
    kind: str


def sample(records: Iterable[Record], tokenizer: Any, *, max_tokens: int, max_length: int) -> tuple[list[Sample], int]:
    """About `max_tokens` tokens of whole conversations, each cut to `max_length`, from any number of records; and how
    many of those looked at the chat template cannot render. Which ones does not depend on the records' order."""
    # Each conversation has a token or more, so that no more than max_tokens of them are needed.
    keyed = ((sha256_text(canonical_json(record)), n, record) for n, record in enumerate(records))
    samples: list[Sample] = []
    lost = 0
    for _, _, record in heapq.nsmallest(max_tokens, keyed):
        try:
            ids = render(tokenizer, record)[:max_length]
        except ValueError:
            lost += 1
            continue
        samples.append(Sample(tuple(ids), record.get("kind") or NO_KIND))
        max_tokens -= len(ids)
        if max_tokens <= 0:
            break
    return samples, lost


def within(samples: Iterable[Sample], max_tokens: int) -> list[Sample]:
    """Samples until they have `max_tokens` tokens, in an order that is that of a hash of their tokens."""
    kept = []
    for sample in sorted(samples, key=lambda s: sha256_text(" ".join(map(str, s.tokens)))):
        if max_tokens <= 0:
            break
        kept.append(sample)
        max_tokens -= len(sample.tokens)
    return kept


def batches(samples: Sequence[Sample], batch_tokens: int) -> list[list[Sample]]:
    """Samples of like lengths together, longest first: count times longest is at most `batch_tokens` (a longer one
    stands alone), and no more than a quarter of a batch is padding. The same samples in another order give the same
    batches."""
    groups: list[list[Sample]] = []
    for sample in sorted(samples, key=lambda s: (-len(s.tokens), s.tokens, s.kind)):
        longest = len(groups[-1][0].tokens) if groups else 0
        if groups and (len(groups[-1]) + 1) * longest <= batch_tokens and 4 * len(sample.tokens) >= 3 * longest:
            groups[-1].append(sample)
        else:
            groups.append([sample])
    return groups
