"""Lines of sqtool's format and of gateways become records; what is wrong is said with field and remedy."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqtool.errors import UsageError
from sqtool.rollout.formats import GATEWAY, FieldError, Reader, detect, parse_absent, parse_mapping
from sqtool.rollout.record import FIELDS, REQUIRED, Record, json_schema

LITELLM: dict[str, Any] = {
    "id": "chatcmpl-1",
    "trace_id": "t-1",
    "call_type": "acompletion",
    "status": "success",
    "startTime": 1790000000.25,
    "completionStartTime": 1790000000.5,
    "endTime": 1790000002.25,
    "prompt_tokens": 11,
    "completion_tokens": 7,
    "response_cost": 0.002,
    "end_user": "u1",
    "model": "w4a16",
    "metadata": {"requester_metadata": {"arm": "canary", "kind": "chat"}},
}


def test_sqtools_own_format() -> None:
    value = {"arm": "a", "timestamp": "2026-11-28T10:00:00Z", "cluster": 7, "corrected": True, "e2e_ms": 12}
    record = Reader("sqtool").record(value)
    assert record == Record("a", 1795860000.0, cluster="7", corrected=True, e2e_ms=12.0)
    jsonschema.validate(value, json_schema())


def test_every_field_has_a_schema_and_a_place_in_both_formats() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert list(schema["properties"]) == list(FIELDS) == list(Record.__dataclass_fields__)
    assert set(GATEWAY) == set(FIELDS)
    assert schema["required"] == list(REQUIRED)


def test_litellms_payload() -> None:
    record = Reader("gateway").record(LITELLM)
    assert (record.arm, record.kind, record.cluster, record.timestamp) == ("canary", "chat", "u1", 1790000000.25)
    assert (record.ttft_ms, record.e2e_ms) == (250.0, 2000.0)
    assert (record.prompt_tokens, record.output_tokens, record.price) == (11, 7, 0.002)
    assert (record.failed, record.cancelled, record.corrected) == (False, False, None)


def test_an_openai_request_and_response() -> None:
    value = {
        "request": {"user": "u", "metadata": {"arm": "a", "kind": "tools"}, "messages": []},
        "response": {"usage": {"prompt_tokens": 3, "completion_tokens": 4}, "status_code": 200},
        "timestamp": 1790000000000,
        "latency": 1.5,
        "feedback": {"corrected": 1, "accepted": "false"},
    }
    record = Reader("gateway").record(value)
    assert (record.arm, record.cluster, record.kind, record.timestamp) == ("a", "u", "tools", 1.79e9)
    assert (record.e2e_ms, record.output_tokens, record.corrected, record.accepted) == (1500.0, 4, True, False)


@pytest.mark.parametrize(
    ("extra", "failed", "cancelled"),
    [
        ({"status": "failure"}, True, False),
        ({"status_code": 499}, False, True),
        ({"status_code": "503"}, True, False),
        ({"status": "cancelled"}, False, True),
        ({"error": {"message": "x"}}, True, None),
        ({"status": "failure", "failed": False}, False, False),
        ({"error": None, "response": {"id": "x"}}, False, None),
        ({"usage": {"total_tokens": 0}}, False, None),
        ({"choices": [{"index": 0}]}, False, None),
        ({"end_time": 2}, False, None),
        ({"latency": 0.4}, False, None),
        ({"ttft_ms": 40}, False, None),
        ({"completion_tokens": 3}, False, None),
        ({"failed": True, "latency": 0.4}, True, None),
        ({"error": {"message": "x"}, "latency": 0.4}, True, None),
        ({"error_str": "timeout", "latency": 0.4}, True, None),
        ({"response": {"error": {"message": "x"}}}, True, None),
        ({"response": {"object": "error", "message": "x", "code": 500}}, True, None),
        ({"error": "", "status": "", "latency": 0.4}, False, None),
        ({"error": {}, "response": {}, "choices": [], "completion_tokens": 0}, None, None),
        ({"error": False}, None, None),
        ({}, None, None),
    ],
)
def test_a_gateways_status(extra: dict[str, Any], failed: bool | None, cancelled: bool | None) -> None:
    record = Reader("gateway").record({"timestamp": 1, "metadata": {"arm": "a"}, **extra})
    assert (record.failed, record.cancelled) == (failed, cancelled)


@pytest.mark.parametrize(
    ("extra", "cluster"),
    [
        ({"end_user": "", "user": "u"}, "u"),
        ({"end_user": "", "request": {"user": ""}, "metadata": {"user_id": "m"}}, "m"),
        ({"end_user": "", "metadata": {"user_api_key_end_user_id": "e", "user_api_key_user_id": "k"}}, "e"),
        ({"end_user": "", "metadata": {"user_api_key_end_user_id": "", "user_api_key_user_id": "k"}}, "k"),
        ({"metadata": {"user_api_key_user_id": "k", "session_id": "s"}}, "s"),
        ({"user": "default_user_id", "metadata": {"user_api_key_user_id": "default_user_id"}}, None),
        ({"trace_id": "t"}, None),
    ],
)
def test_the_user_is_the_first_one_that_is_said(extra: dict[str, Any], cluster: str | None) -> None:
    value = {"startTime": 1, "arm": "a", **extra}
    assert Reader("gateway").record(value).cluster == cluster


def test_an_empty_arm_is_looked_for_elsewhere_and_said() -> None:
    value = {"timestamp": 1, "arm": "", "kind": "chat", "metadata": {"arm": "b", "kind": ""}}
    record = Reader("gateway").record(value)
    assert (record.arm, record.kind) == ("b", "chat")
    with pytest.raises(FieldError, match="must not be empty") as error:
        Reader("gateway").record({"timestamp": 1, "arm": "", "metadata": {"arm": ""}})
    assert (error.value.field, "--field arm=PATH" in error.value.remedy) == ("arm", True)


def test_a_mapping_comes_first_and_only() -> None:
    reader = Reader("gateway", parse_mapping(["arm=model", "kind=metadata.requester_metadata.kind"]))
    assert (reader.record(LITELLM).arm, reader.record(LITELLM).kind) == ("w4a16", "chat")
    with pytest.raises(FieldError, match="nothing at 'modle'") as error:
        Reader("gateway", {"arm": "modle"}).record(LITELLM)
    assert error.value.field == "arm"
    assert Reader("sqtool", {"arm": "a.b"}).record({"a.b": "flat", "timestamp": 1}).arm == "flat"


def test_mappings_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="expected NAME=PATH"):
        parse_mapping(["arm"])
    with pytest.raises(UsageError) as error:
        parse_mapping(["corected=x"])
    assert error.value.remedy == "did you mean 'corrected'?"


@pytest.mark.parametrize(
    ("value", "field", "message"),
    [
        ({"timestamp": 1}, "arm", "missing"),
        ({"arm": "a"}, "timestamp", "missing"),
        ({"arm": "", "timestamp": 1}, "arm", "must not be empty"),
        ({"arm": True, "timestamp": 1}, "arm", "expected a text, found True"),
        ({"arm": "a", "timestamp": "yesterday"}, "timestamp", "ISO 8601"),
        ({"arm": "a", "timestamp": 1, "e2e_ms": -1}, "e2e_ms", "at least 0, found -1"),
        ({"arm": "a", "timestamp": 1, "e2e_ms": "fast"}, "e2e_ms", "expected a number, found 'fast'"),
        ({"arm": "a", "timestamp": 1, "e2e_ms": {}}, "e2e_ms", "found an object"),
        ({"arm": "a", "timestamp": 1, "corrected": "maybe"}, "corrected", "true or false, found 'maybe'"),
        ({"arm": "a", "timestamp": 1, "correctd": True}, "correctd", "did you mean 'corrected'?"),
    ],
)
def test_what_is_wrong_is_said(value: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(FieldError) as error:
        Reader("sqtool").record(value)
    assert error.value.field == field
    assert message in error.value.message


def test_other_keys_are_remembered_as_ignored() -> None:
    reader = Reader("sqtool")
    for _ in range(2):
        reader.record({"arm": "a", "timestamp": 1, "region": "eu", "model": "m"})
    assert sorted(reader.ignored) == ["model", "region"]


def test_detection() -> None:
    assert detect({"arm": "a", "timestamp": 1, "model": "m"}) == "sqtool"
    assert detect(LITELLM) == "gateway"
    assert detect({"arm": "a", "startTime": 1}) == "gateway"
    assert detect({"variant": "a", "timestamp": 1}, {"arm": "variant"}) == "sqtool"
    assert detect({"arm": "a"}) == "sqtool"
    with pytest.raises(FieldError, match="neither sqtool's format"):
        detect({"x": 1})
    with pytest.raises(FieldError) as error:
        detect({"arms": "a"})
    assert "--field arm=arms" in error.value.remedy


@given(
    st.dictionaries(
        st.sampled_from([*FIELDS, "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner)
        ),
    )
)
def test_any_object_is_a_record_or_a_field_error(value: dict[str, Any]) -> None:
    for kind in ("sqtool", "gateway"):
        try:
            record = Reader(kind).record(value)  # type: ignore[arg-type]
        except FieldError:
            continue
        assert record.arm
        assert record.e2e_ms is None or record.e2e_ms >= 0
        json.dumps(record.arm)


def test_flags_of_which_no_word_means_no() -> None:
    assert parse_absent(["corrected=false", "retried=FALSE"]) == {"corrected", "retried"}
    assert Reader("sqtool", None, ["corrected"]).record({"arm": "a", "timestamp": 1}).corrected is False
    assert (
        Reader("sqtool", None, ["corrected"]).record({"arm": "a", "timestamp": 1, "corrected": True}).corrected is True
    )
    for text, expected in (
        ("corected=false", "did you mean 'corrected'"),
        ("e2e_ms=false", "no flag"),
        ("corrected=true", "corrected=false"),
    ):
        with pytest.raises(UsageError) as error:
            parse_absent([text])
        assert expected in f"{error.value} {error.value.remedy}"
