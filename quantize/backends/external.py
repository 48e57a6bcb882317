"""Quantizers that live in an environment of their own, driven as a worker process: JSON in, JSON out.

The worker gets a private copy of the model's folder (weights are links) whose config and tokenizer its older
transformers can read, and the calibration conversations as token ids. What it writes is brought into the form of every
other checkpoint here: the model's own config.json with the quantization in it, `model*.safetensors`, weights that were
not quantized in the model's own type.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from quantize.backends.base import Job, Outcome
from quantize.backends.environments import folder, python
from quantize.headers import PICKLES, weight_files
from quantize.layers import read_model
from sqtool.cores import usable_cores
from sqtool.errors import InfrastructureError, UsageError
from sqtool.files import read_json, write_json
from sqtool.hygiene import without_secrets
from sqtool.progress import Progress

WORKER = Path(__file__).with_name("workers") / "worker.py"
OLD_TRANSFORMERS = ("autoawq", "auto-gptq")
"""Those whose transformers (4.51) reads neither files nor keys of transformers 5."""
LEFT_OUT = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
TAIL = 8000
ERROR = re.compile(r"^[\w.]*(Error|Exception)\b")


class External:
    """`backend: autoawq | auto-gptq | gptqmodel`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, job: Job, progress: Progress) -> Outcome:
        """See `quantize.backends.base.Backend`."""
        interpreter = python(self.name)
        if job.tokens is None:
            raise UsageError(f"backend {self.name} needs calibration data", remedy="Add a calibrate section.")
        with tempfile.TemporaryDirectory(prefix=".worker-", dir=job.out.parent) as place:
            work = Path(place)
            old = self.name in OLD_TRANSFORMERS
            private_copy(job.model, work / "model", old=old, with_code=job.trust_remote_code)
            write_json(work / "spec.json", self._spec(job, work))
            with progress.task(f"quantize: {self.name}"):
                self._start(interpreter, work, job.log)
            result = read_json(work / "result.json")
            with progress.task("quantize: write the checkpoint"):
                layers = adopt(work / "out", job.model, job.out)
        linears = read_model(job.model).linears
        weights = sum(linears[name].weights for name in layers if name in linears)
        return Outcome(result["versions"], layers, weights, [*result["notes"], *self._overlooked(job)])

    def _overlooked(self, job: Job) -> list[str]:
        """What the recipe asks for and this quantizer knows nothing of."""
        from safetensors import safe_open

        assert job.tokens is not None
        with safe_open(job.tokens, framework="np") as opened:
            masked = "loss_mask" in opened.keys()  # noqa: SIM118 - not a dict
        return [f"{self.name} looks at all tokens, calibrate.loss_mask or not"] if masked else []

    def _spec(self, job: Job, work: Path) -> dict[str, Any]:
        (method,) = job.methods
        scheme = method.weights()
        assert scheme is not None
        assert job.tokens is not None
        arguments = {"bits": scheme.bits, "group_size": scheme.group_size, "symmetric": scheme.symmetric}
        for key in ("dampening_frac", "actorder", "duo_scaling"):
            if hasattr(method, key):
                arguments[key] = getattr(method, key)
        return {
            "backend": self.name,
            "method": method.name,
            "model": str(work / "model"),
            "out": str(work / "out"),
            "sequences": conversations(job.tokens),
            "arguments": arguments,
            "precision": job.precision,
            "seed": job.seed,
            "batch_size": job.batch_size,
            "trust_remote_code": job.trust_remote_code,
        }

    def _start(self, interpreter: Path, work: Path, log: Path) -> None:
        """Run the worker; it dies with this process. Raises InfrastructureError when it fails."""
        command = [str(interpreter), "-I", str(WORKER), str(work / "spec.json"), str(work / "result.json")]
        with log.open("ab") as handle:
            worker = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=handle,
                stderr=subprocess.STDOUT,
                cwd=work,
                env=_environment(self.name),
                start_new_session=True,
            )
            try:
                code = worker.wait()
            finally:
                if worker.poll() is None:
                    os.killpg(worker.pid, signal.SIGKILL)
                    worker.wait()
                assert worker.stdin is not None
                worker.stdin.close()
        if code:
            raise _explain(self.name, code, log)


def autoawq() -> External:
    """The AutoAWQ backend."""
    return External("autoawq")


def auto_gptq() -> External:
    """The AutoGPTQ backend."""
    return External("auto-gptq")


def gptqmodel() -> External:
    """The GPTQModel backend."""
    return External("gptqmodel")


