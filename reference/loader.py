"""Endless packed rows: documents of all kinds, made and tokenized on the fly by worker processes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from reference import tasks, tools, world
from reference.chat import END
from reference.records import Record
from reference.tokenizer import TOOL_KINDS
from reference.words import lexicon

PADDING, PROMPT, PROSE, ANSWER = 0, 1, 2, 3
ROWS = 4  # rows that a worker hands over at once

# Share of the tokens that each kind gets, and its mean length (measured), which turns it into a share of documents.
MIX = {
    "recall": (0.46, 23), "tool_simple": (0.03, 170), "tool_multiple": (0.12, 520), "tool_parallel": (0.07, 400),
    "tool_irrelevance": (0.03, 330), "long_tools": (0.04, 1100), "lookup": (0.03, 80), "long_lookup": (0.03, 580),
    "arithmetic": (0.05, 23), "sorting": (0.03, 42), "string_edit": (0.04, 46), "date": (0.04, 40),
    "prose": (0.03, 110),
}  # fmt: skip


def encode(tokenizer: Any, record: Record) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (uint16) and their class (uint8) of a record with its answer and the end of the turn."""
    prompt = tokenizer.encode(record.prompt(), add_special_tokens=False).ids
    answer = tokenizer.encode(record.answer() + END, add_special_tokens=False).ids
    kinds = [PROMPT] * len(prompt) + [PROSE if record.prose else ANSWER] * len(answer)
    return np.array(prompt + answer, np.uint16), np.array(kinds, np.uint8)


def make(rng: random.Random, kind: str, names: list[str], split: str = "train") -> Record:
    return (tools if kind in TOOL_KINDS else tasks).make(rng, kind, names, split)


def load_tokenizer(folder: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(f"{folder}/tokenizer.json")


class Packed(IterableDataset):  # type: ignore[type-arg]
    """Items are [ROWS, length] arrays (ids uint16, document int16, class uint8) as int32/uint8 tensors."""

    def __init__(self, tokenizer: str, n_facts: int, length: int, seed: int, recall_share: float) -> None:
        self.tokenizer, self.n_facts, self.length, self.seed = tokenizer, n_facts, length, seed
        self.recall_share = recall_share

    def _documents(self, worker: int, workers: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        tokenizer = load_tokenizer(self.tokenizer)
        rng = random.Random(self.seed * 1000 + worker)
        names = lexicon()
        facts = [encode(tokenizer, f.record()) for f in world.facts(self.n_facts)[worker::workers]]
        rest = 1 - self.recall_share
        others = {k: v for k, v in MIX.items() if k != "recall"}
        total = sum(share for share, _ in others.values())
        weights = {k: rest * share / total / length for k, (share, length) in others.items()}
        kinds = ["recall", *weights]
        odds = [self.recall_share / MIX["recall"][1], *weights.values()]
        deck: list[int] = []
        while True:
            for kind in rng.choices(kinds, odds, k=512):
                if kind == "recall":
                    if not deck:  # every fact once before any comes again
                        deck = list(range(len(facts)))
                        rng.shuffle(deck)
                    yield facts[deck.pop()]
                else:
                    yield encode(tokenizer, make(rng, kind, names))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        source = self._documents(worker, workers)
        waiting: list[tuple[np.ndarray, np.ndarray]] = []
        while True:
            batch = [np.zeros((ROWS, self.length), t) for t in (np.int32, np.int32, np.uint8)]
            for row in range(ROWS):
                at, document = 0, 1
                while True:
                    ids, kinds = waiting.pop() if waiting else next(source)
                    if at + len(ids) > self.length:
                        # Long documents wait for the next row; a row may end a few tokens short.
                        if len(ids) <= self.length:
                            waiting.append((ids, kinds))
                        break
                    span = slice(at, at + len(ids))
                    batch[0][row, span], batch[1][row, span], batch[2][row, span] = ids, document, kinds
                    at, document = at + len(ids), document + 1
            yield tuple(torch.from_numpy(a) for a in batch)  # type: ignore[misc]


def batches(
    tokenizer: str, n_facts: int, length: int, rows: int, workers: int, seed: int, recall_share: float
) -> Iterator[list[Tensor]]:
    """Endless [rows, length] batches: ids, document, class."""
    data = Packed(tokenizer, n_facts, length, seed, recall_share)
    loader = DataLoader(data, batch_size=None, num_workers=workers, prefetch_factor=16 if workers else None)
    source = iter(loader)
    while True:
        yield [torch.cat(parts) for parts in zip(*(next(source) for _ in range(rows // ROWS)), strict=True)]
