"""Servers: one on this machine that answers a chat request with bytes of our choice, also slowly or without end."""

from __future__ import annotations

import asyncio
import copy
import json
import socketserver
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from hypothesis import strategies as st

from benchmarks.reliability.fuzzing import ACCEPTED, Ending, escaped, refusal
from sqtool.errors import SqtoolError

TIMEOUT = 0.5
"""Seconds for one request; a slow server takes longer."""
WHOLE = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2},
}
CHUNK = {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]}
LAST = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
ODD: st.SearchStrategy[Any] = st.sampled_from(
    (
        None, True, -1, 0, 2**70, 0.5, "", "x", "x" * 20_000, "\x1b[2J\u202e", [], {}, [None], [1], ["a"], {"a": 1},
        [[]], [{}], {"index": 0}, "NaN", [{"function": {"name": 1, "arguments": []}}], [{"index": "x"}],
    )
)  # fmt: skip
RAW = (
    b"", b"null", b"[]", b"1", b'"x"', b"{", b"\xff\xfe", b"<html>busy</html>", b"[" * 5000, b"9" * 9000, b"NaN",
    b'{"error": {"message": "no"}}', b'{"error": "context length"}', b'{"error": null}', b"\x00" * 64,
)  # fmt: skip
HEADS = (
    b"HTTP/1.1 200 OK", b"HTTP/1.1 200 OK", b"HTTP/1.1 200 OK", b"HTTP/1.1 200 OK", b"HTTP/1.1 500 no",
    b"HTTP/1.1 400 Bad", b"HTTP/1.1 429 Wait", b"HTTP/1.1 404 Gone",
    b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd",
    b"HTTP/1.1 99999 x", b"HTTP/0.1 200", b"garbage", b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip",
    b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000, b"HTTP/1.1 101 Switching Protocols",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What the server sends: the bytes, and the seconds that it waits in the middle."""

    data: bytes
    pause: float
    stream: bool


def _changed(draw: Any, value: Any) -> Any:
    value = json.loads(json.dumps(value))
    places, stack = [], [value]
    while stack:
        part = stack.pop()
        for key in part if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ():
            places.append((part, key))
            stack.append(part[key])
    if not places:
        return copy.deepcopy(draw(ODD))
    holder, key = draw(st.sampled_from(range(len(places))).map(places.__getitem__))
    if draw(st.integers(0, 3)) == 0 and isinstance(holder, dict):
        del holder[key]
    else:
        holder[key] = copy.deepcopy(draw(ODD))
    return value


@st.composite
def cases(draw: Any) -> Case:
    """An answer, whole or as a stream of events, with something wrong in it."""
    stream = draw(st.booleans())
    if stream:
        events: list[Any] = [CHUNK] * draw(st.integers(0, 3)) + [LAST, USAGE]
        for _ in range(draw(st.integers(0, 2))):
            at = draw(st.integers(0, len(events) - 1))
            events[at] = _changed(draw, events[at])
        lines = [b"data: " + json.dumps(e).encode() for e in events] + [b"data: [DONE]"]
        for _ in range(draw(st.integers(0, 2))):
            at = draw(st.integers(0, len(lines) - 1))
            kind = draw(st.sampled_from(("raw", "cut", "drop", "repeat", "comment")))
            if kind == "raw":
                lines[at] = b"data: " + draw(st.sampled_from(RAW))
            elif kind == "cut":
                lines[at] = lines[at][: draw(st.integers(0, len(lines[at])))]
            elif kind == "drop" and len(lines) > 1:
                del lines[at]
            elif kind == "repeat":
                lines.insert(at, lines[at])
            else:
                lines.insert(at, b": ping")
        body = b"\n\n".join(lines) + b"\n\n"
    else:
        body = json.dumps(_changed(draw, WHOLE) if draw(st.integers(0, 3)) else WHOLE).encode()
        if draw(st.integers(0, 3)) == 0:
            body = draw(st.sampled_from(RAW))
    head = draw(st.sampled_from(HEADS))
    length = draw(st.sampled_from((len(body), len(body), len(body), None, len(body) + 5, max(0, len(body) - 3), -1)))
    data = head + b"\r\nContent-Type: application/json\r\nConnection: close\r\n"
    data += b"" if length is None else f"Content-Length: {length}\r\n".encode()
    data += b"\r\n" + body
    if draw(st.integers(0, 9)) == 0:
        data = data[: draw(st.integers(0, len(data)))]
    return Case(data, 2 * TIMEOUT if draw(st.integers(0, 199)) == 0 else 0.0, stream)


class Server:
    """Answers every request with the present case; `url` is where."""

    def __init__(self) -> None:
        owner = self
        self.case = Case(b"", 0, stream=False)

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                try:
                    self.request.settimeout(2)
                    _read_request(self.request)
                    middle = len(owner.case.data) // 2
                    self.request.sendall(owner.case.data[:middle])
                    if owner.case.pause:
                        time.sleep(owner.case.pause)
                    self.request.sendall(owner.case.data[middle:])
                except OSError:
                    return  # the client has gone, which it may

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()


def _read_request(connection: Any) -> None:
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    while len(body) < length:
        body += connection.recv(65536)


@contextmanager
def serving() -> Iterator[Server]:
    """A server for the time of the block."""
    server = Server()
    load = ssl.create_default_context
    # Each client reads the certificates of all authorities, which takes longer than the case and is not what is tried.
    ssl.create_default_context = cache(load)  # type: ignore[assignment]
    try:
        yield server
    finally:
        ssl.create_default_context = load
        server.close()


def attempt(case: Case, server: Server) -> Ending:
    """Ask the server as an evaluation does, or, for a stream, as speculate does."""
    server.case = case
    where = "stream" if case.stream else "chat"
    try:
        return _stream(server) if case.stream else _chat(server)
    except SqtoolError as error:
        return refusal(error, where)
    except Exception as error:  # noqa: BLE001 - finding these is what it is for
        return escaped(error, where)


def _chat(server: Server) -> Ending:
    from evals.client import Endpoint, ask_all
    from evals.engines.base import Limits, Question
    from evals.items import Item
    from evals.spec import GenerationSpec

    item = Item.model_validate({"id": "i1", "kind": "k", "messages": [{"role": "user", "content": "hi"}]})
    endpoint, answers = Endpoint(server.url, "key", "model"), []
    limits = Limits(concurrency=1, timeout=TIMEOUT, retries=0)
    questions = [Question(item)]
    asyncio.run(
        ask_all(endpoint, questions, GenerationSpec(), limits, seed=0, done=lambda _, answer: answers.append(answer))
    )
    wrong = [a for a in answers if a.prompt_tokens < 0]
    return Ending("chat: accepted", f"not an answer: {wrong[0]}") if wrong or not answers else Ending(ACCEPTED)


def _stream(server: Server) -> Ending:
    from sqtool.speculate.client import Answer, Pass, Target, send_block
    from sqtool.speculate.traffic import Request

    answers: list[Answer] = []
    request = Request("i1", "k", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4})
    target = Target(server.url, "key", "model", TIMEOUT)
    send_block([request], target, Pass(), concurrency=1, began=time.perf_counter(), on_answer=answers.append)
    if len(answers) != 1:
        return Ending("stream: lost", "the request has no outcome")
    if not answers[0].ok:
        return Ending("stream: counted as failed")
    good = answers[0].completion_tokens is not None
    json.dumps(answers[0].to_dict(), allow_nan=False)
    return Ending(ACCEPTED) if good else Ending("stream: accepted", f"not an answer: {answers[0]}")
