"""Drift against a naive float64 reference, on tiny random models."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.drift import _width, baseline_states, drift, kept_texts, texts_of
from evals.items import Item
from evals.spec import DriftSpec, EvaluateSpec
from evals.texts import Text, batches, padded_length, render, round_robin
from sqtool.errors import DataError, InfrastructureError, UsageError
from tests.unit.evals.builders import text_row, tool_item, tool_row
from tests.unit.evals.tiny import save_model

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from evals.heads import Head, check_head, head_of  # noqa: E402
from evals.loading import CHECK_TOKENS  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads, which on a busy machine wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def near(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The baseline with a little noise on its weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("near")
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.01 * weight.std() if weight.dim() > 1 else 0)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.fixture
def project(tmp_path: Path, write_jsonl: Callable[..., Path]) -> Path:
    """A root with one task of texts, one of tool calls, and prose."""
    write_jsonl("data/texts.jsonl", [text_row(i, f"number {i} " * (i + 1), kind="ab"[i % 2]) for i in range(8)])
    call = {"name": "weather", "arguments": {"city": "Rome"}}
    write_jsonl("data/tools.jsonl", [tool_row([call], id="t1"), tool_row([], id="t2", kind="tool_irrelevance")])
    prose = {"id": "p1", "kind": "prose", "messages": [{"role": "assistant", "content": "Once upon a time. " * 5}]}
    write_jsonl("data/prose.jsonl", [prose])
    folder = tmp_path / "evals" / "tasks"
    folder.mkdir(parents=True)
    (folder / "texts.yaml").write_text("task: texts\nitems: data/texts.jsonl\nscorer: exact_match\n")
    (folder / "tools.yaml").write_text("task: tools\nitems: data/tools.jsonl\nscorer: tool_calls\n")
    return tmp_path


def _spec(**changes: Any) -> EvaluateSpec:
    values = {
        "items": 10,
        "prose": "data/prose.jsonl",
        "batch_tokens": 600,
        "chunk": 37,
        "device": "cpu",
        "dtype": "bfloat16",
    }
    values.update(changes)
    return EvaluateSpec(tasks=("texts", "tools"), drift=DriftSpec.model_validate(values))


def _both(project: Path, base: Path, candidate: Path, **changes: Any) -> tuple[dict[str, Any], Path]:
    spec, states, out = _spec(**changes), project / "states", project / "out"
    states.mkdir(exist_ok=True)
    out.mkdir(exist_ok=True)
    baseline_states(spec, model=base, texts=texts_of(spec, base, project), out=states)
    return drift(spec, baseline=base, candidate=candidate, states=states, out=out), states


def _naive(base: Path, candidate: Path, states: Path) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """The figures as the definitions say: one text at a time, the models' hidden states, all else in float64."""
    from transformers import AutoModelForCausalLM

    columns: dict[str, list[float]] = {"kl": [], "agree": [], "nll_base": [], "nll_cand": [], "answer": []}
    models = [AutoModelForCausalLM.from_pretrained(p, dtype="auto").eval() for p in (base, candidate)]
    for text in kept_texts(states):
        logs = []
        for model in models:
            with torch.inference_mode():
                hidden = model.model(torch.tensor([text.tokens])).last_hidden_state[0, :-1]
                logits = hidden.double() @ model.get_output_embeddings().weight.double().T
            logs.append(torch.log_softmax(logits, -1).numpy())
        p, q = logs
        targets = np.array(text.tokens[1:])
        rows = np.arange(len(targets))
        columns["kl"] += list((np.exp(p) * (p - q)).sum(-1))
        columns["agree"] += list(p.argmax(-1) == q.argmax(-1))
        columns["nll_base"] += list(-p[rows, targets])
        columns["nll_cand"] += list(-q[rows, targets])
        columns["answer"] += list(rows + 1 >= text.answer_start)
    return {name: np.array(values, dtype=float) for name, values in columns.items()}


def _close(found: dict[str, Any], want: dict[str, Any], mask: np.ndarray[Any, np.dtype[Any]]) -> None:
    """The tolerance is for bf16 hidden states, which differ a little between batch shapes."""
    kl = want["kl"][mask]
    assert found["positions"] == mask.sum()
    assert found["non_finite"] == 0
    assert found["kl_mean"] == pytest.approx(kl.mean(), rel=0.02)
    assert found["kl_p99"] == pytest.approx(np.quantile(kl, 0.99), rel=0.1)
    assert found["kl_max"] == pytest.approx(kl.max(), rel=0.1)
    assert found["top1_agreement"] == pytest.approx(want["agree"][mask].mean(), abs=0.01)
    assert found["perplexity_baseline"] == pytest.approx(np.exp(want["nll_base"][mask].mean()), rel=0.01)
    assert found["perplexity_candidate"] == pytest.approx(np.exp(want["nll_cand"][mask].mean()), rel=0.01)


