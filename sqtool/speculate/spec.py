"""The `speculate` section of a recipe: how tokens are drafted, what all arms are asked, and what may be said of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from evals.spec import EngineSpec, server_address
from sqtool.spec import Spec

Method = Literal["draft_model", "ngram", "eagle", "eagle3", "mtp"]
HEADS = ("eagle", "eagle3", "mtp")
"""Methods whose drafter reads the target's hidden states."""
FOUR = ("baseline", "quantized", "speculative", "both")
CONTROL = "baseline_again"
MADE: dict[str, tuple[str, bool]] = {
    "baseline": ("baseline", False),
    "quantized": ("quantized", False),
    "speculative": ("baseline", True),
    "both": ("quantized", True),
}
"""What each of the four is: its target, and whether it drafts."""
_TOO_FAR = ("kind", "env", "device")
"""Keys of the engine that an arm cannot change: it would be another machine, not another arm."""


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else value


class DraftSpec(Spec):
    """Who drafts in one arm: whatever is not here is as in the section."""

    method: Method | None = Field(default=None, description="Another method than the section's.")
    model: str | None = Field(default=None, description="Another drafter, relative to the project root.")
    num_speculative_tokens: int | None = Field(default=None, ge=1, le=32, description="Tokens drafted each time.")
    prompt_lookup_min: int | None = Field(default=None, ge=1, description="ngram: shortest match.")
    prompt_lookup_max: int | None = Field(default=None, ge=1, description="ngram: longest match.")


