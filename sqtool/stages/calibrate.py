"""calibrate: the calibration set and the coverage that the recipe asks for."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from calibrate.spec import JSONL_SUFFIXES, CalibrateSpec
from sqtool.errors import DataError
from sqtool.files import write_text
from sqtool.stages.contract import Estimate, Inputs, StageResult
from sqtool.stages.measuring import task_files
from sqtool.stages.sections import evaluate_section, quantize_section

ROWS_PER_SECOND = 120.0
"""Conversations rendered and tokenized a second, seen on 2 cores."""
START_SECONDS = 4.0
"""Import of transformers and load of a tokenizer."""
TOKENS_PER_SECOND = 2000.0
"""Tokens a second through the reference model for its activations, seen on 2 busy cores."""
PROBE_BYTES = 1 << 20
BYTES_PER_TOKEN = 4


def run(spec: CalibrateSpec, inputs: Inputs, out: Path) -> StageResult:
    """Build the set into `out`; CoverageError when it does not cover what the recipe asks for."""
    from calibrate.build import build

    with TemporaryDirectory() as folder:
        summary = build(
            spec,
            model=inputs.model,
            seed=inputs.seed,
            out=out,
            progress=inputs.progress,
            root=inputs.root,
            trust_remote_code=inputs.trust_remote_code,
            evals=_test_items(spec, inputs, Path(folder)),
        )
    return StageResult(summary)


def _looks_at_items(spec: CalibrateSpec) -> bool:
    return spec.contamination != "off" or spec.coverage.evals


def _files_of_items(inputs: Inputs) -> list[Path]:
    return task_files(evaluate_section(inputs).model_copy(update={"drift": None}), inputs.root)


def _test_items(spec: CalibrateSpec, inputs: Inputs, folder: Path) -> dict[str, Path]:
    """Files of test items by task, wherever the tasks take them from, where the recipe asks anything about them."""
    from evals.tasks import load_tasks

    if not _looks_at_items(spec):
        return {}
    found = {}
    for task in load_tasks(evaluate_section(inputs).model_copy(update={"limit": None}), inputs.root):
        found[task.name] = folder / f"{task.name}.jsonl"
        lines = (item.model_dump_json(exclude_unset=True, exclude_none=True) + "\n" for item in task.items)
        write_text(found[task.name], "".join(lines))
    return found


def skip(_spec: CalibrateSpec, inputs: Inputs) -> str:
    quantize = quantize_section(inputs)
    if quantize.checkpoint is not None:
        return "the recipe names a finished checkpoint"
    return "" if quantize.needs_calibration else "no method of the recipe looks at data"


def data_files(spec: CalibrateSpec, inputs: Inputs) -> list[Path]:
    """Sources, traffic sample and test items: the set is chosen from, measured against and checked for them."""
    from calibrate.build import source_paths, traffic_path

    files = source_paths(spec, model=inputs.model, root=inputs.root)
    traffic = traffic_path(spec, model=inputs.model, root=inputs.root)
    if traffic is not None:
        if not traffic.is_file():
            raise DataError(traffic, "no such file", field="calibrate.match", remedy="Give it a sample of the traffic.")
        files.append(traffic)
    return [*files, *(_files_of_items(inputs) if _looks_at_items(spec) else ())]


def expected_tokens(spec: CalibrateSpec, inputs: Inputs) -> int:
    """Tokens that the set will have: as many as asked for, or the sources' mean line at 4 bytes a token, cut to
    max_seq_length (a whole row where no source is JSONL)."""
    from calibrate.build import source_paths

    if spec.target_tokens is not None:
        return spec.target_tokens
    lines = nbytes = 0
    for path in source_paths(spec, model=inputs.model, root=inputs.root):
        if path.suffix not in JSONL_SUFFIXES:
            continue
        with path.open("rb") as handle:
            head = handle.read(PROBE_BYTES)
        lines += head.count(b"\n")
        nbytes += len(head)
    mean = min(spec.max_seq_length, nbytes / lines / BYTES_PER_TOKEN) if lines else spec.max_seq_length
    return max(1, round(spec.num_calibration_samples * mean))


def preflight(spec: CalibrateSpec, inputs: Inputs) -> Estimate:
    count = spec.num_calibration_samples
    seconds, rule = START_SECONDS + count / ROWS_PER_SECOND, f"{ROWS_PER_SECOND:.0f} conversations/s"
    if spec.activations is not None:
        tokens = min(expected_tokens(spec, inputs), spec.activations.calibration_tokens)
        seconds += (tokens + spec.activations.traffic_tokens) / TOKENS_PER_SECOND
        rule += f", {TOKENS_PER_SECOND:.0f} tokens/s through the model"
    return Estimate(seconds, work=count, rule=f"{START_SECONDS:.0f} s to start, {rule}", details={"samples": count})
