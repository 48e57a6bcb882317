"""The client against a server that misbehaves on request."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from evals import client
from evals.client import NEUTRAL, Endpoint, ask_all, parse_answer, payload
from evals.engines.base import Limits, Question
from evals.items import Item
from evals.scorers import Answer, ToolCall
from evals.spec import GenerationSpec
from sqtool.errors import DataError, EngineError
from tests.unit.evals.builders import text_row, tool_item

GOOD = {
    "choices": [{"message": {"content": "ok"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 1},
}
Reply = tuple[int, Any] | None
"""Status and body (JSON value or text); None closes the connection without an answer."""


class Scripted:
    """A server that answers the n-th request by `script(n, body)` and counts what is in flight."""

    def __init__(self, script: Callable[[int, dict[str, Any]], Reply]) -> None:
        self.count = self.flying = self.most = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                return

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.count += 1
                    number = outer.count
                    outer.flying += 1
                    outer.most = max(outer.most, outer.flying)
                reply = script(number, body)
                with lock:
                    outer.flying -= 1
                if reply is None:
                    self.close_connection = True
                    return
                data = (reply[1] if isinstance(reply[1], str) else json.dumps(reply[1])).encode()
                self.send_response(reply[0])
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    made: list[Scripted] = []

    def make(script: Callable[[int, dict[str, Any]], Reply]) -> Scripted:
        made.append(Scripted(script))
        return made[-1]

    yield make
    for one in made:
        one.server.shutdown()
        one.server.server_close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "BACKOFF_SECONDS", 0.0)


def _ask(server: Scripted, count: int = 1, **limits: Any) -> dict[str, Answer]:
    questions = [Question(Item.model_validate(text_row(i, "ok"))) for i in range(count)]
    got: dict[str, Answer] = {}
    check = limits.pop("check", lambda: None)
    bounds = Limits(**{"concurrency": 8, "timeout": 10.0, "retries": 3, **limits})
    endpoint = Endpoint(server.url, "key", "model", check)
    asyncio.run(
        ask_all(endpoint, questions, GenerationSpec(), bounds, seed=0, done=lambda q, a: got.__setitem__(q.item.id, a))
    )
    return got


def test_an_answer_is_read(scripted: Callable[..., Scripted]) -> None:
    assert _ask(scripted(lambda n, body: (200, GOOD))) == {"i0": Answer("ok", (), "stop", 5, 1)}


@pytest.mark.parametrize(
    "fault", [(500, {"error": {"message": "x"}}), (429, "slow down"), None, (200, "no json"), (200, {})]
)
def test_passing_faults_are_retried(scripted: Callable[..., Scripted], fault: Reply) -> None:
    server = scripted(lambda n, body: (200, GOOD) if n == 3 else fault)
    assert _ask(server)["i0"].text == "ok"
    assert server.count == 3


@pytest.mark.parametrize(
    ("fault", "said"),
    [((503, "busy"), "status 503: busy"), (None, "connection lost"), ((200, {"choices": []}), "garbage")],
)
def test_lasting_faults_are_errors_after_the_cap(scripted: Callable[..., Scripted], fault: Reply, said: str) -> None:
    server = scripted(lambda n, body: fault)
    with pytest.raises(EngineError, match=said) as caught:
        _ask(server, retries=2)
    assert "after 3 attempts" in caught.value.message
    assert server.count == 3


def test_a_refusal_is_not_retried(scripted: Callable[..., Scripted]) -> None:
    server = scripted(lambda n, body: (401, {"error": "Unauthorized"}))
    with pytest.raises(EngineError, match="status 401: Unauthorized"):
        _ask(server)
    assert server.count == 1


def test_an_item_that_does_not_fit_is_a_data_error(scripted: Callable[..., Scripted]) -> None:
    message = "This model's maximum context length is 128 tokens. However, your request has 500 input tokens."
    server = scripted(lambda n, body: (400, {"error": {"message": message}}))
    with pytest.raises(DataError, match="item i0") as caught:
        _ask(server)
    assert "max_model_len" in caught.value.remedy


def test_a_hung_server_is_waited_for_twice_only(scripted: Callable[..., Scripted]) -> None:
    release = threading.Event()

    def hang(number: int, body: dict[str, Any]) -> Reply:
        release.wait(20)
        return None

    server = scripted(hang)
    with pytest.raises(EngineError, match="no answer in time"):
        _ask(server, timeout=0.2, retries=9)
    release.set()
    assert server.count == 2


def test_a_server_that_sends_byte_after_byte_ends_too() -> None:
    """Each byte comes in time, the answer never does."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            return

        def do_POST(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            try:
                while not over.wait(0.02):
                    self.wfile.write(b" ")
                    self.wfile.flush()
            except OSError:
                return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_address[1]}", "k", "m")
    question = Question(Item.model_validate(text_row(0, "ok")))
    try:
        with pytest.raises(EngineError, match="no answer in time"):
            asyncio.run(
                ask_all(endpoint, [question], GenerationSpec(), Limits(1, 0.3, 0), seed=0, done=lambda q, a: None)
            )
    finally:
        over.set()
        server.shutdown()
        server.server_close()


