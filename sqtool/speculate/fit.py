"""What can be known to fail, or to measure nothing, before a server starts: drafters that do not fit their target.

Every refusal names what does not fit and what to do. Sources: for rotations SpinQuant (arXiv:2405.16406; R1 rotates the
residual stream, which EAGLE heads read), for EAGLE arXiv:2401.15077 and 2503.01840, for MTP heads DeepSeek-V3
(arXiv:2412.19437, section 2.2), for synthetic acceptance vLLM's `rejection_sample_method`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from quantize import mtp
from quantize.headers import read_checkpoint
from sqtool.errors import DataError, UsageError
from sqtool.files import read_json
from sqtool.speculate.arms import Arm
from sqtool.speculate.spec import HEADS

OWN_FLAGS = ("--speculative-config", "-sc", "--spec-method", "--spec-model", "--spec-tokens")
"""Flags of `vllm serve` that decide how it drafts; sqtool writes them from the recipe's keys."""
OTHER = "Name another drafter, or set `speculate: {method: ngram}` or `{enabled: false}`."
_QUANTIZED = re.compile(r"\.(weight_packed|weight_scale|qweight|qzeros|scales|weight_scale_inv)$")


def check_arms(arms: Sequence[Arm]) -> None:
    """`UsageError` or `DataError` for the first arm that cannot be, or that would measure something else."""
    for arm in arms:
        if arm.url is not None:
            continue  # what it serves is not here to be looked at
        check_flags(arm)
        if arm.drafts is not None:
            check_drafter(arm)


def check_flags(arm: Arm) -> None:
    """Flags that would draft behind the recipe's back, or accept tokens by the throw of a die."""
    for word in arm.engine.extra_args:
        if "synthetic" in word:
            raise UsageError(
                f"arm {arm.name!r}: {word!r} in engine.extra_args: with synthetic rejection sampling vLLM accepts "
                "draft tokens at a rate that it is told, so neither acceptance nor answers would be the model's",
                remedy="Take it out; the standard rejection sampling is what deployments use.",
            )
        flag = re.split(r"[=.]", word, maxsplit=1)[0]
        if flag in OWN_FLAGS:
            raise UsageError(
                f"arm {arm.name!r}: {flag} in engine.extra_args would make every arm speculate, the baseline too",
                remedy="Say it with the keys of the `speculate` section: method, model, num_speculative_tokens.",
            )


def check_drafter(arm: Arm) -> None:
    """The drafter of one arm against its target."""
    assert arm.drafts is not None
    method = arm.drafts.method
    if method == "ngram":
        return
    if method == "mtp" and arm.drafter is None:
        _check_mtp(arm)
        _check_rotation(arm)
        return
    if arm.drafter is None:
        raise UsageError(
            f"arm {arm.name!r}: speculate.method is {method}, and the recipe has no draft model",
            remedy="Give `draft:` in the recipe or `speculate: {model: ...}`, or set `speculate: {method: ngram}` or "
            "`{enabled: false}`.",
        )
    if not (arm.drafter / "config.json").is_file():
        raise DataError(arm.drafter, "no such model: it has no config.json", field="speculate.model", remedy=OTHER)
    target, drafter = (_config(folder) for folder in (arm.model, arm.drafter))
    if method in HEADS:
        _check_rotation(arm)
        _check_hidden_size(arm, target, drafter)
    _check_vocabulary(arm, target, drafter, head=method in HEADS)
    _check_length(arm, target, drafter)


def _config(folder: Path) -> dict[str, Any]:
    """A model's config.json, the language model's part of it."""
    config: dict[str, Any] = read_json(folder / "config.json")
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config


def _check_vocabulary(arm: Arm, target: Mapping[str, Any], drafter: Mapping[str, Any], *, head: bool) -> None:
    assert arm.drafter is not None
    sizes = target.get("vocab_size"), drafter.get("vocab_size")
    # A head may draft from a part of the vocabulary (draft_vocab_size), which it maps to the target's.
    if sizes[0] != sizes[1] and not (head and drafter.get("draft_vocab_size")):
        raise UsageError(
            f"arm {arm.name!r}: the draft's vocabulary has {sizes[1]} tokens and the target's {sizes[0]}; they must be "
            "the same",
            remedy=OTHER,
        )
    tokens = [_vocabulary(folder) for folder in (arm.model, arm.drafter)]
    if None not in tokens and tokens[0] != tokens[1]:
        raise UsageError(
            f"arm {arm.name!r}: draft and target have different tokenizers, so drafted tokens mean something else",
            remedy=OTHER,
        )


