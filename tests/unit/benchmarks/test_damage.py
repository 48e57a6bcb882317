"""Each damage changes exactly what it claims."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.gate.damage import edits
from benchmarks.gate.damage.damages import AS_STORED, OTHER_ROLE, ROLE, TARGET, VARIANTS, Variant, groups
from benchmarks.gate.damage.population import addendum, protocol
from quantize.headers import weight_files
from sqtool.gate.spec import DEFAULT_MAX_DROP, DEFAULT_METRICS

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, WIDE, VOCABULARY, LAYERS = 128, 4, 2, 32, 128, 256, 6


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the reference target's form: its text files, small random weights."""
    folder = tmp_path_factory.mktemp("source") / "model"
    edits.copy(TARGET, folder)
    draw = torch.Generator().manual_seed(1)
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        p = f"model.layers.{layer}."
        shapes |= {
            p + "self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
            p + "self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            p + "self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            p + "self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
            p + "mlp.gate_proj.weight": (WIDE, HIDDEN),
            p + "mlp.up_proj.weight": (WIDE, HIDDEN),
            p + "mlp.down_proj.weight": (HIDDEN, WIDE),
            p + "input_layernorm.weight": (HIDDEN,),
            p + "post_attention_layernorm.weight": (HIDDEN,),
        }
    tensors = {name: torch.randn(shape, generator=draw).to(torch.bfloat16) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in weight_files(folder) for name, tensor in load_file(path).items()}


def changed(source: Path, out: Path) -> set[str]:
    """Names of tensors that differ, are new or are gone, and of other files that differ, are new or are gone."""
    old, new = tensors_of(source), tensors_of(out)
    found = {n for n in old.keys() | new.keys() if n not in old or n not in new or not torch.equal(old[n], new[n])}
    texts = [{p.name: p.read_bytes() for p in f.iterdir() if p.suffix != ".safetensors"} for f in (source, out)]
    return found | {n for n in texts[0].keys() | texts[1].keys() if texts[0].get(n) != texts[1].get(n)}


def make(name: str, source: Path, tmp_path: Path) -> tuple[Path, set[str]]:
    out = tmp_path / name
    VARIANTS[name].make(source, out)
    return out, changed(source, out)


def linears(*layers: int) -> set[str]:
    parts = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    return {f"model.layers.{layer}.{part}.weight" for layer in layers for part in parts}


@pytest.mark.parametrize("name", ["rtn2", "rtn3", "rtn4_sym", "rtn4_g32", "rtn5", "rtn5_g32", "rtn6", "rtn8"])
def test_rounding_changes_the_linear_layers_and_takes_few_values(name: str, source: Path, tmp_path: Path) -> None:
    out, difference = make(name, source, tmp_path)
    assert difference == linears(*range(LAYERS)) | {"simulated.json"}
    bits = int(name[3])
    size = 32 if name.endswith("g32") else 128
    group = tensors_of(out)["model.layers.0.mlp.up_proj.weight"].reshape(-1, size)[0]
    assert len(group.unique()) <= 2**bits


@pytest.mark.parametrize(
    ("name", "layers"), [("rtn4_one_layer", (4,)), ("rtn5_early", (0, 1, 2, 3)), ("rtn5_late", (4, 5))]
)
def test_rounding_some_layers_leaves_the_others(
    name: str, layers: tuple[int, ...], source: Path, tmp_path: Path
) -> None:
    assert make(name, source, tmp_path)[1] == linears(*layers) | {"simulated.json"}


@pytest.mark.parametrize(("name", "bits"), [("lm_head3", 3), ("lm_head4", 4)])
def test_a_rounded_head_is_untied_and_the_embedding_stays(name: str, bits: int, source: Path, tmp_path: Path) -> None:
    out, difference = make(name, source, tmp_path)
    assert difference == {"lm_head.weight", "config.json"}
    head, embedding = tensors_of(out)["lm_head.weight"], tensors_of(source)["model.embed_tokens.weight"]
    assert all(len(row.unique()) <= 2**bits for row in head)
    assert 0 < (head - embedding).abs().max() <= embedding.abs().max() / (2 ** (bits - 1) - 1)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.parametrize(
    ("name", "share"), [("noise_10", 0.1), ("noise_20", 0.2), ("noise_30", 0.3), ("noise_50", 0.5), ("noise_200", 2.0)]
)
def test_noise_has_the_size_that_it_claims(name: str, share: float, source: Path, tmp_path: Path) -> None:
    out, difference = make(name, source, tmp_path)
    tensor = "model.layers.4.mlp.down_proj.weight"
    assert difference == {tensor}
    old, new = tensors_of(source)[tensor].float(), tensors_of(out)[tensor].float()
    assert (new - old).std() / old.std() == pytest.approx(share, rel=0.05)