def test_a_dead_engine_stops_at_once(scripted: Callable[..., Scripted]) -> None:
    def dead() -> None:
        raise EngineError("the vLLM server died")

    server = scripted(lambda n, body: None)
    with pytest.raises(EngineError, match="died"):
        _ask(server, check=dead, retries=50)
    assert server.count == 1


def test_concurrency_is_bounded_and_everything_is_asked(scripted: Callable[..., Scripted]) -> None:
    gate = threading.Barrier(4)

    def together(number: int, body: dict[str, Any]) -> Reply:
        gate.wait(10)  # passes only when exactly as many as allowed are in flight
        return 200, GOOD

    server = scripted(together)
    assert len(_ask(server, 12, concurrency=4)) == 12
    assert server.most == 4


def test_an_error_keeps_what_was_answered(scripted: Callable[..., Scripted]) -> None:
    server = scripted(lambda n, body: (200, GOOD) if n <= 5 else (401, "no"))
    questions = [Question(Item.model_validate(text_row(i, "ok"))) for i in range(9)]
    got: list[str] = []
    with pytest.raises(EngineError):
        asyncio.run(
            ask_all(
                Endpoint(server.url, "k", "m"),
                questions,
                GenerationSpec(),
                Limits(1, 10.0, 0),
                seed=0,
                done=lambda question, answer: got.append(question.item.id),
            )
        )
    assert got == ["i0", "i1", "i2", "i3", "i4"]


def body(generation: GenerationSpec, item: Item | None = None, sample: int = 0, vllm: bool = False) -> dict[str, Any]:
    return payload(Question(item or tool_item(), sample), generation, Endpoint("", "k", "m", vllm=vllm), 7)


def test_payloads() -> None:
    greedy = body(GenerationSpec(max_tokens=9))
    assert (greedy["temperature"], greedy["max_tokens"], greedy["tool_choice"]) == (0.0, 9, "auto")
    assert not {"seed", *NEUTRAL} & set(greedy), "other servers need not know vLLM's parameters"
    sampled = body(GenerationSpec(temperature=0.7), Item.model_validate(text_row(1, "a", max_tokens=3)))
    assert (sampled["seed"], sampled["max_tokens"]) == (7, 3)
    assert "tools" not in sampled
    assert body(GenerationSpec(temperature=1, seed=1))["seed"] == 1
    assert [body(GenerationSpec(temperature=1, samples=3, seed=1), sample=n)["seed"] for n in range(3)] == [1, 2, 3]
    assert [body(GenerationSpec(temperature=1, samples=3), sample=n)["seed"] for n in range(3)] == [7, 8, 9]


def test_what_vllm_would_take_from_the_checkpoint_is_named_unless_it_is_wanted() -> None:
    assert {name: body(GenerationSpec(), vllm=True)[name] for name in NEUTRAL} == NEUTRAL
    bent = body(GenerationSpec(temperature=1, top_p=0.5, repetition_penalty=1.2), vllm=True)
    assert (bent["top_p"], bent["repetition_penalty"], bent["top_k"]) == (0.5, 1.2, 0)
    served = body(GenerationSpec(as_served=True), vllm=True)
    assert set(served) == {"model", "messages", "max_tokens", "tools", "tool_choice"}


def test_retries_are_counted_by_their_reason(scripted: Callable[..., Scripted]) -> None:
    faults: dict[int, Reply] = {1: (500, "x"), 2: (200, "no json"), 3: None}
    server = scripted(lambda n, body: faults.get(n, (200, GOOD)))
    endpoint = Endpoint(server.url, "k", "m")
    question = Question(Item.model_validate(text_row(0, "ok")))
    asyncio.run(ask_all(endpoint, [question], GenerationSpec(), Limits(1, 10.0, 3), seed=0, done=lambda q, a: None))
    assert dict(endpoint.retried) == {"status 500": 1, "garbage": 1, "connection lost": 1}


@pytest.mark.parametrize(
    "bad",
    [
        None,
        [],
        {"choices": [{}]},
        {"choices": [{"message": {"content": 3}, "finish_reason": "stop"}]},
        {"choices": [{"message": {"content": "a"}, "finish_reason": None}]},
        {"choices": [{"message": {"tool_calls": [{"function": {}}]}, "finish_reason": "stop"}]},
        {"choices": [{"message": {"tool_calls": [{"function": {"name": "", "arguments": [1]}}]}, "finish_reason": ""}]},
        {"choices": [{"message": {"content": "a"}, "finish_reason": "abort"}]},
        {"choices": [{"message": {"content": "a"}, "finish_reason": "error"}]},
    ],
)
def test_garbage_is_no_answer(bad: Any) -> None:
    with pytest.raises(ValueError, match="not a chat completion"):
        parse_answer(bad)


def test_arguments_that_come_as_an_object_are_read() -> None:
    call = {"function": {"name": "f", "arguments": {"city": "Zürich"}}}
    value = {"choices": [{"message": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]}
    assert parse_answer(value).tool_calls == (ToolCall("f", '{"city": "Zürich"}'),)


def test_half_a_surrogate_pair_can_be_written_down() -> None:
    value = json.loads(r'{"choices": [{"message": {"content": "a\ud83d"}, "finish_reason": "stop"}]}')
    assert parse_answer(value).text == "a\ufffd"
    assert ToolCall("\udc00", "\ud83d\ude00") == ToolCall("\ufffd", "\U0001f600")
