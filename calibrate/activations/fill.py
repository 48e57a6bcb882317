"""`coverage.fix` at the model level: conversations that reach where traffic goes and calibration does not.

Only what fails counts: channels of a layer (heads of a KV cache) in which traffic lies beyond the calibrated maximum,
the largest value of a place where the whole range is too small, and experts that the router selects too seldom. A
conversation that goes beyond the traffic gains nothing by it: a wider range than served values need costs precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from calibrate.activations.measure import alone
from calibrate.activations.spec import ActivationsSpec
from calibrate.activations.traffic import Sample
from sqtool.progress import SILENT, Progress

if TYPE_CHECKING:
    import torch

    from calibrate.activations.watch import Range, Watch

Key = TypeVar("Key")
"""Whatever the caller knows a conversation by."""
PICKED = 32
"""Conversations that are added before the whole set is measured again."""
WORTH_IT = 0.01
"""The least share of all that is missing for which one more conversation is added."""
MEMORY = 128 << 20
"""Bytes for what the conversations reach; no more are looked at than fit. Choosing takes a few times as much."""


@dataclass
class Missing:
    """What calibration lacks, as one long vector: `have` of `want` in each of its places, and what it weighs."""

    parts: list[tuple[Callable[[Watch], torch.Tensor | None], torch.Tensor]] = field(default_factory=list)
    """How to read the places of a part out of what a conversation reached, and which of them are missing."""
    have: list[torch.Tensor] = field(default_factory=list)
    want: list[torch.Tensor] = field(default_factory=list)
    weights: list[torch.Tensor] = field(default_factory=list)
    adds_up: list[torch.Tensor] = field(default_factory=list)
    """Whether two conversations reach as far as both together (tokens of an expert), not as the further one."""

    def add(
        self,
        read: Callable[[Watch], torch.Tensor | None],
        have: torch.Tensor,
        want: torch.Tensor,
        weights: torch.Tensor,
        *,
        adds_up: bool = False,
    ) -> None:
        """One more part, [places]."""
        import torch

        where = (want > have).nonzero()[:, 0]
        if len(where):
            self.parts.append((read, where))
            for of, values in ((self.have, have), (self.want, want), (self.weights, weights)):
                of.append(values[where].float())
            self.adds_up.append(torch.full([len(where)], adds_up))

    def reached(self, watch: Watch) -> torch.Tensor:
        """[places], what one conversation reaches."""
        import torch

        found = []
        for (read, where), have in zip(self.parts, self.have, strict=True):
            values = read(watch)
            found.append(torch.zeros_like(have) if values is None else values.cpu()[where].float())
        return torch.cat(found)


def missing(watch: Watch, spec: ActivationsSpec) -> Missing:
    """What of the traffic that `watch` saw lies beyond calibration by more than `spec` allows."""
    found = Missing()
    for name, of in watch.ranges.items():
        _beyond(found, lambda w, name=name: w.ranges.get(name), of, spec.max_range_ratio, spec)  # type: ignore[misc]
    for cached in ("keys", "values"):
        for layer, of in getattr(watch, cached).items():
            read = lambda w, cached=cached, layer=layer: getattr(w, cached).get(layer)  # noqa: E731
            _beyond(found, read, of, spec.max_kv_ratio, None)
    for name, routing in watch.routing.items():
        if spec.min_tokens_per_expert:
            import torch

            have = routing.calibration.cpu().float()
            want = torch.full_like(have, spec.min_tokens_per_expert)
            found.add(
                lambda w, name=name: w.routing[name].calibration if name in w.routing else None,  # type: ignore[misc]
                have, want, torch.ones_like(have), adds_up=True,
            )  # fmt: skip
    return found


def _beyond(
    found: Missing,
    read: Callable[[Watch], Range | None],
    of: Range,
    max_ratio: float,
    shares: ActivationsSpec | None,
) -> None:
    """The channels of one place, and its largest value; `shares`: limits for the traffic beyond, where it has any."""
    if of.maximum is None or of.traffic is None or of.beyond is None or not of.tokens:
        return
    import torch

    have, want = of.maximum.float().cpu(), of.traffic.float().cpu()
    beyond = of.beyond.cpu().float() / of.tokens
    too_far = float(want.max()) > max_ratio * float(have.max())
    saturated = of.saturated / of.tokens
    if shares is not None and (float(beyond.mean()) > shares.max_beyond_channel or saturated > shares.max_saturated):
        found.add(lambda w: _maximum(read(w)), have, want, beyond)
    if too_far or (shares is not None and saturated > shares.max_saturated):
        weight = torch.tensor([max(1.0, float(beyond.sum()))])
        found.add(lambda w: _largest(read(w)), have.max()[None], want.max()[None], weight)


def _maximum(of: Range | None) -> torch.Tensor | None:
    return None if of is None else of.maximum


def _largest(of: Range | None) -> torch.Tensor | None:
    return None if of is None or of.maximum is None else of.maximum.max()[None]


def fill(
    model: Any, lacks: Missing, spare: Iterable[tuple[Key, Sample]], *, tokens: int, progress: Progress = SILENT
) -> list[tuple[Key, Sample]]:
    """Up to PICKED of the first `tokens` tokens of conversations in `spare`, each the one that brings most of what is
    still missing; [] when none brings anything worth it. One forward pass of `model` for each that is looked at."""
    import torch

    if not lacks.parts:
        return []
    have, want, weights, adds_up = map(torch.cat, (lacks.have, lacks.want, lacks.weights, lacks.adds_up))
    rows, kept = [], list[tuple[Key, Sample]]()
    with progress.task("calibrate: look for conversations that reach further") as task:
        for key, sample in spare:
            rows.append(lacks.reached(alone(model, sample)))
            kept.append((key, sample))
            task.advance(1)
            tokens -= len(sample.tokens)
            if tokens <= 0 or len(rows) * want.nbytes >= MEMORY:
                break
    if not rows:
        return []
    reached = torch.stack(rows)
    whole = float((weights * (want - have) / want).sum())
    chosen: list[int] = []
    while len(chosen) < min(PICKED, len(kept)):
        after = torch.minimum(torch.where(adds_up, have + reached, torch.maximum(have, reached)), want)
        gains = (weights * (after - have) / want).sum(1)
        gains[chosen] = 0
        best = int(gains.argmax())
        if float(gains[best]) < WORTH_IT * whole:
            break
        chosen.append(best)
        have = after[best]
    return [kept[place] for place in chosen]
