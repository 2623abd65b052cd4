"""How much a model caches per token, from its configuration alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from engine.protocol import CacheBlocks

WITHOUT_CACHE = ("linear", "mamba", "recurrent", "conv", "ssm", "rwkv")
"""Kinds of block whose state does not grow with the text, by a part of their name."""
WITH_WINDOW = ("sliding", "chunked", "local")
"""Kinds of block that cache a window."""

ALTERNATING = {"gemma2": 2, "gemma3_text": 6, "gemma3": 6, "cohere2": 4}
"""Every how many blocks one sees all tokens, by model, where its files do not say."""
ALL_WINDOWED = frozenset({"mistral", "mixtral", "starcoder2", "phi3"})
"""Models in which every block has the window that the file names."""


def cache_blocks(config: Mapping[str, Any]) -> list[CacheBlocks] | None:
    """What the cache of keys and values holds, by kind of block; None if the config does not say.

    Covers heads that share keys and values, sliding windows, blocks without attention (by
    ``layer_types``), blocks that use another's keys and values, and DeepSeek's latent attention,
    which caches one vector for all heads.

    Args:
        config: as in ``config.json``; a text part in it is taken by itself.
    """
    for part in ("text_config", "llm_config", "language_config"):
        if isinstance(config.get(part), Mapping):
            config = {**config, **config[part]}
    blocks = _whole(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    if blocks is None:
        return None
    values = _values(config)
    if values is None:
        return None
    # Gemma 4: blocks without a window have heads of their own size and number.
    of_all = {
        "head_dim": _whole(config, "global_head_dim") or config.get("head_dim"),
        "num_key_value_heads": _whole(config, "num_global_key_value_heads")
        or config.get("num_key_value_heads"),
    }
    whole = _values({**config, **of_all}) or values
    shared = _whole(config, "num_kv_shared_layers") or 0
    kinds = config.get("layer_types")
    kinds = kinds if isinstance(kinds, list) and len(kinds) == blocks else _kinds(config, blocks)
    window = _whole(config, "sliding_window", "attention_chunk_size") or 0
    found: Counter[tuple[int, int]] = Counter()
    for kind in kinds[: blocks - shared]:
        if any(word in str(kind) for word in WITHOUT_CACHE):
            continue
        windowed = any(word in str(kind) for word in WITH_WINDOW)
        found[(window, values) if windowed else (0, whole)] += 1
    return [CacheBlocks(count, each, width) for (width, each), count in sorted(found.items())]


def _kinds(config: Mapping[str, Any], blocks: int) -> list[str]:
    """Kinds of blocks where they are not listed, as files of before ``layer_types`` have it.

    Where that is not known either, every block counts as one that caches all tokens: a plan that
    then fits does fit.
    """
    full, sliding = "full_attention", "sliding_attention"
    model = str(config.get("model_type", ""))
    if every := _whole(config, "full_attention_interval"):  # Qwen3-Next: the others are linear
        return [full if (at + 1) % every == 0 else "linear_attention" for at in range(blocks)]
    if every := _whole(config, "attn_layer_period"):  # Jamba: the others are Mamba's
        offset = config.get("attn_layer_offset", 0)
        return [full if at % every == offset else "mamba" for at in range(blocks)]
    if not _whole(config, "sliding_window"):
        return [full] * blocks
    every = _whole(config, "sliding_window_pattern") or ALTERNATING.get(model)
    if every:  # Gemma 2 and 3, Cohere 2: each so many-th sees all
        return [full if (at + 1) % every == 0 else sliding for at in range(blocks)]
    if config.get("use_sliding_window") is True:  # Qwen 2: from a block on
        first = _whole(config, "max_window_layers") or 0
        return [full if at < first else sliding for at in range(blocks)]
    return [sliding if model in ALL_WINDOWED else full] * blocks


def _values(config: Mapping[str, Any]) -> int | None:
    """Numbers that one block caches per token."""
    latent = _whole(config, "kv_lora_rank")
    if latent is not None:
        return latent + (_whole(config, "qk_rope_head_dim") or 0)
    heads = _whole(config, "num_attention_heads", "n_head", "n_heads")
    width = _whole(config, "hidden_size", "n_embd", "d_model")
    if heads is None:
        return None
    shared = _whole(config, "num_key_value_heads", "num_kv_heads", "n_head_kv")
    if shared is None:
        shared = 1 if config.get("multi_query") is True else heads
    size = _whole(config, "head_dim")
    if size is None:
        if width is None:
            return None
        size = width // heads
    of_value = _whole(config, "v_head_dim") or size
    return shared * (size + of_value)


def _whole(config: Mapping[str, Any], *names: str) -> int | None:
    """The first of some entries that is a positive whole number."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
