"""The recipe's evaluate and engine sections."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

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


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"top_p": 0.5}, "top_p has no meaning with temperature 0"),
        ({"top_k": 5}, "top_k has no meaning"),
        ({"samples": 2}, "samples has no meaning with temperature 0"),
        ({"as_served": True, "temperature": 0.5}, "so temperature cannot be given"),
        ({"as_served": True, "top_p": 0.5}, "so top_p cannot be given"),
        ({"as_served": True, "seed": 1}, "so seed cannot be given"),
        ({"as_served": True, "repetition_penalty": 1.1}, "so repetition_penalty cannot be given"),
        ("geedy", "generation"),
    ],
)
def test_generation_that_contradicts_itself(given: Any, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        EvaluateSpec.model_validate({"generation": given})


def test_generation_by_name() -> None:
    assert EvaluateSpec.model_validate({"generation": "greedy"}) == EvaluateSpec()
    served = EvaluateSpec.model_validate({"generation": "as_served"})
    assert served.generation.as_served
    assert not served.generation.greedy
    assert EvaluateSpec.model_validate(served.model_dump(mode="json")) == served


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"kind": "hf", "max_num_seqs": 3}, "max_num_seqs is a key of kind vllm; kind hf knows kind, device"),
        ({"kind": "hf", "extra_args": ["--x"]}, "extra_args is a key of kind vllm"),
        ({"batch_size": 3}, "batch_size is a key of kind hf"),
        ({"base_url": "http://a"}, "base_url is a key of kind openai"),
        ({"kind": "openai", "device": "cpu", "base_url": "http://a", "model": "m"}, "a key of kind vllm and hf"),
        ({"kind": "openai", "base_url": "http://a"}, "needs base_url and model"),
        ({"kind": "openai", "base_url": "a:8000", "model": "m"}, "expected an address such as"),
        ({"kind": "openai", "base_url": "http://me:secret@a", "model": "m"}, "use api_key_env"),
        ({"kind": "openai", "base_url": "http://a?key=1", "model": "m"}, "use api_key_env"),
        ({"kind": "openai", "base_url": "http://a", "model": "m", "api_key_env": "sk-123 4"}, "api_key_env"),
        ({"kind": "hf", "tool_call_parser": "llama3_json"}, "hermes tool calls only"),
        ({"kind": "llama.cpp"}, "kind"),
    ],
)
def test_keys_of_another_kind(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        EngineSpec.model_validate(given)


def test_a_section_keeps_only_what_its_kind_knows() -> None:
    remote = EngineSpec.model_validate(
        {"kind": "openai", "base_url": "http://a:1/v1/", "model": "m", "candidate_model": "n", "api_key_env": "KEY"}
    )
    assert remote.base_url == "http://a:1"
    for spec in (remote, EngineSpec(), EngineSpec(kind="hf", batch_size=2)):
        kept = spec.model_dump(mode="json")
        assert tuple(kept) == tuple(name for name in type(spec).model_fields if name in spec.keys_of(spec.kind))
        assert EngineSpec.model_validate(kept) == spec
    assert "max_num_seqs" not in remote.model_dump()
    baseline, candidate = remote.of_side("baseline"), remote.of_side("candidate")
    assert (baseline.base_url, baseline.model) == ("http://a:1", "m")
    assert (candidate.base_url, candidate.model) == ("http://a:1", "n")
    assert baseline.candidate_model is candidate.candidate_model is None
    assert EngineSpec().of_side("candidate") == EngineSpec()


def test_spec_imports_nothing_heavy() -> None:
    code = (
        "import sys, evals.spec, evals.server, evals.run, evals.drift, evals.tasks\n"
        "heavy = {'torch', 'transformers', 'httpx', 'jsonschema', 'safetensors', 'psutil'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
