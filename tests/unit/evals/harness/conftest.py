"""A tiny model, and a server that answers as vLLM does, with that model behind it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from evals.client import Endpoint
from tests.unit.evals.tiny import save_model

ROOT = Path(__file__).parents[4]
TASKS = "tests/lm_eval_tasks"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """float32, so that batches and single prompts agree."""
    return save_model(tmp_path_factory.mktemp("tiny"), dtype="float32")


def network(model: Path) -> Any:
    """The checkpoint as transformers loads it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(model))


class Completions:
    """`/v1/completions` for token ids, computed with transformers. `script` may answer a request in its place."""

    def __init__(self, model: Path) -> None:
        import torch
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(str(model))
        self.network = network(model).eval()
        self.bodies: list[dict[str, Any]] = []
        self.faults: list[tuple[int, Any]] = []
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                return

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/v1/completions"
                assert self.headers["Authorization"] == "Bearer secret"
                with lock, torch.inference_mode():
                    outer.bodies.append(body)
                    status, value = outer.faults.pop(0) if outer.faults else (200, outer.answer(body))
                data = (value if isinstance(value, str) else json.dumps(value)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self.server = Server(("127.0.0.1", 0), Handler)
        self.endpoint = Endpoint(f"http://127.0.0.1:{self.server.server_address[1]}", "secret", "model", vllm=True)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        import torch

        prompt = body["prompt"]
        choice: dict[str, Any] = {"index": 0, "text": "", "finish_reason": "length"}
        if "prompt_logprobs" in body:
            logits = self.network(torch.tensor([prompt])).logits[0].double().log_softmax(-1)
            choice["prompt_logprobs"] = [None] + [
                {str(token): {"logprob": float(row[token]), "rank": int((row > row[token]).sum()) + 1}}
                for token, row in zip(prompt[1:], logits[:-1], strict=True)
            ]
            said = 1
        elif body.get("echo"):
            logits = self.network(torch.tensor([prompt])).logits[0].double().log_softmax(-1)
            rows = list(zip(prompt[1:], logits[:-1], strict=True))
            choice["logprobs"] = {
                "token_logprobs": [None, *(float(row[token]) for token, row in rows)],
                "top_logprobs": [None, *({"best": float(row.max()), "own": float(row[token])} for token, row in rows)],
            }
            said = 0
        else:
            assert body["temperature"] == 0.0
            ids: list[int] = []
            while len(ids) < body["max_tokens"] and choice["finish_reason"] == "length":
                ids.append(int(self.network(torch.tensor([[*prompt, *ids]])).logits[0, -1].argmax()))
                text = self.tokenizer.decode(ids, skip_special_tokens=True)
                stops = [text.index(stop) for stop in body["stop"] if stop in text]
                if stops or ids[-1] == self.tokenizer.eos_token_id:
                    choice["finish_reason"] = "stop"
                    text = text[: min(stops, default=len(text))]
            choice["text"], said = text, len(ids)
        return {"choices": [choice], "usage": {"prompt_tokens": len(prompt), "completion_tokens": said}}


@pytest.fixture
def completions(tiny: Path) -> Iterator[Completions]:
    server = Completions(tiny)
    yield server
    server.server.shutdown()
    server.server.server_close()
