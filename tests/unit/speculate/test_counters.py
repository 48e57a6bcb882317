"""Reading /metrics, recorded from vLLM 0.32 with a draft model, before and after three requests."""

from __future__ import annotations

from pathlib import Path

import pytest

from sqtool.speculate.counters import (
    NOTHING,
    Counters,
    Speculation,
    add_up,
    from_answer,
    parse,
    read_settled,
    reports_per_request,
)

RECORDED = Path(__file__).with_name("recorded")


def metrics(drafts: int, running: int = 0) -> str:
    return (
        "# TYPE vllm:num_requests_running gauge\n"
        f'vllm:num_requests_running{{engine="0"}} {running}.0\n'
        "# TYPE vllm:spec_decode_num_drafts counter\n"
        f'vllm:spec_decode_num_drafts_total{{engine="0"}} {drafts}.0\n'
        f'vllm:spec_decode_num_drafts_total{{engine="1"}} {drafts}.0\n'
    )


def test_recorded_differences() -> None:
    before, after = (parse((RECORDED / name).read_text()) for name in ("metrics_before.txt", "metrics_after.txt"))
    assert before.speculation == Speculation(0, 0, 0, (0, 0, 0, 0))
    seen = after.since(before)
    assert seen.speculation == Speculation(22, 88, 84, (21, 21, 21, 21))
    assert seen.others["generation_tokens"] == 18 + 38 + 42
    assert {"prompt_tokens", "engine_steps", "preemptions", "prefix_cache_hits"} <= set(seen.others)


def test_a_server_without_speculation_has_none() -> None:
    counters = parse("# TYPE vllm:generation_tokens counter\nvllm:generation_tokens_total 5.0\n")
    assert counters.speculation is None
    assert counters.others == {"generation_tokens": 5.0}
    assert counters.since(counters).speculation is None


def test_engines_are_added() -> None:
    assert parse(metrics(21)).speculation == Speculation(42, 0, 0, ())


def test_figures() -> None:
    entry = Speculation(10, 40, 18, (9, 6, 2, 1)).to_dict()
    assert entry["acceptance_rate"] == pytest.approx(0.45)
    assert entry["mean_acceptance_length"] == pytest.approx(2.8)
    assert entry["per_position_rate"] == [0.9, 0.6, 0.2, 0.1]
    nothing = NOTHING.to_dict()
    assert nothing["acceptance_rate"] is nothing["mean_acceptance_length"] is nothing["per_position_rate"] is None


def test_an_answer_and_sums() -> None:
    report = {
        "acceptance_histogram": [2, 1, 0, 4, 3],
        "num_spec_steps": 10,
        "num_draft_tokens": 40,
        "num_accepted_draft_tokens": 25,
    }
    one = from_answer(report)
    assert one == Speculation(10, 40, 25, (8, 7, 7, 3))
    assert sum(one.per_position) == one.accepted_tokens
    assert add_up([one, one, NOTHING]) == Speculation(20, 80, 50, (16, 14, 14, 6))
    assert add_up([]) == NOTHING


def test_settling_waits_for_the_last_step() -> None:
    readings = iter([metrics(3, running=1), metrics(4, running=1), metrics(4, running=1), metrics(5), metrics(5)])
    pauses: list[float] = []
    result: Counters = read_settled(lambda: next(readings), pause=pauses.append)
    assert result.speculation is not None
    assert result.speculation.drafts == 10
    assert len(pauses) == 4


def test_probe(tmp_path: Path) -> None:
    assert not reports_per_request(tmp_path)
    source = tmp_path / "lib/python3.11/site-packages/vllm/engine/arg_utils.py"
    source.parent.mkdir(parents=True)
    source.write_text('parser.add_argument("--max-num-seqs")')
    assert not reports_per_request(tmp_path)
    source.write_text('parser.add_argument("--per-request-spec-decode-metrics")')
    assert reports_per_request(tmp_path)
