"""Fused groups: which layers serving engines store as one tensor, told from names alone.

vLLM and SGLang put projections that read one input into one weight, so that these must hold one
format: their ``packed_modules_mapping``. Experts are one kernel, gate, up and down alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from engine.protocol import Role

FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),  # InternLM2 and others of Llama's own names: gate and up
    ("q_a_proj", "kv_a_proj_with_mqa"),  # DeepSeek: both latent projections down
    ("in_proj_qkv", "in_proj_z"),  # Qwen3.5's linear attention
    ("in_proj_b", "in_proj_a"),
)
"""Last names of layers that, side by side under one parent, become one tensor."""

_SET = {name: number for number, names in enumerate(FUSED) for name in names}
_CROSSING = ("encoder_attn", "cross_attn", "crossattention")
"""Attention to another sequence: its queries read another input than its keys and values."""


def fused_groups(names: Sequence[str], blocks: Sequence[int], roles: Sequence[Role]) -> list[int]:
    """The number of each layer's fused group, from 0 in the order of rows; -1 for a layer in none.

    A tensor that is fused on disk already (``qkv_proj``, ``c_attn``) is in no group, nor is a layer
    whose fellows are absent, such as the queries of a block that shares its keys and values.

    Args:
        names: of the layers, without ``.weight``.
        blocks: -1 for what stands outside of blocks.
        roles: of the layers.
    """
    members: dict[tuple[str, str | int], list[int]] = defaultdict(list)
    for row, (name, block, role) in enumerate(zip(names, blocks, roles, strict=True)):
        home, _, kind = name.rpartition(".")
        if block < 0:
            continue
        if role == "experts":
            members[home, "experts"].append(row)
        elif role == "linear" and kind in _SET:
            if kind == "q_proj" and home.endswith(_CROSSING):
                continue
            members[home, _SET[kind]].append(row)
    groups = [-1] * len(names)
    together = sorted(rows for rows in members.values() if len(rows) > 1)
    for number, rows in enumerate(together):
        for row in rows:
            groups[row] = number
    return groups