class ArmSpec(Spec):
    """One arm beside the four, or where one of the four is served."""

    target: Literal["baseline", "quantized"] = Field(description="Which checkpoint answers.")
    speculative: bool | DraftSpec = Field(
        default=False, description="true: drafts as the section says; a mapping: drafts with these changes."
    )
    engine: dict[str, Any] = Field(
        default_factory=dict,
        description="Keys of the `engine` section that differ in this arm, such as kv_cache_dtype. extra_args are "
        "added to the section's.",
    )
    url: str | None = Field(
        default=None,
        description="Address of a server that runs already, such as http://host:8000/v1. sqtool neither starts nor "
        "stops it; target and speculative then say what it serves.",
    )
    model: str | None = Field(default=None, description="With url: the name that its /v1/models lists.")
    api_key_env: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="With url: name of the environment variable that holds the key. The key itself is never kept.",
    )

    @field_validator("url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        return None if value is None else server_address(value)

    @model_validator(mode="after")
    def _keys_of_a_server(self) -> Self:
        if self.url is None:
            for name in ("model", "api_key_env"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is of a server that runs already; give its url too")
        elif not self.model:
            raise ValueError("url needs model: the name that the server's /v1/models lists")
        elif self.engine:
            raise ValueError("engine changes nothing about a server that runs already; leave it or url out")
        return self

    @field_validator("engine")
    @classmethod
    def _keys_of_the_engine(cls, value: dict[str, Any]) -> dict[str, Any]:
        from sqtool.errors import did_you_mean

        known = [name for name in EngineSpec.keys_of("vllm") if name not in _TOO_FAR]
        for name in value:
            if name in _TOO_FAR:
                raise ValueError(f"{name} cannot differ between arms: they would not be on the same machine")
            if name not in known:
                raise ValueError(f"the engine section has no key {name!r}; {did_you_mean(name, known)}")
        try:
            EngineSpec.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None
        return value


class SweepSpec(Spec):
    """Further arms like `both` with other draft lengths, called both_k2, both_k8, ..."""

    num_speculative_tokens: tuple[Annotated[int, Field(ge=1, le=32)], ...] = Field(
        min_length=1, description="Draft lengths; the section's own is the arm `both` itself."
    )


class SamplingSpec(Spec):
    """Answers drawn at a temperature, to test that speculation leaves their distribution as it is."""

    requests: int = Field(default=0, ge=0, description="Requests of the sample that are answered so; 0: none.")
    temperature: float = Field(default=1.0, gt=0, le=2, description="Of every such answer.")
    samples: int = Field(default=4, ge=2, description="Answers to each request in each arm, all with other seeds.")


class CancellationSpec(Spec):
    """A probe after the measuring: some streams are cut off in the middle, and the server has to recover."""

    share: float = Field(default=0.1, gt=0, lt=1, description="Share of the probe's streams that is cut off.")
    requests: int = Field(default=40, ge=2, description="Streams of the probe.")


class SloSpec(Spec):
    """What counts as answered in time; an answer must keep all that are given."""

    ttft_ms: float | None = Field(default=None, gt=0, description="Longest time to the first token.")
    tpot_ms: float | None = Field(default=None, gt=0, description="Longest time for each token after the first.")
    e2e_ms: float | None = Field(default=None, gt=0, description="Longest time for the whole answer.")


class PriceSpec(Spec):
    """What the devices that one arm uses cost."""

    per_hour: float = Field(gt=0, description="Price of an hour.")
    currency: str = Field(default="USD", min_length=1, max_length=12, description="Its name in reports.")


class QualitySpec(Spec):
    """The task items that each speculating arm of the four answers, for the comparison with the arm of the same
    weights that does not speculate."""

    items: int | None = Field(
        default=None, ge=1, description="So many items over all of evaluate.tasks; default: every one."
    )


class RulesSpec(Spec):
    """Limits on what speculation may do beside the task scores; each is off unless given."""

    max_acceptance_drop: float | None = Field(
        default=None, gt=0, le=1, description="Most that the acceptance rate may fall from `speculative` to `both`."
    )
    max_p99_ratio: float | None = Field(
        default=None, gt=0, description="Most that p99 of `both` may be, as a multiple of that of `quantized`."
    )
    max_cost_ratio: float | None = Field(
        default=None, gt=0, description="Most that an accepted answer of `both` may cost, as a multiple of `quantized`."
    )


class SpeculateSpec(Spec):
    """Keys are those of vLLM's --speculative-config and of its benchmark client, where they exist there."""

    enabled: bool = Field(default=True, description="false leaves the whole stage out.")
    method: Method = Field(
        default="draft_model",
        description="Who drafts, in vLLM's words: a draft model, the prompt's own n-grams, an EAGLE head, or the "
        "checkpoint's own MTP head.",
    )
    model: str | None = Field(
        default=None,
        description="Folder of the drafter (draft model or head), relative to the project root; default: the recipe's "
        "`draft`.",
    )
    num_speculative_tokens: int = Field(default=4, ge=1, le=32, description="Tokens drafted for each verification.")
    prompt_lookup_min: int | None = Field(default=None, ge=1, description="ngram: shortest match; default vLLM's.")
    prompt_lookup_max: int | None = Field(default=None, ge=1, description="ngram: longest match; default vLLM's.")
    traffic: str = Field(
        default="artifacts/reference/data/traffic.jsonl",
        description="JSONL of requests, relative to the project root: sqtool's own form (id, kind, messages, tools, "
        "expected), a log of OpenAI chat requests, or a gateway's log; or the word `tasks`: the items of "
        "evaluate.tasks.",
    )
    requests: int = Field(default=128, ge=1, description="Distinct requests, drawn so that each kind keeps its share.")
    max_concurrency: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_one_or_more, json_schema_input_type=int | list[int])
    ] = Field(
        default=(16,),
        description="Closed loop: requests in flight at once; one load for each number (old name: concurrency).",
    )
    request_rate: Annotated[
        tuple[Annotated[float, Field(gt=0)], ...],
        BeforeValidator(_one_or_more, json_schema_input_type=float | list[float]),
    ] = Field(default=(), description="Open loop: requests a second; one load for each number.")
    burstiness: float = Field(
        default=1.0,
        gt=0,
        description="Open loop: shape of the gamma distribution of the gaps. 1: Poisson arrivals; less: bursts.",
    )
    trace: bool = Field(default=False, description="Open loop at the arrival times that the traffic file records.")
    repeats: int = Field(default=2, ge=1, description="Rounds; each sends the whole sample once per load and arm.")
    max_tokens: int = Field(default=128, ge=1, description="Longest answer in tokens; an item's own max_tokens wins.")
    warmup: int = Field(default=32, ge=0, description="Requests sent to each server before measuring, not counted.")
    request_timeout: float = Field(default=120.0, gt=0, description="Seconds after which one request counts as failed.")
    arms: dict[str, ArmSpec] = Field(
        default_factory=dict, description="Further arms, by name; and by theirs those of the four that a url serves."
    )
    sweep: SweepSpec | None = Field(default=None, description="Further draft lengths for `both`.")
    control: bool = Field(
        default=True, description="Measure the baseline arm twice (A/A): what differs between the two is noise."
    )
    interleave: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="Whether all arms' servers are up at once and take turns block by block, so that a machine that "
        "drifts favours none. auto: where memory is known to suffice.",
    )
    sampling: SamplingSpec = Field(
        default_factory=lambda: SamplingSpec(), description="The test of the distribution of sampled answers."
    )
    cancellation: CancellationSpec | None = Field(
        default_factory=lambda: CancellationSpec(), description="The probe with cut-off streams; null leaves it out."
    )
    slo: SloSpec | None = Field(default=None, description="What counts as answered in time; null: everything.")
    price: PriceSpec | None = Field(
        default=None, description="What the devices cost; null: costs are given in device-seconds."
    )
    quality: QualitySpec = Field(
        default_factory=lambda: QualitySpec(), description="Task scores with speculation against those without."
    )
    gate: Literal["report", "block"] = Field(
        default="report",
        description="What it means when speculation is not approved. report: the card and the report say so, and the "
        "quantized checkpoint is released without it. block: exit 1; a recipe that measures no speculation is refused, "
        "unless `enabled` is false.",
    )
    rules: RulesSpec = Field(default_factory=lambda: RulesSpec(), description="Limits beside the task scores.")

    @model_validator(mode="before")
    @classmethod
    def _four_elsewhere(cls, data: Any) -> Any:
        """What one of the four is follows from its name."""
        from sqtool.errors import did_you_mean

        arms = data.get("arms") if isinstance(data, dict) else None
        if not isinstance(arms, dict):
            return data
        filled = dict(arms)
        for name, arm in arms.items():
            if not isinstance(arm, dict):
                continue
            if name in MADE:
                filled[name] = {**dict(zip(("target", "speculative"), MADE[name], strict=True)), **arm}
            elif arm.get("url") and "target" not in arm and (hint := did_you_mean(str(name), FOUR)).startswith("did"):
                raise ValueError(f"arms.{name} needs target: it is none of the four arms; {hint}")
        return {**data, "arms": filled}

    @model_validator(mode="before")
    @classmethod
    def _old_name(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "concurrency" not in data:
            return data
        if "max_concurrency" in data:
            raise ValueError("concurrency is the old name of max_concurrency; give one of the two")
        rest = {key: value for key, value in data.items() if key != "concurrency"}
        return {**rest, "max_concurrency": data["concurrency"]}

    @field_validator("max_concurrency", "request_rate")
    @classmethod
    def _no_load_twice(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len({f"{one:g}" for one in value}) != len(value):
            raise ValueError("the same load is named twice")
        return value

    @field_validator("arms")
    @classmethod
    def _names_of_arms(cls, value: dict[str, ArmSpec]) -> dict[str, ArmSpec]:
        for name in value:
            if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,39}", name):
                raise ValueError(f"{name!r} cannot be an arm's name: lower-case letters, digits, - and _ only")
            if (name in FOUR and value[name].url is None) or name == CONTROL or re.fullmatch(r"both_k\d+", name):
                also = ", or say with `url` where it is served" if name in FOUR else ""
                raise ValueError(f"{name} is the name of an arm that sqtool makes itself; choose another{also}")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        _check_drafting("", self.method, self.model, self.prompt_lookup_min, self.prompt_lookup_max)
        if not (self.max_concurrency or self.request_rate or self.trace):
            raise ValueError("there is no load: give max_concurrency, request_rate or trace: true")
        if self.traffic == "tasks" and self.trace:
            raise ValueError("trace: the items of evaluate.tasks have no arrival times; name a log in traffic")
        if self.burstiness != 1.0 and not self.request_rate:
            raise ValueError("burstiness has a meaning only with request_rate")
        if self.sampling.requests > self.requests:
            raise ValueError(f"sampling.requests is above requests, which is {self.requests}")
        _check_elsewhere(self.arms)
        for name, arm in self.arms.items():
            if isinstance(arm.speculative, DraftSpec):
                drafts = self.drafting(arm.speculative)
                _check_drafting(
                    f"arms.{name}.speculative: ",
                    drafts.method,
                    drafts.model,
                    drafts.prompt_lookup_min,
                    drafts.prompt_lookup_max,
                )
        return self

    @property
    def measuring(self) -> SpeculateSpec:
        """The section without what is judged behind the measuring: other rules need no other figures."""
        return self.model_copy(update={"gate": "report", "rules": RulesSpec()})

    def elsewhere(self, arm: str) -> ArmSpec | None:
        """Where an arm is served that sqtool does not start; the control is the baseline once more."""
        found = self.arms.get("baseline" if arm == CONTROL else arm)
        return found if found is not None and found.url is not None else None

    def drafting(self, other: DraftSpec | None = None) -> DraftSpec:
        """Who drafts, with every key filled in: the section's, or the section's with an arm's changes. With another
        method, the section's model and n-gram lengths do not carry over."""
        own = DraftSpec(
            method=self.method,
            model=self.model,
            num_speculative_tokens=self.num_speculative_tokens,
            prompt_lookup_min=self.prompt_lookup_min,
            prompt_lookup_max=self.prompt_lookup_max,
        )
        if other is None:
            return own
        changed = other.model_dump(exclude_none=True)
        if other.method not in (None, self.method):
            own = DraftSpec(num_speculative_tokens=self.num_speculative_tokens)
        return own.model_copy(update=changed)


def _check_elsewhere(arms: Mapping[str, ArmSpec]) -> None:
    seen: dict[tuple[str, str | None], str] = {}
    for name, arm in arms.items():
        if arm.url is None:
            continue
        if name in MADE and (arm.target, arm.speculative) != MADE[name]:
            target, drafts = MADE[name]
            how = "drafts as the section says" if drafts else "does not speculate"
            raise ValueError(f"arms.{name}: this arm has target {target} and {how}; leave target and speculative out")
        other = seen.setdefault((arm.url, arm.model), name)
        if other != name:
            raise ValueError(f"arms.{name} and arms.{other} are one server and one model ({arm.model} at {arm.url})")


def _check_drafting(where: str, method: str | None, model: str | None, low: int | None, high: int | None) -> None:
    if method != "ngram" and (low is not None or high is not None):
        raise ValueError(f"{where}prompt_lookup_min and prompt_lookup_max need method: ngram")
    if method == "ngram" and model is not None:
        raise ValueError(f"{where}method ngram drafts from the prompt and has no model")
    if low is not None and high is not None and low > high:
        raise ValueError(f"{where}prompt_lookup_min is greater than prompt_lookup_max")


def speculative_config(drafts: DraftSpec, model: str | None) -> dict[str, Any]:
    """The value of `vllm serve --speculative-config`; `model` is the drafter's folder, None where there is none."""
    config: dict[str, Any] = {"method": drafts.method, "num_speculative_tokens": drafts.num_speculative_tokens}
    if model is not None:
        config["model"] = model
    for key in ("prompt_lookup_min", "prompt_lookup_max"):
        if (value := getattr(drafts, key)) is not None:
            config[key] = value
    return config
