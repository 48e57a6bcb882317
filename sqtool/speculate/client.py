"""Sending requests over the streaming chat API, in a closed or an open loop, and timing what comes back.

Times are the client's, by the monotonic clock, from just before the request is sent:
TTFT to the first chunk with a choice (vLLM sends it with the first token), end-to-end to the last such chunk,
TPOT = (end-to-end - TTFT) / (completion tokens - 1), ITL the gaps between chunks with a choice. A speculating server
sends several tokens in a chunk and a tool-call parser holds chunks back, so ITL is about chunks, TPOT about tokens.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from evals.client import NEUTRAL
from sqtool.speculate.traffic import Request

if TYPE_CHECKING:
    import httpx

CUT_AFTER = 2
"""Pieces of an answer after which the cancellation probe hangs up: the server is then in the middle of it."""
HUNG_UP = "cut off by the client"
TIMED_OUT = "no whole answer within"
OTHER_MODEL = "answered by another model, which calls itself"


class OtherModelError(Exception):
    """An answer of another model than the one that was asked for."""


@dataclass
class Answer:
    """One request's measurement. `error` is empty when it succeeded; times are seconds; `sent_s` since the arm began,
    `late_s` how long after its arrival time an open loop sent it.

    `speculation` is what the server said about this request, None when it said nothing. `accepted` and `score` are
    None where the request has no scorer.
    """

    id: str
    kind: str
    block: int
    sent_s: float
    error: str = ""
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    itl_s: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    text: str = ""
    tool_calls: list[dict[str, str]] = field(default_factory=list)
    speculation: dict[str, Any] | None = None
    load: str = ""
    round: int = 0
    late_s: float | None = None
    accepted: bool | None = None
    score: float | None = None

    @property
    def ok(self) -> bool:
        """Whether a whole answer came."""
        return not self.error

    @property
    def said(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """What the answer says, for comparing arms: text and tool calls, without their random ids."""
        return self.text, tuple((call["name"], call["arguments"]) for call in self.tool_calls)

    def to_dict(self) -> dict[str, Any]:
        """One line of requests.jsonl."""
        return asdict(self)


@dataclass(frozen=True)
class Target:
    """A running server, and what every request to it carries."""

    base_url: str
    api_key: str
    model: str
    timeout: float
    """Seconds after which one request counts as failed."""
    vllm: bool = True
    """Whether the server takes vLLM's own parameters; of another one only the temperature can be assumed."""
    declared: bool = False
    """Whether an answer must come from the model of that name: anybody may stand behind a server that runs already."""

    def body(self, request: Request, salt: str, sampling: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON of a chat request: greedy unless `sampling` says otherwise. Every sampling parameter is named, for
        vLLM takes those that are not from the checkpoint's generation_config. `salt` keeps prefix-cache hits within one
        pass over the sample: without it a later pass would find the prompts of an earlier one."""
        drawn = dict(sampling)
        if "seed" in drawn:
            # A seed for each request: with one for all, every prompt would meet the same random numbers, and answers to
            # different prompts would not be independent draws, which the distribution test counts on.
            drawn["seed"] = random.Random(f"{drawn['seed']} {request.id}").getrandbits(31)
        return {
            **request.body,
            "model": self.model,
            **(NEUTRAL if self.vllm else {}),
            "temperature": 0,
            **drawn,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"cache_salt": salt} if self.vllm else {}),
        }


@dataclass(frozen=True)
class Pass:
    """Where a batch of requests belongs; goes into every answer's record. `salt` see `Target.body`."""

    load: str = ""
    round: int = 0
    block: int = 0
    salt: str = "-"
    sampling: Mapping[str, Any] = field(default_factory=dict)


def send_block(
    requests: Sequence[Request],
    target: Target,
    where: Pass,
    *,
    concurrency: int,
    began: float,
    on_answer: Callable[[Answer], None],
    cut: Collection[str] = (),
) -> float:
    """Closed loop: send all `requests` in order, at most `concurrency` at once; the wall time in seconds.

    `on_answer` is called as each one ends, failed ones included; what it raises ends the sending and comes out of it.
    `began` is the arm's start by time.perf_counter. The streams of the requests named in `cut` are dropped after two
    pieces.
    """

    async def main() -> float:
        queue = iter(requests)
        async with _client(target, concurrency) as client:

            async def worker() -> None:
                for request in queue:
                    on_answer(await _send(client, target, request, where, began, cut=request.id in cut))

            start = time.perf_counter()
            await _all(worker() for _ in range(min(concurrency, len(requests))))
            return time.perf_counter() - start

    return asyncio.run(main()) if requests else 0.0


def send_open(
    requests: Sequence[Request],
    arrivals: Sequence[float],
    target: Target,
    where: Pass,
    *,
    began: float,
    on_answer: Callable[[Answer], None],
) -> float:
    """Open loop: send each of `requests` at its time in `arrivals` (seconds from now), however many are in flight; the
    wall time in seconds until the last one ended."""

    async def main() -> float:
        async with _client(target, None) as client:
            start = time.perf_counter()

            async def one(request: Request, due: float) -> None:
                await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
                late = time.perf_counter() - start - due
                on_answer(await _send(client, target, request, where, began, late=late))

            await _all(one(request, due) for request, due in zip(requests, arrivals, strict=True))
            return time.perf_counter() - start

    return asyncio.run(main()) if requests else 0.0


def _client(target: Target, connections: int | None) -> httpx.AsyncClient:
    import httpx

    # trust_env=False: local addresses never go through a proxy, whatever the environment says.
    return httpx.AsyncClient(
        base_url=target.base_url,
        headers={"Authorization": f"Bearer {target.api_key}"},
        limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        timeout=target.timeout,
        trust_env=False,
    )


async def _all(jobs: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Wait for all; the first error cancels the others and is raised as it is."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _send(
    client: httpx.AsyncClient,
    target: Target,
    request: Request,
    where: Pass,
    began: float,
    *,
    late: float | None = None,
    cut: bool = False,
) -> Answer:
    import httpx

    start = time.perf_counter()
    answer = Answer(
        request.id, request.kind, where.block, start - began, load=where.load, round=where.round, late_s=late
    )
    body = target.body(request, where.salt, where.sampling)
    try:
        async with (
            asyncio.timeout(target.timeout),
            client.stream("POST", "/v1/chat/completions", json=body) as response,
        ):
            if response.status_code != 200:
                detail = (await response.aread()).decode(errors="replace")[:300]
                answer.error = f"HTTP {response.status_code}: {detail}"
                return answer
            model = target.model if target.declared else None
            await _read_stream(_events(response), answer, start, pieces=CUT_AFTER if cut else None, model=model)
    except OtherModelError as error:
        answer.error = str(error)
    except TimeoutError:
        answer.error = f"{TIMED_OUT} {target.timeout:g} s"
    except (
        httpx.HTTPError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        answer.error = f"{type(error).__name__}: {error}"
    return answer


async def _events(response: httpx.Response) -> AsyncIterator[str]:
    """The data of each server-sent event."""
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            yield line[5:].strip()


async def _read_stream(
    events: AsyncIterator[str],
    answer: Answer,
    start: float,
    *,
    pieces: int | None = None,
    model: str | None = None,
) -> None:
    """Fill `answer` from the events of one stream; ValueError when it breaks the protocol or ends early. With `pieces`
    the client hangs up after so many; with `model`, nothing that calls itself otherwise is read."""
    texts: list[str] = []
    calls: dict[int, dict[str, str]] = {}
    last: float | None = None
    done = False
    async for data in events:
        now = time.perf_counter()
        if data == "[DONE]":
            done = True
            break
        chunk = json.loads(data)
        if "error" in chunk:
            raise ValueError(f"the server answered {str(chunk['error'])[:300]}")
        if model is not None and chunk.get("model") not in (None, model):
            raise OtherModelError(f"{OTHER_MODEL} {str(chunk['model'])[:100]!r}")
        for choice in chunk.get("choices") or ():
            if last is None:
                answer.ttft_s = now - start
            else:
                answer.itl_s.append(now - last)
            last = now
            delta = choice.get("delta") or {}
            texts.append(delta.get("content") or "")
            _add_calls(calls, delta.get("tool_calls") or ())
            answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
            if pieces is not None and len(answer.itl_s) + 1 >= pieces:
                answer.error = HUNG_UP
                return
        if usage := chunk.get("usage"):
            answer.prompt_tokens = int(usage["prompt_tokens"])
            answer.completion_tokens = int(usage["completion_tokens"])
        if report := (chunk.get("metrics") or {}).get("speculative_decoding"):
            answer.speculation = report
    if not done or last is None or answer.finish_reason is None:
        raise ValueError("the stream ended before the answer did")
    if answer.completion_tokens is None:
        raise ValueError("the stream carried no usage")
    answer.text = "".join(texts)
    answer.tool_calls = [calls[index] for index in sorted(calls)]
    answer.e2e_s = last - start
    if answer.ttft_s is not None and answer.completion_tokens > 1:
        answer.tpot_s = (answer.e2e_s - answer.ttft_s) / (answer.completion_tokens - 1)


def _add_calls(calls: dict[int, dict[str, str]], deltas: Sequence[Mapping[str, Any]]) -> None:
    for delta in deltas:
        call = calls.setdefault(int(delta["index"]), {"name": "", "arguments": ""})
        function = delta.get("function") or {}
        call["name"] += function.get("name") or ""
        call["arguments"] += function.get("arguments") or ""
