"""vLLM's own figures: what `/metrics` counts over a stretch of traffic, and what each answer reports.

Names as of vLLM 0.32: `vllm:spec_decode_num_drafts`, `..._num_draft_tokens`, `..._num_accepted_tokens`,
`..._num_accepted_tokens_per_pos` (label `position`, from 0), and `metrics.speculative_decoding` in the answer (in the
usage chunk when streaming) with `num_spec_steps`, `num_draft_tokens`, `num_accepted_draft_tokens` and
`acceptance_histogram` (how many verifications accepted exactly j draft tokens).
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PREFIX = "vllm:spec_decode_num_"
_OTHERS = {
    "generation_tokens": "vllm:generation_tokens_total",
    "prompt_tokens": "vllm:prompt_tokens_total",
    "preemptions": "vllm:num_preemptions_total",
    "prefix_cache_queries": "vllm:prefix_cache_queries_total",
    "prefix_cache_hits": "vllm:prefix_cache_hits_total",
    "engine_steps": "vllm:iteration_tokens_total_count",
}
SETTLE_SECONDS = 5.0


@dataclass(frozen=True)
class Speculation:
    """Counts over some verifications. `per_position[i]` is how often draft token i was accepted (i from 0)."""

    drafts: int
    draft_tokens: int
    accepted_tokens: int
    per_position: tuple[int, ...]

    def __add__(self, other: Speculation) -> Speculation:
        size = max(len(self.per_position), len(other.per_position))
        left, right = (list(x) + [0] * (size - len(x)) for x in (self.per_position, other.per_position))
        return Speculation(
            self.drafts + other.drafts,
            self.draft_tokens + other.draft_tokens,
            self.accepted_tokens + other.accepted_tokens,
            tuple(a + b for a, b in zip(left, right, strict=True)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Counts and the figures that follow from them; a rate is None where nothing was drafted.

        acceptance_rate = accepted / drafted tokens; mean_acceptance_length = 1 + accepted tokens / verifications (the
        1 is the token that the target itself adds); per_position_rate[i] = acceptances of token i / verifications.
        """
        return {
            "drafts": self.drafts,
            "draft_tokens": self.draft_tokens,
            "accepted_tokens": self.accepted_tokens,
            "accepted_per_position": list(self.per_position),
            "acceptance_rate": self.accepted_tokens / self.draft_tokens if self.draft_tokens else None,
            "mean_acceptance_length": 1 + self.accepted_tokens / self.drafts if self.drafts else None,
            "per_position_rate": [n / self.drafts for n in self.per_position] if self.drafts else None,
        }


NOTHING = Speculation(0, 0, 0, ())


@dataclass(frozen=True)
class Counters:
    """One reading of `/metrics`. `speculation` is None when the server has no speculative decoding."""

    speculation: Speculation | None
    others: Mapping[str, float]
    running: float
    kv_usage: float | None = None
    """Share of the KV cache's blocks that running requests hold; None when the server does not say."""
    cache: Mapping[str, str] = field(default_factory=dict)
    """What the server says of its KV cache: num_gpu_blocks, block_size, ... as texts."""

    def since(self, earlier: Counters) -> Counters:
        """What was counted between `earlier` and this reading."""
        speculation = self.speculation
        if speculation is not None:
            before = earlier.speculation or NOTHING
            old = list(before.per_position) + [0] * (len(speculation.per_position) - len(before.per_position))
            speculation = Speculation(
                speculation.drafts - before.drafts,
                speculation.draft_tokens - before.draft_tokens,
                speculation.accepted_tokens - before.accepted_tokens,
                tuple(a - b for a, b in zip(speculation.per_position, old, strict=True)),
            )
        others = {name: value - earlier.others.get(name, 0.0) for name, value in self.others.items()}
        return Counters(speculation, others, self.running, self.kv_usage, self.cache)

    def to_dict(self) -> dict[str, Any]:
        """What a line of blocks.jsonl holds."""
        return {
            "speculation": None if self.speculation is None else self.speculation.to_dict(),
            "others": {name: round(value) for name, value in self.others.items()},
        }


def parse(text: str) -> Counters:
    """Read the text of `/metrics`; engines (data-parallel ranks) are added up."""
    from prometheus_client.parser import text_string_to_metric_families

    totals: dict[str, float] = {}
    positions: dict[int, float] = {}
    running = 0.0
    usage: list[float] = []
    cache: dict[str, str] = {}
    wanted = set(_OTHERS.values())
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == _PREFIX + "accepted_tokens_per_pos_total":
                at = int(sample.labels["position"])
                positions[at] = positions.get(at, 0.0) + sample.value
            elif sample.name.startswith(_PREFIX) or sample.name in wanted:
                totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
            elif sample.name == "vllm:num_requests_running":
                running += sample.value
            elif sample.name == "vllm:kv_cache_usage_perc":
                usage.append(sample.value)
            elif sample.name == "vllm:cache_config_info":
                cache = cache or dict(sample.labels)
    speculation = None
    if _PREFIX + "drafts_total" in totals:
        drafts, drafted, accepted = (
            round(totals.get(f"{_PREFIX}{name}_total", 0.0)) for name in ("drafts", "draft_tokens", "accepted_tokens")
        )
        per_position = tuple(round(positions.get(at, 0.0)) for at in range(max(positions, default=-1) + 1))
        speculation = Speculation(drafts, drafted, accepted, per_position)
    others = {name: totals[sample] for name, sample in _OTHERS.items() if sample in totals}
    return Counters(speculation, others, running, max(usage, default=None), cache)


def read_settled(fetch: Callable[[], str], *, pause: Callable[[float], None] = time.sleep) -> Counters:
    """The counters once they stand still: vLLM adds a step's figures just after it has sent the step's tokens.

    Settled means: nothing running and two equal readings. After five seconds the last reading is taken as it is.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    last = parse(fetch())
    while time.monotonic() < deadline:
        pause(0.05)
        now = parse(fetch())
        if now == last and now.running == 0:
            break
        last = now
    return last


def fetch_metrics(base_url: str, api_key: str) -> str:
    """The text of `/metrics`; OSError when the server does not answer."""
    from evals.engines.openai import opener

    request = urllib.request.Request(f"{base_url}/metrics", headers={"Authorization": f"Bearer {api_key}"})
    with opener().open(request, timeout=30) as answer:
        text: str = answer.read().decode()
        return text


def from_answer(report: Mapping[str, Any]) -> Speculation:
    """`metrics.speculative_decoding` of one answer."""
    histogram = [int(count) for count in report["acceptance_histogram"]]
    return Speculation(
        int(report["num_spec_steps"]),
        int(report["num_draft_tokens"]),
        int(report["num_accepted_draft_tokens"]),
        tuple(sum(histogram[at + 1 :]) for at in range(len(histogram) - 1)),
    )


def add_up(parts: Iterable[Speculation]) -> Speculation:
    """Sum of counts; `NOTHING` for none."""
    return sum(parts, NOTHING)


def reports_per_request(environment: Path) -> bool:
    """Whether the vLLM in this Python environment knows `--per-request-spec-decode-metrics` (0.26 does not)."""
    for source in environment.glob("lib/python3*/site-packages/vllm/engine/arg_utils.py"):
        if "--per-request-spec-decode-metrics" in source.read_text(encoding="utf-8", errors="replace"):
            return True
    return False
