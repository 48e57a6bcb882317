"""Which tensors an MTP head is, under the names of several families."""

import pytest

from quantize.mtp import head_layers, head_tensors

BODY = ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"]


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        ({}, 0),
        ({"num_nextn_predict_layers": 0}, 0),
        ({"num_nextn_predict_layers": None, "num_mtp_layers": 2}, 2),
        ({"text_config": {"mtp_num_hidden_layers": 1}}, 1),
    ],
)
def test_how_many_layers_a_head_has(config: dict[str, object], layers: int) -> None:
    assert head_layers(config) == layers


def test_decoder_layers_beyond_the_last_are_the_head() -> None:
    config = {"num_hidden_layers": 2, "num_nextn_predict_layers": 2}
    head = ["model.layers.2.eh_proj.weight", "model.layers.3.eh_proj.weight"]
    other = ["model.layers.20.mlp.up_proj.weight", "model.layers.4.eh_proj.weight"]
    assert head_tensors(config, [*BODY, *head, *other]) == {
        head[0]: "model.layers.2.",
        head[1]: "model.layers.3.",
    }


def test_without_a_head_nothing_beyond_is_one() -> None:
    assert head_tensors({"num_hidden_layers": 2}, [*BODY, "model.layers.2.eh_proj.weight"]) == {}


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("mtp.fc.weight", "mtp"),
        ("model.mtp_layers.0.input_proj.weight", "model.mtp"),
        ("model.nextn.0.proj.weight", "model.nextn"),
        ("model.layers.0.mtpx.weight", None),
        ("model.smtp.weight", None),
    ],
)
def test_heads_with_a_name_of_their_own(name: str, prefix: str | None) -> None:
    found = head_tensors({"num_hidden_layers": 2, "num_nextn_predict_layers": 1}, [*BODY, name])
    assert found == ({} if prefix is None else {name: prefix})
