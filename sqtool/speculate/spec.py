"""The `speculate` section of a recipe: how tokens are drafted, and the traffic that all arms answer."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from sqtool.spec import Spec


class SloSpec(Spec):
    """Limits of one request; one that misses any of them is outside the SLO. A limit left out is none."""

    ttft_ms: float | None = Field(default=None, gt=0, description="Longest time to the first token, milliseconds.")
    tpot_ms: float | None = Field(default=None, gt=0, description="Longest time per further token, milliseconds.")
    e2e_ms: float | None = Field(default=None, gt=0, description="Longest time of the whole answer, milliseconds.")


class PriceSpec(Spec):
    """What the device or devices of one arm cost."""

    per_hour: float = Field(gt=0, description="Price of an hour.")
    currency: str = Field(default="USD", min_length=1, description="Name of the currency.")


class RulesSpec(Spec):
    """Limits that speculation must be shown to keep; one left out is not judged."""

    max_acceptance_drop: float | None = Field(
        default=None, ge=0, description="Largest fall of the acceptance rate by quantizing the target, absolute."
    )
    max_p99_ratio: float | None = Field(
        default=None, gt=0, description="Largest p99 of end-to-end time, as a multiple of the arm without speculation."
    )
    max_cost_ratio: float | None = Field(
        default=None,
        gt=0,
        description="Largest cost per accepted answer, as a multiple of the arm without speculation.",
    )


class SamplingSpec(Spec):
    """The distribution test: prompts that are answered several times with sampling."""

    requests: int = Field(default=0, ge=0, description="Prompts; 0 leaves the test out.")
    temperature: float = Field(default=1.0, gt=0, description="Sampling temperature.")
    samples: int = Field(default=4, ge=2, description="Answers to each prompt.")


class SpeculateSpec(Spec):
    """Keys are those of vLLM's --speculative-config and of its benchmark client, where they exist there."""

    enabled: bool = Field(default=True, description="false leaves the whole stage out.")
    method: Literal["draft_model", "ngram"] = Field(
        default="draft_model", description="Who drafts: the recipe's draft model, or the prompt's own n-grams."
    )
    num_speculative_tokens: int = Field(default=4, ge=1, le=32, description="Tokens drafted for each verification.")
    prompt_lookup_min: int | None = Field(default=None, ge=1, description="ngram: shortest match; default vLLM's.")
    prompt_lookup_max: int | None = Field(default=None, ge=1, description="ngram: longest match; default vLLM's.")
    traffic: str = Field(
        default="artifacts/reference/data/traffic.jsonl",
        description="JSONL of requests (id, kind, messages, tools), relative to the project root.",
    )
    requests: int = Field(default=128, ge=1, description="Requests per arm, drawn so that each kind keeps its share.")
    concurrency: int = Field(default=16, ge=1, description="Requests in flight at once (closed loop).")
    max_tokens: int = Field(default=128, ge=1, description="Longest answer in tokens; an item's own max_tokens wins.")
    warmup: int = Field(default=8, ge=0, description="Requests sent before measuring, and not counted.")
    request_timeout: float = Field(default=120.0, gt=0, description="Seconds after which one request counts as failed.")
    slo: SloSpec | None = Field(default=None, description="Limits that define goodput and accepted answers.")
    price: PriceSpec | None = Field(default=None, description="Price of an arm's devices; null counts device seconds.")
    rules: RulesSpec = Field(default=RulesSpec(), description="Limits on speculation, each off unless given.")
    sampling: SamplingSpec = Field(default=SamplingSpec(), description="Distribution test of sampled answers.")

    @model_validator(mode="after")
    def _ngram_keys_belong_to_ngram(self) -> Self:
        low, high = self.prompt_lookup_min, self.prompt_lookup_max
        if self.method != "ngram" and (low is not None or high is not None):
            raise ValueError("prompt_lookup_min and prompt_lookup_max need method: ngram")
        if low is not None and high is not None and low > high:
            raise ValueError("prompt_lookup_min is greater than prompt_lookup_max")
        return self

    def speculative_config(self, draft: str | None) -> dict[str, Any]:
        """The value of `vllm serve --speculative-config`; `draft` is the draft model's folder for draft_model."""
        config: dict[str, Any] = {"method": self.method, "num_speculative_tokens": self.num_speculative_tokens}
        if self.method == "draft_model":
            config["model"] = draft
        for key in ("prompt_lookup_min", "prompt_lookup_max"):
            if (value := getattr(self, key)) is not None:
                config[key] = value
        return config
