"""From the files of the arms to speculate.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqtool.files import read_json, read_jsonl, sha256_file
from sqtool.speculate.client import Answer
from sqtool.speculate.compare import acceptance_change, agreements, interaction
from sqtool.speculate.counters import Counters, Speculation
from sqtool.speculate.spec import SpeculateSpec, speculative_config
from sqtool.speculate.summary import ArmResult, BlockResult, summarize


def analyse(folder: Path, spec: SpeculateSpec) -> dict[str, Any]:
    """What speculate.json holds, from the files in `folder`: the first load of each arm."""
    plan = read_json(folder / "plan.json")
    load = plan["loads"][0]
    arms = {name: _arm(folder / "arms" / name, name, load["name"]) for name in plan["arms"]}
    summaries = {name: summarize(arm) for name, arm in arms.items()}
    drafter = read_json(folder / "arms" / "both" / "arm.json")["speculative_config"]
    lines = [line for _, line in read_jsonl(folder / "traffic.jsonl")]
    return {
        "schema": "sqtool.speculate/1",
        "method": spec.method,
        "speculative_config": drafter or speculative_config(spec.drafting(), None),
        "traffic": {
            "source": spec.traffic,
            "sha256": sha256_file(folder / "traffic.jsonl"),
            "requests": sum(line["block"] >= 0 for line in lines),
            "warmup": sum(line["block"] < 0 for line in lines),
            "blocks": load["blocks"],
            "single_kind_blocks": plan["single_kind_blocks"],
            "concurrency": load.get("max_concurrency"),
            "max_tokens": spec.max_tokens,
        },
        "seed": plan["seed"],
        "arms": summaries,
        "agreement": agreements(arms),
        "interaction": interaction(summaries),
        "acceptance_change": acceptance_change(arms),
    }


def _arm(folder: Path, name: str, load: str) -> ArmResult:
    about = read_json(folder / "arm.json")
    rows = [row for _, row in read_jsonl(folder / "requests.jsonl") if row["load"] == load and row["round"] == 0]
    blocks = [row for _, row in read_jsonl(folder / "blocks.jsonl") if row["load"] == load and row["round"] == 0]
    return ArmResult(
        name,
        Path(about["model"]),
        about["speculative_config"] is not None,
        [Answer(**row) for row in rows],
        [BlockResult(row["seconds"], _counters(row["counters"]), row["kind"]) for row in blocks],
        about["engine"],
    )


def _counters(row: Mapping[str, Any]) -> Counters:
    counted = row["speculation"]
    speculation = None
    if counted is not None:
        speculation = Speculation(
            counted["drafts"],
            counted["draft_tokens"],
            counted["accepted_tokens"],
            tuple(counted["accepted_per_position"]),
        )
    return Counters(speculation, row["others"], 0.0)