def test_against_the_naive_reference(project: Path, base: Path, near: Path) -> None:
    found, states = _both(project, base, near)
    want = _naive(base, near, states)
    everywhere = np.ones(len(want["kl"]), dtype=bool)
    assert want["kl"].mean() > 1e-5, "the candidate must differ for this test to mean anything"
    _close(found["all"], want, everywhere)
    _close(found["answers"], want, want["answer"] == 1)
    assert 0 < found["answers"]["positions"] < found["all"]["positions"]
    assert set(found["by_kind"]) == {"a", "b", "tool_simple", "tool_irrelevance", "prose"}
    assert sum(kind["all"]["positions"] for kind in found["by_kind"].values()) == found["all"]["positions"]
    assert found["by_kind"]["tool_irrelevance"]["answers"] == {"positions": 0, "non_finite": 0}
    assert found["path"] == "transformers"
    assert len((project / "out" / "drift.jsonl").read_text().splitlines()) == found["texts"] == 11


def test_the_same_model_does_not_drift_at_all(project: Path, base: Path) -> None:
    found, _ = _both(project, base, base)
    assert found["all"]["kl_max"] == 0.0
    assert found["all"]["top1_agreement"] == 1.0
    assert found["all"]["perplexity_ratio"] == 1.0
    assert found["all"]["rms_delta_p"] == 0.0
    assert found["all"]["perplexity_candidate"] == found["all"]["perplexity_baseline"]


def test_chunks_and_batches_change_nothing(project: Path, base: Path, near: Path) -> None:
    small, _ = _both(project, base, near, chunk=5)
    large, _ = _both(project, base, near, chunk=100000)
    assert small["all"]["kl_mean"] == pytest.approx(large["all"]["kl_mean"], rel=1e-5)
    assert small["all"]["kl_max"] == pytest.approx(large["all"]["kl_max"], rel=1e-5)


def test_a_vocabulary_of_128k_against_float64(project: Path, tmp_path: Path) -> None:
    """Tolerance: 0.2 % of each figure. Hidden states are the same on both sides of the comparison, in float32."""
    big = {"vocab_size": 128_256, "hidden_size": 32, "head_dim": 16, "tied": False, "dtype": "float32"}
    base, cand = (save_model(tmp_path / name, seed=at, **big) for at, name in enumerate(("a", "b")))
    found, states = _both(project, base, cand, items=2, prose=None, dtype="float32", chunk=1024)
    want = _naive(base, cand, states)
    for name, value in {
        "kl_mean": want["kl"].mean(),
        "kl_p99": np.quantile(want["kl"], 0.99),
        "kl_max": want["kl"].max(),
        "perplexity_ratio": np.exp((want["nll_cand"] - want["nll_base"]).mean()),
    }.items():
        assert found["all"][name] == pytest.approx(value, rel=2e-3), name


