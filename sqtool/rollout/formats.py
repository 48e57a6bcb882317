"""From a line of a log to a `Record`: sqtool's own format, and logs of OpenAI-compatible gateways.

Both are a table of places. A field is the value at the first of its places that is there and not empty, a place being
a dotted path (`metadata.arm`) into the line's object. `--field NAME=PATH` puts a place of the user's before them. The
gateway's table knows OpenAI's request and response bodies and LiteLLM's StandardLoggingPayload
(https://docs.litellm.ai/docs/proxy/logging_spec).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, Literal

from sqtool.errors import UsageError, did_you_mean
from sqtool.rollout.record import FIELDS, REQUIRED, Record

Format = Literal["auto", "sqtool", "gateway"]
MILLISECONDS_FROM = 1e11
"""A timestamp above this is in milliseconds: in seconds it would be the year 5138."""
LARGEST = 1e15
"""The largest number that a field may hold: sums of it and of its squares stay numbers."""
LONGEST_NAME = 200
"""Characters of an arm's or a kind's name."""
MOST_IGNORED = 1000
"""Keys without a meaning that are remembered; a log that makes up new ones in each line must not fill the memory."""
LONGEST_KEY = 60
"""Characters of a key that may be a misspelt field, and of one that is shown."""
_GATEWAY_SIGNS = ("request", "response", "usage", "metadata", "model", "startTime", "messages", "choices")

GATEWAY: dict[str, tuple[str, ...]] = {
    "arm": ("arm", "metadata.arm", "metadata.requester_metadata.arm", "request.metadata.arm", "metadata.variant"),
    "timestamp": ("startTime", "start_time", "timestamp", "created_at", "request.timestamp", "created"),
    "kind": ("metadata.kind", "metadata.requester_metadata.kind", "request.metadata.kind", "kind", "call_type"),
    "cluster": (
        *("end_user", "metadata.user_api_key_end_user_id", "request.user", "user", "metadata.user_id"),
        *("metadata.requester_metadata.user_id", "metadata.session_id", "metadata.requester_metadata.session_id"),
        # Last: a service that asks for all of its users has one key, and the key one owner.
        *("session_id", "metadata.user_api_key_user_id"),
    ),
    "ttft_ms": ("ttft_ms", "metrics.ttft_ms"),
    "e2e_ms": ("latency_ms", "e2e_ms", "duration_ms", "metrics.e2e_ms"),
    "prompt_tokens": ("usage.prompt_tokens", "response.usage.prompt_tokens", "prompt_tokens", "usage.input_tokens"),
    "output_tokens": (
        *("usage.completion_tokens", "response.usage.completion_tokens", "completion_tokens"),
        *("usage.output_tokens", "response.usage.output_tokens"),
    ),
    "failed": ("failed", "metadata.failed"),
    "cancelled": ("cancelled", "metadata.cancelled"),
    "retried": ("retried", "metadata.retried", "metadata.requester_metadata.retried"),
    "corrected": ("corrected", "feedback.corrected", "metadata.corrected"),
    "accepted": ("accepted", "feedback.accepted", "metadata.accepted"),
    "device_seconds": ("device_seconds", "metrics.device_seconds"),
    "price": ("price", "response_cost", "cost", "usage.cost"),
}
SECONDS = ("latency", "latency_s", "duration", "response.latency")
"""Places of the end-to-end time in seconds, tried after those in milliseconds."""
_END = ("endTime", "end_time")
_FIRST_TOKEN = ("completionStartTime", "completion_start_time")
_STATUS = ("status", "response.status", "status_code", "response.status_code", "error_information.error_code")
_ERROR = ("error", "response.error", "error_str", "error_message")
_ANSWER = ("response", "usage", "choices")
LITELLM_ADMIN = "default_user_id"
"""The user whom LiteLLM names for its master key and the keys made with it: nobody in particular."""
_NOTHING: tuple[Any, ...] = (None, "", False, [], {})
"""What stands at a place that some loggers write in every line, and that says nothing."""


class FieldError(Exception):
    """A line that is no record: which field, what is wrong, and what to do."""

    def __init__(self, field: str, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.field, self.message, self.remedy = field, message, remedy


def parse_mapping(texts: Sequence[str]) -> dict[str, str]:
    """`["arm=metadata.variant"]` as a mapping; `UsageError` for an unknown field or a text without `=`."""
    mapping = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise UsageError(f"--field {text}: expected NAME=PATH", remedy="For example --field arm=metadata.variant")
        if name not in FIELDS:
            raise UsageError(f"--field {text}: unknown field {name!r}", remedy=did_you_mean(name, list(FIELDS)))
        mapping[name] = path
    return mapping


def parse_absent(texts: Sequence[str]) -> frozenset[str]:
    """`["corrected=false"]` as the flags of which no word means no; `UsageError` for anything else."""
    flags = [name for name, (how, _) in FIELDS.items() if how == "flag"]
    found = set()
    for text in texts:
        name, _, word = text.partition("=")
        if name not in flags:
            raise UsageError(f"--absent {text}: {name!r} is no flag of a request", remedy=did_you_mean(name, flags))
        if word.lower() != "false":
            raise UsageError(f"--absent {text}: expected {name}=false", remedy="No word can only be taken for no.")
        found.add(name)
    return frozenset(found)


def detect(value: Mapping[str, Any], mapping: Mapping[str, str] | None = None) -> Literal["sqtool", "gateway"]:
    """The format of a log by its first object; `FieldError` when it looks like neither."""
    nested = any(isinstance(value.get(key), dict) for key in ("request", "response", "usage", "metadata"))
    if "arm" in value and "timestamp" in value and not nested:
        return "sqtool"
    if any(sign in value for sign in _GATEWAY_SIGNS):
        return "gateway"
    if "arm" in value or "arm" in (mapping or {}):
        return "sqtool"
    keys = _listed(value, 8) or "none"
    near = next((key for key in value if len(key) <= LONGEST_KEY and get_close_matches(key, ["arm"], cutoff=0.6)), "")
    raise FieldError(
        "",
        f"neither sqtool's format (an `arm` and a `timestamp`) nor a gateway's (found the keys {keys})",
        f"Is {near!r} the arm? Add --field arm={near} --format sqtool."
        if near
        else "Say which with --format, and "
        "where a field is with --field NAME=PATH; `sqtool schema --rollout` prints sqtool's format.",
    )


class Reader:
    """Makes records of a log's objects; one for a log, because it remembers which keys it did not use."""

    def __init__(
        self, kind: Literal["sqtool", "gateway"], mapping: Mapping[str, str] | None = None, absent: Collection[str] = ()
    ) -> None:
        self.kind, self._absent = kind, tuple(absent)
        own = mapping or {}
        table = GATEWAY if kind == "gateway" else {name: (name,) for name in FIELDS}
        read = {**_READ, "text": _user} if kind == "gateway" else _READ
        self._places = {
            name: (read[FIELDS[name][0]], [_getter(path) for path in ((own[name],) if name in own else table[name])])
            for name in FIELDS
        }
        self._mapped = {path.partition(".")[0] for path in own.values()}
        self._own = own
        self.ignored: dict[str, int] = {}
        self.outcomes = False
        """Whether any line said how its request ended: by a status, an error, or `failed`."""
        self.answers = 0
        """Requests that count as not failed because there is an answer and no error."""

    def record(self, value: Mapping[str, Any]) -> Record:
        """The record in one line's object; `FieldError` says what is wrong with it."""
        found: dict[str, Any] = {}
        for name, (read, getters) in self._places.items():
            for getter in getters:
                raw = getter(value)
                if raw is not None and (said := read(name, raw)) is not None:
                    found[name] = said
                    break
        if self.kind == "gateway":
            self._derive(value, found)
        elif len(value) > len(found):
            self._unused(value)
        for name in REQUIRED:
            if name not in found:
                raise self._missing(name, value)
        for name in self._absent:
            found.setdefault(name, False)
        return Record(**found)

    def _derive(self, value: Mapping[str, Any], found: dict[str, Any]) -> None:
        """What a gateway says in other words: times as points in time, outcomes as a status."""
        start = found.get("timestamp")
        for name, places in (("e2e_ms", _END), ("ttft_ms", _FIRST_TOKEN)):
            point = _first(value, places) if name not in found and start is not None else None
            if point is not None and start is not None:
                found[name] = max(1000 * (read_time(places[0], point) - start), 0.0)
        if "e2e_ms" not in found and (seconds := _first(value, SECONDS)) is not None:
            found["e2e_ms"] = 1000 * _number("latency", seconds)
        status = _first(value, _STATUS)
        if status is None:
            self._without_status(value, found)
            return
        self.outcomes = True
        word = str(status).lower()
        stopped = word in ("cancelled", "canceled", "aborted", "499")
        code = int(word) if len(word) <= 3 and word.isascii() and word.isdecimal() else 0
        bad = word in ("failure", "error", "failed") or code >= 400
        found.setdefault("cancelled", stopped)
        found.setdefault("failed", bad and not stopped)

    def _without_status(self, value: Mapping[str, Any], found: dict[str, Any]) -> None:
        """`failed` by an error or an answer. The answer has to count: were only the errors known, all that is known
        would be a failure, in every arm alike."""
        if "failed" in found:
            self.outcomes = True
        elif _says(value, _ERROR) or "error" in (_first(value, ("response.object",)), _first(value, ("object",))):
            found["failed"] = self.outcomes = True
        elif _says(value, _ANSWER) or found.keys() & {"e2e_ms", "ttft_ms"} or found.get("output_tokens"):
            found["failed"] = False
            self.answers += 1

    def _unused(self, value: Mapping[str, Any]) -> None:
        for key in value:
            if len(self.ignored) >= MOST_IGNORED:
                return
            if len(key) > LONGEST_KEY:
                self.ignored[key[:LONGEST_KEY] + "..."] = 1
            elif key not in FIELDS and key not in self._mapped and key not in self.ignored:
                near = get_close_matches(key, [name for name in FIELDS if name not in value], n=1, cutoff=0.82)
                if near and near[0] not in self._own:
                    raise FieldError(
                        key, f"unknown field, did you mean {near[0]!r}?", f"Or add --field {near[0]}={key}."
                    )
                self.ignored[key] = 1

    def _missing(self, name: str, value: Mapping[str, Any]) -> FieldError:
        if any(getter(value) == "" for getter in self._places[name][1]):
            where = "must not be empty"
        elif name in self._own:
            where = f"nothing at {self._own[name]!r}, which --field names"
        elif self.kind == "gateway":
            where = "missing; looked for " + ", ".join(GATEWAY[name])
        else:
            where = "missing"
        keys = _listed(value, 12)
        return FieldError(name, where, f"Say where it is with --field {name}=PATH (this line has: {keys}).")


