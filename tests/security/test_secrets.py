"""Planted secrets: whatever happens, none of them is in the run folder, on the screen or in what children see."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evals.engine_env import locate, server_environment
from evals.server import VllmServer
from evals.spec import EngineSpec
from quantize.backends.external import _environment
from sqtool.cli.options import Settings
from sqtool.cli.terminal import Terminal, show_unexpected
from sqtool.errors import DataError, EngineError, Problem, RecipeError
from sqtool.hygiene import is_secret, redact, without_secrets
from sqtool.pipeline import run
from sqtool.stages.contract import Inputs, StageResult
from tests.pipeline.fakes import STAGES, FakeSpec, make, make_job

PLANTED = {
    "HF_TOKEN": "planted-hf-0123456789",
    "OPENAI_API_KEY": "planted-openai-0123456789",
    "AWS_SECRET_ACCESS_KEY": "planted+aws/0123456789",
    "MY_SERVICE_PASSWORD": "planted-pass-0123456789",
    "GITHUB_TOKEN": "planted-gh-0123456789",
    "VLLM_S3_SECRET_KEY": "planted-vllm-0123456789",
}
FORMS = (
    "hf_abcdefghijklmnopqrstuvwxyz", "sk-proj-abcdefghijklmnopqrstuvwxyz", "ghp_abcdefghijklmnopqrstuvwxyz0123",
    "AKIAABCDEFGHIJKLMNOP", "Bearer abcdefghijklmnop", "https://user:hunter2@host/x",
    "https://bucket/x?X-Amz-Credential=abcdef12&X-Amz-Signature=abcdef12", "https://acc.blob/x?sv=2024&sig=abcdef12%3D",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghij",
)  # fmt: skip
SECRETS = ("0123456789", "abcdef", "ABCDEF", "hunter2")


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> str:
    """The secrets in the environment, and a text that has them all."""
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    return " ".join((*PLANTED.values(), *FORMS))


def _clean(text: str) -> bool:
    return not any(secret in text for secret in SECRETS)


def _found(folder: Path) -> list[str]:
    """Files below `folder` with a secret in their name or content."""
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and not _clean(path.name + path.read_bytes().decode(errors="replace"))
    ]


@pytest.mark.parametrize("text", FORMS)
def test_known_forms_are_taken_out(text: str) -> None:
    assert _clean(redact(f"before {text} behind"))
    assert redact(f"before {text} behind").startswith("before ")
    assert redact(f"before {text} behind").endswith(" behind")


def test_ordinary_texts_stay() -> None:
    text = "vllm 0.32.0+cpu https://host:8000/v1?x=1 sha256 3f2a sk-1 max_tokens=5 user@host tokens: 12 Bearer of"
    assert redact(text) == text
    assert [
        n for n in ("TOKENIZERS_PARALLELISM", "MAX_TOKENS", "HF_TOKEN_PATH", "PATH", "KEYBOARD") if is_secret(n)
    ] == []


def test_errors_hold_none(planted: str) -> None:
    for error in (
        EngineError(planted, remedy=planted),
        DataError(planted, planted, field=planted, remedy=planted),
        RecipeError("x", [Problem("a", 1, planted, planted)]),
    ):
        assert _clean(f"{error} {error.message} {error.remedy}")
        assert _clean(str(getattr(error, "problems", "")))


@pytest.mark.parametrize("fail", ["note", "error", "bug", "prints"])
def test_a_run_folder_holds_none(
    planted: str, fail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A stage that says them in every way: to the progress, in an error, in a bug, on its own and a child's stdout."""
    before = make.run

    def leaking(spec: FakeSpec, inputs: Inputs, out: Path) -> StageResult:
        result = before(spec, inputs, out)
        if not out.name.startswith("quantize"):
            return result
        inputs.progress.note(planted)
        logging.getLogger("sqtool").warning("%s", planted)
        if fail == "error":
            raise EngineError(f"the server said {planted}", remedy=planted)
        if fail == "bug":
            raise RuntimeError(planted)
        if fail == "prints":
            os.write(1, planted.encode())
            subprocess.run([sys.executable, "-c", "import sys; print(sys.argv[1])", planted], check=True)
        return result

    monkeypatch.setattr(make, "run", leaking)
    job = make_job(tmp_path)
    log = tmp_path / "artifacts/runs/run/run.log"
    with Terminal(Settings(log_file=tmp_path / "own.log")) as terminal, terminal.captured(log):
        outcome = run(job, stages=STAGES, progress=terminal.progress)
    assert outcome.exit_code == (4 if fail in ("error", "bug") else 0)
    assert _found(tmp_path) == []
    said = capfd.readouterr()
    assert _clean(said.out + said.err)
    assert "[HF_TOKEN]" in log.read_text(), "what was taken out is named"


def test_an_unexpected_error_writes_none(
    planted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    show_unexpected(RuntimeError(planted))
    assert _clean(capsys.readouterr().err)
    assert len(list(tmp_path.iterdir())) == 1
    assert _found(tmp_path) == []


def test_children_see_none(planted: str, fake_env: Path) -> None:
    assert planted
    server = server_environment(locate(fake_env), EngineSpec(), "the-servers-own-key")
    assert server.pop("VLLM_API_KEY") == "the-servers-own-key"
    for environment in (server, _environment("autoawq"), without_secrets({**PLANTED, "PATH": "x"})):
        assert "PATH" in environment
        assert _clean(" ".join(environment.values()))


def test_facts_and_log_of_a_server_hold_none(planted: str, fake_model: Path, fake_env: Path, tmp_path: Path) -> None:
    assert planted
    with VllmServer(
        fake_model, EngineSpec(startup_timeout=60), log=tmp_path / "vllm.log", python_env=fake_env
    ) as server:
        facts = str(server.facts())
    assert _clean(facts)
    assert server.api_key not in facts
    assert server.api_key not in (tmp_path / "vllm.log").read_text()
    assert _found(tmp_path) == []
