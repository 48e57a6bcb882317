"""The `evaluate` and `engine` sections of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from evals.harness.spec import LmEvalSpec
from sqtool.spec import Spec

OWNED_FLAGS = (
    "--model", "--host", "--port", "--api-key", "--served-model-name", "--uds", "--config", "--hf-token", "--headless",
    "--data-parallel-address", "--master-addr", "--ssl-keyfile", "--ssl-certfile",
)  # fmt: skip
"""Flags of `vllm serve` that sqtool sets itself or that would undo what it sets: a recipe that had them would measure
another server, open it to others or keep a secret."""
CODE_FLAGS = (
    "--trust-remote-code", "--middleware", "--tool-parser-plugin", "--reasoning-parser-plugin", "--io-processor-plugin",
    "--logits-processors", "--worker-cls", "--worker-extension-cls", "--scheduler-cls", "--kv-transfer-config",
    "--distributed-executor-backend", "--load-format",
)  # fmt: skip
"""Flags of `vllm serve` that import a module by its name or path, or read pickles; only with
`--trust-remote-code` at sqtool's command line."""


def _flag(word: str) -> str:
    """The flag in a word as vLLM's parser understands it: `--a_b=c` and `--a-b.c=d` are `--a-b`."""
    name = word.split("=", 1)[0].split(".", 1)[0]
    return name.replace("_", "-") if name.startswith("--") else name


def _means(word: str, flags: Sequence[str]) -> str | None:
    """The one of `flags` that a word may stand for: argparse takes the beginning of a flag for the flag."""
    flag = _flag(word)
    if flag in flags:
        return flag
    if not flag.startswith("--") or len(flag) < 4:
        return None
    return next((known for known in flags if known.startswith(flag)), None)


def code_flags(words: Sequence[str]) -> list[str]:
    """Those of CODE_FLAGS that are among the arguments."""
    return sorted({flag for word in words if (flag := _means(word, CODE_FLAGS)) is not None})


def server_address(value: str) -> str:
    """The address of an OpenAI-compatible server without its /v1; `ValueError` for one that is none, or that holds a
    secret (which the message does not repeat)."""
    parts = urlsplit(value)
    if "@" in value or parts.query or parts.fragment:
        raise ValueError("an address with a name, a password or a query would be kept; use api_key_env")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"expected an address such as http://host:8000/v1, found {value!r}")
    try:
        parts.port  # noqa: B018 - the property looks at it
    except ValueError as error:
        raise ValueError(f"expected an address such as http://host:8000/v1, found {value!r}: {error}") from None
    return value.rstrip("/").removesuffix("/v1")


_OPENAI_KEYS = ("base_url", "model", "candidate_base_url", "candidate_model", "api_key_env")
_HF_KEYS = ("device", "dtype", "tool_call_parser", "batch_size")
_NOT_VLLM = frozenset((*_OPENAI_KEYS, "batch_size"))


