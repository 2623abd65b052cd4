"""What a config says of the cache, against the caches that transformers fills."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.checkpoint.kv_cache import cache_blocks
from engine.protocol import CacheBlocks
from tests import tiny

TOKENS = 24


def cached(model: Any) -> int:
    """Numbers in a cache filled with some tokens."""
    with torch.no_grad():
        found = model(input_ids=tiny.ids(1, TOKENS), use_cache=True).past_key_values
    return sum(
        layer.keys.numel() + layer.values.numel()
        for layer in found.layers
        if layer.keys is not None
    )


@pytest.mark.parametrize(
    "arch", ["llama", "gpt2", "opt", "qwen3", "qwen3_moe", "gemma3", "gemma4", "mixtral"]
)
def test_the_cache_holds_as_many_numbers_as_transformers_keeps(arch: str, tmp_path: Path) -> None:
    if arch not in tiny.ARCHITECTURES:
        pytest.skip(f"no tiny {arch}")
    folder = tiny.build(arch, tmp_path / arch)
    config = json.loads((folder / "config.json").read_text())
    blocks = cache_blocks(config)
    assert blocks is not None
    # transformers keeps one token less than the window.
    total = sum(
        each.blocks * each.values * min(TOKENS, each.window - 1 if each.window else TOKENS)
        for each in blocks
    )
    assert total == cached(AutoModelForCausalLM.from_pretrained(folder).eval())


def test_latent_attention_caches_one_vector_for_all_heads() -> None:
    config = {
        "num_hidden_layers": 4, "num_attention_heads": 8, "kv_lora_rank": 512,
        "qk_rope_head_dim": 64, "hidden_size": 1024,
    }  # fmt: skip
    assert cache_blocks(config) == [CacheBlocks(4, 576)]


def test_blocks_without_attention_cache_nothing() -> None:
    config = {
        "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    }  # fmt: skip
    assert cache_blocks(config) == [CacheBlocks(1, 256)]


@pytest.mark.parametrize("config", [{}, {"num_hidden_layers": True}, {"n_layer": 3}])
def test_a_config_that_does_not_say_gives_none(config: dict[str, Any]) -> None:
    assert cache_blocks(config) is None
