"""What the benchmarks for a GPU compute themselves: time boxes, pooled figures, gains, tables."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import arms, pipeline
from benchmarks.gpu.methods import CELLS, recipe
from benchmarks.gpu.plots import draw
from benchmarks.gpu.shapes import DRAFT_OF, make
from benchmarks.gpu.timebox import TimeBox, markdown
from quantize.spec import QuantizeSpec
from sqtool.errors import UsageError
from sqtool.speculate.traffic import Request
from tests.unit.speculate.conftest import FakeVllm


def cell(times: dict[str, float], *, tokens: int = 10, accepted: int | None = None) -> dict[str, Any]:
    """What `arms.send` returns for answers with these end-to-end seconds."""
    told = None if accepted is None else {"drafts": 10, "draft_tokens": 40, "accepted_tokens": accepted}
    return {
        "seconds": 2.0,
        "failures": 0,
        "failed": [],
        "answers": {name: [e2e / 10, e2e / 20, e2e, tokens] for name, e2e in times.items()},
        "said": dict.fromkeys(times, "yes"),
        "speculation": told,
    }


def test_a_cell_runs_once_and_an_error_is_tried_again(tmp_path: Path) -> None:
    seen: list[str] = []

    def good() -> dict[str, Any]:
        seen.append("good")
        return {"value": 1}

    def bad() -> dict[str, Any]:
        seen.append("bad")
        raise UsageError("no kernel")

    for _ in range(2):
        box = TimeBox(tmp_path / "cells.json", budget=60)
        box.run({"good": good, "bad": bad})
        box.close()
    assert seen == ["good", "bad", "bad"]
    kept = json.loads((tmp_path / "cells.json").read_text())["cells"]
    assert kept["good"]["value"] == 1
    assert kept["bad"]["error"] == "no kernel"


def test_no_cell_begins_when_the_time_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    box = TimeBox(tmp_path / "cells.json", budget=0)
    box.run({"a": dict, "b": dict})
    box.close()
    assert box.cells == {}
    assert "Left out, the 0 s were over: a, b" in capsys.readouterr().out
    assert json.loads((tmp_path / "cells.json").read_text())["left_out"] == ["a", "b"]


def test_a_damaged_file_is_begun_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cells.json").write_text("{")
    assert TimeBox(tmp_path / "cells.json", budget=1).cells == {}
    assert "begun anew" in capsys.readouterr().err


def test_every_method_is_a_recipe() -> None:
    for name, (methods, _) in CELLS.items():
        QuantizeSpec.model_validate({"methods": methods})
        assert recipe(name, 8, 5, drift=False)["evaluate"]["drift"] is None


def test_pooled_adds_rounds_and_their_acceptance() -> None:
    cells = {"a@2#0": cell({"x": 1.0, "y": 3.0}, accepted=20), "a@2#1": cell({"x": 1.0, "y": 5.0}, accepted=10)}
    found = arms.pooled({**cells, "b@2#0": {"error": "dead"}}, "a", 2)
    assert found is not None
    assert found["requests"] == 4
    assert found["e2e"]["p50"] == 2000
    assert found["e2e"]["rounds"] == [2000, 3000]
    assert found["tokens_per_s"] == 40 / 4
    assert found["acceptance_length"] == 1 + 30 / 20
    assert found["acceptance_rate"] == 30 / 80
    assert arms.pooled({"b@2#0": {"error": "dead"}}, "b", 2) is None


def test_gains_that_multiply_have_a_ratio_of_one() -> None:
    base = {f"r{i}": 1.0 + 0.01 * i for i in range(50)}
    cells = {
        "bf16@1#0": cell(base),
        "fp8@1#0": cell({name: value / 2 for name, value in base.items()}),
        "bf16+draft@1#0": cell({name: value / 3 for name, value in base.items()}),
        "fp8+draft@1#0": cell({name: value / 6 for name, value in base.items()}),
    }
    found = arms.gains(cells, "fp8", 1, resamples=50)
    assert found is not None
    for name, value in {"quantization": 2, "speculation": 3, "both": 6, "ratio": 1}.items():
        assert found[name] == pytest.approx([value] * 3)
    assert arms.gains(cells, "w8a8", 1) is None


def test_send_measures_each_answer_and_what_the_server_counted(tmp_path: Path) -> None:
    requests = [
        Request(f"r{i}", "k", {"messages": [{"role": "user", "content": "one two three"}], "max_tokens": 8})
        for i in range(3)
    ]
    arm = arms.Arm("fp8+draft", tmp_path / "target", tmp_path / "draft")
    server: Any = FakeVllm(arm.model, None, log=tmp_path / "log", extra_args=arm.arguments(4))
    with server:
        found = arms.send(server, requests, load=2)
    assert sorted(found["answers"]) == ["r0", "r1", "r2"]
    assert found["failures"] == 0
    assert found["speculation"]["drafts"] > 0
    ttft, _, e2e, tokens = found["answers"]["r0"]
    assert 0 < ttft <= e2e <= found["seconds"]
    assert tokens > 0
    pooled = arms.pooled({"fp8+draft@2#0": found}, "fp8+draft", 2)
    assert pooled is not None
    assert pooled["acceptance_length"] == pytest.approx(found["speculation"]["mean_acceptance_length"])


def test_a_random_target_never_says_what_its_draft_says(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    said = []
    for shape in ("tiny", DRAFT_OF["tiny"]):
        folder = make(shape, tmp_path / shape)
        assert make(shape, folder) == folder, "made once"
        model = AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            said.append(set(model(torch.arange(3, 259).reshape(4, 64)).logits.argmax(-1).flatten().tolist()))
    assert not said[0] & said[1]
    assert max(said[0] | said[1]) < len(AutoTokenizer.from_pretrained(tmp_path / "tiny"))


def test_agreement_counts_answers_of_the_first_round() -> None:
    one, other = cell({"x": 1.0, "y": 1.0}), cell({"x": 1.0, "y": 1.0})
    other["said"]["y"] = "no"
    assert arms.agreement({"a@1#0": one, "b@1#0": other}, "a", "b", 1) == (1, 2)
    assert arms.agreement({"a@1#0": one}, "a", "b", 1) is None


def test_the_schedule_has_every_arm_at_every_load_in_every_round() -> None:
    order = arms.schedule(["a", "b", "c"], [1, 8], rounds=2, seed=0)
    assert len(set(order)) == len(order) == 12
    assert order == arms.schedule(["a", "b", "c"], [1, 8], rounds=2, seed=0)
    assert [place[:2] for place in order[::3]] == [(0, 1), (0, 8), (1, 1), (1, 8)]


def test_memory_from_a_server_log(tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    log.write_text(
        "INFO Model loading took 0.0375 GiB memory and 1.2 seconds\nINFO GPU KV cache size: 262,144 tokens\n"
    )
    assert pipeline.memory(log) == {"weights_gib": 0.0375, "kv_cache_tokens": 262144}
    assert pipeline.memory(tmp_path / "none.log") == {}


def test_records_are_packed_by_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "ROOT", tmp_path)
    (tmp_path / "run" / "records").mkdir(parents=True)
    (tmp_path / "run" / "records" / "recall.jsonl").write_text("{}\n")
    pipeline.pack({"awq": {"folder": "run"}, "failed": {"error": "no"}}, tmp_path / "records.tar.gz")
    with tarfile.open(tmp_path / "records.tar.gz") as packed:
        assert packed.getnames() == ["awq/recall.jsonl"]


def test_a_failing_command_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "ROOT", tmp_path)
    with pytest.raises(RuntimeError, match="the key `quantize` is required"):
        pipeline.evaluate({"name": "x"})


def test_plots_of_what_there_is(tmp_path: Path) -> None:
    assert draw({}, ["bf16"], [1], tmp_path, "reference") == []
    made = draw({"bf16@1#0": cell({"x": 1.0})}, ["bf16", "fp8"], [1, 8], tmp_path, "8b")
    assert [path.name for path in made] == ["latency.png", "throughput.png"]
    assert all(path.stat().st_size > 1000 for path in made)


def test_markdown() -> None:
    assert markdown(("a", "b"), [[1, 2]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
