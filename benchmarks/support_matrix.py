"""Which method runs on which architecture, as a table: docs/support.md.

Each cell quantizes a tiny random model of the architecture with `quantize.run.quantize`, as a recipe would, and says
`yes` or why not. With --vllm, vLLM loads some of the checkpoints, and its log-probabilities of the next token are
compared with those of the unquantized model in transformers.

    python -m benchmarks.support_matrix [--vllm 10] [--out docs/support.md]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quantize.run import quantize
from quantize.spec import QuantizeSpec
from sqtool.errors import SqtoolError
from sqtool.progress import SILENT
from tests.contract.architectures import CONFIGS, make_architecture
from tests.contract.test_architectures import MATRIX
from tests.contract.test_vllm_loads import ENVIRONMENT, PYTHON, SCRIPT
from tests.contract.tiny import make_tokens

# What a CPU runs: (method, architecture), the most telling first.
LOADS = [
    ("gptq4", "qwen3"),
    ("w8a8", "llama3"),
    ("fp8-dynamic", "mistral"),
    ("fp8-dynamic-kv", "llama3"),
    ("gptq4", "qwen3-moe"),
    ("fp8-dynamic", "mixtral"),
    ("gptq4", "gemma3"),
    ("w8a8", "phi3"),
    ("fp8-dynamic", "gpt-oss"),
    ("fp8-dynamic", "deepseek-v3"),
]
SERVED: dict[str, list[Any]] = {
    "gptq4": ["gptq"],
    "fp8-dynamic": ["fp8"],
    "fp8-dynamic-kv": ["fp8", "kv_cache"],
    # Processors without VNNI add products of INT8 in 16 bits.
    "w8a8": ["smoothquant", {"gptq": {"scheme": "W8A8", "reduce_range": True}}],
}
LONGEST_REASON = 240
ALIKE = 0.75
"""Mean cosine similarity of logits. Four bits on random weights leave 0.83 and more, weights read wrongly below 0.5."""


def quantized(methods: list[Any], model: Path, tokens: Path, out: Path) -> dict[str, Any]:
    """Quantize into `out`; the summary."""
    out.mkdir(parents=True)
    spec = QuantizeSpec.model_validate({"methods": methods})
    return quantize(spec, model=model, calibration=tokens, seed=0, out=out, progress=SILENT)


def cell(methods: list[Any], model: Path, tokens: Path, out: Path) -> str:
    """`yes`, or the reason why not in a few words."""
    try:
        quantized(methods, model, tokens, out)
    except SqtoolError as error:
        return short(error.message)
    return "yes"


def logits(folder: Path) -> Any:
    """What transformers makes of 64 fixed tokens, [64, vocabulary]."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    with torch.no_grad():
        return model(torch.arange(3, 67)[None], use_cache=False).logits[0].float()


def read_back(model: Path, checkpoint: Path) -> str:
    """Whether transformers computes with the checkpoint what it should: `yes`, `other values` or `error`."""
    import torch

    try:
        found = logits(checkpoint)
    except (RuntimeError, ValueError, KeyError, AttributeError, TypeError):
        return "error"
    return "yes" if torch.cosine_similarity(logits(model), found, dim=-1).mean() > ALIKE else "other values"


def short(reason: str) -> str:
    """The first line of a reason, fit for a table."""
    line = reason.splitlines()[0].replace("|", "/")
    return line if len(line) <= LONGEST_REASON else line[: LONGEST_REASON - 3] + "..."


def served(methods: list[Any], model: Path, tokens: Path, out: Path) -> str:
    """What became of the checkpoint in vLLM: how near its next token is to the unquantized model's, or the error."""
    import torch

    quantized(methods, model, tokens, out)
    arguments = [str(PYTHON), "-c", SCRIPT, str(out / "checkpoint"), "bfloat16"]
    done = subprocess.run(
        arguments, env={**os.environ, **ENVIRONMENT}, cwd=out, capture_output=True, text=True, timeout=280, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        # The engine is a process of its own: its error comes first, that of the one that waited for it last.
        errors = re.findall(r"^(?:.*\] )?(\w+Error: .+)$", done.stdout + done.stderr, flags=re.MULTILINE)
        causes = [error for error in errors if "Engine core initialization failed" not in error]
        return "no: " + short(causes[-1] if causes else "vLLM did not start")
    theirs = {int(token): value for token, value in json.loads(lines[-1].removeprefix("RESULT ")).items()}
    ours = torch.log_softmax(logits(model)[-1], -1)
    worst = max(abs(float(ours[token]) - value) for token, value in theirs.items())
    return f"yes, log-probabilities of the 20 likeliest tokens within {worst:.2f} of the unquantized model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", type=int, default=0, metavar="N", help="load at most N checkpoints in vLLM")
    parser.add_argument("--out", type=Path, default=Path("docs/support.md"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tokens = make_tokens(root / "tokens.safetensors")
        models = {name: make_architecture(name, root / name / "model") for name in CONFIGS}
        rows, read, reasons = [], [], []
        for method, methods in MATRIX.items():
            cells, back = [], []
            for name, model in models.items():
                found = cell(methods, model, tokens, root / name / method)
                back.append(read_back(model, root / name / method / "checkpoint") if found == "yes" else "-")
                print(f"{method} {name}: {found}, {back[-1]}", file=sys.stderr, flush=True)
                if found != "yes":
                    reasons.append(f"{method} on {name}: {found}")
                    found = f"no ({len(reasons)})"
                cells.append(found)
            rows.append((method, *cells))
            read.append((method, *back))
        loads = []
        for method, name in LOADS[: options.vllm]:
            found = served(SERVED[method], models[name], tokens, root / name / f"{method}-served")
            print(f"vLLM {method} {name}: {found}", file=sys.stderr, flush=True)
            loads.append((method, name, found))
    options.out.write_text(page(rows, reasons, read, loads), encoding="utf-8")


def page(
    rows: list[tuple[str, ...]], reasons: list[str], read: list[tuple[str, ...]], loads: list[tuple[str, ...]]
) -> str:
    """docs/support.md."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("llmcompressor", "compressed-tensors", "transformers"))
    recipes = "\n".join(f"- {name}: `{json.dumps(methods)}`" for name, methods in (MATRIX | SERVED).items())
    text = [
        "# What runs on which architecture",
        "",
        f"Printed by `python -m benchmarks.support_matrix` with {versions}.",
        "Each cell quantized a tiny random model of the architecture; tests/contract/test_architectures.py compares",
        "what the files hold with the original weights.",
        "Whether a runtime has a kernel for a format on a device is another question: `sqtool plan` answers it.",
        "",
        *table(("method", *CONFIGS), rows),
        "",
        *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1)),
        "",
        "## Read back by transformers",
        "",
        "sqtool measures drift with transformers. Where that does not read a checkpoint rightly, drift says nothing",
        "and `evaluate: {drift: null}` leaves it out; the verdict comes from vLLM and is not touched.",
        "",
        *table(("method", *CONFIGS), read),
    ]
    if loads:
        text += [
            "",
            "## Loaded by vLLM on a CPU",
            "",
            "Random weights, so answers mean nothing: near is as far as this goes.",
            "",
            *table(("method", "architecture", "loaded"), loads),
        ]
    return "\n".join([*text, "", "The methods' names stand for:", "", recipes, ""])


def table(headers: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """A Markdown table."""
    lines = [headers, ("---",) * len(headers), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


if __name__ == "__main__":
    main()