def _vocabulary(folder: Path) -> Any:
    """Token -> id of a fast tokenizer, added tokens included; None where the folder has no tokenizer.json."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    content = read_json(path)
    added = {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
    return (content.get("model") or {}).get("vocab"), added


def _check_length(arm: Arm, target: Mapping[str, Any], drafter: Mapping[str, Any]) -> None:
    """vLLM stops drafting at the drafter's last position; answers beyond it would be measured as if they speculated."""
    served = arm.engine.max_model_len or target.get("max_position_embeddings")
    most = drafter.get("max_position_embeddings")
    if isinstance(served, int) and isinstance(most, int) and most < served:
        raise UsageError(
            f"arm {arm.name!r}: the draft reaches {most} positions and the target is served with {served}",
            remedy=f"Serve no longer than the draft reaches: `engine: {{max_model_len: {most}}}`. {OTHER}",
        )


def _check_hidden_size(arm: Arm, target: Mapping[str, Any], head: Mapping[str, Any]) -> None:
    """A head reads the target's hidden states, so it must have been made for their size."""
    reads = head.get("target_hidden_size") or head.get("hidden_size")
    size = target.get("hidden_size")
    if None not in (reads, size) and reads != size:
        raise UsageError(
            f"arm {arm.name!r}: the head reads hidden states of size {reads} and the target's have {size}; it was "
            "trained for another model",
            remedy=f"Give the head that was trained for this target. {OTHER}",
        )


def _check_rotation(arm: Arm) -> None:
    """A rotated residual stream is another input than the one that the head was trained on."""
    found = rotation(arm.model)
    if found:
        assert arm.drafts is not None
        raise UsageError(
            f"arm {arm.name!r}: {arm.model.name} is rotated ({found}), and a head of method {arm.drafts.method} reads "
            "its hidden states, which the rotation has changed: it would accept next to nothing",
            remedy="Leave R1 out of the rotations (R2, R3 and R4 keep the hidden states), train the head on the "
            "rotated model, or draft with `method: draft_model` or `ngram`, which see tokens only.",
        )


def rotation(folder: Path) -> str:
    """What rotates a checkpoint's residual stream, in words; "" where nothing does."""
    config = _config(folder)
    quantization = config.get("quantization_config") or {}
    transforms = config.get("transform_config") or quantization.get("transform_config") or {}
    for name, scheme in (transforms.get("config_groups") or {}).items():
        if name.upper() == "R1" or any(_rotates_embeddings(one) for one in scheme.get("apply") or ()):
            return f"transform {name} of its config"
    recipe = folder / "recipe.yaml"
    if recipe.is_file():
        text = recipe.read_text(encoding="utf-8", errors="replace")
        modifier = re.search(r"\b(SpinQuant|QuaRot)Modifier\b", text)
        rotations = re.search(r"rotations:\s*(\[[^\]]*\]|(?:\s*-\s*\w+)+)", text)
        if modifier and (rotations is None or "R1" in rotations.group(1)):
            return f"{modifier.group(1)} in its recipe.yaml"
    return ""


def _rotates_embeddings(apply: Mapping[str, Any]) -> bool:
    targets = apply.get("targets") or ()
    words: Iterable[str] = (targets,) if isinstance(targets, str) else targets
    return apply.get("location") == "weight_output" and any("embed" in word for word in words)


def _check_mtp(arm: Arm) -> None:
    """The target's own MTP head: there, and in the numbers that it was trained in."""
    config = _config(arm.model)
    remedy = "Draft with `method: draft_model` or `ngram`, or "
    if mtp.head_layers(config) == 0:
        raise UsageError(
            f"arm {arm.name!r}: speculate.method is mtp, and {arm.model.name} has no MTP head (its config.json names "
            f"none of {', '.join(mtp.LAYERS)})",
            remedy=remedy + "name a model that has one.",
        )
    names = list(mtp.head_tensors(config, read_checkpoint(arm.model)))
    if not names:
        raise UsageError(
            f"arm {arm.name!r}: {arm.model.name} names an MTP head in its config.json and holds no weights of one; "
            "quantizers that load a model for text generation leave the head out",
            remedy=remedy + "copy the head's tensors from the original checkpoint.",
        )
    quantized = next((name for name in names if _QUANTIZED.search(name)), None)
    if quantized is not None:
        raise UsageError(
            f"arm {arm.name!r}: the MTP head of {arm.model.name} is quantized ({quantized}); such heads are known to "
            "accept nothing",
            remedy=remedy + "keep the head in 16 bits: name it in `ignore` of the quantization method.",
        )
