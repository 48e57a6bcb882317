"""What shapes a server's answers beside the keys of the section: files and variables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.engine_inputs import named_files, shaping, variables
from evals.engines import conditions, engine_class
from evals.server import VllmServer
from evals.spec import EngineSpec


@pytest.mark.parametrize(
    "words",
    [
        ["--chat-template", "templates/tools.jinja"],
        ["--chat-template=templates/tools.jinja"],
        ["--lora-modules", "name=templates/tools.jinja"],
        ["--lora-modules", json.dumps({"name": "n", "paths": ["templates/tools.jinja"]})],
        ["--tokenizer", "templates"],
    ],
)
def test_files_in_extra_args(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    (tmp_path / "templates").mkdir()
    template = tmp_path / "templates" / "tools.jinja"
    template.write_text("{{ messages }}")
    (tmp_path / "templates" / ".hidden").touch()
    spec = EngineSpec(extra_args=tuple(words))
    assert named_files(spec, tmp_path) == [template]
    monkeypatch.chdir(tmp_path)
    assert named_files(spec, tmp_path / "elsewhere") == [template], "the server looks from the working folder"


def test_a_folder_of_generation_config(tmp_path: Path) -> None:
    (tmp_path / "drawn").mkdir()
    file = tmp_path / "drawn" / "generation_config.json"
    file.write_text("{}")
    assert named_files(EngineSpec(generation_config="drawn"), tmp_path) == [file]
    assert named_files(EngineSpec(generation_config=str(tmp_path / "drawn")), tmp_path) == [file]


def test_words_that_are_no_files(tmp_path: Path) -> None:
    words = ("--chat-template", "{% for m in messages %}" + "x" * 5000, "--seed-of", "1", "--a", "null\0", "--b={[")
    assert named_files(EngineSpec(extra_args=words), tmp_path) == []
    assert named_files(EngineSpec(kind="hf"), tmp_path) == []


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "VLLM_API_KEY": "secret",
        "VLLM_S3_SECRET_KEY": "secret",
        "VLLM_LOGGING_LEVEL": "DEBUG",
        "VLLM_USE_DEEP_GEMM": "0",
        "VLLM_TUNED_CONFIG_FOLDER": "/somewhere",
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "OTHER": "1",
    }
    counted = shaping(variables(EngineSpec(), found))
    path = counted.pop("VLLM_TUNED_CONFIG_FOLDER")
    assert path.startswith("[a path")
    assert "somewhere" not in path
    assert counted == {"VLLM_CPU_INT4_W4A8": "0", "VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_USE_DEEP_GEMM": "0"}
    assert "VLLM_LOGGING_LEVEL" in variables(EngineSpec(), found)
    assert "VLLM_CPU_KVCACHE_SPACE" not in variables(EngineSpec(kv_cache_memory_bytes=1), found), "the recipe's counts"
    assert "VLLM_CPU_INT4_W4A8" in variables(EngineSpec(), {}), "what sqtool itself sets"


def test_variables_and_versions_are_in_the_fingerprint(
    fake_env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = EngineSpec(env=str(fake_env))

    def told() -> str:
        return json.dumps(engine_class(spec).fingerprint(spec, tmp_path))

    monkeypatch.delenv("VLLM_USE_DEEP_GEMM", raising=False)
    before = told()
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    monkeypatch.setenv("VLLM_API_KEY", "planted-0123456789")
    assert told() == before
    monkeypatch.setenv("VLLM_USE_DEEP_GEMM", "0")
    assert told() != before
    monkeypatch.delenv("VLLM_USE_DEEP_GEMM")
    (fake_env / "lib" / "python3.11" / "site-packages" / "torch-2.9.0.dist-info").mkdir()
    assert told() != before


def test_sides_under_other_variables_are_not_alike(
    fake_env: Path, fake_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(**variables: str) -> dict[str, object]:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            spec = EngineSpec(startup_timeout=30)
            with VllmServer(fake_model, spec, log=tmp_path / "log", python_env=fake_env) as server:
                return conditions(server.facts())

    plain = measured()
    assert measured(VLLM_LOGGING_LEVEL="ERROR") == plain
    assert measured(VLLM_CPU_KVCACHE_SPACE="1") == plain, "its size is a key of the section, and no condition"
    other = measured(VLLM_USE_DEEP_GEMM="0")
    assert {name for name in plain if plain[name] != other[name]} == {"environment"}
    assert "VLLM_USE_DEEP_GEMM=0" in str(other["environment"])


def test_engines_without_variables_are_alike() -> None:
    assert conditions({"engine": "openai"}) == conditions({"engine": "openai", "environment": {}})
