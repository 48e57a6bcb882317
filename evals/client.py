"""Asking a server many questions at once over the OpenAI API.

httpx rather than the openai client: that one retries twice on its own, silently, and takes a second to import; here
every attempt is counted and decided on in one place.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from evals.engines.base import Done, Limits, Question
from evals.scorers import Answer, ToolCall
from evals.spec import GenerationSpec
from sqtool.errors import DataError, EngineError

if TYPE_CHECKING:
    import httpx

BACKOFF_SECONDS = 0.5
BACKOFF_CAP_SECONDS = 8.0
MOST_BYTES = 256 << 20
"""Bytes of one answer; log-probabilities of a long prompt are the largest, with some MiB."""
RETRIED_STATUS = frozenset({408, 409, 425, 429})
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
NEUTRAL = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Sampling parameters that change nothing. vLLM takes each one that a request does not name from the checkpoint's
generation_config; with all of them named, one server answers these requests and those that are asked `as_served`."""

Q = TypeVar("Q")
T = TypeVar("T")


class _TransientError(Exception):
    """An attempt that failed in a way that another may not; `reason` is what is counted. `slow`: it took the whole
    time-out, so that more than one further attempt would mean waiting for a hung server again and again."""

    def __init__(self, reason: str, message: str, *, slow: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
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
    vllm: bool = False
    """Whether it is known to be vLLM, which has more sampling parameters than OpenAI's API."""
    retried: Counter[str] = field(default_factory=Counter, compare=False)
    """Why attempts failed that were made again, counted while asking."""


def payload(question: Question, generation: GenerationSpec, endpoint: Endpoint, seed: int) -> dict[str, Any]:
    """The JSON body of the chat request. `seed` counts only when sampling and no own seed is set."""
    item = question.item
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": item.wire_messages(),
        "max_tokens": item.max_tokens or generation.max_tokens,
        **sampling(generation, generation.seed_of(question.sample, seed), neutral=endpoint.vllm),
    }
    if item.tools:
        body["tools"] = list(item.tools)
        body["tool_choice"] = item.tool_choice
    return body


def sampling(generation: GenerationSpec, seed: int, *, neutral: bool) -> dict[str, Any]:
    """The sampling parameters of a request: none at all for `as_served`; with `neutral` also those that change
    nothing."""
    if generation.as_served:
        return {}
    named = {name: getattr(generation, name) for name in ("top_p", "top_k", "min_p", "repetition_penalty")}
    found = {**(NEUTRAL if neutral else {}), **{name: value for name, value in named.items() if value is not None}}
    found["temperature"] = generation.temperature
    if not generation.greedy:
        found["seed"] = seed
    return found


BROKEN_OFF = frozenset({"abort", "error"})
"""Finish reasons of answers that the server gave up, not the model: they say nothing about it."""


def refuse_broken_off(reason: str) -> None:
    """`ValueError` for an answer that a server broke off by itself, so that it is asked for once more."""
    if reason in BROKEN_OFF:
        raise ValueError(f"the server broke the answer off: finish_reason is {reason!r}")


def _arguments_text(arguments: Any) -> str:
    """A call's arguments as text; some servers send the object itself."""
    if isinstance(arguments, dict):
        return json.dumps(arguments, ensure_ascii=False)
    if arguments is not None and not isinstance(arguments, str):
        raise TypeError("arguments must be a string")
    return arguments or ""


def parse_answer(value: Any) -> Answer:
    """The `Answer` in a chat completion's JSON; `ValueError` says what is missing or of the wrong kind."""
    try:
        choice = value["choices"][0]
        message = choice["message"]
        usage = value.get("usage") or {}
        calls = tuple(
            ToolCall(str(c["function"]["name"]), _arguments_text(c["function"]["arguments"]))
            for c in message.get("tool_calls") or ()
        )
        text = message.get("content") or ""
        reason = choice["finish_reason"]
        if not isinstance(text, str) or not isinstance(reason, str):
            raise TypeError("content and finish_reason must be strings")
        refuse_broken_off(reason)
        return Answer(
            text, calls, reason, int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"not a chat completion ({type(error).__name__}: {error})") from None


