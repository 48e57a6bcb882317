"""The recipe's evaluate and engine sections."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from evals.spec import EngineSpec, EvaluateSpec, GenerationSpec
from sqtool.spec import Spec


def test_defaults_are_greedy_and_complete() -> None:
    spec = EvaluateSpec()
    assert spec.generation.temperature == 0
    assert spec.tasks == ("tool_calls", "tasks", "recall")
    assert spec.drift is not None


def test_every_key_is_described() -> None:
    def walk(model: type[Spec]) -> None:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"

    for model in (EvaluateSpec, EngineSpec, GenerationSpec):
        walk(model)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--port", "1"], "--port is set by sqtool"),
        (["--api-key=x"], "--api-key is set by sqtool"),
        (["--max-model-len", "9"], "key `max_model_len`"),
        (["--enforce-eager"], "key `enforce_eager`"),
    ],
)
def test_extra_args_cannot_take_over(args: list[str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EngineSpec.model_validate({"extra_args": args})


def test_other_extra_args_pass() -> None:
    assert EngineSpec.model_validate({"extra_args": ["--swap-space", "1"]}).extra_args == ("--swap-space", "1")


def test_wrong_values() -> None:
    for bad in ({"tasks": []}, {"tasks": ["a", "a"]}, {"concurrency": 0}, {"generaton": {}}):
        with pytest.raises(ValidationError):
            EvaluateSpec.model_validate(bad)
    with pytest.raises(ValidationError, match="top_p"):
        GenerationSpec(top_p=0.5)


def test_spec_imports_nothing_heavy() -> None:
    code = (
        "import sys, evals.spec, evals.server, evals.run, evals.drift, evals.tasks\n"
        "heavy = {'torch', 'transformers', 'httpx', 'jsonschema', 'safetensors', 'psutil'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
