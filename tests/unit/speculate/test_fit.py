"""Drafters that do not fit their target are refused before a server starts, with a remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.spec import EngineSpec
from sqtool.errors import DataError, SqtoolError, UsageError
from sqtool.speculate.arms import Arm
from sqtool.speculate.fit import check_arms, rotation
from sqtool.speculate.spec import DraftSpec

SMALL = {"vocab_size": 8, "hidden_size": 4, "max_position_embeddings": 64, "num_hidden_layers": 2}


def model(folder: Path, config: dict[str, Any], tensors: tuple[str, ...] = ()) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if tensors:
        header = json.dumps(
            {n: {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i, n in enumerate(tensors)}
        )
        size = len(header).to_bytes(8, "little")
        (folder / "model.safetensors").write_bytes(size + header.encode() + bytes(len(tensors)))
    return folder


def check(target: Path, drafter: Path | None, method: Any, engine: EngineSpec | None = None) -> None:
    drafts = DraftSpec(method=method, num_speculative_tokens=2)
    check_arms([Arm("both", "quantized", target, engine or EngineSpec(), drafts, drafter)])


def refusal(target: Path, drafter: Path | None, method: Any, engine: EngineSpec | None = None) -> SqtoolError:
    with pytest.raises((UsageError, DataError)) as caught:
        check(target, drafter, method, engine)
    assert caught.value.exit_code == 2
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("method", ["draft_model", "eagle", "eagle3"])
def test_one_that_fits(tmp_path: Path, method: str) -> None:
    check(model(tmp_path / "t", SMALL), model(tmp_path / "d", SMALL), method)


def test_no_drafter(tmp_path: Path) -> None:
    target = model(tmp_path / "t", SMALL)
    assert "no draft model" in str(refusal(target, None, "eagle3"))
    assert "no such model" in str(refusal(target, tmp_path / "nowhere", "draft_model"))
    check(target, None, "ngram")


def test_another_vocabulary(tmp_path: Path) -> None:
    target, draft = model(tmp_path / "t", SMALL), model(tmp_path / "d", {**SMALL, "vocab_size": 9})
    assert "9 tokens and the target's 8" in str(refusal(target, draft, "draft_model"))


def test_a_head_may_draft_from_a_part_of_the_vocabulary(tmp_path: Path) -> None:
    target = model(tmp_path / "t", SMALL)
    check(target, model(tmp_path / "d", {**SMALL, "vocab_size": 3, "draft_vocab_size": 3}), "eagle3")


def test_another_tokenizer(tmp_path: Path) -> None:
    target, draft = model(tmp_path / "t", SMALL), model(tmp_path / "d", SMALL)
    for folder, token in ((target, "a"), (draft, "b")):
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {token: 0}}}))
    assert "different tokenizers" in str(refusal(target, draft, "draft_model"))


def test_a_shorter_draft(tmp_path: Path) -> None:
    target, draft = model(tmp_path / "t", SMALL), model(tmp_path / "d", {**SMALL, "max_position_embeddings": 32})
    error = refusal(target, draft, "draft_model")
    assert "reaches 32 positions and the target is served with 64" in str(error)
    assert "max_model_len: 32" in error.remedy
    check(target, draft, "draft_model", EngineSpec(max_model_len=32))


def test_a_head_for_another_size(tmp_path: Path) -> None:
    target, head = model(tmp_path / "t", SMALL), model(tmp_path / "d", {**SMALL, "hidden_size": 5})
    assert "size 5 and the target's have 4" in str(refusal(target, head, "eagle"))
    check(target, head, "draft_model")  # a draft model reads tokens only


def test_the_language_models_part_of_a_config_counts(tmp_path: Path) -> None:
    target = model(tmp_path / "t", {"model_type": "vl", "text_config": SMALL})
    assert "size 6" in str(refusal(target, model(tmp_path / "d", {**SMALL, "target_hidden_size": 6}), "eagle3"))


R1 = {"type": "hadamard", "apply": [{"targets": ["re:.*embed_tokens$"], "location": "weight_output"}]}
R2 = {"type": "hadamard", "apply": [{"targets": ["re:.*v_proj$"], "location": "weight_output"}]}


@pytest.mark.parametrize(
    ("groups", "rotated"), [({"R1": R1, "R2": R2}, True), ({"own_name": R1}, True), ({"R2": R2}, False)]
)
def test_a_rotated_target_with_a_head(tmp_path: Path, groups: dict[str, Any], rotated: bool) -> None:
    config = {**SMALL, "quantization_config": {"transform_config": {"config_groups": groups}}}
    target, head = model(tmp_path / "t", config), model(tmp_path / "d", SMALL)
    assert bool(rotation(target)) is rotated
    check(target, head, "draft_model")
    if rotated:
        error = refusal(target, head, "eagle3")
        assert "is rotated" in str(error)
        assert "draft_model" in error.remedy
    else:
        check(target, head, "eagle3")


@pytest.mark.parametrize(
    ("recipe", "rotated"),
    [
        ("SpinQuantModifier:\n  rotations: [R1, R2]\n", True),
        ("SpinQuantModifier:\n  rotations:\n  - R2\n  - R4\n", False),
        ("SpinQuantModifier: {transform_type: hadamard}\n", True),  # R1 is among its defaults
        ("GPTQModifier: {scheme: W4A16}\n", False),
    ],
)
def test_a_rotation_in_the_checkpoints_recipe(tmp_path: Path, recipe: str, rotated: bool) -> None:
    target = model(tmp_path / "t", SMALL)
    (target / "recipe.yaml").write_text(recipe)
    assert bool(rotation(target)) is rotated


MTP = {**SMALL, "num_nextn_predict_layers": 1}


def test_mtp_heads(tmp_path: Path) -> None:
    assert "has no MTP head" in str(refusal(model(tmp_path / "none", SMALL, ("x.weight",)), None, "mtp"))
    lost = model(tmp_path / "lost", MTP, ("model.layers.0.q.weight", "model.layers.1.q.weight"))
    assert "holds no weights of one" in str(refusal(lost, None, "mtp"))
    beyond = model(tmp_path / "quantized", MTP, ("model.layers.1.q.weight_packed", "model.layers.2.q.weight_packed"))
    error = refusal(beyond, None, "mtp")
    assert "is quantized (model.layers.2.q.weight_packed)" in str(error)
    assert "ignore" in error.remedy
    named = model(tmp_path / "named", MTP, ("mtp.fc.weight", "mtp.layers.0.q.weight_scale"))
    assert "mtp.layers.0.q.weight_scale" in str(refusal(named, None, "mtp"))
    check(model(tmp_path / "good", MTP, ("model.layers.1.q.weight_packed", "model.layers.2.q.weight")), None, "mtp")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--speculative-config", "{}"), "would make every arm speculate"),
        (("--speculative-config.rejection_sample_method=synthetic",), "synthetic rejection sampling"),
        (("--speculative_config.synthetic_acceptance_length=3",), "at a rate that it is told"),
        (("--spec-method=ngram",), "would make every arm speculate"),
    ],
)
def test_flags_behind_the_recipes_back(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    target = model(tmp_path / "t", SMALL)
    assert message in str(refusal(target, None, "ngram", EngineSpec(extra_args=words)))
