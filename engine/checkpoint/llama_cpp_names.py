"""What llama.cpp calls the weights of a checkpoint, by the ``gguf`` package's own tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

ARCHITECTURES = {
    "mistral": "llama", "mixtral": "llama", "gemma3_text": "gemma3", "cohere": "command-r",
    "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gpt_neox": "gptneox", "gpt_oss": "gpt-oss",
    "deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2", "granitemoe": "granite",
}  # fmt: skip
"""Architectures of GGUF by ``model_type`` where the name is another one."""


def architecture_of(model_type: str) -> str:
    """The name of GGUF for a ``model_type``, whether or not there is one."""
    return ARCHITECTURES.get(model_type, model_type)


def llama_cpp_names(
    model_type: str, blocks: int, parts: Mapping[str, Sequence[str]]
) -> dict[str, list[str | None]] | None:
    """Names of weights by layer; None for an architecture that the gguf package does not know.

    Args:
        model_type: of the config.
        blocks: how many there are.
        parts: the tensors on disk of each layer; of experts all of them.

    Returns:
        One name for most layers, such as ``blk.0.attn_q.weight``, two for experts whose gate and
        up are one layer; None in place of a weight that has no name of its own.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    wanted = architecture_of(model_type)
    arch = next((arch for arch, name in MODEL_ARCH_NAMES.items() if name == wanted), None)
    if arch is None:
        return None
    names: Any = get_tensor_name_map(arch, blocks)
    found = {}
    for layer, tensors in parts.items():
        plain = dict.fromkeys(re.sub(r"(\.experts)\.\d+\.", r"\1.", part) for part in tensors)
        found[layer] = [names.get_name(part, (".weight",)) for part in plain]
    return found
