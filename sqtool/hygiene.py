"""Text of others on its way to a terminal, a log or a file: without control characters, and without secrets.

Names, error messages and model outputs may hold anything; errors of libraries may hold the token that they were called
with. Everything that sqtool prints goes through `clean`, every error and log line through `redact`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SECRET_NAME = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|PASS|PAT|CREDENTIALS?)(_|$)|(API|ACCESS|PRIVATE|SECRET|SIGNING)_?KEY",
    re.IGNORECASE,
)
"""Names of environment variables whose values are secrets."""
NOT_SECRET = re.compile(r"_(PATH|FILE|DIR|NAME|URL|ID|REGION)$", re.IGNORECASE)
SHORTEST = 8
"""Characters of a value that is looked for in texts: shorter ones occur in any text by chance."""
REMOVED = "[removed]"
_KNOWN_FORMS = re.compile(
    r"\b(?:hf_|hf_oauth_|api_org_)[A-Za-z0-9]{16,}"  # Hugging Face
    r"|\bsk-[A-Za-z0-9_-]{16,}"  # OpenAI and those who copied it
    r"|\b(?:ghp|gho|ghu|ghs|ghr|github_pat|glpat)[_-][A-Za-z0-9_-]{16,}"  # GitHub, GitLab
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"  # AWS
    r"|\bxox[abprs]-[A-Za-z0-9-]{10,}"  # Slack
    r"|\beyJ[A-Za-z0-9_-]{10,1000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]+"  # JSON Web Token
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_BEARER = re.compile(r"(\bBearer\s+)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_USER_INFO = re.compile(r"(\b[a-z][a-z0-9+.-]{0,20}://)[^\s/@'\"]{1,300}@", re.IGNORECASE)
_SIGNED = re.compile(
    r"([?&;](?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|Signature|sig|sv|token|access_token|api_?key|"
    r"AWSAccessKeyId|auth|password)=)[^\s&;'\"#]+",
    re.IGNORECASE,
)


def clean(text: str) -> str:
    """Without control characters and without those that turn the direction of writing; tabs become spaces."""
    kept = []
    for character in text.replace("\t", "    "):
        kind = unicodedata.category(character)
        kept.append(character if character == "\n" or kind not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") else "\ufffd")
    return "".join(kept)


def one_line(text: str) -> str:
    """`clean`, without line breaks: a name with one could put a line of its own into a result."""
    return clean(text).replace("\n", " ")


def terminal_json(value: Any) -> str:
    """Readable JSON in which a terminal finds nothing to obey: what `clean` would take out is escaped, so that no
    information is lost."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=str)
    return "".join(c if c == "\n" or c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1] if ord(character) > 0x9F else f"\\u{ord(character):04x}"


def is_secret(name: str) -> bool:
    """Whether an environment variable of this name holds a secret."""
    return bool(SECRET_NAME.search(name)) and not NOT_SECRET.search(name)


def secrets_of(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that hold secrets, longest value first (one may be the beginning of another)."""
    found = {n: v for n, v in environment.items() if len(v.strip()) >= SHORTEST and is_secret(n)}
    return dict(sorted(found.items(), key=lambda pair: -len(pair[1])))


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """What a child process gets that needs none of our secrets."""
    return {name: value for name, value in environment.items() if not is_secret(name)}


def redact(text: str) -> str:
    """Without the secrets of this process's environment, without tokens of known forms, and without the name, password
    and signature in addresses."""
    for name, value in secrets_of(os.environ).items():
        text = text.replace(value.strip(), f"[{name}]")
    text = _KNOWN_FORMS.sub(REMOVED, text)
    text = _BEARER.sub(rf"\1{REMOVED}", text)
    text = _USER_INFO.sub(rf"\1{REMOVED}@", text)
    return _SIGNED.sub(rf"\1{REMOVED}", text)


def redact_file(path: Path) -> None:
    """Take secrets out of a text file that other programs wrote; nothing happens to one that holds none."""
    try:
        before = path.read_text(encoding="utf-8", errors="surrogateescape")
        after = redact(before)
        if after != before:
            path.write_text(after, encoding="utf-8", errors="surrogateescape")
    except OSError:
        return


class LogFormatter(logging.Formatter):
    """Log lines without secrets and control characters; a message of several lines is indented, so that none of them
    can pass for a line of its own."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return clean(redact(super().format(record))).replace("\n", "\n    ")
