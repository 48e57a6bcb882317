"""How far a candidate's next-token distributions are from the baseline's: exact, over the whole vocabulary.

The baseline's final hidden states are kept once (`baseline_states`) and serve every candidate. `drift` then needs one
forward pass of the candidate; logits exist for a few positions at a time only, and figures of positions are on disk, so
that memory does not grow with the number of tokens. The path is transformers', not the serving engine's: the result
says so, and whether the engine computes the same (`evals.engine_check`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evals import loading, stability
from evals.engine_check import FILE as ENGINE_FILE
from evals.engine_check import EngineCheck
from evals.heads import Head, compare, hidden_states, load_head, rows_at_once, save_head
from evals.layerwise import compare_layers, keep_layers
from evals.positions import Positions, statistics
from evals.slices import Span, by_kind, slices, tabulate
from evals.spec import DriftSpec, EvaluateSpec
from evals.texts import Text, batches, load_texts, padded_length
from sqtool.errors import UsageError
from sqtool.files import canonical_json, read_json, write_json, write_text
from sqtool.progress import SILENT, Progress

if TYPE_CHECKING:
    import torch

MANIFEST = "states.json"
HEAD_FILE = "head.safetensors"


def _drift_spec(spec: EvaluateSpec) -> DriftSpec:
    if spec.drift is None:
        raise UsageError("the recipe leaves drift out (evaluate.drift: null)")
    return spec.drift


def texts_of(spec: EvaluateSpec, model: Path, root: Path, answers: Path | None = None) -> list[Text]:
    """The texts that drift compares, under the model's chat template, longest first. `answers`: records
    folder of the baseline's evaluation, for items without an expected answer (see `evals.texts.load_texts`)."""
    return load_texts(spec, _drift_spec(spec), loading.tokenizer(model), root, answers)


def _width(group: Sequence[Text], network: Any) -> int:
    """What a batch is padded to; no further than the model has positions, unless a text itself goes there."""
    longest = max(len(text.tokens) for text in group)
    limit = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    width = padded_length(longest)
    return width if limit is None else max(longest, min(width, int(limit)))


def _padded(group: Sequence[Text], width: int, device: str) -> torch.Tensor:
    """Token ids [texts, width], padded on the right with 0."""
    import torch

    rows = torch.zeros(len(group), width, dtype=torch.long)
    for row, text in zip(rows, group, strict=True):
        row[: len(text.tokens)] = torch.tensor(text.tokens)
    return rows.to(device)


def _predicting(states: torch.Tensor, group: Sequence[Text]) -> torch.Tensor:
    """The positions that predict a token of their text, [positions, hidden]: all but each text's last."""
    import torch

    return torch.cat([row[: len(text.tokens) - 1] for row, text in zip(states, group, strict=True)])


