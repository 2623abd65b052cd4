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


COMMON = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}


@pytest.mark.parametrize(
    ("config", "full", "windowed"),
    [
        ({"model_type": "gemma2", "num_hidden_layers": 26, "sliding_window": 4096}, 13, 13),
        (
            {
                "model_type": "gemma3_text", "num_hidden_layers": 26, "sliding_window": 512,
                "sliding_window_pattern": 6,
            },
            4,
            22,
        ),
        ({"model_type": "cohere2", "num_hidden_layers": 32, "sliding_window": 4096}, 8, 24),
        ({"model_type": "mistral", "num_hidden_layers": 32, "sliding_window": 4096}, 0, 32),
        ({"model_type": "mistral", "num_hidden_layers": 32, "sliding_window": None}, 32, 0),
        (
            {
                "model_type": "qwen2", "num_hidden_layers": 28, "sliding_window": 4096,
                "use_sliding_window": False,
            },
            28,
            0,
        ),
        (
            {
                "model_type": "qwen2", "num_hidden_layers": 28, "sliding_window": 4096,
                "use_sliding_window": True, "max_window_layers": 21,
            },
            21,
            7,
        ),
        ({"model_type": "x", "num_hidden_layers": 48, "full_attention_interval": 4}, 12, 0),
        (
            {
                "model_type": "jamba", "num_hidden_layers": 32, "attn_layer_period": 8,
                "attn_layer_offset": 4,
            },
            4,
            0,
        ),
        ({"model_type": "unheard_of", "num_hidden_layers": 4, "sliding_window": 16}, 4, 0),
    ],
)  # fmt: skip
def test_files_of_before_layer_types_say_it_in_their_own_words(
    config: dict[str, Any], full: int, windowed: int
) -> None:
    found = cache_blocks({**COMMON, **config})
    assert found is not None
    assert sum(each.blocks for each in found if not each.window) == full
    assert sum(each.blocks for each in found if each.window) == windowed
