"""The passes after the traffic: cut-off streams, memory, and the order of turns."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.engine_env import VllmEnv
from evals.spec import EngineSpec
from sqtool.errors import UsageError
from sqtool.speculate.arms import Arm
from sqtool.speculate.counters import Counters, parse
from sqtool.speculate.loads import Load
from sqtool.speculate.memory import memory, rss_peak
from sqtool.speculate.probe import probe
from sqtool.speculate.schedule import interleaving, needed_bytes, schedule
from sqtool.speculate.session import Session
from sqtool.speculate.spec import CancellationSpec, SpeculateSpec
from sqtool.speculate.store import ArmFiles
from sqtool.speculate.traffic import Request, Traffic

CPU, GPU = (VllmEnv(Path(), Path(), device, "0.32.0") for device in ("cpu", "cuda"))  # type: ignore[arg-type]


def session(server: Any, folder: Path, words: int = 6) -> Session:
    texts = [f"{n} " * words for n in range(12)]
    requests = tuple(
        Request(f"q{n}", "k", {"messages": [{"role": "user", "content": text}], "max_tokens": 9})
        for n, text in enumerate(texts)
    )
    traffic = Traffic((), (requests,), single_kind_blocks=False)
    return Session("both", server, SpeculateSpec(max_concurrency=(4,)), traffic, ArmFiles(folder, "both"), 0)


def test_cut_off_streams(fake: Any, tmp_path: Path) -> None:
    with fake(tmp_path, None, log=tmp_path / "log") as server:
        found = probe(session(server, tmp_path), CancellationSpec(share=0.25, requests=12))
    assert (found["sent"], found["cancelled"]) == (12, 3)
    assert found["retries"] == {"retried": 3, "answered": 3, "same_answer": 3}
    assert found["running_after_s"][-1][1] == 0
    assert found["kv_usage_before"] == found["kv_usage_after"] == 0
    assert found["e2e_p50_after"] > 0
    assert found["missing"] == {}
    assert len(server.bodies) == 3 * 12 + 3
    assert len({body["cache_salt"] for body in server.bodies}) == 4  # no pass finds the prompts of another


def test_streams_too_short_to_cut(fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_piece(self: Any, body: dict[str, Any]) -> Any:
        delta = {"role": "assistant", "content": "all at once"}
        yield {"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": "stop"}]}
        yield {"id": "x", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}

    monkeypatch.setattr(fake, "chunks", one_piece)
    with fake(tmp_path, None, log=tmp_path / "log") as server:
        found = probe(session(server, tmp_path), CancellationSpec(share=0.5, requests=4))
    assert found["cancelled"] == 0
    assert "had ended before" in found["missing"]["cancelled"]


def test_a_server_that_keeps_what_was_cut_off(fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqtool.speculate.probe.PATIENCE", 0.2)
    monkeypatch.setattr("sqtool.speculate.counters.SETTLE_SECONDS", 0.1)
    with fake(tmp_path, None, log=tmp_path / "log") as server:
        asked = session(server, tmp_path)
        whole = asked.send

        def leaking(*args: Any, **kwargs: Any) -> Any:
            answers = whole(*args, **kwargs)
            server.running += bool(kwargs.get("cut"))
            return answers

        monkeypatch.setattr(asked, "send", leaking)
        found = probe(asked, CancellationSpec(share=0.25, requests=12))
    assert found["running_after_s"][-1][1] == 1
    assert found["kv_usage_after"] > found["kv_usage_before"]


def arm(folder: Path, **engine: Any) -> Arm:
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_bytes(bytes(1000))
    return Arm("baseline", "baseline", folder, EngineSpec.model_validate(engine))


def test_memory_from_log_flags_and_processes(tmp_path: Path) -> None:
    log = "INFO CPU KV cache size: 65,536 tokens, Maximum concurrency"
    flags = ["--kv-cache-memory-bytes", "536870912"]
    found = memory(arm(tmp_path), log=log, flags=flags, counters=Counters(None, {}, 0.0), pid=os.getpid(), device="cpu")
    assert found["kv_cache_tokens"] == 65536
    assert found["kv_cache_bytes"] == 536870912
    assert found["weights_bytes"] == 1000
    assert found["rss_peak_bytes"] > 10_000_000
    assert list(found["missing"]) == ["draft_bytes"]


def test_memory_that_nobody_reports(tmp_path: Path) -> None:
    found = memory(arm(tmp_path), log="", flags=[], counters=Counters(None, {}, 0.0), pid=None, device="cpu")
    assert set(found["missing"]) == {"draft_bytes", "kv_cache_tokens", "kv_cache_bytes", "rss_peak_bytes"}
    said = parse(
        '# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{num_gpu_blocks="10",block_size="16"} 1.0\n'
    )
    log = "Available KV cache memory: 1.50 GiB"
    found = memory(arm(tmp_path), log=log, flags=[], counters=said, pid=None, device="cpu")
    assert (found["kv_cache_tokens"], found["kv_cache_bytes"]) == (160, 3 << 29)


def test_the_peak_of_no_process() -> None:
    assert rss_peak(None) is None
    assert rss_peak(2**22 + 1) is None  # above the kernel's largest process id


def load(name: str, blocks: int) -> Load:
    return Load(name, "closed", tuple((Request(f"{name}{n}", "k", {}),) for n in range(blocks)), concurrency=1)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99), st.booleans())
def test_every_arm_has_every_block_once(arms: int, loads: int, rounds: int, seed: int, interleaved: bool) -> None:
    names = [f"arm{n}" for n in range(arms)]
    given = [load(f"c{n}", n + 1) for n in range(loads)]
    turns = schedule(names, given, rounds, seed, interleaved=interleaved)
    assert turns == schedule(names, given, rounds, seed, interleaved=interleaved)
    assert len(set(turns)) == len(turns) == arms * rounds * sum(range(1, loads + 1))
    chunk = arms if interleaved else len(turns) // arms
    for at in range(0, len(turns), chunk):
        part = turns[at : at + chunk]
        assert len({turn.slot for turn in part} if interleaved else {turn.arm for turn in part}) == 1


def test_what_a_server_takes(tmp_path: Path) -> None:
    assert needed_bytes(arm(tmp_path), GPU) is None  # a GPU's cache is whatever is left
    gpu = needed_bytes(arm(tmp_path, kv_cache_memory_bytes=1 << 30), GPU)
    cpu = needed_bytes(arm(tmp_path, kv_cache_memory_bytes=1 << 30), CPU)
    assert gpu is not None
    assert cpu is not None
    assert gpu > cpu > 1 << 30


def test_a_gpu_without_a_known_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = [arm(tmp_path)]
    monkeypatch.setattr("sqtool.speculate.schedule.free_bytes", lambda env: 1 << 40)
    assert interleaving(SpeculateSpec(), arms, GPU) == (
        False,
        "engine.kv_cache_memory_bytes is not given, so what 1 servers take is not known",
    )
    with pytest.raises(UsageError, match="interleave is always") as caught:
        interleaving(SpeculateSpec(interleave="always"), arms, GPU)
    assert "engine.kv_cache_memory_bytes" in caught.value.remedy
    assert interleaving(SpeculateSpec(interleave="never"), arms, CPU)[0] is False