def baseline_states(
    spec: EvaluateSpec,
    *,
    model: Path,
    texts: Sequence[Text],
    out: Path,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Keep the baseline's final hidden states (after the final norm) for these texts (see `texts_of`).

    Writes `out/batch-NNNN.safetensors` (`hidden` [positions, hidden size] in the type of the forward pass, so nothing
    is lost, and `tokens`), `out/head.safetensors` (the output layer) and, last, `out/states.json` (texts, batches).
    Returns {"texts", "positions", "answer_positions", "bytes"}.
    """
    import torch
    from safetensors.torch import save_file

    wanted = _drift_spec(spec)
    device = loading.device(wanted.device)
    groups = batches(texts, wanted.batch_tokens)
    total = sum(len(text.tokens) for text in texts)
    size = 0
    with torch.inference_mode(), progress.task("drift: baseline states", total=total) as task:
        network, head = loading.load(model, device, loading.dtype(wanted.dtype, device), texts[-1].tokens)
        widths = [_width(group, network) for group in groups]
        with stability.Monitor(network, {}) as monitor:
            for index, (group, width) in enumerate(zip(groups, widths, strict=True)):
                monitor.begin([len(text.tokens) for text in group], width, device)
                states = _predicting(hidden_states(network, _padded(group, width, device)), group)
                tokens = torch.tensor([token for text in group for token in text.tokens], dtype=torch.int32)
                save_file({"hidden": states.cpu().contiguous(), "tokens": tokens}, out / _batch_name(index))
                size += states.numel() * states.element_size()
                task.advance(len(tokens))
        save_head(head, out / HEAD_FILE)
        keep_layers(network, texts[0].tokens, out)
    manifest = {
        "path": "transformers",
        "dtype": str(network.dtype).removeprefix("torch."),
        "device": device,
        "vocab": head.vocab,
        "scale": head.scale,
        "softcap": head.softcap,
        "layers": {name: row["activation_max"] for name, row in monitor.rows().items()},
        "padded_to": widths,
        "batches": [
            [
                {
                    "id": text.id,
                    "kind": text.kind,
                    "length": len(text.tokens),
                    "answer_start": text.answer_start,
                    "fields": dict(text.fields),
                }
                for text in group
            ]
            for group in groups
        ],
    }
    write_text(out / MANIFEST, canonical_json(manifest) + "\n")
    return {
        "texts": len(texts),
        "positions": total - len(texts),
        "answer_positions": sum(len(t.tokens) - max(1, t.answer_start) for t in texts),
        "bytes": size,
    }


def _batch_name(index: int) -> str:
    return f"batch-{index:04d}.safetensors"


def _batch(states: Path, manifest: Mapping[str, Any], index: int) -> list[Text]:
    """The texts of one kept batch."""
    from safetensors import safe_open

    with safe_open(states / _batch_name(index), framework="np") as tensors:
        tokens = tensors.get_tensor("tokens").tolist()
    texts = []
    start = 0
    for t in manifest["batches"][index]:
        stop = start + t["length"]
        texts.append(Text(t["id"], t["kind"], tokens[start:stop], int(t["answer_start"]), t["fields"]))
        start = stop
    return texts


def kept_texts(states: Path) -> list[Text]:
    """The texts whose baseline states are kept in `states`."""
    manifest = read_json(states / MANIFEST)
    return [text for index in range(len(manifest["batches"])) for text in _batch(states, manifest, index)]


def drift(
    spec: EvaluateSpec,
    *,
    baseline: Path,
    candidate: Path,
    states: Path,
    out: Path,
    progress: Progress = SILENT,
    engine: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """Compare the candidate with kept baseline states; returns and writes (`out/drift.json`)

        {"path", "device", "dtype", "texts", "all": S, "answers": S, "by_kind": {kind: P},
         "slices": {dimension: {value: P}}, "stability": see `evals.stability.summary`,
         "check": {"baseline" and "candidate": see `EngineCheck.summary`, "comparable": bool or None when unknown}}

    with P = {"all": S, "answers": S} and S = {"positions", "kl_mean", "kl_p99", "kl_p999", "kl_max" (nats),
    "top1_agreement", "perplexity_baseline", "perplexity_candidate", "perplexity_ratio", "rms_delta_p", "non_finite"}.
    `all` is over every position that predicts a token, `answers` over those that predict one of the answer. Positions
    where either side gives NaN or infinity are counted in `non_finite` and left out of the rest. `out/drift.jsonl` has
    one line a text, `out/layers.jsonl` one a decoder layer (see `evals.layerwise` and `evals.stability`).

    `baseline` is not loaded again; it is named in errors. `engine` has the folders of both sides' evaluations, by side,
    where the engine's log-probabilities lie; without it, or with `evaluate.drift.check: null`, `check` is left out.
    """
    import torch

    wanted = _drift_spec(spec)
    device = loading.device(wanted.device)
    manifest = read_json(states / MANIFEST)
    total = sum(text["length"] for group in manifest["batches"] for text in group)
    checks = {side: EngineCheck(folder / ENGINE_FILE) for side, folder in (engine or {}).items() if wanted.check}
    with (
        torch.inference_mode(),
        progress.task("drift: candidate", total=total) as task,
        Positions(out / "positions.tmp") as positions,
        (out / "drift.jsonl").open("w", encoding="utf-8") as lines,
    ):
        last = _batch(states, manifest, len(manifest["batches"]) - 1)[-1]
        # Both sides in one type: what differs then is the quantization alone.
        network, head = loading.load(candidate, device, manifest["dtype"], last.tokens)
        base_head = load_head(states / HEAD_FILE, scale=manifest["scale"], softcap=manifest["softcap"], device=device)
        if head.vocab != base_head.vocab:
            raise UsageError(
                f"the candidate's vocabulary has {head.vocab} tokens, that of {baseline} has {base_head.vocab}",
                remedy="A candidate must be made from this baseline.",
            )
        pair = _Pair(base_head, head, rows_at_once(wanted.chunk, head.vocab, device), checks)
        spans: list[Span] = []
        with stability.Monitor(network, stability.kv_scales(candidate)) as monitor:
            for group, width, kept in _batches(states, manifest, device):
                monitor.begin([len(text.tokens) for text in group], width, device)
                ours = _predicting(hidden_states(network, _padded(group, width, device)), group)
                rows = pair.compare(group, kept, ours)
                for span in _spans(group):
                    text_rows = rows[span.start : span.stop]
                    figures = statistics(lambda block=text_rows: [block])  # type: ignore[misc]
                    lines.write(json.dumps({"id": span.id, "kind": span.kind, **figures}) + "\n")
                spans += _spans(group, positions.count)
                positions.append(rows)
                task.advance(sum(len(text.tokens) for text in group))
        layers = _layer_rows(monitor.rows(), compare_layers(network, states), manifest)
        summary: dict[str, Any] = {
            "path": "transformers",
            "device": device,
            "dtype": str(network.dtype).removeprefix("torch."),
            "texts": len(spans),
            **_tables(spans, positions.statistics),
            "stability": stability.summary(layers),
        }
    if checks and wanted.check is not None:
        found = {side: check.summary(wanted.check) for side, check in checks.items()}
        passed = [side["passed"] for side in found.values()]
        summary["check"] = {**found, "comparable": False if False in passed else None if None in passed else True}
    write_text(out / "layers.jsonl", "".join(json.dumps(layer) + "\n" for layer in layers))
    write_json(out / "drift.json", summary)
    return summary


def _batches(states: Path, manifest: Mapping[str, Any], device: str) -> Iterator[tuple[list[Text], int, torch.Tensor]]:
    """Of each batch its texts, the length that the baseline saw them padded to (another one rounds differently), and
    the baseline's hidden states [positions, hidden]."""
    from safetensors import safe_open

    for index, texts in enumerate(manifest["batches"]):
        # States of earlier versions were padded to the longest text.
        width = manifest["padded_to"][index] if "padded_to" in manifest else max(text["length"] for text in texts)
        with safe_open(states / _batch_name(index), framework="pt", device=device) as tensors:
            yield _batch(states, manifest, index), width, tensors.get_tensor("hidden")


class _Pair:
    """Both output layers, applied to a few positions at a time."""

    def __init__(self, base: Head, cand: Head, step: int, checks: Mapping[str, EngineCheck]) -> None:
        self.base, self.cand, self.step, self.checks = base, cand, step, checks

    def compare(self, group: Sequence[Text], kept: torch.Tensor, ours: torch.Tensor) -> np.ndarray[Any, Any]:
        """float32 [positions, COLUMNS] of one batch; what the engine was asked goes to `checks`."""
        import torch

        targets = torch.cat([torch.tensor(text.tokens[1:]) for text in group]).to(ours.device)
        asked = {side: known for side, check in self.checks.items() if (known := check.asked(group)) is not None}
        out = []
        for start in range(0, len(targets), self.step):
            part = slice(start, start + self.step)
            # The last rows come with some before them: always the same shape (see `padded_length`).
            begin = max(0, min(start, len(targets) - self.step))
            base, cand = (
                head.logits(states[begin : begin + self.step])[start - begin :]
                for head, states in ((self.base, kept), (self.cand, ours))
            )
            for side, (ids, engine) in asked.items():
                if (ids[part, 0] >= 0).any():
                    logits = torch.log_softmax({"baseline": base, "candidate": cand}[side], -1)
                    picked = logits.gather(-1, torch.from_numpy(ids[part]).clamp(0).to(logits.device))
                    best = logits.amax(-1)
                    self.checks[side].add(ids[part], engine[part], picked.cpu().numpy(), best.cpu().numpy())
            rows = compare(base, cand, targets[part])
            table = [rows.kl, rows.agree.float(), rows.nll_baseline, rows.nll_candidate]
            out.append(torch.stack(table, -1).cpu().numpy())
        return np.concatenate(out)


def _spans(group: Sequence[Text], offset: int = 0) -> list[Span]:
    """The rows of each text, in one batch or, with the rows before it as offset, among all."""
    spans = []
    start = offset
    for text in group:
        stop = start + len(text.tokens) - 1
        # Position i predicts token i + 1, so the answer's first token is predicted one position before it.
        spans.append(Span(text.id, text.kind, start, start + max(0, text.answer_start - 1), stop, text.fields))
        start = stop
    return spans


def _tables(spans: Sequence[Span], figures: Callable[[list[tuple[int, int]]], dict[str, Any]]) -> dict[str, Any]:
    return {
        "all": figures([(span.start, span.stop) for span in spans]),
        "answers": figures([(span.answer, span.stop) for span in spans if span.answer < span.stop]),
        "by_kind": tabulate(by_kind(spans), figures),
        "slices": {name: tabulate(parts, figures) for name, parts in slices(spans)},
    }


def _layer_rows(
    seen: Mapping[str, dict[str, Any]], errors: Sequence[dict[str, Any]], manifest: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """One row a layer: its error, what was seen in the candidate, and the baseline's largest activation."""
    known = {row["name"]: row for row in errors}
    before = manifest["layers"]
    return [
        {"name": name, **known.get(name, {}), **row, "baseline_activation_max": before.get(name)}
        for name, row in seen.items()
    ]
