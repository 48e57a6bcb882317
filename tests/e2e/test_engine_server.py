"""The real vLLM: it starts, parses tool calls, is measured, dies, and never outlives us."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from evals.engines.vllm import VllmEngine
from evals.run import run_task
from evals.server import VllmServer
from evals.spec import EngineSpec, EvaluateSpec
from evals.tasks import load_task
from sqtool.errors import EngineError
from sqtool.progress import SILENT
from tests.unit.evals.tiny import save_model

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "artifacts" / "reference" / "target"
SPEC = EvaluateSpec(tasks=("tool_calls",), limit=48, concurrency=16, retries=1)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    out = tmp_path_factory.mktemp("server")
    with VllmEngine(EngineSpec(), model=REFERENCE, out=out, root=ROOT, progress=SILENT) as running:
        yield running


def test_the_reference_model_calls_tools_through_the_servers_parser(engine: VllmEngine, tmp_path: Path) -> None:
    task = load_task("tool_calls", ROOT, SPEC)
    summary, _ = run_task(task, engine, SPEC, key="k", out=tmp_path)
    # Far below what the model reaches (see docs/benchmarks.md), far above what a broken template or parser gives.
    assert summary["metrics"]["schema_valid"] > 0.8
    assert summary["metrics"]["call_match"] > 0.6
    assert summary["n"] == 48
    assert summary["tokens"]["completion"] > 48


def test_the_raw_text_path_agrees_with_the_servers_parser(engine: VllmEngine, tmp_path: Path) -> None:
    """The same items with `tool_choice: none`: the tools are in the prompt, the calls stay in the text, and the scorer
    reads them there. What the two paths say differently would be the server's parser's doing."""
    text = (ROOT / "evals/tasks/tool_calls.yaml").read_text(encoding="utf-8")
    raw = text.replace("task: tool_calls", "task: raw").replace(
        "scorer: tool_calls", "scorer: {name: tool_calls, options: {parser: text}}\ntool_choice: none"
    )
    (tmp_path / "raw.yaml").write_text(raw, encoding="utf-8")
    seen = {}
    for name in ("tool_calls", str(tmp_path / "raw.yaml")):
        task = load_task(name, ROOT, SPEC)
        summary, _ = run_task(task, engine, SPEC, key="k", out=tmp_path)
        rows = [json.loads(line) for line in (tmp_path / "records" / f"{task.name}.jsonl").read_text().splitlines()]
        seen[task.name] = rows
        assert "left_in_content" not in summary["failures"]
    parsed, raw_rows = seen["tool_calls"], seen["raw"]
    assert all(not row["output"]["tool_calls"] for row in raw_rows)
    assert any("<tool_call>" in row["output"]["text"] for row in raw_rows)
    assert any(row["output"]["tool_calls"] for row in parsed)
    assert [row["scores"]["call_match"] for row in parsed] == [row["scores"]["call_match"] for row in raw_rows]
    assert all(row["scores"]["finish_reason_ok"] == 1 for row in parsed)
    assert all("finish_reason_ok" not in row["scores"] for row in raw_rows)


def test_the_sweep_by_number_of_tools_fits_the_model(engine: VllmEngine, tmp_path: Path) -> None:
    task = load_task("tool_count", ROOT, SPEC)
    summary, _ = run_task(task, engine, SPEC, key="k", out=tmp_path)
    counts = summary["slices"]["n_tools"]
    assert set(counts) == {"1", "2", "4", "8", "16"}
    assert counts["1"]["metrics"]["call_match"] > 0.7


def test_the_facts_name_what_was_measured(engine: VllmEngine) -> None:
    facts = engine.facts()
    assert facts["engine"] == "vllm"
    assert facts["version"][0].isdigit()
    assert facts["device_class"] in ("cpu", "cuda")
    assert facts["dtype"] in ("bfloat16", "float16", "float32")
    assert facts["kv_cache_dtype"] == "auto"
    assert "--tool-call-parser" in facts["flags"]
    assert facts["start_seconds"] > 0


def test_an_engine_that_dies_in_mid_task_scores_nothing(engine: VllmEngine, tmp_path: Path) -> None:
    """Last of the module's server, since it kills it."""
    guard = psutil.Process(engine.server._process.pid)  # type: ignore[union-attr]
    tree = guard.children(recursive=True)
    # The API server is the guard's child; what it started computes. Killing that is what running out of memory does.
    cores = [process for process in tree if process.ppid() != guard.pid]
    assert cores

    class KillAfter:
        """A progress bar that kills the engine at the tenth answer."""

        answers = 0

        def __enter__(self) -> KillAfter:
            return self

        def __exit__(self, *_: object) -> None:
            return

        def task(self, description: str, total: float | None = None) -> KillAfter:
            return self

        def describe(self, text: str) -> None:
            return

        def note(self, text: str) -> None:
            return

        def advance(self, n: float = 1) -> None:
            self.answers += int(n)
            if self.answers == 10:
                for process in cores:
                    process.kill()

    task = load_task("tool_calls", ROOT, SPEC)
    with pytest.raises(EngineError) as caught:
        run_task(task, engine, SPEC, key="k", out=tmp_path, progress=KillAfter())
    assert caught.value.remedy
    assert not (tmp_path / "records" / "tool_calls.jsonl").exists()
    assert len((tmp_path / "records" / "tool_calls.jsonl.part").read_text().splitlines()) >= 10


def test_kill_9_of_the_parent_leaves_no_vllm(tmp_path: Path) -> None:
    model = save_model(tmp_path / "tiny")
    code = (
        "import sys, signal\nfrom pathlib import Path\nfrom evals.server import VllmServer\n"
        "from evals.spec import EngineSpec\n"
        "model, root, log = map(Path, sys.argv[1:])\n"
        "with VllmServer(model, EngineSpec(), log=log, root=root):\n"
        "    print('up', flush=True)\n    signal.pause()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(model), str(ROOT), str(tmp_path / "vllm.log")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "up\n"
    below = psutil.Process(parent.pid).children(recursive=True)
    assert len(below) >= 3, "guard, API server and engine"
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs(below, timeout=30)
    assert not alive


def test_weights_that_do_not_load(tmp_path: Path) -> None:
    model = save_model(tmp_path / "tiny")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    log = tmp_path / "vllm.log"
    with pytest.raises(EngineError) as caught, VllmServer(model, EngineSpec(), log=log, root=ROOT):
        pass
    assert "the checkpoint's weights do not load" in caught.value.message
    assert "SafetensorError" in caught.value.message
    assert str(log) in caught.value.remedy


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    model = save_model(tmp_path / "tiny")
    config = (model / "config.json").read_text().replace('"model_type": "llama"', '"model_type": "no_such_type"')
    (model / "config.json").write_text(config)
    with pytest.raises(EngineError) as caught, VllmServer(model, EngineSpec(), log=tmp_path / "log", root=ROOT):
        pass
    assert "no_such_type" in caught.value.message
    assert "Hugging Face folder" in caught.value.remedy
    shutil.rmtree(model)
    with pytest.raises(EngineError, match=r"config\.json"), VllmServer(model, EngineSpec(), log=tmp_path / "log"):
        pass
