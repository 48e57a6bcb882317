"""Choosing the requests once, freezing them, and the one order in which every arm sends them.

The sample is stratified by kind (each kind keeps its share of the file, none disappears), drawn and ordered by the
recipe's seed. The order is by blocks: each block holds a share of every kind, shuffled, so that a machine that gets
slower in the course of an arm hurts all kinds alike. Where the server cannot report acceptance per request, a block is
one kind instead, and vLLM's counters are read between blocks.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqtool.files import sha256_text

BLOCK_REQUESTS = 40
"""About as many requests make a block."""


@dataclass(frozen=True)
class Request:
    """One request of the frozen traffic; `body` is the OpenAI chat request without model and streaming options."""

    id: str
    kind: str
    body: Mapping[str, Any]
    arrival_s: float | None = None
    """When it was recorded: seconds after the log's first request."""
    scorer: str | None = None
    """Name of the scorer that says whether an answer is right; None where nobody can say."""
    options: Mapping[str, Any] = field(default_factory=dict)
    expected: Mapping[str, Any] | None = None

    def to_dict(self, block: int) -> dict[str, Any]:
        """One line of traffic.jsonl."""
        options = {"options": dict(self.options)} if self.options else {}
        return {
            "id": self.id,
            "kind": self.kind,
            "block": block,
            "body": self.body,
            "arrival_s": self.arrival_s,
            "scorer": self.scorer,
            **options,
            "expected": self.expected,
        }


@dataclass(frozen=True)
class Traffic:
    """What every arm sends: `warmup` first, then the blocks one after the other."""

    warmup: tuple[Request, ...]
    blocks: tuple[tuple[Request, ...], ...]
    single_kind_blocks: bool

    @property
    def requests(self) -> list[Request]:
        """All measured requests in order."""
        return [request for block in self.blocks for request in block]

    def to_jsonl(self) -> str:
        """The frozen file: one measured or warm-up request a line, in the order sent. Block -1 is the warm-up."""
        numbered = [(-1, request) for request in self.warmup]
        numbered += [(number, request) for number, block in enumerate(self.blocks) for request in block]
        lines = (json.dumps(request.to_dict(number), ensure_ascii=False) for number, request in numbered)
        return "\n".join(lines) + "\n"

    @property
    def sha256(self) -> str:
        """Hash of the frozen file."""
        return sha256_text(self.to_jsonl())


def choose(requests: Sequence[Request], count: int, warmup: int, seed: int, *, single_kind_blocks: bool) -> Traffic:
    """Draw `count` requests (all of them when there are fewer) and order them; the same for the same arguments.

    The warm-up comes from requests outside the sample where there are enough, so that no measured prompt is cached.
    """
    rng = random.Random(f"traffic {seed}")
    by_kind: dict[str, list[Request]] = defaultdict(list)
    for request in requests:
        by_kind[request.kind].append(request)
    for members in by_kind.values():
        rng.shuffle(members)
    kinds = sorted(by_kind)
    shares = _apportion({kind: len(by_kind[kind]) for kind in kinds}, min(count, len(requests)))
    chosen = {kind: by_kind[kind][: shares[kind]] for kind in kinds}
    spare = [request for kind in kinds for request in by_kind[kind][shares[kind] :]]
    rng.shuffle(spare)
    everything = [request for kind in kinds for request in chosen[kind]]
    first = (spare + rng.sample(everything, len(everything)))[:warmup]
    if single_kind_blocks:
        blocks = [chosen[kind] for kind in kinds]
        rng.shuffle(blocks)
    else:
        number = max(1, round(len(everything) / BLOCK_REQUESTS))
        blocks = [[] for _ in range(number)]
        for position, request in enumerate(everything):  # dealt like cards, so each kind is spread over the blocks
            blocks[position % number].append(request)
    for block in blocks:
        rng.shuffle(block)
    return Traffic(tuple(first), tuple(tuple(block) for block in blocks if block), single_kind_blocks)


def _apportion(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Split `count` in proportion to `sizes` by largest remainders, with at least one each where count allows."""
    total = sum(sizes.values())
    exact = {name: count * size / total for name, size in sizes.items()}
    floor = 1 if count >= len(sizes) else 0
    shares = {name: max(floor, int(value)) for name, value in exact.items()}
    while (missing := count - sum(shares.values())) != 0:
        step = 1 if missing > 0 else -1
        movable = [n for n in shares if (shares[n] < sizes[n] if step > 0 else shares[n] > floor)]
        shares[max(movable, key=lambda n: (step * (exact[n] - shares[n]), n))] += step
    return shares
