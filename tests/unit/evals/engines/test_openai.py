"""What a server that runs already must say before anything is asked of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from evals.engines.openai import OpenAiEngine, only_model
from evals.spec import EngineSpec
from sqtool.errors import EngineError, UsageError
from sqtool.files import sha256_text
from sqtool.progress import SILENT

KEY = "SQTOOL_TEST_KEY"
Replies = dict[str, tuple[int, Any]]


@pytest.fixture
def serving() -> Iterator[Callable[[Replies], str]]:
    """The address of a server that answers GET requests by path; others get a 404."""
    servers = []

    def start(replies: Replies) -> str:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                return

            def do_GET(self) -> None:
                status, body = replies.get(self.path, (404, {}))
                if status == 200 and self.headers["Authorization"] not in ("Bearer right", "Bearer none"):
                    status = 401
                data = (body if isinstance(body, str) else json.dumps(body)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def spec(url: str, model: str = "llama", key: str | None = None) -> EngineSpec:
    return EngineSpec(kind="openai", base_url=url, model=model, api_key_env=key)


MODELS = {"data": [{"id": "llama", "owned_by": "vllm", "root": "/models/llama", "max_model_len": 4096, "created": 1}]}


def test_facts(serving: Callable[[Replies], str], tmp_path: Path) -> None:
    url = serving({"/v1/models": (200, MODELS), "/version": (200, {"version": "0.32.0"})})
    with OpenAiEngine(spec(url), model=tmp_path, out=tmp_path, root=tmp_path, progress=SILENT) as engine:
        facts = engine.facts()
        assert engine.endpoint is not None
        assert not engine.endpoint.vllm, "its further parameters are not ours to send"
    assert (facts["engine"], facts["version"], facts["device_class"]) == ("openai", "0.32.0", "unknown")
    assert facts["device"] == f"llama at {url}"
    root = f"llama (path {sha256_text('/models/llama')[:12]})"
    assert facts["served"] == {"owned_by": "vllm", "root": root, "max_model_len": 4096}
    bare = serving({"/v1/models": (200, MODELS)})
    with OpenAiEngine(spec(bare), model=tmp_path, out=tmp_path, root=tmp_path, progress=SILENT) as engine:
        assert engine.facts()["version"] == "unknown"


@pytest.mark.parametrize(
    ("replies", "told"),
    [
        ({"/v1/models": (200, {"data": [{"id": "lama"}]})}, "does not serve 'llama'; did you mean 'lama'"),
        ({"/v1/models": (200, {"data": []})}, "it lists none"),
        ({"/v1/models": (200, [])}, "it lists none"),
        ({"/v1/models": (200, "<html>")}, "no OpenAI-compatible server"),
        ({"/v1/models": (500, {})}, "status 500"),
        ({}, "status 404"),
    ],
)
def test_what_is_not_a_server_of_this_model(
    serving: Callable[[Replies], str], tmp_path: Path, replies: Replies, told: str
) -> None:
    with pytest.raises(EngineError, match=told) as caught:
        OpenAiEngine.check(spec(serving(replies)), tmp_path)
    assert caught.value.remedy


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no OpenAI-compatible server answers"):
        OpenAiEngine.check(spec("http://127.0.0.1:9"), tmp_path)


def test_the_key_comes_from_the_environment(
    serving: Callable[[Replies], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serving({"/v1/models": (200, MODELS)})
    monkeypatch.delenv(KEY, raising=False)
    with pytest.raises(UsageError, match=f"{KEY}, which is not set"):
        OpenAiEngine.check(spec(url, key=KEY), tmp_path)
    monkeypatch.setenv(KEY, "wrong")
    with pytest.raises(EngineError, match="status 401") as caught:
        OpenAiEngine.check(spec(url, key=KEY), tmp_path)
    assert "api_key_env" in caught.value.remedy
    monkeypatch.setenv(KEY, "right")
    OpenAiEngine.check(spec(url, key=KEY), tmp_path)
    assert "right" not in json.dumps(spec(url, key=KEY).model_dump(mode="json"))


def test_the_only_model(serving: Callable[[Replies], str]) -> None:
    assert only_model(spec(serving({"/v1/models": (200, MODELS)}), "?"), "--baseline-name") == "llama"
    several = serving({"/v1/models": (200, {"data": [{"id": "b"}, {"id": "a"}]})})
    with pytest.raises(UsageError, match="but a, b") as caught:
        only_model(spec(several, "?"), "--baseline-name")
    assert "--baseline-name" in caught.value.remedy


def test_a_redirect_does_not_carry_the_key_away(serving: Callable[[Replies], str]) -> None:
    from evals.engines.openai import opener

    elsewhere = serving({"/v1/models": (200, MODELS)})
    asked = opener()
    redirects = [one for one in asked.handlers if type(one).__name__ == "_Stay"]
    assert redirects
    assert redirects[0].redirect_request(None, None, 302, "", {}, f"{elsewhere}/v1/models") is None  # type: ignore[attr-defined]
