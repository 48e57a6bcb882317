"""A record: one conversation of the synthetic world, with the answer that is right."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from reference.chat import calls_text, prompt_text

# Slot combinations are dealt to splits by their hash, so that no combination is in two of them.
SPLITS = {"test": range(4), "traffic": range(4, 6), "calibration": range(6, 8), "train": range(8, 100)}


def split_of(*slots: object) -> str:
    """The one split that a combination of slot values belongs to."""
    bucket = int.from_bytes(hashlib.blake2b(repr(slots).encode(), digest_size=4).digest(), "big") % 100
    return next(name for name, buckets in SPLITS.items() if bucket in buckets)


@dataclass
class Record:
    """`calls` is None for a text answer; `text` is the answer or, for abstention, what is said instead of a call."""

    kind: str
    messages: list[dict[str, str]]
    text: str = ""
    calls: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    prose: bool = False
    fields: dict[str, Any] = field(default_factory=dict)

    def prompt(self) -> str:
        return prompt_text(self.messages, self.tools)

    def answer(self) -> str:
        return calls_text(self.calls) if self.calls else self.text

    def item(self, name: str) -> dict[str, Any]:
        """The evaluation item: prompt and what is expected."""
        out: dict[str, Any] = {"id": name, "kind": self.kind, "messages": self.messages}
        if self.tools:
            out["tools"] = self.tools
        if not self.prose:
            out["expected"] = {"text": self.text} if self.calls is None else {"calls": self.calls}
        else:
            out["expected"] = {"text": self.text}
        if self.fields:
            out["fields"] = self.fields
        return out

    def conversation(self, name: str) -> dict[str, Any]:
        """The calibration record: the whole conversation with the right answer."""
        if self.calls:
            last: dict[str, Any] = {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": c} for c in self.calls],
            }
        else:
            last = {"role": "assistant", "content": self.text}
        out: dict[str, Any] = {"id": name, "kind": self.kind, "messages": [*self.messages, last]}
        if self.tools:
            out["tools"] = self.tools
        return out
