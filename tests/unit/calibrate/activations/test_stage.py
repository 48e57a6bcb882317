"""Through `calibrate.build`, as the calibrate stage calls it, on a model small enough to run."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from calibrate.activations.stage import ACTIVATIONS
from calibrate.build import build
from calibrate.spec import CalibrateSpec, MinScores
from quantize.preflight.experts import check_experts
from sqtool.errors import CoverageError, InfrastructureError
from sqtool.progress import SILENT
from tests.contract.tiny import make_tokenizer

from .conftest import moe


def talk(n: int, word: str, kind: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"{word} {n}"}, {"role": "assistant", "content": f"{word} {word}"}]
    return {"id": f"{kind}-{n}", "kind": kind, "messages": messages}


def place(
    folder: Path, model: Path, traffic: list[dict[str, Any]] | None, others: Sequence[dict[str, Any]] = ()
) -> Path:
    """The model with a calibration pool of words (and `others` behind them) and a traffic sample beside it."""
    shutil.copytree(model, folder / "model")
    (folder / "data").mkdir()
    pool = [*(talk(n, "plain words", "plain") for n in range(12)), *others]
    for name, rows in (("calibration", pool), ("traffic", traffic)):
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


FIRST = {"num_calibration_samples": 12, "selection": "random", "shuffle": False}


def test_fix_adds_conversations_that_reach_as_far_as_the_traffic(tiny: Path, tmp_path: Path) -> None:
    hant = [talk(n, "臺灣繁體中文", "hant") for n in range(40)]
    more = [talk(n, "plain words", "other") for n in range(100, 140)]
    model = place(tmp_path, tiny, [*(talk(n, "plain words", "plain") for n in range(6)), *hant[:6]], [*more, *hant])
    spec = dict(FIRST, near_duplicates=None)
    coverage: dict[str, Any] = {"min_score": dict.fromkeys(MinScores.model_fields, 0), "min_per_kind": 0}
    for name, fix in (("bare", False), ("mended", True), ("again", True)):
        (tmp_path / name).mkdir()
        asked = CalibrateSpec.model_validate(spec | {"coverage": coverage | {"fix": fix, "refuse": "never"}})
        made = build(asked, model=model, seed=0, out=tmp_path / name, progress=SILENT)
        report = json.loads((tmp_path / name / "coverage.json").read_text())
        verdicts = {row["verdict"] for row in report["model"].values()}
        if not fix:
            assert "UNCOVERED" in verdicts
            assert made["added"] == 0
            continue
        assert verdicts == {"COVERED"}
        kinds = Counter(json.loads(line)["kind"] for line in (tmp_path / name / "calibration.jsonl").open())
        assert kinds["plain"] == 12, "what was there stays"
        assert kinds["hant"] == made["added"] == made["samples"] - 12, "and nothing is added that brings nothing"
        assert made["added"] < 12
        figures = json.loads((tmp_path / name / "activations.json").read_text())
        assert figures["calibration_tokens"] == report["tokens"] == made["tokens"]
    assert (tmp_path / "mended/tokens.safetensors").read_bytes() == (tmp_path / "again/tokens.safetensors").read_bytes()


def test_fix_looks_for_tokens_of_an_expert(tmp_path: Path) -> None:
    mixture = tmp_path / "mixture"
    moe("qwen3_moe").save_pretrained(mixture)
    make_tokenizer(mixture)
    texts = [talk(n, chr(0x391 + n) * 3 + " words", "others") for n in range(40)]
    model = place(tmp_path / "pair", mixture, None, texts)
    coverage = {"fix": True, "refuse": "never", "min_per_kind": 0}
    asked = dict(FIRST, num_calibration_samples=1, near_duplicates=None, coverage=coverage)
    asked["activations"] = {"min_tokens_per_expert": 60}
    added = {}
    for name, fix in (("bare", False), ("mended", True)):
        (tmp_path / name).mkdir()
        spec = CalibrateSpec.model_validate(asked | {"coverage": coverage | {"fix": fix}})
        added[name] = build(spec, model=model, seed=0, out=tmp_path / name, progress=SILENT)["added"]
        report = json.loads((tmp_path / name / "coverage.json").read_text())
        assert (report["model"]["experts"]["verdict"] == "COVERED") is fix
        # The quantize stage reads the same file.
        rare = check_experts(tmp_path / name / ACTIVATIONS, minimum=60, calibrate_all_experts=True)
        assert bool(rare) is not fix
    assert added["bare"] == 0 < added["mended"]


def test_fix_that_finds_nothing_says_what_is_missing_all_the_same(tiny: Path, tmp_path: Path) -> None:
    model = place(tmp_path, tiny, [talk(n, "臺灣繁體中文", "hant") for n in range(6)])
    (tmp_path / "out").mkdir()
    coverage = {"min_score": dict.fromkeys(MinScores.model_fields, 0), "fix": True}
    spec = CalibrateSpec.model_validate(dict(FIRST, near_duplicates=None, coverage=coverage))
    with pytest.raises(CoverageError, match=r"activation_channels .*traffic values go beyond") as raised:
        build(spec, model=model, seed=0, out=tmp_path / "out", progress=SILENT)
    assert "add some like the traffic" in raised.value.remedy


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

    monkeypatch.setattr("calibrate.activations.measure.run_batch", broken)
    model = place(tmp_path, tiny, [talk(1, "plain words", "plain")])
    with pytest.raises(InfrastructureError, match=r"LlamaForCausalLM cannot .*RuntimeError: shapes do not fit$"):
        run(model, tmp_path / "out")
