"""Quantize with another quantizer, in its own environment: `python -I worker.py SPEC.json RESULT.json`.

Runs with that environment's Python and imports nothing of sqtool. SPEC has the keys

    backend    autoawq, auto-gptq or gptqmodel
    method     awq or gptq
    model      folder of the 16-bit model, rewritten for the environment's transformers
    out        folder to make: the quantizer's own safetensors and config.json
    sequences  token ids of the calibration conversations, list of lists
    arguments  bits, group_size, symmetric, and for gptq dampening_frac and actorder, for awq duo_scaling
    precision  what to compute in; auto is the model's own type on a GPU and float32 on a CPU
    seed, batch_size, trust_remote_code

RESULT is written last: {"versions": {...}, "notes": [...]}. Standard output and error are the caller's log. When the
caller dies, standard input ends and so does this process.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import random
import sys
import threading
from pathlib import Path
from typing import Any

PACKAGES = {
    "autoawq": ("autoawq", "torch", "transformers"),
    "auto-gptq": ("auto-gptq", "torch", "transformers"),
    "gptqmodel": ("gptqmodel", "torch", "transformers"),
}


def autoawq(spec: dict[str, Any], notes: list[str]) -> None:
    """AutoAWQ takes token ids as they are. It joins them and cuts the result into blocks of `max_calib_seq_len`,
    and drops a sequence that is longer; the caller's are not, if that is their longest."""
    from awq import AutoAWQForCausalLM
    from awq.quantize.quantizer import AwqQuantizer

    class Quantizer(AwqQuantizer):
        """Keeps a copy of the weights during the search for scales. AutoAWQ takes `tensor.cpu()` for one, which on a
        CPU is the tensor itself: the search then multiplies the weights by every scale that it tries."""

        def _compute_best_scale(self, x: Any, w_mean: Any, x_mean: Any, module2inspect: Any, *others: Any) -> Any:
            real = module2inspect.state_dict
            module2inspect.state_dict = lambda: {name: value.clone() for name, value in real().items()}
            try:
                return super()._compute_best_scale(x, w_mean, x_mean, module2inspect, *others)
            finally:
                del module2inspect.state_dict

    arguments, sequences = spec["arguments"], spec["sequences"]
    model = AutoAWQForCausalLM.from_pretrained(
        spec["model"],
        torch_dtype=_dtype(spec),
        trust_remote_code=spec["trust_remote_code"],
        safetensors=True,
        local_files_only=True,
    )
    longest = max(len(ids) for ids in sequences)
    config = {
        "zero_point": not arguments["symmetric"],
        "q_group_size": arguments["group_size"],
        "w_bit": arguments["bits"],
        "version": "GEMM",
    }
    model.quantize(
        None,
        quant_config=config,
        calib_data=sequences,
        duo_scaling=arguments["duo_scaling"],
        max_calib_samples=len(sequences),
        max_calib_seq_len=longest,
        n_parallel_calib_samples=spec["batch_size"],
        quantizer_cls=Quantizer,
    )
    blocks = sum(len(ids) for ids in sequences) // longest
    notes.append(f"autoawq joined the conversations and cut them into {blocks} blocks of {longest} tokens")
    model.save_quantized(spec["out"], safetensors=True)


def auto_gptq(spec: dict[str, Any], _notes: list[str]) -> None:
    """AutoGPTQ asks for CUDA when it loads a model and names its device `cuda:0` in the source; without a GPU the
    question is answered for it, and the name is pointed at the CPU."""
    import auto_gptq.modeling._base as base
    import torch
    from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig

    arguments = spec["arguments"]
    config = BaseQuantizeConfig(
        bits=arguments["bits"],
        group_size=arguments["group_size"],
        sym=arguments["symmetric"],
        damp_percent=arguments["dampening_frac"],
        desc_act=arguments["actorder"] is not None,
        static_groups=arguments["actorder"] == "static",
    )
    dtype, asked = _dtype(spec), torch.cuda.is_available
    if not ON_GPU:
        base.CUDA_0 = torch.device("cpu")
        torch.cuda.synchronize = torch.cuda.empty_cache = lambda: None
        torch.cuda.is_available = lambda: True
    try:
        model = AutoGPTQForCausalLM.from_pretrained(
            spec["model"],
            config,
            torch_dtype=dtype,
            trust_remote_code=spec["trust_remote_code"],
            local_files_only=True,
        )
    finally:
        torch.cuda.is_available = asked
    model.quantize(_examples(spec["sequences"]), batch_size=spec["batch_size"])
    model.save_quantized(spec["out"], use_safetensors=True)


def gptqmodel(spec: dict[str, Any], _notes: list[str]) -> None:
    """GPTQModel, for GPTQ and AWQ."""
    from gptqmodel import GPTQModel, QuantizeConfig
    from gptqmodel.quantization import FORMAT, METHOD

    arguments = spec["arguments"]
    common = {"bits": arguments["bits"], "group_size": arguments["group_size"], "sym": arguments["symmetric"]}
    if spec["method"] == "awq":
        config = QuantizeConfig(method=METHOD.AWQ, format=FORMAT.GEMM, **common)
    else:
        config = QuantizeConfig(
            method=METHOD.GPTQ,
            format=FORMAT.GPTQ,
            damp_percent=arguments["dampening_frac"],
            desc_act=arguments["actorder"] is not None,
            static_groups=arguments["actorder"] == "static",
            act_group_aware=False,
            **common,
        )
    model = GPTQModel.load(spec["model"], config, dtype=_dtype(spec), trust_remote_code=spec["trust_remote_code"])
    shortest = min(len(ids) for ids in spec["sequences"])
    model.quantize(
        _examples(spec["sequences"]), batch_size=spec["batch_size"], calibration_data_min_length=min(10, shortest)
    )
    model.save(spec["out"])


def _examples(sequences: list[list[int]]) -> list[dict[str, list[int]]]:
    return [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in sequences]


def _dtype(spec: dict[str, Any]) -> Any:
    import torch

    name = spec["precision"]
    if name == "auto":
        config = json.loads((Path(spec["model"]) / "config.json").read_text(encoding="utf-8"))
        own = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
        # GPTQModel's AWQ layers take 16 bits only.
        sixteen = spec["backend"] == "gptqmodel" and spec["method"] == "awq"
        name = (own if own != "float32" or not sixteen else "bfloat16") if ON_GPU or sixteen else "float32"
    return getattr(torch, name)


def _seed(number: int) -> None:
    import numpy
    import torch

    random.seed(number)
    numpy.random.seed(number)
    torch.manual_seed(number)


def _die_with_the_caller() -> None:
    def wait() -> None:
        # Not sys.stdin: its lock would still be held when the interpreter ends.
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


ON_GPU = False
RUN = {"autoawq": autoawq, "auto-gptq": auto_gptq, "gptqmodel": gptqmodel}


def main() -> None:
    """Read the spec, run the quantizer, write the result last."""
    global ON_GPU
    _die_with_the_caller()
    import torch

    ON_GPU = torch.cuda.is_available()
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    notes: list[str] = []
    _seed(spec["seed"])
    RUN[spec["backend"]](spec, notes)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES[spec["backend"]]}
    result = Path(sys.argv[2])
    part = result.with_suffix(".part")
    part.write_text(json.dumps({"versions": versions, "notes": notes}), encoding="utf-8")
    part.replace(result)


if __name__ == "__main__":
    main()
