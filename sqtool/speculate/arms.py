"""Arms: the four, the draft lengths of a sweep, what the recipe adds, and the baseline once more."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evals.spec import EngineSpec
from sqtool.files import shown_place
from sqtool.speculate.spec import CONTROL, FOUR, HEADS, ArmSpec, DraftSpec, SpeculateSpec, speculative_config

PER_REQUEST_FLAG = ("--per-request-spec-decode-metrics", "summary")


@dataclass(frozen=True)
class Arm:
    """One configuration of a server."""

    name: str
    target: Literal["baseline", "quantized"]
    model: Path
    engine: EngineSpec
    drafts: DraftSpec | None = None
    """Who drafts, with every key filled in; None for an arm that does not speculate."""
    drafter: Path | None = None
    """Folder of the draft model or head; None where the prompt or the target itself drafts, and at a server that runs
    already."""
    drafter_name: str | None = None
    """What files call the drafter, without its place on this machine."""

    @property
    def url(self) -> str | None:
        """Address of the server that runs already (without /v1); None for an arm that sqtool serves itself."""
        return self.engine.base_url if self.engine.kind == "openai" else None

    @property
    def speculates(self) -> bool:
        """Whether tokens are drafted in this arm."""
        return self.drafts is not None

    def config(self, *, shown: bool = False) -> dict[str, Any] | None:
        """vLLM's speculative config; `shown` names the drafter without its place on this machine."""
        if self.drafts is None:
            return None
        drafter = self.drafter
        return speculative_config(
            self.drafts, self.drafter_name if shown else None if drafter is None else str(drafter.resolve())
        )

    def extra_args(self, *, per_request: bool) -> list[str]:
        """Words of `vllm serve` beyond the engine section's."""
        config = self.config()
        if config is None:
            return []
        return ["--speculative-config", json.dumps(config), *(PER_REQUEST_FLAG if per_request else ())]


def arms_of(
    spec: SpeculateSpec, engine: EngineSpec, *, baseline: Path, candidate: Path, draft: Path | None, root: Path
) -> tuple[Arm, ...]:
    """All arms of a recipe; the four first, the control last. `draft` is the recipe's draft model."""
    models: dict[Literal["baseline", "quantized"], Path] = {"baseline": baseline, "quantized": candidate}

    def arm(
        name: str, target: Literal["baseline", "quantized"], drafts: DraftSpec | None, changes: ArmSpec | None = None
    ) -> Arm:
        drafter = None if drafts is None else drafter_of(drafts, draft, root)
        shown = None if drafter is None else shown_place(drafter, root)
        elsewhere = spec.elsewhere(name)
        if elsewhere is not None:
            return Arm(name, target, models[target], _server(elsewhere), drafts, None, shown)
        own = engine if changes is None else engine_of(engine, changes)
        return Arm(name, target, models[target], own, drafts, drafter, shown)

    usual = spec.drafting()
    found = [
        arm("baseline", "baseline", None),
        arm("quantized", "quantized", None),
        arm("speculative", "baseline", usual),
        arm("both", "quantized", usual),
    ]
    for k in dict.fromkeys(spec.sweep.num_speculative_tokens if spec.sweep is not None else ()):
        if k != usual.num_speculative_tokens:
            drafts = usual.model_copy(update={"num_speculative_tokens": k})
            found.append(arm(f"both_k{k}", "quantized", drafts))
    for name, extra in spec.arms.items():
        if name not in FOUR:
            found.append(arm(name, extra.target, _drafts(spec, extra), extra))
    if spec.control:
        found.append(arm(CONTROL, "baseline", None))
    return tuple(found)


def _server(arm: ArmSpec) -> EngineSpec:
    return EngineSpec(kind="openai", base_url=arm.url, model=arm.model, api_key_env=arm.api_key_env)


def _drafts(spec: SpeculateSpec, arm: ArmSpec) -> DraftSpec | None:
    if isinstance(arm.speculative, DraftSpec):
        return spec.drafting(arm.speculative)
    return spec.drafting() if arm.speculative else None


def engine_of(engine: EngineSpec, arm: ArmSpec) -> EngineSpec:
    """The engine section with an arm's changes; its extra_args come after the section's."""
    changed = dict(arm.engine)
    if "extra_args" in changed:
        changed["extra_args"] = (*engine.extra_args, *changed["extra_args"])
    return EngineSpec.model_validate({**engine.model_dump(), **changed})


def drafter_of(drafts: DraftSpec, draft: Path | None, root: Path) -> Path | None:
    """The drafter's folder: the one named, or the recipe's draft model where the method needs one."""
    if drafts.model is not None:
        return root / Path(drafts.model).expanduser()
    return draft if drafts.method in ("draft_model", *(h for h in HEADS if h != "mtp")) else None
