"""What a release says of speculation: a section of the card, and the serve command with a drafter.

Only speculation that was approved gets a command; any other is named, with the reason, and no flag.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqtool.files import shown_place
from sqtool.report.markdown import inline

FLAG = "--speculative-config"
APPROVED = (
    "Approved with this checkpoint: task scores with speculation held the gate's margins against those without it, "
    "both for this checkpoint and for its baseline."
)
DRAFTER = "The drafter is not part of this release; put it where the command finds it."


def facts_of(verdict: Mapping[str, Any], *, root: Path, draft: Path | None) -> dict[str, Any]:
    """What a release keeps of speculation_verdict.json: approved, config (with the drafter as a path below `root` where
    it is there, else by its folder's name: where somebody's files lie is nobody else's business), reasons."""
    config = dict(verdict.get("speculative_config") or {})
    model = config.get("model")
    if model is not None:
        own = draft if draft is not None and draft.name == Path(str(model)).name else Path(str(model))
        config["model"] = shown_place(own, root) if own.is_absolute() else own.as_posix()
    return {
        "approved": verdict.get("approved") is True,
        "config": config,
        "reasons": [str(reason) for reason in verdict.get("reasons") or ()],
    }


def speculative_words(facts: Mapping[str, Any] | None) -> list[str]:
    """Words to add to `vllm serve`; none unless speculation is approved."""
    if not facts or facts.get("approved") is not True or not facts.get("config"):
        return []
    return [FLAG, json.dumps(facts["config"], sort_keys=True)]


def speculation_section(facts: Mapping[str, Any] | None, serve: Sequence[str]) -> str:
    """The card's section, Markdown; empty where speculation was not judged. `serve` are the words that serve the
    checkpoint without speculation."""
    if not facts:
        return ""
    words = speculative_words(facts)
    if not words:
        reasons = "".join(f"\n- {inline(reason)}" for reason in facts.get("reasons") or ())
        return "## Speculative decoding\n\n**Not approved** with this checkpoint. Serve it without a drafter." + (
            f"\n{reasons}" if reasons else ""
        )
    drafter = f"\n\n{DRAFTER}" if "model" in facts["config"] else ""
    return f"## Speculative decoding\n\n{APPROVED}\n\n```bash\n{shlex.join([*serve, *words])}\n```{drafter}"
