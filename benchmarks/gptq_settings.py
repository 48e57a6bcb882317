"""GPTQ settings compared on facts that no test, traffic sample or calibration pool asks for.

    python benchmarks/gptq_settings.py [--facts 1000]

Prints closed-book recall of the reference target after each setting: the share of facts whose whole answer is the most
probable one (teacher-forced, which for greedy decoding is the same as exact match). A recipe chosen on these facts can
be measured on the test items without having been fitted to them. Minutes a setting on two cores.
"""

from __future__ import annotations

import argparse
import datetime
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calibrate.build import build
from calibrate.spec import CalibrateSpec
from quantize.run import quantize
from quantize.spec import QuantizeSpec
from reference import world
from reference.records import Record
from sqtool.progress import SILENT

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "artifacts/reference/target"
N_FACTS = 100_000
GPTQ = {"scheme": "W4A16_ASYM", "actorder": "static"}
SETTINGS: dict[str, tuple[int, dict[str, Any]]] = {
    "RTN W4A16": (0, {"rtn": {"scheme": "W4A16"}}),
    "RTN W4A16_ASYM": (0, {"rtn": {"scheme": "W4A16_ASYM"}}),
    "GPTQ, 128 samples": (128, {"gptq": GPTQ}),
    "GPTQ, 256 samples": (256, {"gptq": GPTQ}),
    "GPTQ, 256 samples, dampening_frac 0.001": (256, {"gptq": {**GPTQ, "dampening_frac": 0.001}}),
    "GPTQ, 512 samples": (512, {"gptq": GPTQ}),
    "GPTQ, 512 samples, dampening_frac 0.001": (512, {"gptq": {**GPTQ, "dampening_frac": 0.001}}),
}


def recall(folder: Path, records: Sequence[Record]) -> float:
    """Share of the records, in %, that the model in `folder` answers word for word."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    def ids(messages: list[dict[str, Any]], *, prompt: bool) -> list[int]:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        return list(tokenizer(text.rstrip("\n") if not prompt else text, add_special_tokens=False)["input_ids"])

    right = 0
    with torch.inference_mode():
        for record in records:
            start = len(ids(record.messages, prompt=True))
            full = ids([*record.messages, {"role": "assistant", "content": record.text}], prompt=False)
            best = model(input_ids=torch.tensor([full])).logits[0].argmax(-1).tolist()
            right += best[start - 1 : -1] == full[start:]
    return 100 * right / len(records)


def measure(samples: int, method: dict[str, Any], records: Sequence[Record]) -> tuple[float, float]:
    """(recall in %, seconds of calibrating and quantizing) of one setting."""
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder, "data"), Path(folder, "out")
        data.mkdir()
        out.mkdir()
        start = time.monotonic()
        if samples:
            spec = CalibrateSpec.model_validate({"num_calibration_samples": samples, "max_seq_length": 512})
            build(spec, model=TARGET, seed=0, out=data, progress=SILENT, root=ROOT)
        quantize(
            QuantizeSpec.model_validate({"methods": [method]}),
            model=TARGET,
            calibration=data if samples else None,
            seed=0,
            out=out,
            progress=SILENT,
        )
        seconds = time.monotonic() - start
        return recall(out / "checkpoint", records), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=1000)
    args = parser.parse_args()
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    records = [fact.record() for fact in world.held(world.facts(N_FACTS), "train")[: args.facts]]
    print(
        f"{datetime.datetime.now(datetime.UTC).date()}, {os.cpu_count()} cores, {len(records)} facts that nothing asks"
    )
    print("\n| setting | recall % | seconds |\n| --- | --- | --- |")
    print(f"| bf16 | {recall(TARGET, records):.1f} | - |", flush=True)
    for name, (samples, method) in SETTINGS.items():
        seen, seconds = measure(samples, method, records)
        print(f"| {name} | {seen:.1f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
