"""Sending a block of requests over the streaming chat API, closed loop, and timing what comes back.

Times are the client's, by the monotonic clock, from just before the request is sent:
TTFT to the first chunk with a choice (vLLM sends it with the first token), end-to-end to the last such chunk,
TPOT = (end-to-end - TTFT) / (completion tokens - 1), ITL the gaps between chunks with a choice. A speculating server
sends several tokens in a chunk and a tool-call parser holds chunks back, so ITL is about chunks, TPOT about tokens.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from sqtool.speculate.traffic import Request

if TYPE_CHECKING:
    import httpx


@dataclass
class Answer:
    """One request's measurement. `error` is empty when it succeeded; times are seconds; `sent_s` since the arm began.

    `speculation` is what the server said about this request, None when it said nothing.
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


def send_block(
    requests: Sequence[Request],
    *,
    block: int,
    base_url: str,
    api_key: str,
    model: str,
    concurrency: int,
    timeout: float,
    began: float,
    on_answer: Callable[[Answer], None],
) -> float:
    """Send all `requests` in order, at most `concurrency` at once; the wall time in seconds.

    `on_answer` is called as each one ends, failed ones included. `began` is the arm's start by time.perf_counter.
    """

    async def main() -> float:
        import httpx

        queue = iter(requests)
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        headers = {"Authorization": f"Bearer {api_key}"}
        # trust_env=False: local addresses never go through a proxy, whatever the environment says.
        async with httpx.AsyncClient(
            base_url=base_url, headers=headers, limits=limits, timeout=timeout, trust_env=False
        ) as client:

            async def worker() -> None:
                for request in queue:
                    on_answer(await _send(client, request, block, model, timeout, began))

            start = time.perf_counter()
            await asyncio.gather(*(worker() for _ in range(min(concurrency, len(requests)))))
            return time.perf_counter() - start

    return asyncio.run(main()) if requests else 0.0


async def _send(
    client: httpx.AsyncClient, request: Request, block: int, model: str, timeout: float, began: float
) -> Answer:
    import httpx

    start = time.perf_counter()
    answer = Answer(request.id, request.kind, block, start - began)
    body = {
        **request.body,
        "model": model,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    try:
        async with asyncio.timeout(timeout), client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                detail = (await response.aread()).decode(errors="replace")[:300]
                answer.error = f"HTTP {response.status_code}: {detail}"
                return answer
            await _read_stream(_events(response), answer, start)
    except TimeoutError:
        answer.error = f"no whole answer within {timeout:g} s"
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


async def _read_stream(events: AsyncIterator[str], answer: Answer, start: float) -> None:
    """Fill `answer` from the events of one stream; ValueError when it breaks the protocol or ends early."""
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
