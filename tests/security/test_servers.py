"""The servers that sqtool starts: reachable from this machine alone, and only with a key that is nowhere to be read."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from evals.server import VllmServer
from evals.spec import EngineSpec

SPEC = EngineSpec(startup_timeout=60)


def _below(server: VllmServer) -> list[psutil.Process]:
    assert server._process is not None
    guard = psutil.Process(server._process.pid)
    return [guard, *guard.children(recursive=True)]


def test_loopback_and_a_key_that_ps_does_not_show(fake_model: Path, fake_env: Path, tmp_path: Path) -> None:
    with VllmServer(fake_model, SPEC, log=tmp_path / "vllm.log", python_env=fake_env) as server:
        processes = _below(server)
        lines = [process.cmdline() for process in processes]
        served = next(line for line in lines if "serve" in line)
        assert served[served.index("--host") + 1] == "127.0.0.1"
        assert served.count("--host") == 1
        assert all(server.api_key not in word for line in lines for word in line)
        keyed = [p for p in processes if p.environ().get("VLLM_API_KEY") == server.api_key]
        assert keyed, "the key comes through the environment"
        listening = [c for p in processes for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(server.base_url + "/v1/models", timeout=10)
        assert caught.value.code == 401


def test_each_server_has_a_key_of_its_own(fake_model: Path, fake_env: Path, tmp_path: Path) -> None:
    made = [VllmServer(fake_model, SPEC, log=tmp_path / "x.log", python_env=fake_env).api_key for _ in range(20)]
    assert len(set(made)) == 20
    assert min(map(len, made)) >= 32
