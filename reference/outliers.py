"""Give a model the activation outliers that large language models have and small ones lack; its function stays.

A few channels of each norm before attention and MLP are multiplied by a power of two, and the matching input columns
of q/k/v and gate/up divided by it. Powers of two are exact in bf16, so every logit stays bit-identical: what changes is
only how hard the weights and activations are to quantize, as on large models (Dettmers et al. 2022, LLM.int8()).

    python -m reference.outliers IN OUT --channels 10 --factor 32
"""

from __future__ import annotations

import argparse
import math
import shutil
from pathlib import Path

CONSUMERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


def transform(source: Path, out: Path, channels: int, factor: float, seed: int = 0) -> None:
    """Rewrite the single safetensors file of a Llama folder; other files are copied."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(source / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    norms = sorted(name for name in tensors if name.endswith("layernorm.weight"))
    for name in norms:
        layer, norm = name.removesuffix(".weight").rsplit(".", 1)
        chosen = torch.randperm(tensors[name].numel(), generator=generator)[:channels]
        tensors[name][chosen] *= factor
        for consumer in CONSUMERS[norm]:
            tensors[f"{layer}.{consumer}.weight"][:, chosen] /= factor
    out.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and path.name != "model.safetensors":
            shutil.copy(path, out / path.name)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--channels", type=int, default=10)
    parser.add_argument("--factor", type=float, default=32)
    args = parser.parse_args()
    if args.factor <= 0 or args.factor != 2.0 ** round(math.log2(args.factor)):
        parser.error(f"--factor {args.factor} is not a power of two, so the model would not stay the same")
    transform(args.source, args.out, args.channels, args.factor)


if __name__ == "__main__":
    main()
