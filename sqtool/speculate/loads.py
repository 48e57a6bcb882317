"""Loads: how requests arrive. The same arrival times in every arm, from the recipe's seed.

Closed loop: so many clients, each of which sends its next request when its last one is answered. Open loop: requests
arrive when they arrive, whatever the server does, as `vllm bench serve` sends them: gaps from a gamma distribution of
shape `burstiness` (1: exponential gaps, a Poisson process), scaled so that the last one arrives at n / rate seconds. A
trace sends at recorded times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqtool.errors import UsageError
from sqtool.speculate.spec import SpeculateSpec
from sqtool.speculate.traffic import Request, Traffic


@dataclass(frozen=True)
class Load:
    """One way of sending the sample. `batches` are sent one after the other; between them the queue is empty.

    Of an open loop there is one batch, for an arrival process that is cut into pieces is another process; `arrivals`
    are then seconds from its begin, one for each request.
    """

    name: str
    kind: Literal["closed", "open", "trace"]
    batches: tuple[tuple[Request, ...], ...]
    concurrency: int | None = None
    rate: float | None = None
    burstiness: float | None = None
    arrivals: tuple[float, ...] | None = None

    @property
    def requests(self) -> int:
        """How many it sends each round."""
        return sum(len(batch) for batch in self.batches)

    def kind_of(self, batch: int) -> str | None:
        """The task kind of a batch that holds one kind only because the server cannot report more finely."""
        kinds = {request.kind for request in self.batches[batch]}
        return kinds.pop() if len(kinds) == 1 else None

    def to_dict(self) -> dict[str, Any]:
        """The load's entry in plan.json."""
        how = {"max_concurrency": self.concurrency, "request_rate": self.rate, "burstiness": self.burstiness}
        return {
            "name": self.name,
            "kind": self.kind,
            **{key: value for key, value in how.items() if value is not None},
            "blocks": [len(batch) for batch in self.batches],
            "arrivals_s": None if self.arrivals is None else [round(at, 6) for at in self.arrivals],
        }


def loads_of(spec: SpeculateSpec, traffic: Traffic, seed: int) -> tuple[Load, ...]:
    """The loads of a recipe over its sample. `UsageError` when a trace is wanted and the traffic has no times."""
    found = [Load(f"c{n}", "closed", traffic.blocks, concurrency=n) for n in spec.max_concurrency]
    everything = tuple(traffic.requests)
    for rate in spec.request_rate:
        arrivals = arrival_times(len(everything), rate, spec.burstiness, seed)
        found.append(
            Load(f"r{rate:g}", "open", (everything,), rate=rate, burstiness=spec.burstiness, arrivals=tuple(arrivals))
        )
    if spec.trace:
        found.append(trace_of(everything))
    return tuple(found)


def arrival_times(count: int, rate: float, burstiness: float, seed: int) -> list[float]:
    """Arrival times in seconds, ascending, the last at count / rate. The same for the same arguments."""
    import numpy as np

    # Of the rate only the scale depends, so that all rates see the same pattern of gaps.
    gaps = np.random.default_rng([seed, 0x5EED]).gamma(shape=burstiness, scale=1.0, size=count)
    times = np.cumsum(gaps)
    return [float(at) for at in times * (count / rate / times[-1])]


def trace_of(requests: Sequence[Request]) -> Load:
    """The sample in the order and at the distances in which it was recorded."""
    if any(request.arrival_s is None for request in requests):
        raise UsageError(
            "speculate.trace is true, and not every request of the traffic has a timestamp",
            remedy="Give a log with a `timestamp` in each line, or use `request_rate` for arrivals at random.",
        )
    timed = sorted(requests, key=lambda request: (request.arrival_s or 0.0, request.id))
    first = timed[0].arrival_s or 0.0
    arrivals = tuple((request.arrival_s or 0.0) - first for request in timed)
    return Load("trace", "trace", (tuple(timed),), arrivals=arrivals)
