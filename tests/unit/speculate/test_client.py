"""Timing and reading of streams, against the double and against streams recorded from vLLM 0.32."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sqtool.speculate.client import HUNG_UP, Answer, Pass, Target, _read_stream, send_block, send_open
from sqtool.speculate.counters import Speculation, add_up, from_answer, parse
from sqtool.speculate.traffic import Request

RECORDED = Path(__file__).with_name("recorded")


def replay(path: Path) -> Answer:
    async def events() -> AsyncIterator[str]:
        for line in path.read_text().splitlines():
            if line.startswith("data:"):
                yield line[5:].strip()

    answer = Answer("x", "k", 0, 0.0)
    asyncio.run(_read_stream(events(), answer, time.perf_counter()))
    return answer


def test_recorded_text_stream() -> None:
    answer = replay(RECORDED / "text.sse")
    assert answer.ok
    assert (answer.text, answer.finish_reason) == ("limi Foza soju pidogu Noju huduzufe", "stop")
    assert (answer.prompt_tokens, answer.completion_tokens) == (37, 18)
    assert answer.ttft_s is not None
    assert answer.e2e_s is not None
    assert answer.tpot_s == pytest.approx((answer.e2e_s - answer.ttft_s) / 17)
    assert len(answer.itl_s) == 6
    assert answer.speculation is not None
    assert from_answer(answer.speculation) == Speculation(5, 20, 16, (4, 4, 4, 4))


def test_recorded_tool_streams() -> None:
    one, two = replay(RECORDED / "tools.sse"), replay(RECORDED / "parallel.sse")
    assert one.tool_calls == [{"name": "update_currency", "arguments": '{"status": "nubi", "checkout": "2038-05-02"}'}]
    assert two.said == ("", (("order_sensor", '{"pets": true}'), ("order_sensor", '{"pets": false}')))
    assert {one.finish_reason, two.finish_reason} == {"tool_calls"}


def test_recorded_answers_add_up_to_the_recorded_counters() -> None:
    reports = [replay(RECORDED / f"{name}.sse").speculation for name in ("text", "tools", "parallel")]
    before, after = (parse((RECORDED / f"metrics_{when}.txt").read_text()) for when in ("before", "after"))
    assert add_up(from_answer(report) for report in reports if report) == after.since(before).speculation


def send(server: Any, requests: list[Request], timeout: float = 20, **more: Any) -> tuple[list[Answer], float]:
    answers: list[Answer] = []
    target = Target(server.base_url, server.api_key, "model", timeout)
    where = Pass("c4", 1, 3, salt="this arm")
    seconds = send_block(
        requests, target, where, concurrency=4, began=time.perf_counter(), on_answer=answers.append, **more
    )
    return answers, seconds


def ask(*texts: str) -> list[Request]:
    return [
        Request(f"q{i}", "k", {"messages": [{"role": "user", "content": text}], "max_tokens": 9})
        for i, text in enumerate(texts)
    ]


def test_requests_are_sent_as_the_api_wants(fake: Any, tmp_path: Path) -> None:
    with fake(tmp_path, None, log=tmp_path / "log") as server:
        answers, seconds = send(server, ask("one two", "three"))
    assert [answer.text for answer in sorted(answers, key=lambda a: a.id)] == ["one two ", "three "]
    assert all(a.ok and a.block == 3 and a.e2e_s is not None and 0 < a.e2e_s <= seconds for a in answers)
    body = server.bodies[0]
    assert (body["temperature"], body["stream"], body["model"], body["max_tokens"]) == (0, True, "model", 9)
    assert body["stream_options"] == {"include_usage": True}
    assert body["cache_salt"] == "this arm"
    assert body["top_k"] == 0  # named, or vLLM would take it from the checkpoint's generation_config
    assert {(a.load, a.round) for a in answers} == {("c4", 1)}


def test_a_stream_is_cut_off_in_the_middle(fake: Any, tmp_path: Path) -> None:
    with fake(tmp_path, None, log=tmp_path / "log") as server:
        answers, _ = send(server, ask("one two three four", "five"), cut={"q0"})
    by_id = {answer.id: answer for answer in answers}
    assert by_id["q0"].error == HUNG_UP
    assert by_id["q1"].ok


def test_an_open_loop_waits_for_nobody(fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(3, timeout=20)

    def all_at_once(server: Any, body: dict[str, Any]) -> None:
        together.wait()  # passes only when all three are in flight

    monkeypatch.setattr(fake, "behaviour", staticmethod(all_at_once))
    answers: list[Answer] = []
    with fake(tmp_path, None, log=tmp_path / "log") as server:
        target = Target(server.base_url, server.api_key, "model", 20)
        seconds = send_open(
            ask("a", "b", "c"),
            [0.0, 0.05, 0.1],
            target,
            Pass("r20"),
            began=time.perf_counter(),
            on_answer=answers.append,
        )
    assert all(answer.ok and answer.late_s is not None and answer.late_s >= 0 for answer in answers)
    assert seconds >= 0.1


def test_what_an_answer_raises_ends_the_sending(fake: Any, tmp_path: Path) -> None:
    def enough(answer: Answer) -> None:
        raise RuntimeError("enough")

    with fake(tmp_path, None, log=tmp_path / "log") as server:
        target = Target(server.base_url, server.api_key, "model", 20)
        with pytest.raises(RuntimeError, match="enough"):
            send_block(ask(*"abcdef"), target, Pass(), concurrency=1, began=0.0, on_answer=enough)
    assert len(server.bodies) <= 2


@pytest.mark.parametrize(
    ("action", "error"),
    [("error", "HTTP 500"), ("cut", "stream ended before the answer did"), ("hang", "no whole answer within 3 s")],
)
def test_failures_are_measured(
    fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str, error: str
) -> None:
    def misbehave(server: Any, body: dict[str, Any]) -> str | None:
        return action if "bad" in body["messages"][0]["content"] else None

    monkeypatch.setattr(fake, "behaviour", staticmethod(misbehave))
    with fake(tmp_path, None, log=tmp_path / "log") as server:
        answers, _ = send(server, ask("good", "bad", "good"), timeout=3 if action == "hang" else 20)
    by_id = {answer.id: answer for answer in answers}
    assert (by_id["q0"].ok, by_id["q1"].ok, by_id["q2"].ok) == (True, False, True)
    assert error in by_id["q1"].error


def test_nothing_listens() -> None:
    class Nobody:
        base_url, api_key = "http://127.0.0.1:9", "key"

    answers, _ = send(Nobody, ask("hello"))
    assert "ConnectError" in answers[0].error