def _getter(path: str) -> Callable[[Mapping[str, Any]], Any]:
    if "." not in path:
        return lambda value: value.get(path)
    first, *rest = path.split(".")

    def get(value: Mapping[str, Any]) -> Any:
        inner = value.get(path, value.get(first))  # some loggers flatten: "metadata.arm" is then a key
        if path in value:
            return inner
        for part in rest:
            if not isinstance(inner, dict):
                return None
            inner = inner.get(part)
        return inner

    return get


def _first(value: Mapping[str, Any], places: Sequence[str]) -> Any:
    return next((raw for place in places if (raw := _getter(place)(value)) not in (None, "")), None)


def _says(value: Mapping[str, Any], places: Sequence[str]) -> bool:
    return any(_getter(place)(value) not in _NOTHING for place in places)


def _listed(value: Mapping[str, Any], most: int) -> str:
    return ", ".join(key if len(key) <= LONGEST_KEY else key[:LONGEST_KEY] + "..." for key in sorted(value)[:most])


def _name(name: str, raw: Any) -> str | None:
    """A text that stands in tables and verdicts: one with a line break could pass for a verdict of its own."""
    text = _text(name, raw)
    if text is not None and (len(text) > LONGEST_NAME or not text.isprintable()):
        raise FieldError(name, f"expected at most {LONGEST_NAME} printable characters, found {_shown(text)}")
    return text


