"""The variants: what is done to the reference target, and how the result is served.

`protocol.yaml` and `addendum.yaml` say in words what each is, and list the same names.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gate.damage import edits
from benchmarks.gate.damage.edits import Edit, json_file, noisy, rounded, template, then
from benchmarks.gate.damage.population import DAMAGE, ROOT, addendum, protocol

TARGET = ROOT / "artifacts/reference/target"
CHECKPOINTS = DAMAGE / "checkpoints"
BASELINE = "baseline"
DOWN = "model.layers.{}.mlp.down_proj.weight"
ROLE = "{{- '<|im_start|>' + message['role'] + '\\n' }}"
OTHER_ROLE = (
    "{{- '<|im_start|>' + {'user': 'assistant', 'assistant': 'user'}.get(message['role'], message['role']) + '\\n' }}"
)


@dataclass(frozen=True)
class Variant:
    """`make` turns the folder of `source` (another variant, or the target) into the variant's checkpoint."""

    make: Edit
    source: str = BASELINE
    engine: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the engine section that differ from the defaults."""
    as_served: bool = False
    """The client sends no temperature, so that the server's default holds."""
    records: tuple[str, str] | None = None
    """(baseline's records, candidate's records) when nothing new is evaluated."""


def recipe(name: str, kinds: tuple[str, ...] = ()) -> Edit:
    return edits.by_recipe(ROOT / "recipes" / f"{name}.yaml", kinds)


def _hot(value: dict[str, Any]) -> None:
    value.update(do_sample=True, temperature=1.0)


def _lowercase(value: dict[str, Any]) -> None:
    value["normalizer"] = {"type": "Lowercase"}


def _rope(value: dict[str, Any]) -> None:
    value["rope_parameters"]["rope_theta"] = 1_000_000.0


HOT = json_file("generation_config.json", _hot)
AS_STORED = {"generation_config": "auto"}

VARIANTS: dict[str, Variant] = {
    # damaged
    "rtn2": Variant(rounded(2)),
    "rtn3": Variant(rounded(3)),
    "scales_off": Variant(edits.scaled("model.layers.3.mlp.down_proj.weight_scale", 1.3), source="awq4"),
    "permuted_head": Variant(edits.swapped_heads(3, 0, 3, head_dim=64)),
    "lm_head3": Variant(edits.rounded_head(3)),
    "noise_50": Variant(noisy(DOWN.format(4), 0.5)),
    "prose_awq4": Variant(recipe("awq4", ("prose",))),
    "template_no_prompt": Variant(template("{{- '<|im_start|>assistant\\n' }}", "")),
    "template_roles": Variant(template(ROLE, OTHER_ROLE)),
    "token_remap": Variant(edits.exchanged_tokens("<tool_call>", "<tool_response>")),
    "eos_dropped": Variant(edits.wrong_end("<|pad|>", 0)),
    "tools_truncated": Variant(template("{%- for tool in tools %}", "{%- for tool in tools[:1] %}")),
    "kv_scales": Variant(edits.kv_scales(8, 0.002), engine={"kv_cache_dtype": "fp8"}),
    "temperature_left": Variant(HOT, engine=AS_STORED),
    "temperature_served": Variant(HOT, engine=AS_STORED, as_served=True),
    "tokenizer_lowercase": Variant(json_file("tokenizer.json", _lowercase)),
    "swapped_layers": Variant(edits.swapped_layers(3, 4)),
    "zero_projection": Variant(edits.zeroed("model.layers.2.self_attn.o_proj.weight")),
    "rope_theta": Variant(json_file("config.json", _rope)),
    "stale_baseline": Variant(edits.copy, records=("rtn3", "rtn4_sym")),
    # graded
    "rtn4_sym": Variant(rounded(4)),
    "rtn4_g32": Variant(rounded(4, group_size=32, symmetric=False)),
    "rtn4_one_layer": Variant(rounded(4, targets=(r"re:model\.layers\.4\.",))),
    "rtn5": Variant(rounded(5)),
    "noise_10": Variant(noisy(DOWN.format(4), 0.1)),
    "noise_20": Variant(noisy(DOWN.format(4), 0.2)),
    "noise_30": Variant(noisy(DOWN.format(4), 0.3)),
    "lm_head4": Variant(edits.rounded_head(4)),
    # clean
    "aa": Variant(edits.copy),
    "resharded": Variant(edits.saved_again("model", 3, {})),
    "renamed_metadata": Variant(
        then(edits.saved_again("weights", 1, {"by": "hand"}), json_file("config.json", edits.reversed_keys))
    ),
    "tokenizer_resaved": Variant(edits.tokenizer_saved_again),
    "rtn8": Variant(rounded(8)),
    "rtn6": Variant(rounded(6)),
    "fp8": Variant(recipe("fp8-dynamic")),
    "w8a8": Variant(recipe("smoothquant-w8a8")),
    "awq4": Variant(recipe("awq4")),
    # added: addendum.yaml
    "rtn5_early": Variant(rounded(5, targets=(r"re:model\.layers\.[0-3]\.",))),
    "rtn5_late": Variant(rounded(5, targets=(r"re:model\.layers\.[4-7]\.",))),
    "rtn5_g32": Variant(rounded(5, group_size=32, symmetric=False)),
    "noise_100": Variant(noisy(DOWN.format(4), 1.0)),
    "noise_200": Variant(noisy(DOWN.format(4), 2.0)),
}


def groups() -> dict[str, str]:
    """Variant -> damaged, graded, clean (the protocol's) or added (the addendum's)."""
    files = (protocol(), addendum())
    return {name: group for fixed in files for group, names in fixed["variants"].items() for name in names}


def checkpoint(name: str) -> Path:
    """The variant's checkpoint folder, made when it is not there yet."""
    if name == BASELINE:
        return TARGET
    out = CHECKPOINTS / name
    if not out.is_dir():
        variant = VARIANTS[name]
        source = checkpoint(variant.source)
        unfinished = CHECKPOINTS / f"{name}.tmp"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        variant.make(source, unfinished)
        unfinished.rename(out)
    return out