def test_logits_of_both_models_never_exist_for_all_tokens(
    project: Path, base: Path, near: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    whole = Head.logits

    def counted(self: Head, hidden: Any) -> Any:
        rows.append(len(hidden))
        return whole(self, hidden)

    monkeypatch.setattr(Head, "logits", counted)
    found, _ = _both(project, base, near, chunk=16)
    compared = [count for count in rows if count != CHECK_TOKENS]  # two of those check the output layers
    assert max(compared) <= 16
    assert sum(compared) >= 2 * found["all"]["positions"] - CHECK_TOKENS


def test_states_are_kept_as_they_are_and_say_what_they_weigh(project: Path, base: Path) -> None:
    from transformers import AutoModelForCausalLM

    spec, states = _spec(), project / "states"
    states.mkdir()
    texts = texts_of(spec, base, project)
    kept = baseline_states(spec, model=base, texts=texts, out=states)
    assert kept["bytes"] == kept["positions"] * 128 * 2, "hidden size 128, two bytes each"
    on_disk = sum(path.stat().st_size for path in states.glob("batch-*"))
    assert on_disk <= kept["bytes"] + 4 * (kept["positions"] + len(texts)) + 1000 * len(list(states.glob("batch-*")))
    assert [list(text.tokens) for text in kept_texts(states)] == [list(text.tokens) for text in texts]
    assert [text.fields for text in kept_texts(states)] == [text.fields for text in texts]
    model = AutoModelForCausalLM.from_pretrained(base, dtype="bfloat16").eval()
    group = batches(texts, 600)[0]
    rows = torch.zeros(len(group), padded_length(len(group[0].tokens)), dtype=torch.long)
    for row, text in zip(rows, group, strict=True):
        row[: len(text.tokens)] = torch.tensor(list(text.tokens))
    with torch.inference_mode():
        want = model.model(rows).last_hidden_state
    want = torch.cat([row[: len(text.tokens) - 1] for row, text in zip(want, group, strict=True)])
    assert torch.equal(load_file(states / "batch-0000.safetensors")["hidden"], want)


def test_one_baseline_serves_every_candidate(project: Path, base: Path, near: Path) -> None:
    first, states = _both(project, base, near)
    before = {path.name: path.stat().st_mtime_ns for path in states.iterdir()}
    for candidate in (base, near):
        again = drift(_spec(), baseline=Path("gone"), candidate=candidate, states=states, out=project / "out")
    assert again == first
    assert {path.name: path.stat().st_mtime_ns for path in states.iterdir()} == before


def test_slices_and_layers(project: Path, base: Path, near: Path) -> None:
    found, _ = _both(project, base, near)
    slices = found["slices"]
    assert {"prompt_tokens", "position", "n_tools"} <= set(slices)
    for name in ("prompt_tokens", "position", "n_tools"):
        assert sum(part["all"]["positions"] for part in slices[name].values()) == found["all"]["positions"], name
    weighted = sum(p["all"]["kl_mean"] * p["all"]["positions"] for p in slices["position"].values())
    assert weighted / found["all"]["positions"] == pytest.approx(found["all"]["kl_mean"], rel=1e-9)
    layers = [json.loads(line) for line in (project / "out" / "layers.jsonl").read_text().splitlines()]
    assert [layer["name"] for layer in layers] == ["model.layers.0", "model.layers.1"]
    for layer in layers:
        assert layer["relative_error"] > 0
        assert layer["activation_max"] == pytest.approx(layer["baseline_activation_max"], rel=0.2)
    assert found["stability"]["activation_max"] == max(layer["activation_max"] for layer in layers)


def test_a_broken_candidate_is_counted_not_averaged(project: Path, base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(float("inf"))
    model.save_pretrained(tmp_path / "broken")
    found, _ = _both(project, base, tmp_path / "broken")
    assert found["all"]["non_finite"] == found["all"]["positions"] > 0
    assert "kl_mean" not in found["all"]
    assert found["stability"]["inf"] + found["stability"]["nan"] > 0
    assert not (project / "out" / "positions.tmp").exists()


def test_another_vocabulary_is_refused(project: Path, base: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", vocab_size=400)
    with pytest.raises(UsageError, match="vocabulary"):
        _both(project, base, other)


def test_what_cannot_be_done_is_said(project: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="drift: null"):
        baseline_states(EvaluateSpec(drift=None), model=base, texts=[], out=tmp_path)
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        texts_of(_spec(prose="nowhere.jsonl"), base, project)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "nothing"}')
    states = tmp_path / "s"
    states.mkdir()
    baseline_states(_spec(), model=base, texts=texts_of(_spec(), base, project), out=states)
    with pytest.raises(InfrastructureError, match="cannot load"):
        drift(_spec(), baseline=base, candidate=tmp_path / "empty", states=states, out=tmp_path)


def test_an_untied_head_and_float32_states(project: Path, tmp_path: Path) -> None:
    model = save_model(tmp_path / "untied", tied=False, dtype="float32")
    other = save_model(tmp_path / "other", tied=False, dtype="float32", seed=3)
    found, states = _both(project, model, other, dtype="float32")
    want = _naive(model, other, states)
    assert found["all"]["kl_mean"] == pytest.approx(want["kl"].mean(), rel=1e-4)
    assert found["all"]["kl_p999"] == pytest.approx(np.quantile(want["kl"], 0.999), rel=1e-4)


def test_an_unknown_step_after_the_norm_is_noticed(base: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto").eval()
    head = head_of(model)
    tokens = torch.arange(1, 20).unsqueeze(0)
    with torch.inference_mode():
        check_head(model, head, tokens)
        head.scale = 0.5
        with pytest.raises(InfrastructureError, match="not those of its output layer"):
            check_head(model, head, tokens)


def test_rendering_finds_where_the_answer_starts(base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)

    def parts(item: Item, answers: Any = None, limit: int = 2000) -> tuple[str, str]:
        text = render(item, tokenizer, limit, answers)
        assert text is not None
        return tokenizer.decode(text.tokens[: text.answer_start]), tokenizer.decode(text.tokens[text.answer_start :])

    prompt, answer = parts(Item.model_validate(text_row(1, "the end")))
    assert prompt.endswith("<|im_start|>assistant\n")
    assert answer == "the end<|im_end|>\n"
    prompt, answer = parts(tool_item(("weather", {"city": "Rome"})))
    assert answer == '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>\n'
    assert '"seconds"' in prompt
    assert parts(tool_item())[1] == ""
    assert parts(tool_item(), {"t1": {"text": "I cannot."}})[1] == "I cannot.<|im_end|>\n"
    prompt, answer = parts(Item.model_validate(text_row(1, "the end")), limit=5)
    assert answer == ""


def test_items_are_taken_in_turn() -> None:
    items = [Item.model_validate(text_row(i, "x", kind="rare" if i == 7 else "common")) for i in range(20)]
    chosen = round_robin(items, 6)
    assert len(chosen) == 6
    assert [item.kind for item in chosen].count("rare") == 1
    assert len({item.id for item in round_robin(items, 99)}) == 20


def test_batches_respect_the_bound() -> None:
    texts = [Text(str(n), "k", tuple(range(n)), 1) for n in (50, 30, 30, 10, 9, 2)]
    groups = batches(texts, 64)
    assert [[len(t.tokens) for t in group] for group in groups] == [[50], [30, 30], [10, 9, 2]]
    assert len(batches([Text("a", "k", tuple(range(33)), 1)] * 2, 66)) == 2, "33 tokens are padded to 40"
    assert [len(group) for group in batches(texts, 1)] == [1] * 6


@given(st.integers(1, 200_000))
def test_a_padded_text_is_little_longer_and_many_lengths_make_few_shapes(tokens: int) -> None:
    width = padded_length(tokens)
    assert tokens <= width <= max(8, math.ceil(tokens * 1.125)) or width - tokens < 8
    assert (width - 1).bit_length() == (tokens - 1).bit_length() or tokens <= 8
    assert padded_length(width) == width
    assert len({padded_length(n) for n in range(513, 1025)}) == 8


def test_no_text_is_padded_beyond_the_models_positions() -> None:
    """Learned positions end there."""

    def widths(text_config: Any) -> list[int]:
        network = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text_config))
        return [_width([Text("a", "k", tuple(range(n)), 1)], network) for n in (60, 97, 99, 120)]

    assert widths(SimpleNamespace(max_position_embeddings=100)) == [64, 100, 100, 120]
    assert widths(SimpleNamespace()) == [64, 104, 104, 120]


def test_states_of_an_earlier_version_are_compared_as_they_were_padded(project: Path, base: Path, near: Path) -> None:
    first, states = _both(project, base, near)
    manifest = json.loads((states / "states.json").read_text())
    widths = [max(text["length"] for text in group) for group in manifest["batches"]]
    assert all(padded >= width for padded, width in zip(manifest.pop("padded_to"), widths, strict=True))
    (states / "states.json").write_text(json.dumps(manifest))
    again = drift(_spec(), baseline=base, candidate=near, states=states, out=project / "out")
    assert again["all"]["kl_mean"] == pytest.approx(first["all"]["kl_mean"], rel=1e-2)


def test_an_answer_of_another_task_is_not_taken(project: Path, base: Path, write_jsonl: Callable[..., Path]) -> None:
    """Ids are unique within a task only."""
    for name in ("one", "two"):
        write_jsonl(f"data/{name}.jsonl", [tool_row([], id="t")])
        (project / f"evals/tasks/{name}.yaml").write_text(
            f"task: {name}\nitems: data/{name}.jsonl\nscorer: tool_calls\n"
        )
    answers = project / "records"
    answers.mkdir()
    for name, text in (("one", "yes"), ("two", "no, " * 20)):
        (answers / f"{name}.jsonl").write_text(json.dumps({"id": "t", "output": {"text": text}}) + "\n")
    spec = EvaluateSpec(tasks=("one", "two"), drift=DriftSpec(prose=None))
    first, second = texts_of(spec, base, project, answers)
    assert len(first.tokens) > len(second.tokens)
    (answers / "two.jsonl").unlink()
    lengths = {len(text.tokens) - text.answer_start for text in texts_of(spec, base, project, answers)}
    assert 0 in lengths, "the one without an answer ends with its prompt"
