"""`coverage.fix` at the model level: conversations that reach where traffic goes and calibration does not.

Only what fails counts: channels of a layer (heads of a KV cache) in which traffic lies beyond the calibrated maximum,
the largest value of a place where the whole range is too small, and experts that the router selects too seldom. A
conversation that goes beyond the traffic gains nothing by it: a wider range than served values need costs precision.
Import it only inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch

from calibrate.activations.measure import run_batch
from calibrate.activations.spec import ActivationsSpec
from calibrate.activations.traffic import Sample, batches
from calibrate.activations.watch import Range, Routing, Watch
from sqtool.progress import SILENT, Progress

Key = TypeVar("Key")
"""Whatever the caller knows a conversation by."""
PICKED = 32
"""Conversations that are added before the whole set is measured again."""
WORTH_IT = 0.01
"""The least share of all that is missing for which one more conversation is added."""
MEMORY = 128 << 20
"""Bytes for what the conversations reach; no more are looked at than fit. Choosing takes a few times as much."""


@dataclass
class Part:
    """One place of the model where calibration falls short: `have` of `want` in each channel (head, expert), and what
    it weighs, [channels]. `reached` reads the same out of what some conversations reach, [texts, channels]."""

    reached: Callable[[Reach], torch.Tensor | None]
    have: torch.Tensor
    want: torch.Tensor
    weight: torch.Tensor
    adds_up: bool = False
    """Whether two conversations reach as far as both together (tokens of an expert), not as the further one."""


def missing(watch: Watch, spec: ActivationsSpec) -> dict[str, Part]:
    """What of the traffic that `watch` saw lies beyond calibration by more than `spec` allows, by name."""
    parts: dict[str, Part] = {}
    for name, found in watch.ranges.items():
        parts |= _beyond(f"inputs of {name}", partial(_range, "ranges", name), found, spec.max_range_ratio, spec)
    for kind in ("keys", "values"):
        for layer, found in getattr(watch, kind).items():
            parts |= _beyond(f"{kind} of layer {layer}", partial(_range, kind, layer), found, spec.max_kv_ratio, None)
    for name, routing in watch.routing.items():
        have = routing.calibration.cpu().float()
        want = torch.full_like(have, spec.min_tokens_per_expert)
        if bool((want > have).any()):
            parts[f"experts of {name}"] = Part(partial(_tokens, name), have, want, torch.ones_like(have), adds_up=True)
    return parts


def _range(kind: str, name: Any, reach: Reach) -> Range | None:
    found: Range | None = getattr(reach, kind).get(name)
    return found


def _tokens(name: str, reach: Reach) -> torch.Tensor | None:
    return reach.routing[name].calibration if name in reach.routing else None


def _beyond(
    name: str, of: Callable[[Reach], Range | None], found: Range, max_ratio: float, shares: ActivationsSpec | None
) -> dict[str, Part]:
    """The channels of one place, and its largest value; `shares`: limits for the traffic beyond, where it has any."""
    if found.maximum is None or found.traffic is None or found.beyond is None or not found.tokens:
        return {}
    have, want = found.maximum.float().cpu(), found.traffic.float().cpu()
    beyond = found.beyond.cpu().float() / found.tokens
    saturated = shares is not None and found.saturated / found.tokens > shares.max_saturated
    parts = {}
    if saturated or (shares is not None and float(beyond.mean()) > shares.max_beyond_channel):
        parts[name] = Part(lambda reach: _maximum(of(reach)), have, want, beyond)
    if saturated or float(want.max()) > max_ratio * float(have.max()):
        weight = torch.tensor([max(1.0, float(beyond.sum()))])
        parts[f"largest {name}"] = Part(lambda reach: _largest(of(reach)), have.max()[None], want.max()[None], weight)
    return parts


def _maximum(found: Range | None) -> torch.Tensor | None:
    return None if found is None else found.maximum


def _largest(found: Range | None) -> torch.Tensor | None:
    return None if found is None or found.maximum is None else found.maximum.amax(1, keepdim=True)


class Reach(Watch):
    """What each conversation of one batch reaches: `Range.maximum` is [texts, channels], `Routing.calibration`
    [texts, experts]. Where a layer sees a part of the tokens (one expert's own), nobody knows whose they are, and
    nothing is kept."""

    def __init__(self, texts: int) -> None:
        super().__init__(0)
        self.texts = texts

    def _add(self, found: Range, magnitudes: torch.Tensor) -> None:
        assert self.batch is not None
        keep = self.batch.keep.to(magnitudes.device)
        rows = magnitudes.reshape(-1, magnitudes.shape[-1])
        if len(rows) != len(keep):
            return
        largest = rows.masked_fill(~keep[:, None], 0).view(self.texts, -1, rows.shape[-1]).amax(1)
        found.maximum = largest if found.maximum is None else torch.maximum(found.maximum, largest)

    def _routed(self, name: str, chosen: torch.Tensor, experts: int) -> None:
        assert self.batch is not None
        if len(chosen) != len(self.batch.keep):
            return
        parts = zip(chosen.chunk(self.texts), self.batch.keep.chunk(self.texts), strict=True)
        counts = [
            torch.bincount(own[keep.to(own.device)].flatten(), minlength=experts)[:experts] for own, keep in parts
        ]
        self.routing[name] = Routing(torch.stack(counts), torch.zeros(0))


class Search(Generic[Key]):
    """Conversations of the sources, and what each of them reaches in the places that were missing at first."""

    def __init__(
        self,
        model: Any,
        parts: Mapping[str, Part],
        spare: Iterable[tuple[Key, Sample]],
        *,
        tokens: int,
        batch_tokens: int,
        progress: Progress = SILENT,
    ) -> None:
        """Run the first `tokens` tokens of conversations of `spare` through `model`."""
        self.columns = {
            name: ((part.want > part.have) & (part.weight > 0)).nonzero()[:, 0] for name, part in parts.items()
        }
        places = sum(map(len, self.columns.values()))
        self.conversations: list[tuple[Key, Sample]] = []
        for key, sample in spare if places else ():
            self.conversations.append((key, sample))
            tokens -= len(sample.tokens)
            if tokens <= 0 or (len(self.conversations) + 1) * places * 4 > MEMORY:
                break
        samples = [sample for _, sample in self.conversations]
        row = {id(sample): number for number, sample in enumerate(samples)}
        self.reached = torch.zeros(len(samples), places)
        self.taken: list[int] = []
        total = sum(len(sample.tokens) for sample in samples)
        with progress.task("calibrate: look for conversations that reach further", total=total) as task:
            for group in batches(samples, batch_tokens):
                reach = Reach(len(group))
                with reach.on(model):
                    run_batch(model, group, (), reach)
                self.reached[[row[id(sample)] for sample in group]] = self._read(parts, reach)
                task.advance(sum(len(sample.tokens) for sample in group))
        # One that overflows the model is nothing to calibrate with.
        self.reached[~self.reached.isfinite().all(1)] = 0

    def _read(self, parts: Mapping[str, Part], reach: Reach) -> torch.Tensor:
        """[texts, places]"""
        found = []
        for name, columns in self.columns.items():
            values = parts[name].reached(reach)
            found.append(torch.zeros(reach.texts, len(columns)) if values is None else values.float().cpu()[:, columns])
        return torch.cat(found, 1)

    def pick(self, parts: Mapping[str, Part]) -> list[tuple[Key, Sample]]:
        """Up to PICKED conversations that were not picked before, each the one that brings most of what is missing now;
        [] when none brings anything worth it."""
        have, want, weights, adds_up = (
            (torch.cat(rows) for rows in zip(*self._now(parts), strict=True)) if self.columns else (torch.zeros(0),) * 4
        )
        short = (want > have) & (weights > 0)
        scale = torch.where(short, weights / want.clamp_min(1e-30), 0)
        whole = float((scale * (want - have)).sum())
        picked: list[int] = []
        while whole and len(self.taken) < len(self.conversations) and len(picked) < PICKED:
            after = torch.where(adds_up > 0, have + self.reached, torch.maximum(have, self.reached))
            after = torch.where(short, torch.minimum(after, want), have)
            gains = (scale * (after - have)).sum(1)
            gains[self.taken] = 0
            best = int(gains.argmax())
            if float(gains[best]) < WORTH_IT * whole:
                break
            picked.append(best)
            self.taken.append(best)
            have = after[best]
        return [self.conversations[place] for place in picked]

    def _now(self, parts: Mapping[str, Part]) -> Sequence[tuple[torch.Tensor, ...]]:
        """(have, want, weight, whether it adds up) in the columns of each part; no weight where nothing is missing."""
        rows = []
        for name, columns in self.columns.items():
            part = parts.get(name)
            if part is None:
                rows.append((torch.zeros(len(columns)),) * 4)
                continue
            adds_up = torch.full([len(columns)], float(part.adds_up))
            rows.append((part.have[columns], part.want[columns], part.weight[columns], adds_up))
        return rows