async def _body(response: httpx.Response) -> bytes:
    """The whole answer, of at most MOST_BYTES: a server that never stops must not fill the memory."""
    data = bytearray()
    async for piece in response.aiter_bytes():
        data += piece
        if len(data) > MOST_BYTES:
            raise _TransientError("too large", f"an answer of more than {MOST_BYTES >> 20} MiB")
    return bytes(data)


def _server_message(data: bytes) -> str:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return data[:300].decode(errors="replace")
    error = value.get("error", value) if isinstance(value, dict) else value
    return str(error.get("message", error) if isinstance(error, dict) else error)[:500]


async def _attempt(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], parse: Callable[[Any], T], name: str, timeout: float
) -> T:
    import httpx

    try:
        # httpx's own time-outs are for each piece of an answer; a server that sends byte after byte must end too.
        async with asyncio.timeout(timeout), client.stream("POST", path, json=body) as response:
            data = await _body(response)
    except (httpx.TimeoutException, TimeoutError) as error:
        raise _TransientError("time-out", f"no answer in time ({type(error).__name__})", slow=True) from None
    except httpx.RequestError as error:
        raise _TransientError("connection lost", f"connection lost ({type(error).__name__}: {error})") from None
    status = response.status_code
    if status >= 500 or status in RETRIED_STATUS:
        raise _TransientError(f"status {status}", f"status {status}: {_server_message(data)}")
    if status != 200:
        text = _server_message(data)
        if "context length" in text or "max_tokens" in text or "maximum model length" in text:
            raise DataError(
                f"item {name}",
                f"it does not fit the model's context: {text}",
                remedy="Lower the task's max_tokens, shorten the item, or raise engine.max_model_len.",
            )
        raise EngineError(
            f"the server refused item {name} at {path} with status {status}: {text}",
            remedy="Nothing was scored. The server's log may say more.",
        )
    try:
        return parse(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise _TransientError("garbage", f"garbage: {error}") from None


async def request(
    client: httpx.AsyncClient,
    endpoint: Endpoint,
    path: str,
    body: dict[str, Any],
    parse: Callable[[Any], T],
    name: str,
    limits: Limits,
) -> T:
    """What `parse` makes of the server's answer to one request about the item `name`, with `limits.retries` more tries.

    `parse` raises `ValueError` for garbage. Raises `EngineError` when the engine is gone or keeps failing, `DataError`
    when the item does not fit it. An item that could not be asked is never given an answer, so it cannot be scored.
    """
    for attempt in range(limits.retries + 1):
        try:
            return await _attempt(client, path, body, parse, name, limits.timeout)
        except _TransientError as error:
            endpoint.check()
            if attempt == limits.retries or (error.slow and attempt >= 1):
                raise EngineError(
                    f"no answer to item {name} after {attempt + 1} attempts; the last: {error}",
                    remedy="Nothing was scored. See the server's log; `evaluate.request_timeout` and "
                    "`evaluate.retries` say how patient to be.",
                ) from None
            endpoint.retried[error.reason] += 1
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
    questions: Sequence[Question],
    generation: GenerationSpec,
    limits: Limits,
    *,
    seed: int,
    done: Done,
) -> None:
    """Ask every question over the chat API; see `each`."""

    async def chat(client: httpx.AsyncClient, question: Question) -> Answer:
        body = payload(question, generation, endpoint, seed)
        return await request(client, endpoint, CHAT, body, parse_answer, question.item.id, limits)

    await each(endpoint, questions, limits, chat, done)


async def each(
    endpoint: Endpoint,
    questions: Sequence[Q],
    limits: Limits,
    one: Callable[[httpx.AsyncClient, Q], Awaitable[T]],
    done: Callable[[Q, T], None],
) -> None:
    """Give each of `questions` to `one`, at most `limits.concurrency` at once; `done` gets each answer as it comes, in
    any order.

    The first error cancels what is still running and is raised; what `done` got before stays.
    """
    todo = iter(questions)

    async def worker(client: httpx.AsyncClient) -> None:
        for question in todo:
            done(question, await one(client, question))

    async with open_client(endpoint, limits) as client:
        workers = [asyncio.ensure_future(worker(client)) for _ in range(min(limits.concurrency, len(questions)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for task in workers:
                task.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