class EngineSpec(Spec):
    """What answers. Both sides of a comparison use the same section; a key of another kind is an error. The keys of
    vLLM have the names of its flags."""

    kind: Literal["vllm", "openai", "hf"] = Field(
        default="vllm",
        description="vllm: a vLLM server that sqtool starts here. openai: any OpenAI-compatible server that runs "
        "already. hf: transformers in this process.",
    )
    base_url: str | None = Field(
        default=None, description="kind openai: the server's address, such as http://host:8000/v1."
    )
    model: str | None = Field(default=None, description="kind openai: the baseline's name at the server.")
    candidate_base_url: str | None = Field(
        default=None, description="kind openai: where the candidate is served; default: at base_url."
    )
    candidate_model: str | None = Field(
        default=None, description="kind openai: the candidate's name at its server; default: the same as `model`."
    )
    api_key_env: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="kind openai: name of the environment variable that holds the key. The key itself is never kept.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="kinds vllm and hf: the class of device that must answer; an error where there is none. auto: for "
        "vllm what its environment was made for, for hf a GPU where there is one.",
    )
    batch_size: int = Field(default=16, gt=0, description="kind hf: prompts that go through the model together.")
    env: str = Field(
        default=".venv-vllm",
        description="Folder of the Python environment that holds vLLM (never sqtool's own), absolute or relative "
        "to the project root. Outside of the project it needs --trust-remote-code: its bin/vllm is run.",
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
        default="hermes",
        description="vLLM's parser of tool calls (kind hf: hermes); null for a model that was not trained for tools.",
    )
    generation_config: str = Field(
        default="auto",
        description="Where answers `as_served` take their sampling parameters from: auto (the checkpoint's file), vllm "
        "(neutral ones) or a folder. Other answers take none from there: each request names all of them.",
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
            if (owned := _means(word, OWNED_FLAGS)) is not None:
                raise ValueError(f"{owned} is set by sqtool itself")
            name = flag.removeprefix("--").replace("-", "_")
            if flag.startswith("--") and name in cls.model_fields:
                raise ValueError(f"write {flag} as the key `{name}` of this section")
        return value

    @field_validator("base_url", "candidate_base_url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        return None if value is None else server_address(value)

    @classmethod
    def keys_of(cls, kind: str) -> tuple[str, ...]:
        """The keys that have a meaning for a kind, in the order of the section."""
        if kind == "vllm":
            return tuple(name for name in cls.model_fields if name not in _NOT_VLLM)
        return ("kind", *(_OPENAI_KEYS if kind == "openai" else _HF_KEYS))

    @model_validator(mode="after")
    def _keys_of_this_kind(self) -> EngineSpec:
        known = self.keys_of(self.kind)
        for name in type(self).model_fields:
            if name in self.model_fields_set and name not in known:
                kinds = [kind for kind in ("vllm", "openai", "hf") if name in self.keys_of(kind)]
                raise ValueError(
                    f"{name} is a key of kind {' and '.join(kinds)}; kind {self.kind} knows {', '.join(known)}"
                )
        if self.kind == "openai" and not (self.base_url and self.model):
            raise ValueError("kind openai needs base_url and model")
        if self.kind == "hf" and self.tool_call_parser not in ("hermes", None):
            raise ValueError(f"kind hf parses hermes tool calls only, not {self.tool_call_parser!r}")
        return self

    @model_serializer(mode="wrap")
    def _only_keys_of_this_kind(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What means nothing here is in no digest and in no recipe.json."""
        known = self.keys_of(self.kind)
        return {name: value for name, value in handler(self).items() if name in known}

    def of_side(self, side: Literal["baseline", "candidate"]) -> EngineSpec:
        """The engine of one side: where the sides are served in two places, only its own place is named."""
        if self.kind != "openai":
            return self
        place: dict[str, str | None] = {"candidate_base_url": None, "candidate_model": None}
        if side == "candidate":
            place |= {"base_url": self.candidate_base_url or self.base_url, "model": self.candidate_model or self.model}
        return self.model_copy(update=place)


class GenerationSpec(Spec):
    """How answers are drawn. The default is greedy."""

    as_served: bool = Field(
        default=False, description="Send no sampling parameter, as a client does that trusts the server's defaults."
    )
    temperature: float = Field(default=0.0, ge=0, le=2, description="0 is greedy.")
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="Nucleus sampling; only with a temperature above 0."
    )
    top_k: int | None = Field(default=None, gt=0, description="Sample from so many tokens; default: from all.")
    min_p: float | None = Field(
        default=None, ge=0, le=1, description="Leave out tokens below this share of the likeliest one's probability."
    )
    repetition_penalty: float | None = Field(default=None, gt=0, description="1 is none; default: none.")
    max_tokens: int = Field(default=256, gt=0, description="Longest answer in tokens; an item's own max_tokens wins.")
    seed: int | None = Field(
        default=None, ge=0, description="Seed of each item's first answer; only matters when sampling."
    )
    samples: int = Field(
        default=1,
        gt=0,
        description="Answers to each item, with the seeds seed, seed + 1, ...; the item's score is their mean.",
    )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken each time."""
        return self.temperature == 0 and not self.as_served

    def seed_of(self, sample: int, default: int) -> int:
        """The seed of an item's `sample`-th answer (counted from 0); `default` is the evaluation's."""
        return (default if self.seed is None else self.seed) + sample

    @model_validator(mode="after")
    def _fits_together(self) -> GenerationSpec:
        nucleus = {name: getattr(self, name) for name in ("top_p", "top_k", "min_p")}
        if self.as_served:
            sent = {"temperature": self.temperature or None, "seed": self.seed, **nucleus}
            sent["repetition_penalty"] = self.repetition_penalty
            for name, value in sent.items():
                if value is not None:
                    raise ValueError(f"as_served sends no sampling parameter, so {name} cannot be given")
        elif self.temperature == 0:
            for name, value in nucleus.items():
                if value is not None:
                    raise ValueError(f"{name} has no meaning with temperature 0")
            if self.samples > 1:
                raise ValueError("samples has no meaning with temperature 0: every answer would be the same")
        return self


def _short_generation(value: Any) -> Any:
    """`greedy` means `{}`, `as_served` means `{as_served: true}`."""
    return {"greedy": {}, "as_served": {"as_served": True}}.get(value, value) if isinstance(value, str) else value


ShortGeneration = Annotated[
    GenerationSpec,
    BeforeValidator(_short_generation, json_schema_input_type=GenerationSpec | Literal["greedy", "as_served"]),
]


class AsServedSpec(Spec):
    """A second pass without any sampling parameter: what a client gets that trusts the server's defaults."""

    items: int = Field(default=100, gt=0, description="Items that are asked in that way, spread over all tasks.")


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

    tasks: tuple[str, ...] = Field(
        default=("tool_calls", "tasks", "recall"),
        description="Task files: a stem in evals/tasks, or a path to a YAML file.",
    )
    lm_eval: LmEvalSpec | None = Field(
        default=None, description="Tasks of lm-evaluation-harness, beside `tasks` or with `tasks: []` alone."
    )
    generation: ShortGeneration = Field(
        default_factory=lambda: GenerationSpec(), description="How answers are drawn: greedy, as_served, or parameters."
    )
    as_served: AsServedSpec | None = Field(
        default_factory=lambda: AsServedSpec(),
        description="Some items once more as a client gets them that names no sampling parameter; diagnostic. null "
        "leaves it out.",
    )
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

    @model_validator(mode="after")
    def _something_is_asked(self) -> EvaluateSpec:
        if not self.tasks and self.lm_eval is None:
            raise ValueError("no task is named, in tasks or in lm_eval")
        return self
