"""The `evaluate` and `engine` sections of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from sqtool.spec import Spec

OWNED_FLAGS = ("--model", "--host", "--port", "--api-key", "--served-model-name", "--uds")
"""Flags of `vllm serve` that sqtool sets itself; a recipe that set them would measure another server."""


class EngineSpec(Spec):
    """How vLLM is started. Keys are vLLM's own flag names; both sides of a comparison use the same ones."""

    env: str = Field(
        default=".venv-vllm",
        description="Folder of the Python environment that holds vLLM (never sqtool's own), absolute or relative "
        "to the project root.",
    )
    max_model_len: int | None = Field(
        default=None, gt=0, description="Longest prompt plus answer in tokens; default: what the model's config says."
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto",
        description="Type of activations and unquantized weights; auto is the checkpoint's own, but float32 on a CPU "
        "without AVX-512, where bfloat16 is several times slower.",
    )
    kv_cache_dtype: str = Field(default="auto", description="Type of the KV cache: auto, fp8, fp8_e4m3, fp8_e5m2, ...")
    kv_cache_memory_bytes: int | None = Field(
        default=None,
        gt=0,
        description="Size of the KV cache in bytes. Default: on a GPU what gpu_memory_utilization leaves; on a CPU "
        "enough for max_num_seqs sequences of full length, at most a quarter of the machine's memory.",
    )
    max_num_seqs: int = Field(default=64, gt=0, description="Most sequences that the engine runs at once.")
    gpu_memory_utilization: float | None = Field(
        default=None, gt=0, le=1, description="Share of GPU memory for weights and KV cache; default: vLLM's own."
    )
    tensor_parallel_size: int = Field(default=1, gt=0, description="GPUs that share one copy of the model.")
    enforce_eager: bool | None = Field(
        default=None,
        description="Run without compilation. Default: true on a CPU (compiling costs more than it saves there), "
        "false on a GPU.",
    )
    unpack: Literal["auto", "never"] = Field(
        default="auto",
        description="auto: where the device has no kernel for a weight-only format, serve the same weights unpacked to "
        "16 bits, and say so in everything that was measured. never: stop instead.",
    )
    tool_call_parser: str | None = Field(
        default="hermes", description="vLLM's parser of tool calls; null for a model that was not trained for tools."
    )
    generation_config: str = Field(
        default="vllm",
        description="Where sampling defaults come from: vllm (neutral ones, so that a checkpoint's "
        "repetition_penalty does not bend greedy answers), auto (the checkpoint's file) or a folder.",
    )
    seed: int = Field(default=0, ge=0, description="The engine's random seed.")
    startup_timeout: float = Field(default=600.0, gt=0, description="Seconds until the server must answer /health.")
    extra_args: tuple[str, ...] = Field(
        default=(), description="Further arguments of `vllm serve`, as a list of words."
    )

    @field_validator("extra_args")
    @classmethod
    def _not_ours(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for word in value:
            flag = word.split("=", 1)[0]
            if flag in OWNED_FLAGS:
                raise ValueError(f"{flag} is set by sqtool itself")
            name = flag.removeprefix("--").replace("-", "_")
            if flag.startswith("--") and name in cls.model_fields:
                raise ValueError(f"write {flag} as the key `{name}` of this section")
        return value


class GenerationSpec(Spec):
    """How answers are drawn. The default is greedy."""

    temperature: float = Field(default=0.0, ge=0, description="0 is greedy.")
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="Nucleus sampling; only with a temperature above 0."
    )
    max_tokens: int = Field(default=256, gt=0, description="Longest answer in tokens; an item's own max_tokens wins.")
    seed: int | None = Field(default=None, ge=0, description="Seed of each request; only matters when sampling.")

    @model_validator(mode="after")
    def _greedy_has_no_nucleus(self) -> GenerationSpec:
        if self.temperature == 0 and self.top_p is not None:
            raise ValueError("top_p has no meaning with temperature 0")
        return self


class DriftCheckSpec(Spec):
    """Drift is computed with transformers; this asks the serving engine for the same log-probabilities. Where the two
    disagree by more than the tolerance, drift is shown as not comparable with the engine; nothing is refused for it."""

    items: int = Field(default=50, gt=0, description="Texts that the engine is asked, evenly over those of drift.")
    top_k: int = Field(
        default=5, gt=0, le=20, description="Most likely tokens compared at each position, beside the one that follows."
    )
    max_length: int = Field(default=512, gt=1, description="Tokens of each text that are asked (its first ones).")
    tolerance: float = Field(
        default=0.25,
        gt=0,
        description="Largest 99th percentile of the absolute difference in log-probability of the token that follows, "
        "in nats.",
    )
    min_top1: float = Field(
        default=0.99,
        ge=0,
        le=1,
        description="Least share of positions where the engine's most likely token is, within the tolerance, also the "
        "most likely in transformers.",
    )


class DriftSpec(Spec):
    """How far the candidate's next-token distributions are from the baseline's (diagnostic; scores decide)."""

    items: int = Field(default=128, gt=0, description="Test items whose prompt and expected answer are compared.")
    prose: str | None = Field(
        default="artifacts/reference/data/test/prose.jsonl",
        description="JSONL of plain texts to add (messages without an expected answer); null for none. A default "
        "file that does not exist is left out, a named one must exist.",
    )
    prose_items: int = Field(default=32, ge=0, description="Texts taken from `prose`.")
    max_length: int = Field(default=2048, gt=1, description="Tokens kept of one text (its first ones).")
    batch_tokens: int = Field(default=4096, gt=0, description="Tokens, padding included, of one forward pass.")
    chunk: int = Field(
        default=1024,
        gt=0,
        description="Most positions whose logits over the whole vocabulary exist at once (fewer with a large one).",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto",
        description="Type of the forward passes; auto is the baseline's own, but float32 on a CPU without AVX-512, "
        "where bfloat16 is several times slower.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where the forward passes run.")
    check: DriftCheckSpec | None = Field(
        default_factory=lambda: DriftCheckSpec(),
        description="Whether transformers and the engine agree on the same tokens; null leaves that unknown.",
    )


class ControlSpec(Spec):
    """The A/A control: the baseline against itself after a restart, in another order, at another concurrency."""

    items: int = Field(
        default=100,
        ge=100,
        description="Items that are asked again, over all tasks; with fewer than 100 the same answers would prove too "
        "little. If one answer differs, all items are.",
    )


class EvaluateSpec(Spec):
    """What is asked of baseline and candidate, and how."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        default=("tool_calls", "tasks", "recall"),
        description="Task files: a stem in evals/tasks, or a path to a YAML file.",
    )
    generation: GenerationSpec = Field(default_factory=GenerationSpec, description="How answers are drawn.")
    concurrency: int = Field(default=64, gt=0, description="Requests in flight at once.")
    request_timeout: float = Field(default=300.0, gt=0, description="Seconds after which one request counts as failed.")
    retries: int = Field(default=4, ge=0, description="Further attempts after a lost connection, a time-out or a 5xx.")
    limit: int | None = Field(
        default=None, gt=0, description="Items of each task, evenly over the file; default: all. For trying things out."
    )
    control: ControlSpec | None = Field(
        default_factory=lambda: ControlSpec(),
        description="Whether the engine agrees with itself; null leaves that unknown.",
    )
    drift: DriftSpec | None = Field(
        default_factory=lambda: DriftSpec(), description="Distribution drift; null leaves it out."
    )

    @field_validator("tasks")
    @classmethod
    def _no_task_twice(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a task is named twice")
        return value
