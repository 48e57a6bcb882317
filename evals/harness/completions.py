"""Many requests at once to a server's completions API, and what its answers mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from evals.client import COMPLETIONS, Endpoint, each, refuse_broken_off, request
from evals.engines.base import Limits
from evals.scorers import Answer, Loglikelihood

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")


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

    async def one(client: httpx.AsyncClient, at: int) -> T:
        body = {"model": endpoint.model, **bodies[at]}
        return await request(client, endpoint, COMPLETIONS, body, parsers[at], names[at], limits)

    def got(at: int, answer: T) -> None:
        found[at] = answer
        done(at)

    await each(endpoint, order, limits, one, got)
    return [found[at] for at in range(len(bodies))]


def completion(value: Any) -> Answer:
    """The `Answer` in a completion's JSON; `ValueError` says what is missing or of the wrong kind."""
    try:
        choice, usage = value["choices"][0], value["usage"]
        text, reason = choice["text"], choice["finish_reason"]
        if not isinstance(text, str) or not isinstance(reason, str):
            raise TypeError("text and finish_reason must be strings")
        refuse_broken_off(reason)
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
