"""Asking a server many questions at once over the OpenAI chat API.

httpx rather than the openai client: that one retries twice on its own, silently, and takes a second to import; here
every attempt is counted and decided on in one place.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evals.items import Item
from evals.scorers import Answer, ToolCall
from evals.spec import GenerationSpec
from sqtool.errors import DataError, EngineError

if TYPE_CHECKING:
    import httpx

BACKOFF_SECONDS = 0.5
BACKOFF_CAP_SECONDS = 8.0
RETRIED_STATUS = frozenset({408, 409, 425, 429})


class _TransientError(Exception):
    """An attempt that failed in a way that another may not. `slow`: it took the whole time-out, so that more than
    one further attempt would mean waiting for a hung server again and again."""

    def __init__(self, message: str, *, slow: bool = False) -> None:
        super().__init__(message)
        self.slow = slow


@dataclass(frozen=True)
class Endpoint:
    """A server: `base_url` without /v1, the model's name there, and how a dead one is noticed.

    `check` raises when the server is known to be gone (a local process that ended); it is called before a retry, so
    that a dead engine is an error at once and not after all retries of all requests.
    """

    base_url: str
    api_key: str
    model: str
    check: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Limits:
    """How hard to press: requests in flight, seconds for one attempt, further attempts of one request."""

    concurrency: int
    timeout: float
    retries: int


def payload(item: Item, generation: GenerationSpec, model: str, seed: int) -> dict[str, Any]:
    """The JSON body of the chat request for an item. `seed` counts only when sampling and no own seed is set."""
    body: dict[str, Any] = {
        "model": model,
        "messages": item.wire_messages(),
        "temperature": generation.temperature,
        "max_tokens": item.max_tokens or generation.max_tokens,
    }
    if generation.temperature > 0:
        body["seed"] = seed if generation.seed is None else generation.seed
        if generation.top_p is not None:
            body["top_p"] = generation.top_p
    if item.tools:
        body["tools"] = list(item.tools)
        body["tool_choice"] = item.tool_choice
    return body


def parse_answer(value: Any) -> Answer:
    """The `Answer` in a chat completion's JSON; `ValueError` says what is missing or of the wrong kind."""
    try:
        choice = value["choices"][0]
        message = choice["message"]
        usage = value.get("usage") or {}
        calls = tuple(
            ToolCall(str(c["function"]["name"]), str(c["function"]["arguments"] or ""))
            for c in message.get("tool_calls") or ()
        )
        text = message.get("content") or ""
        reason = choice["finish_reason"]
        if not isinstance(text, str) or not isinstance(reason, str):
            raise TypeError("content and finish_reason must be strings")
        return Answer(
            text, calls, reason, int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"not a chat completion ({type(error).__name__}: {error})") from None


def _server_message(response: httpx.Response) -> str:
    try:
        value = response.json()
    except ValueError:
        return response.text[:300]
    error = value.get("error", value) if isinstance(value, dict) else value
    return str(error.get("message", error) if isinstance(error, dict) else error)[:500]


async def _attempt(client: httpx.AsyncClient, item: Item, body: dict[str, Any]) -> Answer:
    import httpx

    try:
        response = await client.post("/v1/chat/completions", json=body)
    except httpx.TimeoutException as error:
        raise _TransientError(f"no answer in time ({type(error).__name__})", slow=True) from None
    except httpx.TransportError as error:
        raise _TransientError(f"connection lost ({type(error).__name__}: {error})") from None
    if response.status_code >= 500 or response.status_code in RETRIED_STATUS:
        raise _TransientError(f"status {response.status_code}: {_server_message(response)}")
    if response.status_code != 200:
        text = _server_message(response)
        if "context length" in text or "max_tokens" in text or "maximum model length" in text:
            raise DataError(
                f"item {item.id}",
                f"it does not fit the model's context: {text}",
                remedy="Lower the task's max_tokens, shorten the item, or raise engine.max_model_len.",
            )
        raise EngineError(
            f"the server refused item {item.id} with status {response.status_code}: {text}",
            remedy="Nothing was scored. The server's log may say more.",
        )
    try:
        return parse_answer(response.json())
    except ValueError as error:
        raise _TransientError(f"garbage: {error}") from None


async def ask(client: httpx.AsyncClient, endpoint: Endpoint, item: Item, body: dict[str, Any], retries: int) -> Answer:
    """The server's answer to one item, with `retries` further attempts.

    Raises `EngineError` when the engine is gone or keeps failing, `DataError` when the item does not fit it. An item
    that could not be asked is never given an answer, so it cannot be scored.
    """
    for attempt in range(retries + 1):
        try:
            return await _attempt(client, item, body)
        except _TransientError as error:
            endpoint.check()
            if attempt == retries or (error.slow and attempt >= 1):
                raise EngineError(
                    f"no answer to item {item.id} after {attempt + 1} attempts; the last: {error}",
                    remedy="Nothing was scored. See the server's log; `evaluate.request_timeout` and "
                    "`evaluate.retries` say how patient to be.",
                ) from None
        pause = min(BACKOFF_CAP_SECONDS, BACKOFF_SECONDS * 2**attempt)
        # Requests that failed together must not come back together.
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable: the last attempt returns or raises")


@asynccontextmanager
async def open_client(endpoint: Endpoint, limits: Limits) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client for the endpoint; environment proxies are not used for it."""
    import httpx

    pool = httpx.Limits(max_connections=limits.concurrency, max_keepalive_connections=limits.concurrency)
    async with httpx.AsyncClient(
        base_url=endpoint.base_url,
        headers={"Authorization": f"Bearer {endpoint.api_key}"},
        # All requests are started at once and wait for a free connection, which no time-out may cut.
        timeout=httpx.Timeout(limits.timeout, pool=None),
        limits=pool,
        trust_env=False,
    ) as client:
        yield client


async def ask_all(
    endpoint: Endpoint,
    items: Sequence[Item],
    generation: GenerationSpec,
    limits: Limits,
    *,
    seed: int,
    done: Callable[[Item, Answer], None],
) -> None:
    """Ask every item, at most `limits.concurrency` at once; `done` gets each answer as it comes (in any order).

    The first error cancels what is still running and is raised; what `done` got before stays.
    """
    todo = iter(items)

    async def worker(client: httpx.AsyncClient) -> None:
        for item in todo:
            done(
                item, await ask(client, endpoint, item, payload(item, generation, endpoint.model, seed), limits.retries)
            )

    async with open_client(endpoint, limits) as client:
        workers = [asyncio.ensure_future(worker(client)) for _ in range(min(limits.concurrency, len(items)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for task in workers:
                task.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