def test_heads_change_places_and_nothing_else(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "heads"
    edits.swapped_heads(3, 0, 2, head_dim=HEAD_DIM)(source, out)
    name = "model.layers.3.self_attn.q_proj.weight"
    assert changed(source, out) == {name}
    old, new = (tensors_of(f)[name].reshape(HEADS, HEAD_DIM, HIDDEN) for f in (source, out))
    assert torch.equal(new, old[[2, 1, 0, 3]])


def test_layers_change_places(source: Path, tmp_path: Path) -> None:
    out, difference = make("swapped_layers", source, tmp_path)
    old, new = tensors_of(source), tensors_of(out)
    assert difference == {n for n in old if n.startswith(("model.layers.3.", "model.layers.4."))}
    for name in (n for n in old if n.startswith("model.layers.3.")):
        other = name.replace(".3.", ".4.")
        assert torch.equal(new[name], old[other])
        assert torch.equal(new[other], old[name])


def test_one_projection_is_zero(source: Path, tmp_path: Path) -> None:
    out, difference = make("zero_projection", source, tmp_path)
    assert difference == {"model.layers.2.self_attn.o_proj.weight"}
    assert not tensors_of(out)["model.layers.2.self_attn.o_proj.weight"].any()


def test_scales_off_multiplies_one_layers_scales(source: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    name = "model.layers.3.mlp.down_proj.weight_scale"
    edits.weights(lambda tensors: tensors.update({name: torch.ones(HIDDEN, 1)}))(source, packed)
    out, difference = make("scales_off", packed, tmp_path)
    assert difference == {name}
    assert torch.equal(tensors_of(out)[name], torch.full((HIDDEN, 1), 1.3))
    assert VARIANTS["scales_off"].source == "awq4"


def test_kv_scales_are_added_and_declared(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "kv"
    edits.kv_scales(LAYERS, 0.002)(source, out)
    scales = {f"model.layers.{layer}.self_attn.{side}_scale" for layer in range(LAYERS) for side in "kv"}
    assert changed(source, out) == scales | {"config.json"}
    assert VARIANTS["kv_scales"].engine == {"kv_cache_dtype": "fp8"}


@pytest.mark.parametrize("name", ["aa", "resharded", "renamed_metadata"])
def test_clean_copies_hold_the_same_tensors(name: str, source: Path, tmp_path: Path) -> None:
    out, difference = make(name, source, tmp_path)
    assert difference <= {"model.safetensors.index.json", "config.json"}
    assert json.loads((out / "config.json").read_text()) == json.loads((source / "config.json").read_text())
    assert len(weight_files(out)) == {"aa": 1, "resharded": 3, "renamed_metadata": 1}[name]


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("template_no_prompt", {"chat_template.jinja"}),
        ("template_roles", {"chat_template.jinja"}),
        ("tools_truncated", {"chat_template.jinja"}),
        ("token_remap", {"tokenizer.json"}),
        ("tokenizer_lowercase", {"tokenizer.json"}),
        ("eos_dropped", {"config.json", "generation_config.json", "tokenizer_config.json"}),
        ("temperature_left", {"generation_config.json"}),
        ("temperature_served", {"generation_config.json"}),
        ("rope_theta", {"config.json"}),
    ],
)
def test_text_side_damages_leave_the_weights(name: str, files: set[str], source: Path, tmp_path: Path) -> None:
    assert make(name, source, tmp_path)[1] == files


def rendered(folder: Path, messages: list[dict[str, str]], tools: list[dict[str, object]] | None = None) -> str:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    template = ImmutableSandboxedEnvironment().from_string((folder / "chat_template.jinja").read_text())
    return str(template.render(messages=messages, tools=tools, add_generation_prompt=True))


def test_templates_break_as_they_say(source: Path, tmp_path: Path) -> None:
    ask = [{"role": "user", "content": "Hello"}]
    tools = [{"function": {"name": n, "description": n, "parameters": {}}} for n in ("first", "second")]
    whole = rendered(source, ask)
    assert whole == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    no_prompt, _ = make("template_no_prompt", source, tmp_path)
    assert rendered(no_prompt, ask) + "<|im_start|>assistant\n" == whole
    roles, _ = make("template_roles", source, tmp_path)
    assert rendered(roles, ask) == whole.replace("user", "assistant")
    short, _ = make("tools_truncated", source, tmp_path)
    assert "second" in rendered(source, ask, tools)
    assert rendered(short, ask, tools) == rendered(source, ask, tools[:1])


def test_the_token_ids_are_exchanged(source: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    out, _ = make("token_remap", source, tmp_path)
    old, new = (Tokenizer.from_file(str(f / "tokenizer.json")) for f in (source, out))
    assert new.token_to_id("<tool_call>") == old.token_to_id("<tool_response>")
    assert new.token_to_id("<tool_response>") == old.token_to_id("<tool_call>")
    lower, _ = make("tokenizer_lowercase", source, tmp_path)
    lowered = Tokenizer.from_file(str(lower / "tokenizer.json"))
    assert lowered.encode("Who OWNS it?").ids == old.encode("who owns it?").ids != old.encode("Who OWNS it?").ids


def test_a_template_passage_that_is_not_there_is_an_error(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="occurs 0 times"):
        edits.template("no such passage", "")(source, tmp_path / "out")
    assert ROLE != OTHER_ROLE


def test_the_protocol_lists_exactly_the_variants() -> None:
    assert set(groups()) == set(VARIANTS)
    counts = {group: len(names) for group, names in protocol()["variants"].items()}
    assert counts["damaged"] >= 16
    assert counts["clean"] >= 8
    assert counts["graded"] >= 4
    assert all(text.strip() for names in protocol()["variants"].values() for text in names.values())
    later = set(addendum()["variants"]["added"])
    assert later == {name for name, group in groups().items() if group == "added"}
    assert not later & {name for names in protocol()["variants"].values() for name in names}


def test_the_protocol_has_the_gates_own_defaults() -> None:
    assert protocol()["metrics"] == dict.fromkeys(DEFAULT_METRICS, DEFAULT_MAX_DROP)
    assert VARIANTS["temperature_left"].engine == VARIANTS["temperature_served"].engine == AS_STORED
    assert [name for name, v in VARIANTS.items() if v.as_served] == ["temperature_served"]
    assert isinstance(VARIANTS["stale_baseline"], Variant)
    assert VARIANTS["stale_baseline"].records == ("rtn3", "rtn4_sym")
