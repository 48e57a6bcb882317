"""How far a candidate's next-token distributions are from the baseline's: exact, over the whole vocabulary.

The baseline's final hidden states are kept once (`baseline_states`) and serve every candidate. `drift` then needs one
forward pass of the candidate; logits exist for a few positions at a time only. The path is transformers', not the
serving engine's, and the result says so.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.heads import MAX_LOGITS, Head, check_head, compare, head_of, hidden_states, load_head, save_head
from evals.layerwise import compare_layers, keep_layers
from evals.quiet import quiet
from evals.spec import DriftSpec, EvaluateSpec
from evals.texts import Text, batches, load_texts
from sqtool.errors import InfrastructureError, UsageError
from sqtool.files import canonical_json, read_json, write_json, write_text
from sqtool.progress import SILENT, Progress

if TYPE_CHECKING:
    import torch

MANIFEST = "states.json"
HEAD_FILE = "head.safetensors"
CHECK_TOKENS = 32


def _drift_spec(spec: EvaluateSpec) -> DriftSpec:
    if spec.drift is None:
        raise UsageError("the recipe leaves drift out (evaluate.drift: null)")
    return spec.drift


def _device(wanted: str) -> str:
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("evaluate.drift.device is cuda, and torch sees no GPU")
    return wanted


def _dtype(wanted: str, device: str) -> str:
    """What transformers is told. bf16 matrix products on an x86 CPU without AVX-512 are emulated, slowly."""
    import torch

    emulated = device == "cpu" and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    return "float32" if wanted == "auto" and emulated else wanted


def _load(folder: Path, device: str, dtype: str, tokens: Sequence[int]) -> tuple[Any, Head]:
    """A model ready to run and its output layer, checked on `tokens` (see `check_head`)."""
    import torch
    from transformers import AutoModelForCausalLM

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with quiet():
        try:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise InfrastructureError(
                f"transformers cannot load {folder}: {error}",
                remedy="Drift runs in sqtool's own environment; `evaluate.drift: null` leaves it out.",
            ) from error
        model = model.eval().to(device)
        head = head_of(model)
        # A packed checkpoint is unpacked by its first forward pass, which this is.
        check_head(model, head, torch.tensor([list(tokens[:CHECK_TOKENS])], device=device))
    return model, head


def _load_candidate(folder: Path, device: str, dtype: str, tokens: Sequence[int]) -> tuple[Any, Head]:
    """`_load`, for formats too that transformers does not read by itself."""
    from evals.packed_words import packed_format
    from evals.unpacked import unpack

    if packed_format(folder) is None:
        return _load(folder, device, dtype, tokens)
    with tempfile.TemporaryDirectory(prefix="sqtool-drift-") as place:
        unpack(folder, Path(place) / "model")
        return _load(Path(place) / "model", device, dtype, tokens)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _padded(group: Sequence[Text], device: str) -> torch.Tensor:
    """Token ids [texts, longest], padded on the right with 0."""
    import torch

    longest = max(len(text.tokens) for text in group)
    rows = torch.zeros(len(group), longest, dtype=torch.long)
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
    root: Path,
    out: Path,
    progress: Progress = SILENT,
    answers: Path | None = None,
) -> dict[str, Any]:
    """Keep the baseline's final hidden states (after the final norm) for the texts of `evals.texts.load_texts`.

    Writes `out/batch-NNNN.safetensors` (`hidden` [positions, hidden size] in the type of the forward pass, so nothing
    is lost), `out/head.safetensors` (the output layer) and, last, `out/states.json` (texts, token ids, batches).
    `answers`: records folder of the baseline's evaluation, for items without an expected answer.
    Returns {"texts", "positions", "answer_positions", "bytes"}.
    """
    import torch
    from safetensors.torch import save_file

    wanted = _drift_spec(spec)
    device = _device(wanted.device)
    texts = load_texts(spec, wanted, _tokenizer(model), root, answers)
    groups = batches(texts, wanted.batch_tokens)
    total = sum(len(text.tokens) for text in texts)
    size = 0
    with torch.inference_mode(), progress.task("drift: baseline states", total=total) as task:
        network, head = _load(model, device, _dtype(wanted.dtype, device), texts[-1].tokens)
        for index, group in enumerate(groups):
            states = _predicting(hidden_states(network, _padded(group, device)), group)
            save_file({"hidden": states.cpu().contiguous()}, out / _batch_name(index))
            size += states.numel() * states.element_size()
            task.advance(sum(len(text.tokens) for text in group))
        save_head(head, out / HEAD_FILE)
        keep_layers(network, texts[0].tokens, out)
    manifest = {
        "path": "transformers",
        "dtype": str(network.dtype).removeprefix("torch."),
        "device": device,
        "vocab": head.vocab,
        "scale": head.scale,
        "softcap": head.softcap,
        "batches": [
            [{"id": t.id, "kind": t.kind, "tokens": list(t.tokens), "answer_start": t.answer_start} for t in group]
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


def _read_manifest(states: Path) -> tuple[dict[str, Any], list[list[Text]]]:
    manifest = read_json(states / MANIFEST)
    groups = [
        [Text(t["id"], t["kind"], tuple(t["tokens"]), int(t["answer_start"])) for t in group]
        for group in manifest["batches"]
    ]
    return manifest, groups


def drift(
    spec: EvaluateSpec,
    *,
    baseline: Path,
    candidate: Path,
    states: Path,
    out: Path,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Compare the candidate with kept baseline states; returns and writes (`out/drift.json`)

        {"path", "device", "dtype", "texts", "all": S, "answers": S, "by_kind": {kind: {"all": S, "answers": S}}}

    with S = {"positions", "kl_mean", "kl_p99", "kl_p999", "kl_max" (nats), "top1_agreement", "perplexity_baseline",
    "perplexity_candidate", "perplexity_ratio", "rms_delta_p", "non_finite"}. `all` is over every position that
    predicts a token, `answers` over those that predict one of the answer. Positions where the candidate gives NaN or
    infinity are counted in `non_finite` and left out of the rest. `out/drift.jsonl` has one line a text,
    `out/layers.jsonl` one a decoder layer (see `evals.layerwise`).

    `baseline` is not loaded again; it is named in errors and in the result's file only.
    Memory does not grow with the number of texts but for 20 bytes a position.
    """
    import torch
    from safetensors.torch import load_file

    wanted = _drift_spec(spec)
    device = _device(wanted.device)
    manifest, groups = _read_manifest(states)
    total = sum(len(text.tokens) for group in groups for text in group)
    columns: list[np.ndarray[Any, np.dtype[Any]]] = []
    with torch.inference_mode(), progress.task("drift: candidate", total=total) as task:
        # Both sides in one type: what differs then is the quantization alone.
        network, head = _load_candidate(candidate, device, manifest["dtype"], groups[-1][-1].tokens)
        base_head = load_head(states / HEAD_FILE, scale=manifest["scale"], softcap=manifest["softcap"], device=device)
        if head.vocab != base_head.vocab:
            raise UsageError(
                f"the candidate's vocabulary has {head.vocab} tokens, that of {baseline} has {base_head.vocab}",
                remedy="A candidate must be made from this baseline.",
            )
        step = max(1, min(wanted.chunk, MAX_LOGITS // head.vocab))
        for index, group in enumerate(groups):
            ours = _predicting(hidden_states(network, _padded(group, device)), group)
            kept = load_file(states / _batch_name(index), device=device)["hidden"]
            targets = torch.cat([torch.tensor(text.tokens[1:]) for text in group]).to(device)
            columns += _compare_chunks(base_head, head, kept, ours, targets, step)
            task.advance(sum(len(text.tokens) for text in group))
        layers = compare_layers(network, states)
    values = np.concatenate(columns, axis=1)
    texts = [text for group in groups for text in group]
    summary = {
        "path": "transformers",
        "device": device,
        "dtype": str(network.dtype).removeprefix("torch."),
        "texts": len(texts),
        **_summary(values, texts, out / "drift.jsonl"),
    }
    write_text(out / "layers.jsonl", "".join(json.dumps(layer) + "\n" for layer in layers))
    write_json(out / "drift.json", summary)
    return summary


def _compare_chunks(
    base_head: Head, head: Head, kept: torch.Tensor, ours: torch.Tensor, targets: torch.Tensor, step: int
) -> list[np.ndarray[Any, np.dtype[Any]]]:
    """Arrays [5, positions] (kl, agree, nll_baseline, nll_candidate, delta_p), `step` positions at a time."""
    import torch

    out = []
    for start in range(0, len(targets), step):
        part = slice(start, start + step)
        rows = compare(base_head.logits(kept[part]), head.logits(ours[part]), targets[part])
        table = [rows.kl, rows.agree.float(), rows.nll_baseline, rows.nll_candidate, rows.delta_p]
        out.append(torch.stack(table).cpu().numpy())
    return out


def statistics(values: np.ndarray[Any, np.dtype[Any]]) -> dict[str, Any]:
    """Figures over columns [5, positions] as `drift` describes them. Without positions only their number."""
    finite = np.isfinite(values).all(axis=0)
    good = values[:, finite].astype(np.float64)
    counts = {"positions": int(values.shape[1]), "non_finite": int((~finite).sum())}
    if good.shape[1] == 0:
        return counts
    kl, agree, nll_base, nll_cand, delta = good
    mean_base, mean_cand = float(nll_base.mean()), float(nll_cand.mean())
    p99, p999 = (float(q) for q in np.quantile(kl, [0.99, 0.999]))
    return {
        **counts,
        "kl_mean": float(kl.mean()),
        "kl_p99": p99,
        "kl_p999": p999,
        "kl_max": float(kl.max()),
        "top1_agreement": float(agree.mean()),
        "perplexity_baseline": float(np.exp(mean_base)),
        "perplexity_candidate": float(np.exp(mean_cand)),
        "perplexity_ratio": float(np.exp(mean_cand - mean_base)),
        "rms_delta_p": float(np.sqrt((delta**2).mean())),
    }


def _summary(values: np.ndarray[Any, np.dtype[Any]], texts: Sequence[Text], lines: Path) -> dict[str, Any]:
    answer = np.zeros(values.shape[1], dtype=bool)
    kinds = np.empty(values.shape[1], dtype=object)
    rows = []
    start = 0
    for text in texts:
        stop = start + len(text.tokens) - 1
        # Position i predicts token i + 1, so the answer's first token is predicted one position before it.
        answer[start + max(0, text.answer_start - 1) : stop] = True
        kinds[start:stop] = text.kind
        rows.append({"id": text.id, "kind": text.kind, **statistics(values[:, start:stop])})
        start = stop
    write_text(lines, "".join(json.dumps(row) + "\n" for row in rows))
    return {
        "all": statistics(values),
        "answers": statistics(values[:, answer]),
        "by_kind": {
            kind: {
                "all": statistics(values[:, kinds == kind]),
                "answers": statistics(values[:, (kinds == kind) & answer]),
            }
            for kind in sorted({text.kind for text in texts})
        },
    }
