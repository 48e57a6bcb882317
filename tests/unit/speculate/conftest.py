"""A small double of `vllm serve`: the streaming chat API and /metrics in the form that vLLM 0.32 gives them."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from evals.engine_env import VllmEnv
from sqtool.errors import EngineError


class FakeVllm:
    """Answers each request with its last message's words; speculates when told to, accepting 3, 1, 3, 1, ... of 4."""

    served_name = "model"
    started: list[FakeVllm] = []  # noqa: RUF012
    behaviour: Callable[[FakeVllm, dict[str, Any]], str | None] = staticmethod(lambda server, body: None)
    """Called with each request: None answers it; `error`, `cut`, `hang`, `die` do what they say."""

    def __init__(self, model: Path, spec: Any, *, log: Path, extra_args: Sequence[str] = (), **_: Any) -> None:
        self.model, self.spec, self.log, self.extra_args = model, spec, log, list(extra_args)
        self.api_key = "key"
        self.speculates = "--speculative-config" in self.extra_args
        self.reports = "--per-request-spec-decode-metrics" in self.extra_args
        self.bodies: list[dict[str, Any]] = []
        self.start_seconds = 0.1
        self.pid = None
        self.running = 0
        self.http: ThreadingHTTPServer | None = None
        self.counts = {"drafts": 0, "draft_tokens": 0, "accepted_tokens": 0}
        self.positions = [0, 0, 0, 0]
        self.generated = 0
        self.lock = threading.Lock()
        self.dead = False
        self.release = threading.Event()

    def __enter__(self) -> FakeVllm:
        if "broken" in self.model.name:
            raise EngineError("the vLLM server did not start: ValueError: no such scheme", remedy="Use another scheme.")
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                text = outer.metrics().encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.headers["Authorization"] == "Bearer key"
                outer.answer(self, body)

            def log_message(self, *_: Any) -> None:
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.log.write_text("the double's log\n")
        FakeVllm.started.append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        self.release.set()
        http, self.http = self.http, None
        if http is not None:
            http.shutdown()
            http.server_close()
            self.thread.join()

    def metrics(self) -> str:
        lines = [
            "# TYPE vllm:num_requests_running gauge",
            f'vllm:num_requests_running{{engine="0",model_name="model"}} {float(self.running)}',
            "# TYPE vllm:kv_cache_usage_perc gauge",
            f'vllm:kv_cache_usage_perc{{engine="0",model_name="model"}} {self.running / 100}',
            "# TYPE vllm:cache_config_info gauge",
            'vllm:cache_config_info{engine="0",block_size="16",num_gpu_blocks="100"} 1.0',
            "# TYPE vllm:generation_tokens_total counter",
            f'vllm:generation_tokens_total{{engine="0",model_name="model"}} {float(self.generated)}',
        ]
        if self.speculates:
            for name, value in self.counts.items():
                lines.append(f"# TYPE vllm:spec_decode_num_{name}_total counter")
                lines.append(f'vllm:spec_decode_num_{name}_total{{engine="0",model_name="model"}} {float(value)}')
            lines.append("# TYPE vllm:spec_decode_num_accepted_tokens_per_pos_total counter")
            for at, value in enumerate(self.positions):
                lines.append(
                    "vllm:spec_decode_num_accepted_tokens_per_pos_total"
                    f'{{engine="0",model_name="model",position="{at}"}} {float(value)}'
                )
        return "\n".join(lines) + "\n"

    def answer(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with self.lock:
            self.bodies.append(body)
            self.running += 1
        try:
            self.reply(handler, body)
        finally:
            with self.lock:
                self.running -= 1

    def reply(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        action = FakeVllm.behaviour(self, body)
        if action == "die":
            self.dead = True
        if action == "hang":
            self.release.wait(30)
        if action in ("error", "die") or self.dead:
            handler.send_response(500)
            text = b'{"error": {"message": "engine core died"}}'
            handler.send_header("Content-Length", str(len(text)))
            handler.end_headers()
            handler.wfile.write(text)
            return
        if not body.get("stream"):
            self.whole(handler, body)
            return
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Connection", "close")
        handler.close_connection = True
        handler.end_headers()
        with contextlib.suppress(ConnectionError):  # the client gave up
            for chunk in self.chunks(body):
                handler.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
                if action == "cut":
                    return
            handler.wfile.write(b"data: [DONE]\n\n")

    def whole(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        message = {"role": "assistant", "content": body["messages"][-1]["content"]}
        value = {
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3},
        }
        text = json.dumps(value).encode()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)

    def chunks(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        words = body["messages"][-1]["content"].split()

        def choice(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
            return {"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

        yield choice({"role": "assistant", "content": ""})
        if body.get("tools"):
            name = body["tools"][0]["function"]["name"]
            yield choice({"tool_calls": [{"index": 0, "id": "r", "function": {"name": name, "arguments": ""}}]})
            yield choice({"tool_calls": [{"index": 0, "function": {"arguments": '{"a": '}}]})
            yield choice({"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]})
        else:
            for word in words:
                yield choice({"content": word + " "})
        yield choice({}, "tool_calls" if body.get("tools") else "stop")
        report = self.speculate(len(words)) if self.speculates else None
        with self.lock:
            self.generated += len(words) + 1
        last: dict[str, Any] = {"id": "x", "choices": [], "metrics": None}
        last["usage"] = {"prompt_tokens": 7, "completion_tokens": len(words) + 1, "total_tokens": len(words) + 8}
        if report is not None and self.reports:
            last["metrics"] = {"time_to_first_token_ms": None, "speculative_decoding": report}
        yield last

    def speculate(self, steps: int) -> dict[str, Any]:
        accepted = [3 if step % 2 == 0 else 1 for step in range(steps)]
        histogram = [accepted.count(j) for j in range(5)]
        with self.lock:
            self.counts["drafts"] += steps
            self.counts["draft_tokens"] += 4 * steps
            self.counts["accepted_tokens"] += sum(accepted)
            for at in range(4):
                self.positions[at] += sum(n > at for n in accepted)
        return {
            "mean_acceptance_length": 1 + sum(accepted) / steps,
            "draft_acceptance_rate": sum(accepted) / (4 * steps),
            "acceptance_histogram": histogram,
            "num_spec_steps": steps,
            "num_accepted_draft_tokens": sum(accepted),
            "num_draft_tokens": 4 * steps,
            "num_spec_tokens": 4,
        }

    def facts(self) -> dict[str, Any]:
        flags = ["--kv-cache-memory-bytes", "4096", *self.extra_args]
        return {"engine": "double", "flags": flags, "start_seconds": self.start_seconds}

    def log_text(self) -> str:
        return self.log.read_text()

    def healthy(self, timeout: float = 5.0) -> bool:
        return not self.dead

    def require_alive(self) -> None:
        if self.dead:
            raise self.failure("the vLLM server died")

    def failure(self, what: str) -> EngineError:
        return EngineError(what, remedy=f"The whole log is in {self.log}.")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeVllm]:
    """The double in place of the real server, which also reports acceptance per request."""
    monkeypatch.setattr("sqtool.speculate.servers.VllmServer", FakeVllm)
    monkeypatch.setattr("sqtool.speculate.run.resolve_env", lambda spec, root: Path())
    monkeypatch.setattr(
        "sqtool.speculate.run.locate", lambda folder: VllmEnv(folder, folder / "vllm", "cpu", "0.32.0+cpu")
    )
    monkeypatch.setattr("sqtool.speculate.run.reports_per_request", lambda env: True)
    monkeypatch.setattr("sqtool.speculate.schedule.free_bytes", lambda env: 64 << 30)
    monkeypatch.setattr(FakeVllm, "started", [])
    monkeypatch.setattr(FakeVllm, "behaviour", staticmethod(lambda server, body: None))
    return FakeVllm


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A root with traffic of three kinds, a target, a quantized target and a draft."""
    tool = {"type": "function", "function": {"name": "turn", "parameters": {"type": "object"}}}

    def item(name: str, kind: str, text: str, **more: Any) -> dict[str, Any]:
        return {"id": name, "kind": kind, "messages": [{"role": "user", "content": text}], **more}

    items = [item(f"l{i}", "lookup", f"find {i} of it") for i in range(30)]
    items += [item(f"t{i}", "tool_simple", f"please turn {i}", tools=[tool]) for i in range(15)]
    items += [item(f"p{i}", "prose", "tell a tale") for i in range(3)]
    (tmp_path / "traffic.jsonl").write_text("".join(json.dumps(one) + "\n" for one in items))
    tokenizer = {"added_tokens": [{"content": "<s>", "id": 0}], "model": {"vocab": {"a": 1}}}
    for name in ("target", "quantized", "draft"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"vocab_size": 2}')
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(tokenizer))
    return tmp_path
