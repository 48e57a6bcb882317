"""Many requests at once to a server's completions API, and what its answers mean."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from evals.client import BACKOFF_CAP_SECONDS, BACKOFF_SECONDS, RETRIED_STATUS, Endpoint, open_client
from evals.engines.base import Limits
from evals.scorers import Answer, Loglikelihood
from sqtool.errors import EngineError

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
PATH = "/v1/completions"


class _TransientError(Exception):
    """An attempt that failed in a way that another may not."""


async def ask(
    endpoint: Endpoint,
    limits: Limits,
    *,
    names: Sequence[str],
    bodies: Sequence[dict[str, Any]],
    parsers: Sequence[Callable[[Any], T]],
    order: Sequence[int],
    done: Callable[[int], None],
) -> list[T]:
    """What `parsers[i]` makes of the answer to `bodies[i]`, in their order; asked in the order of `order`, at most
    `limits.concurrency` at once.

    A parser raises `ValueError` for garbage. The first request that keeps failing cancels the others and raises
    `EngineError`: what could not be asked is never scored.
    """
    found: dict[int, T] = {}
    todo = iter(order)

    async def worker(client: httpx.AsyncClient) -> None:
        for at in todo:
            found[at] = await _patiently(client, endpoint, limits, names[at], bodies[at], parsers[at])
            done(at)

    async with open_client(endpoint, limits) as client:
        workers = [asyncio.ensure_future(worker(client)) for _ in range(min(limits.concurrency, len(bodies)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for each in workers:
                each.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
    return [found[at] for at in range(len(bodies))]


async def _patiently(
    client: httpx.AsyncClient,
    endpoint: Endpoint,
    limits: Limits,
    name: str,
    body: dict[str, Any],
    parse: Callable[[Any], T],
) -> T:
    for attempt in range(limits.retries + 1):
        try:
            return await _once(client, {"model": endpoint.model, **body}, parse, name)
        except _TransientError as error:
            endpoint.check()
            if attempt == limits.retries:
                raise EngineError(
                    f"no answer to item {name} after {attempt + 1} attempts; the last: {error}",
                    remedy="Nothing was scored. See the server's log; `evaluate.request_timeout` and "
                    "`evaluate.retries` say how patient to be.",
                ) from None
        # Requests that failed together must not come back together.
        await asyncio.sleep(min(BACKOFF_CAP_SECONDS, BACKOFF_SECONDS * 2**attempt) * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable: the last attempt returns or raises")


async def _once(client: httpx.AsyncClient, body: dict[str, Any], parse: Callable[[Any], T], name: str) -> T:
    import httpx

    try:
        response = await client.post(PATH, json=body)
    except httpx.TransportError as error:
        raise _TransientError(f"{type(error).__name__}: {error}") from None
    status = response.status_code
    if status >= 500 or status in RETRIED_STATUS:
        raise _TransientError(f"status {status}: {response.text[:300]}")
    if status != 200:
        raise EngineError(
            f"the server refused item {name} with status {status}: {response.text[:500]}",
            remedy="Nothing was scored. The server's log may say more.",
        )
    try:
        return parse(response.json())
    except ValueError as error:
        raise _TransientError(f"garbage: {error}") from None


def completion(value: Any) -> Answer:
    """The `Answer` in a completion's JSON; `ValueError` says what is missing or of the wrong kind."""
    try:
        choice, usage = value["choices"][0], value["usage"]
        text, reason = choice["text"], choice["finish_reason"]
        if not isinstance(text, str) or not isinstance(reason, str):
            raise TypeError("text and finish_reason must be strings")
        return Answer(
            text,
            finish_reason=reason,
            prompt_tokens=int(usage["prompt_tokens"]),
            completion_tokens=int(usage["completion_tokens"]),
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"not a completion ({type(error).__name__}: {error})") from None


def ranked(prompt: Sequence[int], continuation: Sequence[int]) -> Callable[[Any], Loglikelihood]:
    """A parser of answers with `prompt_logprobs: 0`: the log-likelihood of the prompt's last tokens, `continuation`.

    vLLM gives each place its token's log-probability and rank; rank 1 means that it was the likeliest.
    """

    def parse(value: Any) -> Loglikelihood:
        try:
            rows = value["choices"][0]["prompt_logprobs"]
            if len(rows) != len(prompt):
                raise ValueError(f"{len(rows)} places for {len(prompt)} tokens")
            tail = rows[len(prompt) - len(continuation) :]
            places = [row[str(token)] for row, token in zip(tail, continuation, strict=True)]
            total = sum(float(place["logprob"]) for place in places)
            return Loglikelihood(total, len(continuation), all(int(place["rank"]) == 1 for place in places))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"no log-probabilities of the prompt ({type(error).__name__}: {error})") from None

    return parse
