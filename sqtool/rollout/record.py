"""What one line of a production log says about one request, and the JSON Schema of such a line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TIMESTAMP = (
    "When the request arrived: seconds since 1970 (a number above 1e11 is taken as milliseconds), or ISO 8601 text; "
    "a text without a zone is UTC."
)
FIELDS: dict[str, tuple[str, str]] = {
    "arm": ("name", "Name of the arm that answered, as the router chose it: `baseline`, `w4a16`."),
    "timestamp": ("time", TIMESTAMP),
    "kind": ("name", "Kind of task or route, for `--by kind`."),
    "cluster": ("text", "User or session. Its requests hang together, so a verdict counts it once."),
    "ttft_ms": ("number", "Time to first token, in milliseconds."),
    "e2e_ms": ("number", "Time to the end of the answer (or to the cancellation), in milliseconds."),
    "prompt_tokens": ("number", "Tokens of the prompt."),
    "output_tokens": ("number", "Tokens of the answer."),
    "failed": ("flag", "The server answered with an error, or not at all."),
    "cancelled": ("flag", "The user or client stopped the answer before its end."),
    "retried": ("flag", "The request was sent again, or the answer regenerated."),
    "corrected": ("flag", "The user changed or rejected the answer. Absent: nobody knows."),
    "accepted": ("flag", "The user took the answer. Absent: nobody knows."),
    "device_seconds": ("number", "Seconds of the device(s) that this request used, its share of a batch."),
    "price": ("number", "What the request cost, in one currency for the whole log."),
}
"""Every field: how it is read, and what it says. `arm` and `timestamp` are required."""
REQUIRED = ("arm", "timestamp")


@dataclass(slots=True)
class Record:
    """One request. Times in milliseconds, `timestamp` in seconds since 1970; None where the log does not say."""

    arm: str
    timestamp: float
    kind: str | None = None
    cluster: str | None = None
    ttft_ms: float | None = None
    e2e_ms: float | None = None
    prompt_tokens: float | None = None
    output_tokens: float | None = None
    failed: bool | None = None
    cancelled: bool | None = None
    retried: bool | None = None
    corrected: bool | None = None
    accepted: bool | None = None
    device_seconds: float | None = None
    price: float | None = None


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one line of a log in sqtool's format. Further keys are allowed."""
    types: dict[str, Any] = {
        "name": {"type": ["string", "integer", "null"], "maxLength": 200},
        "text": {"type": ["string", "integer", "null"]},
        "time": {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "format": "date-time"}]},
        "number": {"type": ["number", "null"], "minimum": 0},
        "flag": {"type": ["boolean", "null"]},
    }
    properties = {name: {**types[how], "description": text} for name, (how, text) in FIELDS.items()}
    properties["arm"] = {"type": "string", "minLength": 1, "maxLength": 200, "description": FIELDS["arm"][1]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "One request of a rollout log, one a line (JSON Lines)",
        "type": "object",
        "properties": properties,
        "required": list(REQUIRED),
        "additionalProperties": True,
    }