def _text(name: str, raw: Any) -> str | None:
    if isinstance(raw, str):
        return raw or None
    if isinstance(raw, int) and not isinstance(raw, bool):
        return str(raw)
    raise FieldError(name, f"expected a text, found {_shown(raw)}")


def _user(name: str, raw: Any) -> str | None:
    text = _text(name, raw)
    return None if text == LITELLM_ADMIN else text


def _number(name: str, raw: Any) -> float:
    if isinstance(raw, str):
        try:
            raw = float(raw)
        except ValueError:
            raise FieldError(name, f"expected a number, found {_shown(raw)}") from None
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise FieldError(name, f"expected a number, found {_shown(raw)}")
    if not 0 <= raw <= LARGEST:  # NaN is not, either
        bound = f"at most {LARGEST:g}" if raw > LARGEST else "at least 0"
        raise FieldError(name, f"expected a number of {bound}, found {_shown(raw)}")
    return float(raw)


_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _flag(name: str, raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, int | float | str) and (word := str(raw).lower()) in _WORDS:
        return _WORDS[word]
    raise FieldError(name, f"expected true or false, found {_shown(raw)}")


def read_time(name: str, raw: Any) -> float:
    """Seconds since 1970 from a number (seconds, or milliseconds above 1e11) or ISO 8601 text."""
    if isinstance(raw, str) and not raw.replace(".", "", 1).isdigit():
        try:
            moment = datetime.fromisoformat(raw)
        except ValueError:
            raise FieldError(name, f"expected seconds since 1970 or ISO 8601, found {_shown(raw)}") from None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    seconds = _number(name, raw)
    return seconds / 1000 if seconds > MILLISECONDS_FROM else seconds


def _shown(raw: Any) -> str:
    if isinstance(raw, dict | list):
        return "an object" if isinstance(raw, dict) else "a list"
    text = repr(raw[:50] if isinstance(raw, str) else raw)
    return text if len(text) <= 40 else text[:37] + "..."


_READ: dict[str, Callable[[str, Any], Any]] = {
    "name": _name,
    "text": _text,
    "number": _number,
    "flag": _flag,
    "time": read_time,
}
