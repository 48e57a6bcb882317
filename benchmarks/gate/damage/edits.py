"""Ways to change a checkpoint folder: each is a function (source, out) once its options are given.

All of them copy the source and change exactly what their name says; `out` is a checkpoint that vLLM loads.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.fake import INDEX, fake_quantize, round_weights
from quantize.headers import weight_files
from sqtool.files import read_json, write_json

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

Edit = Callable[[Path, Path], None]
LAYER = "model.layers.{}."
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def copy(source: Path, out: Path) -> None:
    """The same bytes."""
    shutil.copytree(source, out, dirs_exist_ok=True)


def weights(change: Callable[[Tensors], None]) -> Edit:
    """Change the tensors of a checkpoint of one weight file in place (entries may be added)."""

    def edit(source: Path, out: Path) -> None:
        from safetensors.torch import load_file, save_file

        copy(source, out)
        (path,) = weight_files(out)
        tensors = load_file(path)
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})

    return edit


def json_file(name: str, change: Callable[[dict[str, Any]], None]) -> Edit:
    """Change a JSON file in place."""

    def edit(source: Path, out: Path) -> None:
        copy(source, out)
        value = read_json(out / name)
        change(value)
        write_json(out / name, value)

    return edit


def then(*edits: Edit) -> Edit:
    """One edit after the other, each on the result of the one before."""

    def edit(source: Path, out: Path) -> None:
        edits[0](source, out)
        for further in edits[1:]:
            before = out.with_name(f"{out.name}.before")
            out.rename(before)
            further(before, out)
            shutil.rmtree(before)

    return edit


def scaled(tensor: str, factor: float) -> Edit:
    """One tensor times a factor."""

    def change(tensors: Tensors) -> None:
        tensors[tensor] = tensors[tensor] * factor

    return weights(change)


def zeroed(tensor: str) -> Edit:
    """One tensor set to zero."""
    return scaled(tensor, 0.0)


def noisy(tensor: str, share: float, seed: int = 0) -> Edit:
    """Gaussian noise of `share` of the tensor's standard deviation."""

    def change(tensors: Tensors) -> None:
        import torch

        weight = tensors[tensor].float()
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        tensors[tensor] = (weight + share * weight.std() * noise).to(tensors[tensor].dtype)

    return weights(change)


def swapped_heads(layer: int, first: int, second: int, head_dim: int) -> Edit:
    """Two query heads' rows of q_proj exchanged; o_proj still expects them where they were."""
    name = LAYER.format(layer) + "self_attn.q_proj.weight"

    def change(tensors: Tensors) -> None:
        old, new = tensors[name], tensors[name].clone()
        a, b = (slice(head * head_dim, (head + 1) * head_dim) for head in (first, second))
        new[a], new[b] = old[b], old[a]
        tensors[name] = new

    return weights(change)


def swapped_layers(first: int, second: int) -> Edit:
    """Two decoder layers exchanged."""
    a, b = LAYER.format(first), LAYER.format(second)

    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith(a)]:
            other = b + name.removeprefix(a)
            tensors[name], tensors[other] = tensors[other], tensors[name]

    return weights(change)


def rounded(bits: int, **options: Any) -> Edit:
    """Round to nearest, simulated in 16 bits; `options` as `fake_quantize` takes them."""

    def edit(source: Path, out: Path) -> None:
        fake_quantize(source, out, bits=bits, **options)

    return edit


def rounded_head(bits: int) -> Edit:
    """The head untied from the embedding and rounded; the embedding stays whole."""

    def change(tensors: Tensors) -> None:
        tensors[HEAD] = round_weights(tensors[EMBEDDING], bits=bits, group_size=128, symmetric=True)

    return then(weights(change), json_file("config.json", lambda config: config.update(tie_word_embeddings=False)))


def kv_scales(layers: int, scale: float) -> Edit:
    """Scales of an FP8 KV cache in the checkpoint, as compressed-tensors keeps them."""

    def change(tensors: Tensors) -> None:
        import torch

        for layer in range(layers):
            for side in ("k", "v"):
                tensors[LAYER.format(layer) + f"self_attn.{side}_scale"] = torch.tensor([scale], dtype=torch.bfloat16)

    cache = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}
    section = {
        "quant_method": "compressed-tensors", "format": "dense", "quantization_status": "compressed",
        "config_groups": {}, "ignore": [], "kv_cache_scheme": cache,
    }  # fmt: skip
    return then(weights(change), json_file("config.json", lambda config: config.update(quantization_config=section)))


