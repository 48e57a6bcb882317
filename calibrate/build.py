"""Build the calibration set: the function that the calibrate stage calls."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from calibrate.choose import choose
from calibrate.coverage import demand, measure
from calibrate.packing import Rows, pack
from calibrate.pool import Entry, Pool, Record, read_pool
from calibrate.render import Rendered, check_vocabulary, cut, load_tokenizer, render
from calibrate.spec import CalibrateSpec
from sqtool.errors import DataError, UsageError
from sqtool.files import sha256_file, write_json, write_text
from sqtool.progress import Progress

RECORDS = "calibration.jsonl"
TOKENS = "tokens.safetensors"
COVERAGE = "coverage.json"


def source_paths(spec: CalibrateSpec, *, model: Path, root: Path | None = None) -> list[Path]:
    """The files of the pool; relative paths start at `root` (the current folder without one).

    Without sources it is `data/calibration.jsonl` beside the model's folder, where the reference model has it.
    Raises UsageError when that is not there either.
    """
    if spec.sources:
        return [(root or Path()) / source.path for source in spec.sources]
    beside = model.resolve().parent / "data" / RECORDS
    if beside.is_file():
        return [beside]
    raise UsageError(
        "calibrate.sources is empty, and only the reference model brings its own calibration data",
        remedy="Give it a JSONL file of conversations like those that the model will see.",
    )


def build(
    spec: CalibrateSpec,
    *,
    model: Path,
    seed: int,
    out: Path,
    progress: Progress,
    root: Path | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Choose, render, pack and check; returns the summary.

    Writes `out/calibration.jsonl` (the conversations chosen), `out/tokens.safetensors` (`input_ids` and
    `position_ids` [rows, length], int32, see `calibrate.packing`) and `out/coverage.json`. Same pool, spec and seed
    give the same bytes.

    Raises CoverageError when the set is below the recipe's minimum, DataError with file, line and field for a bad
    record, a template that drops the tools or a tokenizer that does not fit.
    """
    started = time.monotonic()
    paths = source_paths(spec, model=model, root=root)
    with progress.task("calibrate: read the pool"):
        pool = read_pool(paths)
    weights = [source.weight for source in spec.sources] or [1.0]
    entries = choose(
        pool,
        weights,
        spec.num_calibration_samples,
        seed=seed,
        shuffle=spec.shuffle,
        at_least=spec.coverage.min_per_kind if spec.selection == "stratified" else None,
    )
    if len(entries) < spec.num_calibration_samples:
        progress.note(
            f"calibrate: the pool has {len(entries)} different conversations, "
            f"{spec.num_calibration_samples} were asked for"
        )
    records = pool.read(entries)
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    check_vocabulary(model, tokenizer)
    rendered = _render_all(spec, pool, entries, records, tokenizer, progress)
    lengths = [len(ids) for ids in rendered.ids]
    report = measure(spec.coverage, pool, records, lengths)
    write_json(out / COVERAGE, report)
    demand(report)
    rows = pack(rendered.ids, spec.max_seq_length)
    _write(out, records, rows)
    if rendered.truncated:
        progress.note(
            f"calibrate: {rendered.truncated} of {len(records)} conversations were longer than {spec.max_seq_length} "
            f"tokens and lost {rendered.tokens_cut} tokens at their end"
        )
    return {
        "samples": len(records),
        "requested": spec.num_calibration_samples,
        "tokens": sum(lengths),
        "rows": int(rows.input_ids.shape[0]),
        "row_length": int(rows.input_ids.shape[1]),
        "tokens_repeated": rows.repeated,
        "truncated": rendered.truncated,
        "tokens_cut": rendered.tokens_cut,
        "pool": len(pool),
        "duplicates": pool.duplicates,
        "sources": [
            {"path": str(path), "pool": len(found), "chosen": sum(e.source == number for e in entries)}
            for number, (path, found) in enumerate(zip(pool.paths, pool.entries, strict=True))
        ],
        "kinds": {kind: counts["samples"] for kind, counts in report["kinds"].items()},
        "tools_called": report["tools"]["called"],
        "coverage": report["verdict"],
        "tokens_sha256": sha256_file(out / TOKENS),
        "seconds": round(time.monotonic() - started, 2),
    }


def _render_all(
    spec: CalibrateSpec, pool: Pool, entries: list[Entry], records: list[Record], tokenizer: Any, progress: Progress
) -> Rendered:
    rendered = Rendered()
    with progress.task("calibrate: render", total=len(records)) as task:
        for entry, record in zip(entries, records, strict=True):
            path = pool.paths[entry.source]
            try:
                ids = render(tokenizer, record)
            except ValueError as error:
                raise DataError(path, str(error), line=entry.line, field="messages") from error
            if not cut(rendered, ids, spec.max_seq_length):
                raise DataError(path, "the chat template renders it to nothing", line=entry.line, field="messages")
            task.advance()
    return rendered


def _write(out: Path, records: list[Record], rows: Rows) -> None:
    from safetensors.numpy import save_file

    write_text(out / RECORDS, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    save_file({"input_ids": rows.input_ids, "position_ids": rows.position_ids}, out / TOKENS)
