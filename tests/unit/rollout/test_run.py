"""A log from its lines to the JSON document."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from sqtool.errors import DataError, UsageError
from sqtool.rollout import Rules, read_rollout, with_options
from sqtool.rollout.run import MOST_KINDS, OTHER_KINDS
from tests.unit.rollout.conftest import WriteLog, lines


def test_a_harmful_candidate(write_log: WriteLog) -> None:
    result = read_rollout([str(write_log(lines(4000, {"baseline": 0.05, "w4": 0.2})))], Rules())
    told = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (told["schema"], told["outcome"], told["unit"]) == ("sqtool.rollout/1", "HARM", "request")
    assert told["verdict"]["w4"]["metrics"]["correction"]["outcome"] == "HARM"
    assert list(told["arms"]) == ["baseline", "w4"]
    assert told["source"]["requests"] == sum(arm["requests"] for arm in told["arms"].values()) == 4000
    assert any("no request names a user" in note for note in told["notes"])


def test_a_prefix_is_judged_as_it_was_then(write_log: WriteLog) -> None:
    """Evidence never shrinks: p-values of a longer log are at most those of its beginning."""
    every, before = lines(1500, {"baseline": 0.05, "w4": 0.1}), 1.0
    for end in (200, 700, 1500):
        result = read_rollout([str(write_log(every[:end]))], Rules())
        p_value = result.verdicts[0].metrics[0].evidence.p_harm
        assert p_value <= before
        before = p_value


def test_kinds(write_log: WriteLog) -> None:
    records = lines(200, {"baseline": 0.1, "b": 0.1})
    for number, record in enumerate(records):
        if number >= 10:
            record["kind"] = f"k{number % 80}"
    result = read_rollout([str(write_log(records))], Rules(), by_kind=True)
    assert len(result.kinds) == MOST_KINDS + 1
    assert {"(no kind)", OTHER_KINDS} <= set(result.kinds)
    assert sum(cell["requests"] for arms in result.kinds.values() for cell in arms.values()) == 200
    assert read_rollout([str(write_log(records))], Rules()).kinds == {}


def test_the_unit_is_the_user_where_there_is_one(write_log: WriteLog) -> None:
    records = lines(300, {"baseline": 0.1, "b": 0.1})
    for number, record in enumerate(records):
        record["cluster"] = f"u{number // 10}"
        record["arm"] = "b" if number // 10 % 2 else "baseline"
    result = read_rollout([str(write_log(records))], Rules.model_validate({"window_minutes": 1}))
    assert result.unit == "cluster"
    assert result.verdicts[0].metrics[0].evidence.terms <= 15
    assert any("are within their first 1 minutes" in note for note in result.notes)


def test_the_order_of_times_is_said_or_made(write_log: WriteLog) -> None:
    records = lines(50, {"baseline": 0.1, "b": 0.1})
    path = str(write_log(records[::-1]))
    said = read_rollout([path], Rules())
    assert any(note.startswith("49 requests are older") and "by 49 s" in note for note in said.notes)
    made = read_rollout([path], Rules(), sort=True)
    ordered = read_rollout([str(write_log(records))], Rules())
    assert not any("older" in note for note in made.notes)
    assert made.to_dict()["verdict"] == ordered.to_dict()["verdict"]


def test_cost_takes_what_every_request_has(write_log: WriteLog) -> None:
    def cost(records: list[dict[str, Any]], **options: Any) -> tuple[str | None, Any]:
        result = read_rollout([str(write_log(records))], Rules(), **options)
        return result.cost_unit, result.table["b"]["cost_per_accepted_answer"]

    records = lines(100, {"baseline": 0.1, "b": 0.1}, device_seconds=2.0)
    assert cost(records)[0] == "device_seconds"
    assert cost(records, price_per_hour=1.0)[0] == "currency"
    assert cost([{**r, "price": 0.5} for r in records])[0] == "price"
    records[3].pop("device_seconds")
    assert cost(records) == (None, {"missing": "not every request has a price, nor device_seconds"})


def test_baselines_that_are_not_there(write_log: WriteLog) -> None:
    path = str(write_log(lines(20, {"bf16": 0.1, "w4a16": 0.1})))
    with pytest.raises(UsageError) as error:
        read_rollout([path], Rules(), baseline="bf61")
    assert error.value.message == "no arm 'bf61' in the log (arms: bf16, w4a16)"
    assert error.value.remedy == "Did you mean 'bf16'? Use --baseline ARM."
    with pytest.raises(UsageError) as error:
        read_rollout([path], Rules())
    assert error.value.remedy == "Use --baseline ARM."


def test_one_arm_only(write_log: WriteLog) -> None:
    with pytest.raises(UsageError, match="one arm only, 'baseline': a verdict compares two"):
        read_rollout([str(write_log(lines(20, {"baseline": 0.1})))], Rules())


def test_a_request_id_taken_for_the_arm(write_log: WriteLog) -> None:
    records = [{"arm": f"req-{n}", "timestamp": n} for n in range(40)]
    with pytest.raises(DataError, match="arm: more than 20 arms, the last 'req-20'"):
        read_rollout([str(write_log(records))], Rules())


def test_what_was_ignored_or_cut_off_is_noted(write_log: WriteLog) -> None:
    path = write_log(lines(20, {"baseline": 0.1, "b": 0.1}, region="eu"))
    with path.open("a") as handle:
        handle.write('{"arm": "b", "ti')
    notes = read_rollout([str(path)], Rules()).notes
    assert any("ignored: region" in note for note in notes)
    assert any(f"{path}:21: the last line is cut off" in note for note in notes)


def gateway_lines(n: int, failures: dict[str, float]) -> list[dict[str, Any]]:
    """A gateway that logs no status: an error on the requests that failed, a response on the others."""
    rng = random.Random(1)
    names = list(failures)
    found = []
    for number in range(n):
        arm = rng.choice(names)
        failed = rng.random() < failures[arm]
        said = {"error": {"message": "x"}} if failed else {"response": {"usage": {"prompt_tokens": 3}}}
        found.append({"model": "m", "timestamp": 1.79e9 + number, "metadata": {"arm": arm}, **said})
    return found


def test_failures_of_a_gateway_without_a_status_are_seen(write_log: WriteLog) -> None:
    result = read_rollout([str(write_log(gateway_lines(3000, {"baseline": 0.01, "w4": 0.1})))], Rules())
    assert result.source.format == "gateway"
    assert result.table["w4"]["failure"]["value"] == pytest.approx(0.1, abs=0.03)
    assert [(v.metric.name, v.outcome) for v in result.verdicts[0].metrics] == [("failure", "HARM")]
    assert not any("neither a status nor an error" in note for note in result.notes)


def test_a_gateway_that_may_not_log_failures_at_all_is_noted(write_log: WriteLog) -> None:
    result = read_rollout([str(write_log(gateway_lines(50, {"baseline": 0.0, "w4": 0.0})))], Rules())
    assert any("neither a status nor an error" in note and "--field failed=PATH" in note for note in result.notes)


def litellm_lines(user: Callable[[int], str], owner: str) -> list[dict[str, Any]]:
    """LiteLLM's payload without an end user, 10 requests of each arm in turn."""
    return [
        {"startTime": n, "status": "success", "end_user": "", "user": user(n // 10), "trace_id": f"t{n}"}
        | {"metadata": {"arm": "b" if n // 10 % 2 else "baseline", "user_api_key_user_id": owner}}
        for n in range(200)
    ]


def test_an_empty_end_user_of_litellm_hides_no_other_user(write_log: WriteLog) -> None:
    path = str(write_log(litellm_lines(lambda n: f"u{n}", "")))
    result = read_rollout([path], Rules.model_validate({"window_minutes": 0.1}))
    assert result.unit == "cluster"
    assert result.verdicts[0].metrics[0].evidence.terms <= 10


def test_litellms_traces_and_administrator_are_no_users(write_log: WriteLog) -> None:
    result = read_rollout([str(write_log(litellm_lines(lambda n: "", "default_user_id")))], Rules())
    assert result.unit == "request"
    assert any("no request names a user or session" in note for note in result.notes)


def test_a_margin_of_what_the_log_has_does_not_wait_for_the_rest(write_log: WriteLog) -> None:
    log = [{"arm": ("baseline", "b")[n % 2], "timestamp": n, "failed": n % 200 < 2} for n in range(6000)]
    path = str(write_log(log))
    for margins in ([], ["failure=0.02"], ["failure=0.02", "retry=off"]):
        assert read_rollout([path], with_options(Rules(), margins=margins)).outcome == "NO_HARM", margins
    asked = read_rollout([path], with_options(Rules(), margins=["failure=0.02", "retry=0.02"]))
    assert asked.outcome == "KEEP_WATCHING", "a rate that was asked for is not left out"


@pytest.mark.parametrize("margins", [(), ("correction=0.02",)])
def test_a_log_of_events_shows_no_rate(write_log: WriteLog, margins: tuple[str, ...]) -> None:
    records = [
        {name: record[name] for name in ("arm", "timestamp", *(["corrected"] if record["corrected"] else []))}
        for record in lines(6000, {"baseline": 0.02, "w4": 0.3})
    ]
    path, rules = str(write_log(records)), with_options(Rules(), margins=margins)
    result = read_rollout([path], rules)
    assert result.outcome == "KEEP_WATCHING"
    judged = {verdict.metric.name: verdict for verdict in result.verdicts[0].metrics}
    if margins:
        assert "only where it happened" in judged["correction"].reason
    else:
        assert "correction" not in judged
    assert any("`corrected` is true in all of the" in note and "--absent" in note for note in result.notes)
    meant = read_rollout([path], rules, absent=("corrected",))
    assert meant.outcome == "HARM"
    assert not any("--absent" in note for note in meant.notes)


def test_accepted_only_where_it_is_true_shows_no_rate_either(write_log: WriteLog) -> None:
    records = lines(3000, {"baseline": 0.1, "w4": 0.1})
    for number, record in enumerate(records):
        del record["accepted"]
        if number % 3:
            record["accepted"] = True
    result = read_rollout([str(write_log(records))], Rules())
    assert "acceptance" not in {verdict.metric.name for verdict in result.verdicts[0].metrics}
    assert any("`accepted` is true in all of the 2000 requests" in note for note in result.notes)


def test_what_nobody_did_is_a_rate(write_log: WriteLog) -> None:
    """`false` where it is known, and not known elsewhere: nobody corrected."""
    records = lines(3000, {"baseline": 0.0, "w4": 0.0})
    for record in records[::5]:
        del record["corrected"]
    result = read_rollout([str(write_log(records))], Rules())
    assert "correction" in {verdict.metric.name for verdict in result.verdicts[0].metrics}