def template(old: str, new: str) -> Edit:
    """Replace a passage of the chat template that occurs once."""

    def edit(source: Path, out: Path) -> None:
        copy(source, out)
        path = out / "chat_template.jinja"
        text = path.read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise ValueError(f"{old!r} occurs {text.count(old)} times in {source.name}'s template")
        path.write_text(text.replace(old, new), encoding="utf-8")

    return edit


def exchanged_tokens(first: str, second: str) -> Edit:
    """The ids of two added tokens exchanged."""

    def change(tokenizer: dict[str, Any]) -> None:
        by_name = {token["content"]: token for token in tokenizer["added_tokens"]}
        a, b = by_name[first], by_name[second]
        a["content"], b["content"] = second, first

    return json_file("tokenizer.json", change)


def wrong_end(token: str, token_id: int) -> Edit:
    """Another token named as the end of the sequence, in all three places that an engine may look."""

    def by_id(value: dict[str, Any]) -> None:
        value["eos_token_id"] = token_id

    return then(
        json_file("config.json", by_id),
        json_file("generation_config.json", by_id),
        json_file("tokenizer_config.json", lambda value: value.update(eos_token=token)),
    )


def saved_again(name: str, shards: int, metadata: Mapping[str, str]) -> Edit:
    """The same tensors in `shards` files called `name`-00001-of-..., last tensors first, with an index."""

    def edit(source: Path, out: Path) -> None:
        from safetensors.torch import load_file, save_file

        copy(source, out)
        (path,) = weight_files(out)
        tensors = load_file(path)
        path.unlink()
        names = list(reversed(tensors))
        places: dict[str, str] = {}
        for shard in range(shards):
            file = f"{name}-{shard + 1:05d}-of-{shards:05d}.safetensors"
            part = {key: tensors[key] for key in names[shard::shards]}
            save_file(part, out / file, metadata={"format": "pt", **metadata})
            places |= dict.fromkeys(part, file)
        write_json(out / INDEX, {"metadata": {}, "weight_map": places})

    return edit


def reversed_keys(value: dict[str, Any]) -> None:
    """The same JSON object, its keys in the opposite order."""
    entries = list(value.items())
    value.clear()
    value.update(reversed(entries))


def tokenizer_saved_again(source: Path, out: Path) -> None:
    """The tokenizer as transformers writes it after reading it."""
    from transformers import AutoTokenizer

    copy(source, out)
    AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(out)


def by_recipe(path: Path, kinds: tuple[str, ...] = ()) -> Edit:
    """Calibrate and quantize as a recipe says, with llm-compressor; `kinds` narrows the calibration pool to these."""

    def edit(source: Path, out: Path) -> None:
        from calibrate.build import build, source_paths
        from quantize.run import CHECKPOINT, quantize
        from sqtool.progress import SILENT
        from sqtool.recipe.load import load_recipe

        recipe = load_recipe(path).recipe
        work = out.with_name(f"{out.name}.work")
        shutil.rmtree(work, ignore_errors=True)
        calibration = work / "calibration"
        calibration.mkdir(parents=True)
        spec = recipe.calibrate
        if kinds:
            pool = work / "pool.jsonl"
            (everything,) = source_paths(spec, model=source)
            _narrow(everything, pool, kinds)
            spec = type(spec).model_validate({**spec.model_dump(), "sources": [{"path": str(pool)}]})
        if recipe.quantize.needs_calibration:
            build(spec, model=source, seed=recipe.seed, out=calibration, progress=SILENT)
        quantize(recipe.quantize, model=source, calibration=calibration, seed=recipe.seed, out=work, progress=SILENT)
        copy(work / CHECKPOINT, out)
        shutil.rmtree(work)

    return edit


def _narrow(pool: Path, out: Path, kinds: tuple[str, ...]) -> None:
    from sqtool.files import canonical_json, read_jsonl, write_text

    write_text(out, "".join(canonical_json(row) + "\n" for _, row in read_jsonl(pool) if row["kind"] in kinds))
