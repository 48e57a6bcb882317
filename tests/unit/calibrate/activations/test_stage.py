"""Through `calibrate.build`, as the calibrate stage calls it, on a model small enough to run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from calibrate.build import build
from calibrate.spec import CalibrateSpec, MinScores
from sqtool.errors import CoverageError, InfrastructureError
from sqtool.progress import SILENT
from tests.contract.tiny import make_tokenizer

from .conftest import moe


def talk(n: int, word: str, kind: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"{word} {n}"}, {"role": "assistant", "content": f"{word} {word}"}]
    return {"id": f"{kind}-{n}", "kind": kind, "messages": messages}


def place(folder: Path, model: Path, traffic: list[dict[str, Any]] | None) -> Path:
    """The model with a calibration pool of words and a traffic sample beside it."""
    shutil.copytree(model, folder / "model")
    (folder / "data").mkdir()
    for name, rows in (("calibration", [talk(n, "plain words", "plain") for n in range(12)]), ("traffic", traffic)):
        if rows is not None:
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "data" / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder / "model"


def run(model: Path, out: Path, **activations: Any) -> dict[str, Any]:
    out.mkdir()
    # Whatever the text is like: what is judged here is what the model makes of it.
    text = dict.fromkeys(MinScores.model_fields, 0)
    spec = CalibrateSpec.model_validate(
        {"near_duplicates": None, "coverage": {"min_score": text}, "activations": activations}
    )
    build(spec, model=model, seed=0, out=out, progress=SILENT)
    report: dict[str, Any] = json.loads((out / "coverage.json").read_text())
    return report


def test_traffic_like_calibration_is_covered(tiny: Path, tmp_path: Path) -> None:
    model = place(tmp_path, tiny, [talk(n, "plain words", "plain") for n in range(12)])
    report = run(model, tmp_path / "out")
    assert {name: (row["score"], row["verdict"]) for name, row in report["model"].items()} == dict.fromkeys(
        ("activation_range", "activation_saturation", "activation_channels", "kv_range"), (1.0, "COVERED")
    )
    figures = json.loads((tmp_path / "out" / "activations.json").read_text())
    assert figures["dimensions"] == report["model"]
    assert figures["calibration_tokens"] == report["tokens"]
    assert len(figures["layers"]) == 8


def test_traffic_of_another_script_is_refused_and_the_kind_named(tiny: Path, tmp_path: Path) -> None:
    traffic = [
        *(talk(n, "plain words", "plain") for n in range(6)),
        *(talk(n, "臺灣繁體中文", "hant") for n in range(6)),
    ]
    model = place(tmp_path, tiny, traffic)
    with pytest.raises(CoverageError, match=r"activation_channels .*mostly in hant"):
        run(model, tmp_path / "out")
    # The refused stage leaves what it saw.
    report = json.loads((tmp_path / "out" / "coverage.json").read_text())
    assert report["model"]["activation_channels"]["verdict"] == "UNCOVERED"
    assert json.loads((tmp_path / "out" / "activations.json").read_text())["add_kinds"][0] == "hant"
    assert run(model, tmp_path / "lenient", max_beyond_channel=0.9, max_saturated=0.9, max_range_ratio=99)["model"]


def test_the_same_inputs_give_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    model = place(tmp_path, tiny, [talk(n, "plain words", "plain") for n in range(9, 15)])
    for name in ("a", "b"):
        run(model, tmp_path / name, max_saturated=0.9)
    a, b = ((tmp_path / name / "activations.json").read_bytes() for name in ("a", "b"))
    assert a == b


def test_without_traffic_a_dense_model_is_not_even_loaded(tiny: Path, tmp_path: Path) -> None:
    model = place(tmp_path, tiny, None)
    (model / "model.safetensors").unlink()
    assert run(model, tmp_path / "out")["model"] == {}
    shutil.copy(tmp_path / "data" / "calibration.jsonl", tmp_path / "data" / "traffic.jsonl")
    with pytest.raises(InfrastructureError, match="cannot load") as raised:
        run(model, tmp_path / "again")
    assert "activations: null" in (raised.value.remedy or "")


def test_without_traffic_experts_are_counted_all_the_same(tmp_path: Path) -> None:
    mixture = tmp_path / "mixture"
    moe("qwen3_moe", avoid=4).save_pretrained(mixture)
    make_tokenizer(mixture)
    model = place(tmp_path / "pair", mixture, None)
    with pytest.raises(CoverageError, match=r"experts 0\.\d+ of 1\.0000 .*selects expert 4 for 0"):
        run(model, tmp_path / "out")
    assert run(model, tmp_path / "out2", min_tokens_per_expert=0)["model"] == {}


def test_a_model_that_cannot_be_run_says_how_to_go_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("shapes do not fit\nat length")

    monkeypatch.setattr("calibrate.activations.measure._forward", broken)
    model = place(tmp_path, tiny, [talk(1, "plain words", "plain")])
    with pytest.raises(InfrastructureError, match=r"LlamaForCausalLM cannot .*RuntimeError: shapes do not fit$"):
        run(model, tmp_path / "out")
