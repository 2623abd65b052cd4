"""The metadata of a GGUF file that describes the model, from transformers' config."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from engine.checkpoint.gguf.architectures import (
    ROPE_FREQUENCIES,
    ROPE_LONG,
    ROPE_SHORT,
    Architecture,
    architecture_of,
)
from engine.checkpoint.gguf.config import head_width, query_scalar

GgufKey = tuple[str, Any, str]
"""A key, its value, and the method of ``gguf.GGUFWriter`` that adds it, without ``add_``."""


class Settings(NamedTuple):
    """What a config says, as llama.cpp wants it."""

    architecture: Architecture
    keys: list[GgufKey]
    factors: dict[str, list[float]]
    """Tensors that are part of the config, by name."""
    notes: list[str]
    """What llama.cpp computes otherwise."""


def settings_of(config: Mapping[str, Any]) -> Settings | str:
    """The metadata for a config, or why llama.cpp cannot run the model that it describes.

    Args:
        config: all fields of transformers' config, with their defaults.
    """
    kind = config.get("model_type")
    architecture = architecture_of(kind)
    if architecture is None:
        return f"qtui writes no GGUF of model_type {kind!r}; llama-quantize takes more (--to)"
    for why in (_activation, _scaling, _attention, _experts):
        if (found := why(architecture, config)) is not None:
            return found
    prefix = architecture.name
    keys: list[GgufKey] = []
    for setting in architecture.settings:
        value = config.get(setting.field)
        if setting.field == "n_inner" and value is None:
            value = 4 * config["n_embd"]
        if value is None and setting.optional:
            continue
        add = "uint32" if setting.kind == "whole" else "float32"
        keys.append((f"{prefix}.{setting.key}", value, add))
    keys.append((f"{prefix}.vocab_size", config["vocab_size"], "uint32"))
    if prefix == "gpt2":
        return Settings(architecture, keys, {}, [])
    more = _rope(architecture, config)
    if isinstance(more, str):
        return more
    return Settings(architecture, [*keys, *more[0]], more[1], _notes(architecture, config))


def _activation(architecture: Architecture, config: Mapping[str, Any]) -> str | None:
    names = ("hidden_activation", "hidden_act", "activation_function")
    found = next((config[name] for name in names if config.get(name)), architecture.activation)
    if found == architecture.activation:
        return None
    return f"llama.cpp computes {architecture.activation} in {architecture.name}, not {found}"


def _scaling(architecture: Architecture, config: Mapping[str, Any]) -> str | None:
    if architecture.scaled_otherwise:
        wanted = query_scalar(architecture, config)
        if config["query_pre_attn_scalar"] != wanted:
            return (
                f"llama.cpp takes {wanted} as query_pre_attn_scalar, and the model has "
                f"{config['query_pre_attn_scalar']}"
            )
    if config.get("scale_attn_by_inverse_layer_idx") or config.get("scale_attn_weights") is False:
        return "llama.cpp scales the attention of GPT-2 in the usual way alone"
    return None


def _attention(architecture: Architecture, config: Mapping[str, Any]) -> str | None:
    if config.get("use_bidirectional_attention"):
        return "llama.cpp runs it as a causal language model"
    every = {"gemma2": 2, "gemma3": 6}.get(architecture.name)
    kinds = config.get("layer_types")
    if not every or not kinds or not config.get("sliding_window"):
        return None
    usual = [
        "full_attention" if (at + 1) % every == 0 else "sliding_attention"
        for at in range(len(kinds))
    ]
    if list(kinds) == usual:
        return None
    return f"llama.cpp has attention over all tokens in every {every}th block, the model in others"


def _experts(architecture: Architecture, config: Mapping[str, Any]) -> str | None:
    if not architecture.experts:
        return None
    if config.get("norm_topk_prob") is False:
        return (
            "llama.cpp divides the weights of chosen experts by their sum, and the model does not "
            "(norm_topk_prob)"
        )
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        return "llama.cpp has experts in every block, and the model has none in some"
    return None


def _notes(architecture: Architecture, config: Mapping[str, Any]) -> list[str]:
    window, rope = config.get("sliding_window"), config.get("rope_parameters") or {}
    if architecture.name == "phi3" and rope.get("rope_type") == "longrope":
        original = rope.get("original_max_position_embeddings")
        return [
            f"llama.cpp takes the factors of long texts where its context is beyond {original} "
            "tokens, transformers where a text is"
        ]
    sees_all = architecture.name in ("llama", "qwen2", "qwen3", "qwen3moe", "phi3")
    if config.get("use_sliding_window") is False or not window or not sees_all:
        return []
    if window >= config["max_position_embeddings"]:
        return []
    return [
        f"the model sees the last {window} tokens, and llama.cpp all: texts longer than that are "
        "scored otherwise"
    ]


def _rope(
    architecture: Architecture, config: Mapping[str, Any]
) -> tuple[list[GgufKey], dict[str, list[float]]] | str:
    """Metadata and factors of rotary positions, or why llama.cpp does not have them."""
    prefix, width = f"{architecture.name}.rope", head_width(config)
    given = config.get("rope_parameters") or {}
    rope: Mapping[str, Any] = given.get("full_attention", given)
    keys: list[GgufKey] = [(f"{prefix}.freq_base", rope["rope_theta"], "float32")]
    if architecture.name == "gemma3":
        local = given["sliding_attention"]
        if local.get("rope_type", "default") != "default":
            return "llama.cpp scales no positions of blocks with a sliding window"
        keys.append((f"{prefix}.freq_base_swa", local["rope_theta"], "float32"))
    turned = int(width * rope.get("partial_rotary_factor", 1.0))
    if turned != width and architecture.name != "phi3":
        return f"llama.cpp turns whole heads by their position, the model {turned} of {width}"
    keys.append((f"{prefix}.dimension_count", turned, "uint32"))
    scaled = _SCALED.get(rope.get("rope_type", "default"))
    if scaled is None:
        return f"qtui writes no positions of the kind {rope['rope_type']!r} as GGUF"
    more = scaled(architecture, config, rope, turned)
    return more if isinstance(more, str) else ([*keys, *more[0]], more[1])


_Scaled = tuple[list[GgufKey], dict[str, list[float]]]


def _plain(
    architecture: Architecture, config: Mapping[str, Any], rope: Mapping[str, Any], turned: int
) -> _Scaled | str:
    if architecture.name != "phi3":
        return [], {}
    original = config["original_max_position_embeddings"]
    return [("phi3.rope.scaling.original_context_length", original, "uint32")], {}


def _linear(
    architecture: Architecture, config: Mapping[str, Any], rope: Mapping[str, Any], turned: int
) -> _Scaled | str:
    prefix = f"{architecture.name}.rope.scaling"
    return [
        (f"{prefix}.type", "linear", "string"), (f"{prefix}.factor", rope["factor"], "float32")
    ], {}  # fmt: skip


def _yarn(
    architecture: Architecture, config: Mapping[str, Any], rope: Mapping[str, Any], turned: int
) -> _Scaled | str:
    usual = {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": 1.0,
        "attention_factor": 0.1 * math.log(rope["factor"]) + 1,
    }
    for name, value in usual.items():
        if rope.get(name) is not None and not math.isclose(rope[name], value, rel_tol=1e-6):
            return f"qtui writes no positions of yarn with another {name} than {value}"
    if rope.get("mscale") or rope.get("mscale_all_dim"):
        return "qtui writes no positions of yarn with mscale"
    prefix = f"{architecture.name}.rope.scaling"
    return [
        (f"{prefix}.type", "yarn", "string"),
        (f"{prefix}.factor", rope["factor"], "float32"),
        (
            f"{prefix}.original_context_length",
            rope["original_max_position_embeddings"],
            "uint32",
        ),
    ], {}


def _llama3(
    architecture: Architecture, config: Mapping[str, Any], rope: Mapping[str, Any], turned: int
) -> _Scaled | str:
    """Llama 3 divides slow frequencies by a factor, fast ones by 1, and those between by less."""
    if architecture.name != "llama":
        return f"llama.cpp has no such positions in {architecture.name}"
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    found = []
    for place in range(0, turned, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (place / turned)
        turns = rope["original_max_position_embeddings"] / wavelength
        share = min(1.0, max(0.0, (turns - low) / (high - low)))
        found.append(1 / ((1 - share) / factor + share))
    return [], {ROPE_FREQUENCIES: found}


def _longrope(
    architecture: Architecture, config: Mapping[str, Any], rope: Mapping[str, Any], turned: int
) -> _Scaled | str:
    if architecture.name != "phi3":
        return f"llama.cpp has no such positions in {architecture.name}"
    long, short = rope["long_factor"], rope["short_factor"]
    if not len(long) == len(short) == turned // 2:
        return f"its lists of factors have {len(long)} and {len(short)} numbers, not {turned // 2}"
    original = rope.get(
        "original_max_position_embeddings", config["original_max_position_embeddings"]
    )
    factor = rope.get("factor") or config["max_position_embeddings"] / original
    attention = rope.get("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    prefix = "phi3.rope.scaling"
    return [
        (f"{prefix}.type", "longrope", "string"),
        (f"{prefix}.original_context_length", original, "uint32"),
        (f"{prefix}.attn_factor", attention, "float32"),
    ], {ROPE_LONG: list(long), ROPE_SHORT: list(short)}


_SCALED: dict[
    str, Callable[[Architecture, Mapping[str, Any], Mapping[str, Any], int], _Scaled | str]
] = {
    "default": _plain,
    "linear": _linear,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
}
"""By ``rope_type``."""
