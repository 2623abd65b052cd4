"""The config of transformers for a GGUF file, made from its metadata; no library is needed."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

from engine.checkpoint.gguf.architectures import (
    NOT_WEIGHTS,
    ROPE_FREQUENCIES,
    ROPE_LONG,
    ROPE_SHORT,
    Architecture,
)
from engine.checkpoint.gguf.header import GgufTensor
from engine.checkpoint.gguf.metadata import Metadata
from engine.errors import CheckpointError

MOST_EXPERTS = 4096
"""More than any model has in a block."""
_LOCAL_THETA = 10_000.0
_IDS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


def config_of(
    architecture: Architecture, metadata: Metadata, tensors: Mapping[str, GgufTensor]
) -> dict[str, Any]:
    """What ``config.json`` would hold.

    Args:
        architecture: of the file.
        metadata: of its first part.
        tensors: by llama.cpp's names.

    Raises:
        CheckpointError: an entry that is needed is missing, or is none that it can be.
    """
    prefix = architecture.name
    config: dict[str, Any] = {
        "model_type": architecture.model_types[0],
        "architectures": [architecture.model],
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    for setting in architecture.settings:
        key = f"{prefix}.{setting.key}"
        if key not in metadata and (setting.optional or setting.key == "attention.head_count_kv"):
            continue
        read = metadata.whole if setting.kind == "whole" else metadata.real
        config[setting.field] = read(key)
    _check_counts(architecture, metadata, config)
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{metadata.file} has no matrix token_embd.weight; convert it again")
    config["vocab_size"] = embedding.shape[0]
    for name, key in _IDS.items():
        key = f"tokenizer.ggml.{key}_token_id"
        # Absent ids stay None, where transformers has those of one checkpoint as defaults.
        config[name] = metadata.whole(key) if key in metadata else None
    if prefix != "gpt2":
        config.setdefault("num_key_value_heads", config["num_attention_heads"])
        config["rope_parameters"] = _rope(architecture, metadata, tensors, config)
        config |= _of_family(architecture, tensors, config)
    return config


def _check_counts(architecture: Architecture, metadata: Metadata, config: dict[str, Any]) -> None:
    """Refuse sizes of 0, heads that do not divide the width, and more experts than there are."""
    for setting in architecture.settings:
        found = config.get(setting.field)
        if found == 0 and setting.field != "sliding_window":
            raise CheckpointError(
                f"{metadata.file} gives '{architecture.name}.{setting.key}' as 0; convert it again"
            )
    count = metadata.whole(f"{architecture.name}.expert_count", 0)
    used = config.get("num_experts_per_tok", 0)
    if used > count or count > MOST_EXPERTS:
        raise CheckpointError(
            f"{metadata.file} gives '{architecture.name}.expert_used_count' as {used}, of {count} "
            "experts; convert it again"
        )
    heads = config.get("num_attention_heads", config.get("n_head"))
    width = config.get("hidden_size", config.get("n_embd"))
    if width is None or heads is None or ("head_dim" not in config and width % heads):
        raise CheckpointError(
            f"{metadata.file} has {heads} heads, which do not divide a width of {width}; "
            "convert it again"
        )


def head_width(config: Mapping[str, Any]) -> int:
    """Numbers in one head of attention."""
    given = config.get("head_dim")
    return int(given or config["hidden_size"] // config["num_attention_heads"])


def _rope(
    architecture: Architecture,
    metadata: Metadata,
    tensors: Mapping[str, GgufTensor],
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """The parameters of rotary positions."""
    prefix, width = f"{architecture.name}.rope", head_width(config)
    found: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": metadata.real(f"{prefix}.freq_base", 10_000.0),
    }
    turned = metadata.whole(f"{prefix}.dimension_count", width)
    if turned != width:
        if architecture.name != "phi3" or turned % 2 or not 0 < turned < width:
            raise CheckpointError(
                f"{metadata.file} turns {turned} of {width} numbers of a head by their position, "
                f"which transformers' {architecture.model} cannot"
            )
        found["partial_rotary_factor"] = turned / width
    kind = metadata.text(f"{prefix}.scaling.type", "none")
    if kind in ("linear", "yarn"):
        found |= {"rope_type": kind, "factor": metadata.real(f"{prefix}.scaling.factor")}
    if kind == "yarn":
        found["original_max_position_embeddings"] = metadata.whole(
            f"{prefix}.scaling.original_context_length"
        )
    elif kind not in ("none", "linear", "longrope"):
        raise CheckpointError(f"{metadata.file}: qtui does not know positions scaled by {kind!r}")
    found |= _factors(prefix, metadata, tensors, turned // 2)
    if architecture.name != "gemma3":
        return found
    local = metadata.real(f"{prefix}.freq_base_swa", _LOCAL_THETA)
    return {
        "full_attention": found,
        "sliding_attention": {"rope_type": "default", "rope_theta": local},
    }


def _factors(
    prefix: str, metadata: Metadata, tensors: Mapping[str, GgufTensor], count: int
) -> dict[str, Any]:
    """Factors for each frequency, as ``longrope`` has them: it divides by any list of numbers."""
    present = [name for name in NOT_WEIGHTS if name in tensors]
    if not present:
        return {}
    lists = {name: _floats(tensors[name], count) for name in present}
    if ROPE_FREQUENCIES in lists:
        same = lists[ROPE_FREQUENCIES]
        return {
            "rope_type": "longrope",
            "long_factor": same,
            "short_factor": same,
            "attention_factor": 1.0,
            "factor": 1.0,
            "original_max_position_embeddings": metadata.whole(
                f"{prefix.partition('.')[0]}.context_length"
            ),
        }
    if len(lists) != 2:
        raise CheckpointError(f"{metadata.file} has {present[0]} alone, of two lists of factors")
    original = metadata.whole(f"{prefix}.scaling.original_context_length")
    context = metadata.whole(f"{prefix.partition('.')[0]}.context_length")
    if original < 2:
        raise CheckpointError(
            f"{metadata.file} gives '{prefix}.scaling.original_context_length' as {original}, "
            "which is none; convert it again"
        )
    usual = math.sqrt(1 + math.log(max(1.0, context / original)) / math.log(original))
    return {
        "rope_type": "longrope",
        "long_factor": lists[ROPE_LONG],
        "short_factor": lists[ROPE_SHORT],
        "attention_factor": metadata.real(f"{prefix}.scaling.attn_factor", usual),
        "original_max_position_embeddings": original,
    }


def _floats(tensor: GgufTensor, count: int) -> list[float]:
    """The numbers of a small tensor."""
    if tensor.type.name != "f32" or tensor.shape != (count,):
        raise CheckpointError(
            f"{tensor.file} stores {tensor.name!r} as {tensor.type.name} {list(tensor.shape)}, not "
            f"as {count} numbers of f32; convert it again"
        )
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.start)
        raw = stream.read(tensor.bytes)
    found = list(struct.unpack(f"<{count}f", raw))
    if not all(math.isfinite(each) and each > 0 for each in found):
        raise CheckpointError(f"{tensor.file} stores {tensor.name!r} with factors that are none")
    return found


def _of_family(
    architecture: Architecture, tensors: Mapping[str, GgufTensor], config: Mapping[str, Any]
) -> dict[str, Any]:
    """What only some families have, and what follows from which tensors there are."""
    found: dict[str, Any] = {}
    name = architecture.name
    if name == "llama" and not architecture.experts:
        found["attention_bias"] = "blk.0.attn_q.bias" in tensors
        found["mlp_bias"] = "blk.0.ffn_down.bias" in tensors
    if name == "qwen3moe":
        found["norm_topk_prob"] = True  # as llama.cpp has it
    if name in ("qwen3", "qwen3moe"):
        found["attention_bias"] = "blk.0.attn_q.bias" in tensors
    if name == "phi3":
        rope = config["rope_parameters"]
        found["original_max_position_embeddings"] = rope.get(
            "original_max_position_embeddings", config["max_position_embeddings"]
        )
    if config.get("sliding_window") == 0:
        found["sliding_window"] = None
    if name == "gemma3" and not config.get("sliding_window"):
        found["layer_types"] = ["full_attention"] * config["num_hidden_layers"]
    if name in ("gemma2", "gemma3"):
        found["query_pre_attn_scalar"] = query_scalar(architecture, config)
    return found


def query_scalar(architecture: Architecture, config: Mapping[str, Any]) -> int:
    """What llama.cpp divides the scores of attention by, squared, in Gemma 2 and 3."""
    if config["num_hidden_layers"] == architecture.scaled_otherwise:
        return int(config["hidden_size"] // config["num_attention_heads"])
    return head_width(config)
