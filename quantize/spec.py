"""The recipe section `quantize:`.

    quantize:
      methods:
        - smoothquant: {smoothing_strength: 0.5}
        - gptq: {scheme: W8A8}

or `quantize: {checkpoint: FOLDER_OR_ID}` for a checkpoint that was quantized elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, create_model, field_validator, model_serializer, model_validator

from quantize.backends import BACKENDS, capabilities
from quantize.combine import check
from quantize.methods import METHODS, load_method
from quantize.methods.base import MethodSpec
from sqtool.errors import did_you_mean
from sqtool.spec import Spec


class _Step(Spec):
    """One entry of `methods:`: a mapping with one key, the method's name."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        # `- awq` and `- awq:` both mean awq with its defaults.
        if isinstance(value, str):
            value = {value: None}
        if isinstance(value, dict) and len(value) == 1:
            (name, arguments), *_ = value.items()
            if name not in METHODS:
                raise ValueError(f"there is no method {name!r}; {did_you_mean(str(name), list(METHODS))}")
            return {name: {} if arguments is None else arguments}
        return value

    @model_validator(mode="after")
    def _one(self) -> _Step:
        if len(self.model_fields_set) != 1:
            raise ValueError("each entry of methods is one method: `- awq: {scheme: W4A16}`")
        return self

    @property
    def method(self) -> MethodSpec:
        """The one method of this entry."""
        (name,) = self.model_fields_set
        found = getattr(self, name)
        assert isinstance(found, MethodSpec)
        return found

    @model_serializer
    def _serialize(self) -> dict[str, Any]:
        # Only the method that is set: a digest over a recipe must not change when the table grows.
        return {self.method.name: self.method.model_dump()}


def _field(name: str) -> tuple[Any, Any]:
    method = load_method(name)
    return method | None, Field(default=None, description=method.__doc__)


if TYPE_CHECKING:
    Step = _Step
else:
    # Fields come from the table, so that a recipe error names its place (methods.0.awq.group_size) and the exported
    # JSON Schema knows every method's keys.
    Step = create_model("Step", __base__=_Step, **{name: _field(name) for name in METHODS})


class QuantizeSpec(Spec):
    """What is quantized, how, and by what."""

    methods: list[Step] = Field(default=[])
    """In order: what prepares the model (smoothquant), what quantizes (awq, gptq, rtn, fp8, fp4; several with targets
    of their own are mixed precision), then kv_cache."""
    checkpoint: str | None = None
    """A folder or hub id of a checkpoint that was quantized elsewhere; then nothing is quantized here."""
    backend: str = "llmcompressor"
    """Who does the work: llmcompressor here, or autoawq, auto-gptq, gptqmodel, each in an environment of its own
    (`sqtool backend install NAME`)."""
    batch_size: int = Field(default=8, ge=1)
    """Calibration rows that go through the model at once."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What calibration computes in. `auto` is the model's own dtype on an accelerator, and on a CPU bfloat16 where the
    model is and the processor has instructions for it (AVX-512 BF16, AMX, Arm's BF16), else float32: emulated 16-bit
    arithmetic is slow. The checkpoint keeps the model's dtype."""
    sequential_offload_device: Literal["auto", "cpu"] = "auto"
    """Where the hidden states of the calibration rows wait between two decoder layers. `auto` keeps them on the
    accelerator where a quarter of its free memory holds them, which saves two copies a layer; else host memory does."""
    layer_report: Literal["weights", "outputs", "off"] = "weights"
    """What layers.jsonl and its plot say of each layer: the error of its weights and its scales (`weights`), also the
    error of its outputs on calibration rows (`outputs`, which costs about one more pass), or nothing."""
    zero_groups: Literal["stop", "allow"] = "stop"
    """A group of weights that is zero altogether stops the run and names its layer: usually the model is damaged.
    `allow` it for a model that was padded with zeros on purpose."""
    calibrate_all_experts: bool = True
    """Show every expert of a mixture every calibration token, not only those that its router sends there."""
    max_shard_size: str = Field(default="5GB", pattern=r"^[1-9][0-9]*(KB|MB|GB)$")
    """Largest safetensors file of the checkpoint; a larger one is split."""

    @field_validator("backend")
    @classmethod
    def _known_backend(cls, value: str) -> str:
        if value not in BACKENDS:
            raise ValueError(f"there is no backend {value!r}; {did_you_mean(value, list(BACKENDS))}")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> QuantizeSpec:
        if self.checkpoint is not None:
            if self.methods:
                raise ValueError("give methods or checkpoint, not both")
            if not self.checkpoint.strip():
                raise ValueError("checkpoint is empty: give a folder or a hub id")
            return self
        if not self.methods:
            raise ValueError("give methods, e.g. `methods: [{awq: {scheme: W4A16_ASYM}}]`, or a finished checkpoint")
        methods = [step.method for step in self.methods]
        problems = check(methods) or capabilities.check(self.backend, methods)
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def needs_calibration(self) -> bool:
        """Does any method look at data, or the layer report?"""
        if self.methods and self.layer_report == "outputs" and not self.simulated:
            return True
        return any(step.method.needs_calibration for step in self.methods)

    @property
    def simulated(self) -> bool:
        """Is the checkpoint 16-bit weights that only hold low-bit values?"""
        return any(getattr(step.method, "simulate", False) for step in self.methods)
