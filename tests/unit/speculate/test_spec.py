"""What a recipe's speculate section accepts."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sqtool.speculate.spec import DraftSpec, SpeculateSpec, speculative_config


def section(**keys: Any) -> SpeculateSpec:
    return SpeculateSpec.model_validate(keys)


def test_speculative_config() -> None:
    assert speculative_config(section().drafting(), "/d") == {
        "method": "draft_model",
        "num_speculative_tokens": 4,
        "model": "/d",
    }
    spec = section(method="ngram", num_speculative_tokens=3, prompt_lookup_max=4)
    config = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}
    assert speculative_config(spec.drafting(), None) == config


def test_an_arm_changes_what_it_names() -> None:
    spec = section(model="small", num_speculative_tokens=5)
    assert spec.drafting(DraftSpec(num_speculative_tokens=2)).model == "small"
    other = spec.drafting(DraftSpec(method="ngram", prompt_lookup_max=3))
    assert (other.method, other.model, other.num_speculative_tokens) == ("ngram", None, 5)


def test_one_number_or_several() -> None:
    assert section(max_concurrency=8).max_concurrency == (8,)
    assert section(concurrency=8).max_concurrency == (8,)  # the old name
    assert section(request_rate=2.5).request_rate == (2.5,)
    assert section(max_concurrency=[1, 8], request_rate=[1, 2]).request_rate == (1.0, 2.0)


def test_a_section_survives_its_own_json() -> None:
    spec = section(
        arms={"kv": {"target": "baseline", "engine": {"kv_cache_dtype": "fp8"}}}, sweep={"num_speculative_tokens": [2]}
    )
    assert SpeculateSpec.model_validate(spec.model_dump(mode="json")) == spec


ARM = {"target": "baseline"}
AT = {"url": "http://host:8000/v1", "model": "m"}


def test_an_arm_may_be_a_server_that_runs_already() -> None:
    arms = {name: {**AT, "model": name} for name in ("baseline", "quantized", "speculative", "both")}
    spec = section(arms={**arms, "other": {**AT, **ARM, "speculative": {"method": "ngram"}, "api_key_env": "KEY"}})
    assert spec.arms["both"].target == "quantized"
    assert spec.arms["both"].speculative is True
    assert spec.arms["baseline"].speculative is False
    assert spec.arms["other"].url == "http://host:8000"
    assert spec.elsewhere("baseline_again") == spec.arms["baseline"]
    assert spec.elsewhere("both_k2") is None
    assert SpeculateSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_a_secret_in_an_address_is_not_repeated() -> None:
    for url in ("http://me:hunter2@host/v1", "me:hunter2@host", "http://host/v1?key=hunter2", "http://host/#hunter2"):
        with pytest.raises(ValidationError, match="use api_key_env") as caught:
            section(arms={"a": {**ARM, **AT, "url": url}})
        assert "hunter2" not in str(caught.value.errors()[0]["msg"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"method": "medusa"}, "draft_model"),
        ({"num_speculative_tokens": 0}, "greater than or equal to 1"),
        ({"prompt_lookup_max": 4}, "need method: ngram"),
        ({"method": "ngram", "prompt_lookup_min": 5, "prompt_lookup_max": 2}, "greater than prompt_lookup_max"),
        ({"method": "ngram", "model": "x"}, "drafts from the prompt and has no model"),
        ({"drafts": 3}, "Extra inputs"),
        ({"concurrency": 2, "max_concurrency": 3}, "the old name of max_concurrency; give one of the two"),
        ({"max_concurrency": [4, 4]}, "the same load is named twice"),
        ({"max_concurrency": 0}, "greater than or equal to 1"),
        ({"max_concurrency": []}, "there is no load: give max_concurrency, request_rate or trace: true"),
        ({"burstiness": 2}, "only with request_rate"),
        ({"traffic": "tasks", "trace": True}, "have no arrival times"),
        ({"requests": 4, "sampling": {"requests": 5}}, "sampling.requests is above requests, which is 4"),
        ({"arms": {"both": ARM}}, "both is the name of an arm that sqtool makes itself"),
        ({"arms": {"both_k7": ARM}}, "that sqtool makes itself"),
        ({"arms": {"a/b": ARM}}, "cannot be an arm's name"),
        ({"arms": {"a": {**ARM, "engine": {"kv_cache_dtyp": "fp8"}}}}, "did you mean 'kv_cache_dtype'"),
        ({"arms": {"a": {**ARM, "engine": {"device": "cuda"}}}}, "device cannot differ between arms"),
        ({"arms": {"a": {**ARM, "engine": {"max_num_seqs": 0}}}}, "max_num_seqs: Input should be greater than 0"),
        ({"arms": {"a": {**ARM, "engine": {"extra_args": ["--port", "1"]}}}}, "--port is set by sqtool itself"),
        (
            {"arms": {"a": {**ARM, "speculative": {"prompt_lookup_max": 2}}}},
            "arms.a.speculative: prompt_lookup_min and prompt_lookup_max need method: ngram",
        ),
        ({"arms": {"both": AT | {"model": ""}}}, "url needs model"),
        ({"arms": {"a": {**ARM, "url": "http://h"}}}, "url needs model"),
        ({"arms": {"a": {**ARM, "url": "gpu-1:8000", "model": "m"}}}, "expected an address such as"),
        ({"arms": {"a": {**ARM, "url": "http://h:port", "model": "m"}}}, "expected an address such as"),
        ({"arms": {"a": {**ARM, "model": "m"}}}, "model is of a server that runs already; give its url too"),
        ({"arms": {"a": {**ARM, "api_key_env": "KEY"}}}, "api_key_env is of a server that runs already"),
        ({"arms": {"a": {**ARM, **AT, "api_key_env": "a-b"}}}, "should match pattern"),
        ({"arms": {"a": {**ARM, **AT, "engine": {"dtype": "float16"}}}}, "engine changes nothing"),
        ({"arms": {"quantised": AT}}, "it is none of the four arms; did you mean 'quantized'"),
        ({"arms": {"mine": AT}}, "Field required"),
        ({"arms": {"both": {**AT, "target": "baseline"}}}, "this arm has target quantized and drafts as the section"),
        ({"arms": {"baseline": {**AT, "speculative": True}}}, "target baseline and does not speculate"),
        ({"arms": {"both": AT, "quantized": AT}}, "arms.quantized and arms.both are one server and one model"),
        ({"arms": {"baseline_again": {**AT, **ARM}}}, "baseline_again is the name of an arm that sqtool makes itself"),
        ({"cancellation": {"share": 1.0}}, "less than 1"),
        ({"rules": {"max_p99": 2}}, "Extra inputs"),
    ],
)
def test_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SpeculateSpec.model_validate(keys)
