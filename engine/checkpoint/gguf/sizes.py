"""Whether the sizes that a GGUF file's metadata gives are those of its tensors.

A model is built from the metadata: sizes that no tensor has would cost memory and time without end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from engine.checkpoint.gguf.architectures import ROUTER, Architecture
from engine.checkpoint.gguf.config import head_width
from engine.checkpoint.gguf.header import GgufTensor
from engine.checkpoint.gguf.metadata import Metadata
from engine.errors import CheckpointError


def check_sizes(
    architecture: Architecture,
    metadata: Metadata,
    tensors: Mapping[str, GgufTensor],
    config: Mapping[str, Any],
) -> None:
    """Compare blocks, widths and heads.

    Raises:
        CheckpointError: one of them differs; names key and tensor.
    """
    blocks = {int(name.split(".")[1]) for name in tensors if _is_of_block(name)}
    said = config.get("num_hidden_layers", config.get("n_layer"))
    if blocks != set(range(len(blocks))) or said != len(blocks):
        raise CheckpointError(
            f"{metadata.file} gives '{architecture.name}.block_count' as {said}, and holds "
            f"tensors of {len(blocks)} blocks; download or convert it again"
        )
    for key, name, place, wanted in _sizes(architecture, config):
        tensor = tensors.get(name)
        if tensor is not None and tensor.shape[place] != wanted:
            raise CheckpointError(
                f"{metadata.file} stores {name!r} as {list(tensor.shape)}, and its metadata "
                f"({architecture.name}.{key}) wants {wanted} there; convert it again"
            )


def _is_of_block(name: str) -> bool:
    words = name.split(".")
    return len(words) > 2 and words[0] == "blk" and words[1].isascii() and words[1].isdigit()


def _sizes(
    architecture: Architecture, config: Mapping[str, Any]
) -> Iterator[tuple[str, str, int, int]]:
    """Key, tensor, dimension and size of what can be compared."""
    width = config.get("hidden_size", config.get("n_embd"))
    yield "embedding_length", "token_embd.weight", -1, int(width or 0)
    inner = config.get("intermediate_size", config.get("n_inner"))
    yield "feed_forward_length", "blk.0.ffn_down.weight", -1, int(inner or 0)
    if architecture.name == "gpt2":
        yield "context_length", "position_embd.weight", 0, config["n_positions"]
        return
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    each = head_width(config)
    yield "attention.head_count", "blk.0.attn_q.weight", 0, heads * each
    yield "attention.head_count_kv", "blk.0.attn_k.weight", 0, shared * each
    yield "attention.head_count", "blk.0.attn_output.weight", -1, heads * each
    if architecture.experts:
        count = config.get("num_local_experts")
        inner = config.get("moe_intermediate_size", inner)
        for block in range(config["num_hidden_layers"]):
            for stack in architecture.experts:
                yield "expert_count", f"blk.{block}.{stack}.weight", 0, int(count or 0)
            yield "expert_count", f"blk.{block}.{ROUTER}.weight", 0, int(count or 0)
            yield "expert_feed_forward_length", f"blk.{block}.ffn_down_exps.weight", -1, int(inner)
    if "attn_qkv" in architecture.inner:
        yield "attention.head_count", "blk.0.attn_qkv.weight", 0, (heads + 2 * shared) * each
