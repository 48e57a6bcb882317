"""README.md of a release: a model card with the front matter that model hubs read."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqtool.release.card_parts import arms_section, checking_section, coverage_section, front_matter, limits_section
from sqtool.release.speculation_card import speculation_section
from sqtool.report.markdown import code

if TYPE_CHECKING:
    from sqtool.gate.verdict import MetricVerdict, Verdict

COVERAGE, ARMS = "coverage.json", "speculate.json"
SERVE_FLAGS = (
    "--dtype",
    "--kv-cache-dtype",
    "--max-model-len",
    "--tensor-parallel-size",
    "--generation-config",
    "--enable-auto-tool-choice",
    "--tool-call-parser",
)
ALLOWED = (
    "The measured items could not exclude a drop past the margin; its recipe accepts that (`inconclusive: allow`)."
)
RESULTS = (
    "Baseline and candidate answered the same items through the same engine. The interval ({percent:.0f} %, two-sided) "
    "is of candidate minus baseline, in points; PASS means that it excludes a drop as large as the margin."
)
HEAD = (
    "| metric | items | baseline | candidate | difference | interval | margin | verdict |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
)


def quantization(checkpoint: Path) -> dict[str, Any]:
    """`method`, `format` and one text per group of layers, from a checkpoint's config.json; empty when it has none."""
    try:
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        section = config.get("quantization_config") or {}
        found = {"method": section.get("quant_method"), "format": section.get("format")}
        groups = section.get("config_groups") or {}
        found["groups"] = [_group(g) for g in groups.values()]
    except (OSError, ValueError, AttributeError):
        return {}
    return found if found["method"] else {}


def _group(group: Mapping[str, Any]) -> str:
    parts = []
    for side, label in (("weights", "weights"), ("input_activations", "activations")):
        scheme = group.get(side)
        if scheme:
            bits = f"{scheme.get('num_bits')}-bit {scheme.get('type', '')}".strip()
            size = f", groups of {scheme['group_size']}" if scheme.get("group_size") else ""
            zero = "symmetric" if scheme.get("symmetric") else "asymmetric"
            parts.append(f"{label} {bits} {scheme.get('strategy', '')}{size}, {zero}")
    return "; ".join(parts)


def _row(metric: MetricVerdict) -> str:
    cells = [
        metric.name if metric.gated else f"{metric.name} (diagnostic)",
        str(metric.items),
        f"{metric.baseline:.2%}",
        f"{metric.candidate:.2%}",
        f"{metric.difference * 100:+.2f} points",
        f"{metric.lower * 100:+.2f} to {metric.upper * 100:+.2f}",
        f"{metric.margin * 100:.2f}" if metric.gated else "",
        metric.outcome if metric.gated else "",
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def model_card(
    *,
    name: str,
    version: str,
    checkpoint: Path,
    verdict: Verdict,
    provenance: Mapping[str, Any],
    files: Sequence[str],
    signed: bool = False,
) -> str:
    """The card's text. `checkpoint` is the folder of the release, `files` are the names in it beside the checkpoint's.

    Used from `provenance` where given: `model` (the baseline as the recipe names it), `seed`, `serve_flags`. Of the
    further files coverage.json and speculate.json have sections of their own.
    """
    base = str(provenance.get("model") or "")
    scheme = quantization(checkpoint)
    flags = [str(flag) for flag in provenance.get("serve_flags") or serve_flags(verdict.bindings)]
    hub = base if _hub_id(base) else ""
    parts = [
        f"---\n{front_matter(name, verdict, base_model=hub, method=scheme.get('method'))}\n---\n# {name} {version}",
        _summary(base, verdict),
        _quantization(scheme),
        f"## Serving\n\nIn this folder:\n\n```bash\n{shlex.join(['vllm', 'serve', '.', *flags])}\n```",
        speculation_section(provenance.get("speculation"), ["vllm", "serve", ".", *flags]),
        _results(verdict),
        arms_section(checkpoint / ARMS) if ARMS in files else "",
        coverage_section(checkpoint / COVERAGE) if COVERAGE in files else "",
        _measured_with(verdict, provenance),
        limits_section(verdict, base),
        checking_section(signed=signed),
        _files(files),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _summary(base: str, verdict: Verdict) -> str:
    of_base = f" of {code(base)}" if base else ""
    text = f"A quantized checkpoint{of_base}, released by sqtool after its gate said **{verdict.outcome}**."
    return text if verdict.outcome == "PASS" else f"{text}\n\n{ALLOWED}"


def _quantization(scheme: Mapping[str, Any]) -> str:
    if not scheme:
        return ""
    groups = "".join(f"\n- {group}" for group in scheme["groups"] if group)
    return f"## Quantization\n\n`{scheme['method']}`, format `{scheme['format']}`:\n{groups}"


def _results(verdict: Verdict) -> str:
    rows = "\n".join(_row(m) for m in (*verdict.metrics, *verdict.slices))
    return f"## Results\n\n{RESULTS.format(percent=100 * (1 - 2 * verdict.alpha))}\n\n{HEAD}\n{rows}"


def _measured_with(verdict: Verdict, provenance: Mapping[str, Any]) -> str:
    facts = [f"- {key.replace('_', ' ')}: {_plain(value)}" for key, value in _measured(verdict.bindings).items()]
    facts += [f"- {key} at release: {_plain(provenance[key])}" for key in ("versions", "hardware") if key in provenance]
    if provenance.get("seed") is not None:
        facts.append(f"- seed: {provenance['seed']}")
    return "## Measured with\n\n" + "\n".join(facts)


def _files(files: Sequence[str]) -> str:
    listed = "\n".join(f"- {file}" for file in sorted(files))
    return f"## Files\n\nMANIFEST.json lists every file with its sha256. Beside the checkpoint:\n\n{listed}"


def serve_flags(bindings: Mapping[str, Any]) -> list[str]:
    """Of the measured server's flags, those that its answers or its start depend on and that are not vLLM's default."""
    engine = bindings.get("engine")
    words = [str(word) for word in engine.get("flags") or ()] if isinstance(engine, Mapping) else []
    wanted = set(SERVE_FLAGS)
    if isinstance(engine, Mapping) and "+cpu" in str(engine.get("version")):
        # On a CPU vLLM asks for 92 % of the machine's memory unless told how much, and does not start without it.
        wanted.add("--kv-cache-memory-bytes")
    chosen: list[str] = []
    for at, word in enumerate(words):
        if word not in wanted:
            continue
        value = list(takewhile(lambda w: not w.startswith("--"), words[at + 1 :]))
        if value != ["auto"]:
            chosen += [word, *value]
    return chosen


def _measured(bindings: Mapping[str, Any]) -> dict[str, Any]:
    """What a reader wants of the bindings; verdict.json has all of them."""
    found = {}
    for key, value in sorted(bindings.items()):
        if key == "baseline_engine" and value == bindings.get("engine"):
            continue
        if isinstance(value, Mapping):
            value = {k: v for k, v in value.items() if k not in ("flags", "environment")}
        found[key] = value
    return found


def _hub_id(base: str) -> bool:
    owner, _, model = base.partition("@")[0].partition("/")
    return (
        bool(owner and model) and "/" not in model and not Path(base).exists() and not base.startswith((".", "/", "~"))
    )


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items() if v not in (None, "", [], {})) or "none"
    if isinstance(value, (list, tuple)):
        return "; ".join(map(str, value)) or "none"
    return str(value)
