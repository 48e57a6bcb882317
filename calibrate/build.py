"""Build the calibration set: the function that the calibrate stage calls."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrate.activations.stage import model_coverage
from calibrate.artifact import COVERAGE, RECORDS, TOKENS, write_card, write_set
from calibrate.candidates import BATCH, Candidates, profile
from calibrate.contamination import ItemIndex, Overlap, overlaps
from calibrate.conversation import NO_KIND, Record
from calibrate.coverage import conclude, demand, measure
from calibrate.duplicates import near_duplicates
from calibrate.features import Profile
from calibrate.fix import fillers, spare
from calibrate.packing import Rows, pack
from calibrate.pool import Entry, Pool, read_pool
from calibrate.reference import Sample, read_items, read_traffic
from calibrate.render import Rendered, check_vocabulary, context_length, load_tokenizer
from calibrate.selecting import select
from calibrate.sources import source_files
from calibrate.spec import CalibrateSpec, SourceSpec
from calibrate.text_coverage import lacking, measure_text, name_fillers
from sqtool.errors import DataError, UsageError
from sqtool.files import sha256_file, write_json
from sqtool.progress import Progress

TRAFFIC = "traffic.jsonl"
SHOWN = 5


def sources_of(spec: CalibrateSpec, *, model: Path) -> list[SourceSpec]:
    """The recipe's sources; without any, `data/calibration.jsonl` beside the model's folder, where the reference model
    has it. Raises UsageError when that is not there either."""
    if spec.sources:
        return list(spec.sources)
    beside = model.resolve().parent / "data" / RECORDS
    if beside.is_file():
        return [SourceSpec(path=str(beside))]
    raise UsageError(
        "calibrate.sources is empty, and only the reference model brings its own calibration data",
        remedy="Give it a JSONL file of conversations like those that the model will see.",
    )


def source_paths(spec: CalibrateSpec, *, model: Path, root: Path | None = None) -> list[Path]:
    """The files of the sources; relative paths start at `root` (the current folder without one).

    Raises DataError when one of them is not there.
    """
    base = root or Path()
    return [path for source in sources_of(spec, model=model) for path in source_files(source, base)]


def traffic_path(spec: CalibrateSpec, *, model: Path, root: Path | None = None) -> Path | None:
    """The sample of the traffic that coverage is measured against: `match`, or the reference model's own where the
    sources are its own too; None without."""
    if spec.match is not None:
        return (root or Path()) / spec.match
    beside = model.resolve().parent / "data" / TRAFFIC
    return beside if not spec.sources and beside.is_file() else None


def build(
    spec: CalibrateSpec,
    *,
    model: Path,
    seed: int,
    out: Path,
    progress: Progress,
    root: Path | None = None,
    trust_remote_code: bool = False,
    evals: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """Choose, render, pack and check; returns the summary. `evals`: files of test items by task, which the set must not
    contain and should cover.

    Writes the files of `calibrate.artifact` into `out`. Same pool, spec and seed give the same bytes.

    Raises CoverageError when the set is below what the recipe asks for (coverage.json is there then), DataError with
    file, line and field for a bad record, a template that drops the tools, a tokenizer that does not fit, and for
    conversations that are test items.
    """
    started = time.monotonic()
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    check_vocabulary(model, tokenizer)
    context = context_length(model)
    _check_length(spec, context)
    sources = sources_of(spec, model=model)
    with tempfile.TemporaryFile(dir=out) as kept:
        pool = read_pool(spec, sources, root or Path(), kept, seed=seed, progress=progress)
        with progress.task("calibrate: read traffic and test items"):
            path = traffic_path(spec, model=model, root=root)
            traffic = read_traffic(path, tokenizer, seed=seed) if path is not None else None
            tests = read_items(evals, tokenizer) if evals else None
        with progress.task("calibrate: look for duplicates and test items"):
            pool, found = _filtered(spec, pool, tests)
        candidates = Candidates(spec, pool, tokenizer, context)
        with progress.task(f"calibrate: choose ({spec.selection})"):
            matched = traffic.profile if traffic is not None and spec.match is not None else None
            pool, entries = select(candidates, [s.weight for s in sources], seed=seed, traffic=matched)
        if not entries:
            raise _nothing_left(pool)
        references = _references(spec, traffic, tests)
        with progress.task("calibrate: measure coverage"):
            chosen, report, added = _covered(spec, candidates, entries, references, avoid=found)
        report["contamination"] = _contamination(spec, tests, found, chosen)
        write_json(out / COVERAGE, report)
        _refuse_test_items(spec, found, chosen, progress)
        demand(spec.coverage, report)
        report["model"], further = model_coverage(
            spec.activations,
            ((r.get("kind") or NO_KIND, m.ids) for r, m in zip(chosen.records, chosen.rendered, strict=True)),
            None if traffic is None else (record for _, record in traffic.records),
            model=model,
            tokenizer=tokenizer,
            out=out,
            progress=progress,
            trust_remote_code=trust_remote_code,
            spare=(lambda kinds: spare(candidates, {*chosen.entries, *found}, kinds)) if spec.coverage.fix else None,
        )
        if further:
            known = {part: report[part] for part in ("contamination", "model")}
            chosen, report = _measured(spec, candidates, [*chosen.entries, *further], references)
            report = {**_explained(candidates, chosen, report), **known}
            added += len(further)
        write_json(out / COVERAGE, conclude(report))
        demand(spec.coverage, report)
        masks = _masks(spec, chosen)
        rows = pack([made.ids for made in chosen.rendered], spec.max_seq_length, masks)
        digest = write_set(out, chosen.records, rows)
        summary = {
            **_summary(spec, pool, chosen, report, rows),
            "added": added,
            "loss_tokens": None if masks is None else sum(map(sum, masks)),
            "seed": seed,
            "tokens_sha256": sha256_file(out / TOKENS),
            "digest": digest,
            "seconds": round(time.monotonic() - started, 2),
        }
    write_card(out, summary, spec.model_dump(mode="json"), report)
    _tell(spec, summary, pool, progress)
    return summary


@dataclass(frozen=True)
class _Chosen:
    entries: list[Entry]
    records: list[Record]
    rendered: list[Rendered]
    profile: Profile


def _summary(spec: CalibrateSpec, pool: Pool, chosen: _Chosen, report: Mapping[str, Any], rows: Rows) -> dict[str, Any]:
    counts = pool.counts
    cut = [made.whole - len(made.ids) for made in chosen.rendered if made.whole > len(made.ids)]
    return {
        "samples": len(chosen.records),
        "requested": spec.num_calibration_samples if spec.target_tokens is None else None,
        "target_tokens": spec.target_tokens,
        "tokens": report["tokens"],
        "rows": int(rows.input_ids.shape[0]),
        "row_length": int(rows.input_ids.shape[1]),
        "tokens_repeated": rows.repeated,
        "truncated": len(cut),
        "tokens_cut": sum(cut),
        "read": counts.read,
        "pool": len(pool),
        "bad_lines": counts.bad_lines,
        "unanswered": counts.unanswered,
        "duplicates": counts.duplicates,
        "near_duplicates": counts.near_duplicates,
        "too_long": counts.too_long,
        "contaminated": counts.contaminated,
        "contamination": report["contamination"]["verdict"],
        "selection": spec.selection,
        "sources": [
            {"path": name, "pool": len(of), "chosen": sum(e.source == number for e in chosen.entries)}
            for number, (name, of) in enumerate(zip(pool.sources, pool.entries, strict=True))
        ],
        "kinds": {kind: counted["samples"] for kind, counted in report["kinds"].items()},
        "tools_called": report["tools"]["called"],
        "coverage": report["verdict"],
    }


def _masks(spec: CalibrateSpec, chosen: _Chosen) -> list[list[int]] | None:
    if spec.loss_mask == "none":
        return None
    masks = [made.mask or [] for made in chosen.rendered]
    if not any(map(any, masks)):
        raise UsageError(
            "calibrate.loss_mask: assistant, and no conversation chosen has a word of the assistant's",
            remedy="Raise calibrate.max_seq_length if the answers were cut off, or set loss_mask: none.",
        )
    return masks


def _check_length(spec: CalibrateSpec, context: int | None) -> None:
    if context is not None and spec.max_seq_length > context:
        raise UsageError(
            f"calibrate.max_seq_length is {spec.max_seq_length}, and the model's context is {context} tokens",
            remedy=f"Set calibrate.max_seq_length to {context} or less.",
        )


def _references(spec: CalibrateSpec, traffic: Sample | None, tests: Sample | None) -> dict[str, Profile]:
    made = {} if traffic is None else {"traffic": traffic.profile}
    if tests is not None and tests.records and spec.coverage.evals:
        made["evals"] = tests.profile
    return made


def _filtered(spec: CalibrateSpec, pool: Pool, tests: Sample | None) -> tuple[Pool, dict[Entry, Overlap]]:
    """The pool without near-duplicates and, where the recipe drops them, test items; and the entries that are some."""
    if spec.near_duplicates is not None:
        entries = pool.all()
        repeated = near_duplicates(_records(pool, entries), spec.near_duplicates)
        pool.counts.near_duplicates = len(repeated)
        pool = pool.without({entries[place] for place in repeated})
    if spec.contamination == "off" or tests is None or not tests.records:
        return pool, {}
    entries = pool.all()
    found = overlaps(_records(pool, entries), ItemIndex(tests.records))
    by_entry = {entries[overlap.record]: overlap for overlap in found}
    pool.counts.contaminated = len(by_entry)
    return (pool.without(set(by_entry)), {}) if spec.contamination == "drop" else (pool, by_entry)


def _records(pool: Pool, entries: Sequence[Entry]) -> Any:
    return (record for at in range(0, len(entries), BATCH) for record in pool.read(entries[at : at + BATCH]))


def _nothing_left(pool: Pool) -> DataError:
    counts = pool.counts
    gone = {
        "unreadable": counts.bad_lines,
        "without an answer": counts.unanswered,
        "repeated": counts.duplicates,
        "nearly the same as others": counts.near_duplicates,
        "shared with the test items": counts.contaminated,
        "longer than the model's context": counts.too_long,
    }
    why = ", ".join(f"{n} {words}" for words, n in gone.items() if n)
    return DataError(
        ", ".join(pool.sources),
        f"nothing is left to calibrate with: {counts.read} read" + (f", {why}" if why else ""),
        field="calibrate.sources",
        remedy="Add a source, or loosen the filter that took the most.",
    )


def _covered(
    spec: CalibrateSpec,
    candidates: Candidates,
    entries: list[Entry],
    references: Mapping[str, Profile],
    *,
    avoid: Collection[Entry],
) -> tuple[_Chosen, dict[str, Any], int]:
    """(the set, its coverage, how many conversations `coverage.fix` added to it, none of `avoid`)."""
    chosen, report = _measured(spec, candidates, entries, references)
    added: list[Entry] = []
    if spec.coverage.fix and report["verdict"] != "COVERED":
        added = fillers(candidates, chosen.entries, chosen.profile, references, report, avoid)
        if added:
            chosen, report = _measured(spec, candidates, [*entries, *added], references)
    return chosen, _explained(candidates, chosen, report), len(added)


def _explained(candidates: Candidates, chosen: _Chosen, report: dict[str, Any]) -> dict[str, Any]:
    """The report with the conversations that would fill what is missing, and tokens in letters."""
    if lacking(report["text"]):
        held = set(chosen.entries)
        others = [entry for entry in candidates.pool.all() if entry not in held]
        names = ((f"{e.path.name}:{e.line}", found) for e, found in candidates.features(others))
        name_fillers(lacking(report["text"]), names)
    for missing in report["text"].get("tokens", {}).get("missing", ()):
        missing["name"] = candidates.tokenizer.convert_ids_to_tokens(int(missing["name"]))
    return report


def _measured(
    spec: CalibrateSpec, candidates: Candidates, entries: list[Entry], references: Mapping[str, Profile]
) -> tuple[_Chosen, dict[str, Any]]:
    triples = list(candidates.rendered(entries))
    have = profile(candidates.tokenizer, ((record, made) for _, record, made in triples))
    chosen = _Chosen(entries, [record for _, record, _ in triples], [made for _, _, made in triples], have)
    text = measure_text(spec.coverage.min_score, references, have)
    lengths = [len(made.ids) for made in chosen.rendered]
    return chosen, measure(spec.coverage, candidates.pool, chosen.records, lengths, text)


def _contamination(
    spec: CalibrateSpec, tests: Sample | None, found: Mapping[Entry, Overlap], chosen: _Chosen
) -> dict[str, Any]:
    if spec.contamination == "off" or tests is None or not tests.records:
        return {"verdict": "not checked", "items": 0, "found": []}
    hit = [(entry, found[entry]) for entry in chosen.entries if entry in found]
    return {
        "verdict": "CONTAMINATED" if hit else "CLEAN",
        "items": len(tests.records),
        "unusable_items": tests.unusable,
        "found": [
            {"conversation": f"{entry.path}:{entry.line}", "item": o.item, "how": o.how, "text": o.text}
            for entry, o in hit
        ],
    }


def _refuse_test_items(
    spec: CalibrateSpec, found: Mapping[Entry, Overlap], chosen: _Chosen, progress: Progress
) -> None:
    hit = [(entry, found[entry]) for entry in chosen.entries if entry in found]
    if not hit:
        return
    shown = "; ".join(f"{e.path.name}:{e.line} and {o.item} share {o.how} ({o.text!r})" for e, o in hit[:SHOWN])
    more = f"; and {len(hit) - SHOWN} more" if len(hit) > SHOWN else ""
    message = f"{len(hit)} of {len(chosen.entries)} calibration conversations share text with test items: {shown}{more}"
    if spec.contamination == "warn":
        progress.note(f"calibrate: {message}")
        return
    first, _ = hit[0]
    raise DataError(
        first.path, message, line=first.line,
        remedy="A model that saw the test measures too well. calibrate.contamination: drop leaves such conversations "
        "out; warn goes on with them.",
    )  # fmt: skip


def _tell(spec: CalibrateSpec, summary: Mapping[str, Any], pool: Pool, progress: Progress) -> None:
    samples, requested = summary["samples"], summary["requested"]
    if requested is not None and samples < requested:
        progress.note(f"calibrate: the pool has {samples} different conversations, {requested} were asked for")
    if summary["truncated"]:
        progress.note(
            f"calibrate: {summary['truncated']} of {samples} conversations were longer than {spec.max_seq_length} "
            f"tokens and lost {summary['tokens_cut']} tokens at their end"
        )
    if summary["added"]:
        progress.note(f"calibrate: {summary['added']} conversations were added to cover what was missing")
    if pool.counts.bad_lines:
        progress.note(f"calibrate: {pool.counts.bad_lines} bad lines were skipped, first {pool.counts.shown[0]}")
