"""The calibration set as files that any backend can read.

calibration.jsonl     the conversations, one a line, as the sources have them
tokens.safetensors    `input_ids` and `position_ids` [rows, length], int32 (see `calibrate.packing`); or `loss_mask` too
coverage.json         see `calibrate.coverage`
card.json, card.md    what the set is made of and how, and the digest of the first two
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calibrate.conversation import Record
from calibrate.packing import Rows
from sqtool.files import canonical_json, sha256_file, sha256_text, write_json, write_text

RECORDS = "calibration.jsonl"
TOKENS = "tokens.safetensors"
COVERAGE = "coverage.json"
CARD = "card.json"
CARD_TEXT = "card.md"
FORMAT = "sqtool.calibration/1"


def write_set(out: Path, records: Sequence[Record], rows: Rows) -> str:
    """Write conversations and tokens; the set's digest."""
    from safetensors.numpy import save_file

    write_text(out / RECORDS, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    tensors = {"input_ids": rows.input_ids, "position_ids": rows.position_ids}
    if rows.loss_mask is not None:
        tensors["loss_mask"] = rows.loss_mask
    save_file(tensors, out / TOKENS)
    return sha256_text(canonical_json({name: sha256_file(out / name) for name in (RECORDS, TOKENS)}))


def write_card(out: Path, summary: Mapping[str, Any], settings: Mapping[str, Any], coverage: Mapping[str, Any]) -> None:
    """Write card.json and card.md. Nothing in them depends on when or where the set was made."""
    made = {key: value for key, value in summary.items() if key != "seconds"}
    dimensions = {
        name: {"score": found["score"], "threshold": found["threshold"], "verdict": found["verdict"]}
        for part in ("text", "model")
        for name, found in coverage.get(part, {}).items()
    }
    write_json(out / CARD, {"format": FORMAT, **made, "settings": settings, "dimensions": dimensions})
    write_text(out / CARD_TEXT, _text(made, coverage, dimensions))


def _text(made: Mapping[str, Any], coverage: Mapping[str, Any], dimensions: Mapping[str, Any]) -> str:
    left_out = ", ".join(f"{made[key]} {words}" for key, words in LEFT_OUT.items() if made.get(key))
    lines = [
        "# Calibration set",
        "",
        f"{made['samples']} conversations, {made['tokens']} tokens, in {made['rows']} rows of {made['row_length']}.",
        f"Coverage: {coverage['verdict']}.",
        "",
        f"Digest: `{made['digest']}`",
        "",
        "| source | considered | chosen |",
        "| --- | --- | --- |",
        *(f"| {s['path']} | {s['pool']} | {s['chosen']} |" for s in made["sources"]),
        "",
        f"Read: {made['read']} records." + (f" Left out: {left_out}." if left_out else ""),
        f"Cut: {made['truncated']} conversations lost {made['tokens_cut']} tokens at their end.",
        f"Contamination: {made['contamination']}.",
        "",
        "| kind | conversations | tokens |",
        "| --- | --- | --- |",
        *(f"| {kind} | {row['samples']} | {row['tokens']} |" for kind, row in coverage["kinds"].items()),
        "",
    ]
    if dimensions:
        lines += ["| dimension | score | at least | verdict |", "| --- | --- | --- | --- |"]
        lines += [f"| {n} | {d['score']:.3f} | {d['threshold']:.2f} | {d['verdict']} |" for n, d in dimensions.items()]
        lines += [""]
    return "\n".join(lines)


LEFT_OUT = {
    "duplicates": "repeated",
    "near_duplicates": "nearly the same as others",
    "bad_lines": "unreadable",
    "unanswered": "without an answer",
    "too_long": "longer than the model's context",
    "contaminated": "shared with the test",
}
