"""Blocks and layers of models that say little, or something else, about their language model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    HunYuanMoEV1Config,
    ModernBertDecoderConfig,
    MoshiConfig,
    Phi4MultimodalConfig,
)

from engine.model.blocks import find_blocks
from engine.model.config import OTHER_HEAD
from engine.model.layers import list_layers
from tests import tiny

SIZES = {**tiny.SIZES, "pad_token_id": 0}


def layers_of(config: Any) -> tuple[str, list[str]]:
    """The name of the list of blocks, and the layers."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    name, blocks = find_blocks(model)
    return name, list(list_layers(model, name, len(blocks), {}))


def test_a_decoder_that_is_the_head_is_not_where_blocks_are() -> None:
    name, layers = layers_of(ModernBertDecoderConfig(**SIZES))
    assert name == "model.layers"
    assert "model.layers.2.mlp.Wi" in layers
    assert "lm_head.dense" in layers


def test_a_tower_inside_the_decoder_is_none_of_its_blocks_though_larger() -> None:
    config = Phi4MultimodalConfig(
        **SIZES, vision_config={"num_hidden_layers": 8}, audio_config={"num_blocks": 1}
    )
    name, layers = layers_of(config)
    assert name == "model.layers"
    assert not [layer for layer in layers if "image" in layer or "audio" in layer]
    assert "model.layers.2.mlp.down_proj" in layers


def test_a_router_inside_a_module_of_its_own_is_no_layer() -> None:
    _, layers = layers_of(
        HunYuanMoEV1Config(**SIZES, head_dim=16, num_experts=4, moe_topk=[2, 2, 2])
    )
    assert "model.layers.0.mlp.experts.gate_up_proj" in layers
    assert not [layer for layer in layers if "wg" in layer or layer.endswith("gate")]


def test_an_mlp_with_a_gate_is_no_router() -> None:
    _, layers = layers_of(MoshiConfig(**SIZES, audio_vocab_size=32, head_dim=16, ffn_dim=128))
    assert {"model.layers.0.mlp.fc1", "model.layers.0.mlp.fc2"} <= set(layers)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("RoFormerForCausalLM", False),
        ("LlamaForCausalLM", False),
        ("RoFormerForMaskedLM", True),
        ("BertForMaskedLM", True),
    ],
)
def test_the_name_of_a_family_may_sound_like_that_of_a_head(name: str, other: bool) -> None:
    assert bool(OTHER_HEAD.search(name)) is other
