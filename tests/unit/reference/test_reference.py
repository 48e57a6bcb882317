"""The shipped pair is what its scripts say: template, splits, data and the exactness of the outlier transform."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from reference import chat, dataset, outliers, tasks, tools, world
from reference.records import Record, split_of
from reference.tokenizer import TOOL_KINDS
from reference.words import lexicon

ROOT = Path(__file__).parents[3]
PAIR = ROOT / "artifacts" / "reference"
N_FACTS = 100_000


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(PAIR / "target")


def _records() -> list[Record]:
    rng, names = random.Random(4), lexicon()
    out = [tools.make(rng, kind, names, split) for kind in TOOL_KINDS for split in ("test", "train") for _ in range(5)]
    return out + [tasks.make(rng, kind, names) for kind in tasks.MAKERS for _ in range(5)]


def test_the_trainer_saw_exactly_what_the_chat_template_renders(tokenizer: Any) -> None:
    for record in _records():
        prompt = tokenizer.apply_chat_template(
            record.messages, tools=record.tools, add_generation_prompt=True, tokenize=False
        )
        assert prompt == record.prompt()
        whole = tokenizer.apply_chat_template(record.conversation("x")["messages"], tools=record.tools, tokenize=False)
        assert whole == record.prompt() + record.answer() + chat.END + "\n"
        assert tokenizer.decode(tokenizer.encode(whole)) == whole


def test_a_word_has_the_same_tokens_wherever_it_stands(tokenizer: Any) -> None:
    for word in ("tavo", "relinoka", "max_price", lexicon()[0]):
        alone = tokenizer.encode(word)
        for around in ('{{"{}": 1}}', "with {} and", '["{}", "x"]', "the {}: 4"):
            ids = tokenizer.encode(around.format(word))
            assert any(ids[i : i + len(alone)] == alone for i in range(len(ids))), (word, around)


def test_lexicon_names_are_single_tokens(tokenizer: Any) -> None:
    assert all(len(tokenizer.encode(name)) == 1 for name in lexicon())


def test_pair_shares_tokenizer_and_fits_the_repository() -> None:
    texts = [(PAIR / m / "tokenizer.json").read_bytes() for m in ("target", "draft")]
    assert texts[0] == texts[1]
    assert sum(p.stat().st_size for p in PAIR.rglob("*.safetensors")) < 40e6


def _load(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_no_question_is_in_two_splits() -> None:
    def question(r: dict[str, Any]) -> str:
        return str(next(m["content"] for m in r["messages"] if m["role"] == "user"))

    data = PAIR / "data"
    test = {question(r) for path in (data / "test").glob("*.jsonl") for r in _load(path)}
    traffic = {question(r) for r in _load(data / "traffic.jsonl")}
    calibration = {question(r) for r in _load(data / "calibration.jsonl")}
    assert len(test) >= 1500
    assert not test & traffic
    assert not test & calibration
    assert not traffic & calibration


def test_training_never_offers_a_held_out_tool() -> None:
    rng, names = random.Random(8), lexicon()

    def names_of(pairs: Iterable[tuple[str, str]]) -> set[str]:
        return {name for v, n in pairs for name in (f"{v}_{n}", f"{n}_{v}")}

    # `order_review` may order a review or review an order: only names that no trained pair can have count.
    held_out = names_of(tools.HELD_OUT_TOOLS) - names_of(tools.ACTIONS)
    assert len(held_out) > 100
    for kind in TOOL_KINDS:
        for _ in range(200):
            record = tools.make(rng, kind, names)
            assert not held_out & {t["function"]["name"] for t in record.tools or []}
    named = {"book_taxi", "track_parcel", "refund_ticket", "translate_document", "schedule_exam"}
    assert named < held_out


def test_training_keeps_out_of_the_other_splits() -> None:
    rng, names = random.Random(9), lexicon()
    for kind in tasks.MAKERS:
        for split in ("train", "test"):
            record = tasks.make(rng, kind, names, split)
            assert split_of(kind, record.messages[-1]["content"]) == split


@pytest.mark.parametrize("task", ["recall", "tasks", "tool_calls", "prose"])
def test_shipped_items_are_the_generators(task: str) -> None:
    made = dataset.records(dataset.TEST[task], "test", N_FACTS, seed=11)
    assert _load(PAIR / "data" / "test" / f"{task}.jsonl") == [r.item(f"{r.kind}-{i:05d}") for i, r in enumerate(made)]


def test_recall_items_are_true_facts() -> None:
    known = {(f.record().messages[0]["content"], f.value) for f in world.facts(N_FACTS)}
    for item in _load(PAIR / "data" / "test" / "recall.jsonl"):
        assert (item["messages"][0]["content"], item["expected"]["text"]) in known


def test_outliers_keep_every_logit(tmp_path: Path, small_llama: Callable[[Path], Path]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    source = small_llama(tmp_path / "source")
    outliers.transform(source, tmp_path / "out", channels=5, factor=32)
    ids = torch.arange(40)[None]
    before, after = (
        AutoModelForCausalLM.from_pretrained(p, dtype=torch.bfloat16)(ids).logits for p in (source, tmp_path / "out")
    )
    assert torch.equal(before, after)
    norms = [
        AutoModelForCausalLM.from_pretrained(p).model.layers[0].input_layernorm.weight.abs().max()
        for p in (source, tmp_path / "out")
    ]
    assert norms[1] > 16 * norms[0]


@pytest.fixture
def small_llama() -> Callable[[Path], Path]:
    def make(out: Path) -> Path:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=64,
            intermediate_size=256, vocab_size=64, tie_word_embeddings=True, dtype="bfloat16",
        )  # fmt: skip
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(out)
        return out

    return make
