"""What stands for a quantizer in an environment of its own (`gptqmodel`), driven by the real worker.

It "quantizes" the first linear layer: the same zeros in GPTQ's format each time, and everything else as it was.
FAULTS_WORK is how long that takes, in seconds.
"""

import json
import os
import struct
import time
from pathlib import Path

LAYER = "model.layers.0.mlp.down_proj"


class QuantizeConfig:
    def __init__(self, **settings):
        self.settings = settings


class GPTQModel:
    def __init__(self, folder):
        self.folder = Path(folder)

    @classmethod
    def load(cls, folder, _config, **_):
        return cls(folder)

    def quantize(self, _examples, **_):
        end = time.monotonic() + float(os.environ.get("FAULTS_WORK", "0"))
        while time.monotonic() < end:
            print("a layer", flush=True)
            time.sleep(0.02)

    def save(self, out):
        out = Path(out)
        out.mkdir()
        data = (self.folder / "model.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        rows, columns = header[f"{LAYER}.weight"]["shape"]
        tensors = {
            n: (t["dtype"], t["shape"], data[8 + length :][slice(*t["data_offsets"])]) for n, t in header.items()
        }
        del tensors[f"{LAYER}.weight"]
        groups = columns // 128
        for name, kind, shape, size in (
            ("qweight", "I32", [columns // 8, rows], 4),
            ("qzeros", "I32", [groups, rows // 8], 4),
            ("scales", "F16", [groups, rows], 2),
        ):
            number = size * shape[0] * shape[1]
            value = bytes(number) if name != "scales" else b"\x00\x3c" * (number // 2)
            tensors[f"{LAYER}.{name}"] = (kind, shape, value)
        written, at = {}, 0
        for name, (kind, shape, value) in tensors.items():
            written[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + len(value)]}
            at += len(value)
        text = json.dumps(written).encode()
        text += b" " * (-len(text) % 8)
        body = b"".join(value for _, _, value in tensors.values())
        (out / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
        config = json.loads((self.folder / "config.json").read_text())
        config["quantization_config"] = {
            "quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True,
        }  # fmt: skip
        (out / "config.json").write_text(json.dumps(config))