def conversations(tokens: Path) -> list[list[int]]:
    """The calibration conversations in the packed rows of `tokens`, in order, those that fill gaps left out.

    A position of 0 starts a conversation; a filler is the start of a conversation that stands elsewhere.
    """
    from safetensors.numpy import load_file

    kept = load_file(tokens)
    found: list[list[int]] = []
    for number, row in enumerate(kept["input_ids"].tolist()):
        places = kept["position_ids"][number].tolist() if "position_ids" in kept else range(len(row))
        starts = [at for at, place in enumerate(places) if place == 0]
        found += [row[start:end] for start, end in zip(starts, [*starts[1:], len(row)], strict=True)]
    # Sorted, a sequence stands right before those that it is a start of.
    order = sorted(range(len(found)), key=lambda at: (found[at], -at))
    fillers = {a for a, b in pairwise(order) if found[b][: len(found[a])] == found[a]}
    return [ids for at, ids in enumerate(found) if at not in fillers]


def private_copy(model: Path, out: Path, *, old: bool, with_code: bool) -> None:
    """The model's folder with links to its weights; with `old`, config and tokenizer as transformers 4 wrote them.

    Without `with_code` there is neither Python in it nor a key that names some: auto-gptq trusts whatever is there.
    """
    out.mkdir()
    for path in model.iterdir():
        if path.suffix == ".safetensors":
            (out / path.name).symlink_to(path.resolve())
        elif path.is_file() and not _unwanted(path, with_code):
            shutil.copyfile(path, out / path.name)
    for name, rewrite in (("config.json", old_config), ("tokenizer_config.json", old_tokenizer)):
        path = out / name
        if not path.is_file():
            continue
        value = read_json(path)
        if not with_code:
            value.pop("auto_map", None)
        write_json(path, rewrite(value) if old else value)


def _unwanted(path: Path, with_code: bool) -> bool:
    return any(path.match(pattern) for pattern in PICKLES) or (path.suffix == ".py" and not with_code)


def old_tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json with the class that transformers 4 has for a tokenizer.json."""
    return {**config, "tokenizer_class": "PreTrainedTokenizerFast"}


def old_config(config: dict[str, Any]) -> dict[str, Any]:
    """config.json with the keys of transformers 4: `torch_dtype`, and rope settings apart."""
    config = dict(config)
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    rope = dict(config.pop("rope_parameters", None) or {})
    if "rope_theta" in rope:
        config["rope_theta"] = rope.pop("rope_theta")
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = rope
    return config


def adopt(made: Path, model: Path, out: Path) -> list[str]:
    """Bring the worker's checkpoint in `made` into `out`; the names of the quantized layers, sorted."""
    import torch
    from safetensors.torch import load_file, save_file

    config = read_json(model / "config.json")
    quantization = read_json(made / "config.json").get("quantization_config")
    if quantization is None:
        raise InfrastructureError("the quantizer's config.json does not say how it quantized")
    stored = getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "bfloat16"))
    files = weight_files(made)
    layers: set[str] = set()
    ordered = True
    places: dict[str, str] = {}
    for number, path in enumerate(files, 1):
        tensors = load_file(path)
        quantized = {name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")}
        layers |= quantized
        ordered &= all(_in_order(t, quantization) for name, t in tensors.items() if name.endswith(".g_idx"))
        if config.get("tie_word_embeddings"):
            tensors.pop("lm_head.weight", None)
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not name.endswith(".scales"):
                tensors[name] = tensor.to(stored)
        name = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        save_file(tensors, out / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    if len(files) > 1:
        write_json(out / "model.safetensors.index.json", {"metadata": {}, "weight_map": dict(sorted(places.items()))})
    if quantization.get("desc_act") and ordered:
        # Static groups: the order served while rounding and left nothing to do at run time, where vLLM has no kernel.
        quantization["desc_act"] = False
    write_json(out / "config.json", {**config, "quantization_config": quantization})
    return sorted(layers)


def _in_order(index: Any, quantization: dict[str, Any]) -> bool:
    """Does `g_idx` [columns] say that each group is a run of neighbouring columns?"""
    import torch

    return bool(torch.equal(index.long(), torch.arange(len(index)) // quantization["group_size"]))


def _environment(name: str) -> dict[str, str]:
    values = {key: value for key, value in without_secrets(os.environ).items() if key not in LEFT_OUT}
    cores = usable_cores()
    return {
        **values,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "GPTQMODEL_CPU_WORKERS": str(cores),
        "GPTQMODEL_TORCH_EXTENSIONS_DIR": str(folder(name) / "torch_extensions"),
    }


def _explain(name: str, code: int, log: Path) -> InfrastructureError:
    if code == -signal.SIGKILL:
        return InfrastructureError(
            f"backend {name} was killed, most likely because memory ran out",
            remedy="Lower quantize.batch_size or calibrate.num_calibration_samples, or use a larger machine.",
        )
    lines = log.read_bytes()[-TAIL:].decode(errors="replace").strip().splitlines()
    # Messages may go on over several lines: the one that names the exception says most.
    named = [line for line in lines if ERROR.match(line)]
    told = (named or lines or [f"exit code {code}"])[-1]
    return InfrastructureError(f"backend {name} failed: {told}", remedy=f"The whole story is in {log}.")
