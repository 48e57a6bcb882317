"""lm-eval's samples as our records, and which of its metrics are scores of items.

A metric is a score where lm-eval's own figure is the mean of one number an item, and every number lies in [0, 1]: then
the mean over the records is lm-eval's figure. Everything else (perplexity, BLEU, F1 over all items, ...) is computed
from all items together; it stands in the summary and can never be gated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evals.harness.catalogue import ANSWER_METRICS, PER_ITEM, TOKEN_LIMITS, metric_name
from evals.harness.loading import Loaded, item_id, slice_fields
from evals.harness.models import Ledger
from evals.records import answer_json
from evals.scorers import Answer, Loglikelihood
from evals.scorers.builtin import builtin_scores
from sqtool.errors import DataError

Sample = Mapping[str, Any]
WRONG_TEXT, WRONG_CHOICE, PARTLY = "wrong_text", "wrong_choice", "partly_right"
"""Failure layers, by the task's first metric."""


@dataclass(frozen=True)
class Scored:
    """A task's records, in the items' order, and what is no score of an item: metric -> why."""

    records: list[dict[str, Any]]
    diagnostics: dict[str, str] = field(default_factory=dict)


def aggregation_names(task: Any) -> dict[str, str]:
    """Of each metric that the task declares, the registered name of its aggregation; "" for a function of its own."""
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    names = {AGGREGATION_REGISTRY.get(name): name for name in AGGREGATION_REGISTRY}
    return {metric: names.get(function, "") for metric, function in task.aggregation().items()}


def records_of(loaded: Loaded, samples: Sequence[Sample], ledger: Ledger, default_max_tokens: int) -> Scored:
    """Records of one task from lm-eval's logged samples, of which there is one for each item and filter."""
    by_item: dict[int, list[Sample]] = {}
    for sample in samples:
        by_item.setdefault(int(sample["doc_id"]), []).append(sample)
    how = aggregation_names(loaded.task)
    lower = {metric for metric, higher in loaded.task.higher_is_better().items() if higher is False}
    names = dict.fromkeys((str(m), str(s["filter"])) for s in samples for m in s["metrics"])
    refused = {
        metric_name(*name): why for name in names if (why := _not_a_score(name, how.get(name[0], "mean"), samples))
    }
    if clash := {metric_name(*name) for name in names} & set(ANSWER_METRICS):
        raise DataError(loaded.path, f"the metric {min(clash)!r} has the name of one that every answer has")
    return Scored(
        [
            _record(loaded, number, group, refused, lower, ledger, default_max_tokens)
            for number, group in by_item.items()
        ],
        refused,
    )


def _not_a_score(name: tuple[str, str], aggregation: str, samples: Sequence[Sample]) -> str:
    """Why a metric is no score of items; "" where it is."""
    if aggregation not in PER_ITEM:
        return f"computed from all items together ({aggregation or 'with a function of its own'})"
    for sample in samples:
        value = sample.get(name[0]) if sample["filter"] == name[1] else None
        if value is None:
            continue
        number = _number(value)
        if number is None or not (0 <= number <= 1 or (math.isnan(number) and aggregation == "nanmean")):
            return f"item {sample['doc_id']} has {str(value)[:40]}, which is no number in [0, 1]"
    return ""


def _number(value: Any) -> float | None:
    """A number, NumPy's included, as a float."""
    if isinstance(value, str | bytes | tuple | list | Mapping):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _record(
    loaded: Loaded,
    number: int,
    group: Sequence[Sample],
    refused: Mapping[str, str],
    lower: set[str],
    ledger: Ledger,
    default_max_tokens: int,
) -> dict[str, Any]:
    first = group[0]
    scores: dict[str, float] = {}
    right: dict[str, float] = {}
    for sample in group:
        for metric in sample["metrics"]:
            name = metric_name(metric, sample["filter"])
            value = _number(sample[metric]) if name not in refused else None
            if value is not None and not math.isnan(value):
                scores[name] = value
                right[name] = 1 - value if metric in lower else value
    answers = ledger.answers.get(number)
    if answers:
        # Of what was generated first, before any filter.
        scores |= builtin_scores(answers[0], token_limit(first["arguments"][0][1], default_max_tokens))
    quality = next(iter(right.values()), 1.0)
    failure = None if quality == 1 else PARTLY if quality > 0 else WRONG_TEXT if answers else WRONG_CHOICE
    return {
        "task": loaded.name,
        "id": item_id(number, first["doc"]),
        "kind": loaded.name,
        "cluster": None,
        "fields": slice_fields(first["doc"]),
        "scores": scores,
        "failure": failure,
        "detail": _detail(group, generated=bool(answers)) if failure else "",
        "output": _output(first, ledger),
        "expected": {"text": text} if (text := _target(first)) else None,
        "lm_eval": {key: first[key] for key in ("doc_id", "doc_hash", "prompt_hash", "target_hash")},
    }


def _output(sample: Sample, ledger: Ledger) -> dict[str, Any]:
    """What the model answered to an item, as in every record: the texts that it generated, or which continuation it
    found likeliest."""
    given = ledger.answers.get(int(sample["doc_id"]))
    if given is not None:
        said = answer_json(given[0])
        if len(given) > 1:  # all of them are the answer: the control compares it
            said["text"] = "\n".join(answer.text for answer in given)
            said["completion_tokens"] = sum(answer.completion_tokens for answer in given)
        return said
    pairs = [tuple(arguments[:2]) for arguments in sample["arguments"]]
    if any(pair not in ledger.tokens for pair in pairs):
        return answer_json(Answer())  # a text whose own likelihood was asked for
    found = [
        Loglikelihood(float(likely), ledger.tokens[pair][1], bool(greedy))
        for pair, ((likely, greedy), *_) in zip(pairs, sample["resps"], strict=True)
    ]
    best = max(range(len(found)), key=lambda at: found[at].logprob)
    answer = Answer(
        pairs[best][1] if len(found) > 1 else "",
        prompt_tokens=ledger.tokens[pairs[0]][0],
        completion_tokens=sum(one.tokens for one in found),
        loglikelihoods=tuple(found),
    )
    return answer_json(answer)


def token_limit(settings: Mapping[str, Any], default: int) -> int:
    """How many tokens an answer may have, by any of lm-eval's names for it."""
    return int(next((settings[name] for name in TOKEN_LIMITS if settings.get(name) is not None), default))


def _target(sample: Sample) -> str:
    """The right answer as a text, where the sample shows one; a choice by its text."""
    target, arguments = sample["target"], sample["arguments"]
    if isinstance(target, int) and not isinstance(target, bool) and len(arguments) > 1:
        return str(arguments[target][1]).strip() if target < len(arguments) else ""
    return target if isinstance(target, str) else json.dumps(target, ensure_ascii=False, default=str)


def _detail(group: Sequence[Sample], *, generated: bool) -> str:
    if not generated:
        return f"expected {_target(group[0])[:60]!r}"
    shown = [f"{sample['filter']}: {str(sample['filtered_resps'][0])[:60]!r}" for sample in group]
    if group[0]["filter"] == "none":
        shown = [one.removeprefix("none: ") for one in shown]
    return f"expected {_target(group[0])[:60]!r}, found {'; '.join(shown)}"
