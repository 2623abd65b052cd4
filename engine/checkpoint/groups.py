"""Fused groups: which layers serving engines store as one tensor, from names alone.

vLLM and SGLang join projections that share an input into one weight, so these need one format:
their ``packed_modules_mapping``. Experts use one kernel, with gate, up and down in the same format.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from engine.protocol import Role

FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),  # InternLM2 and others with Llama's original names: gate and up
    ("q_a_proj", "kv_a_proj_with_mqa"),  # DeepSeek: both latent down projections
    ("in_proj_qkv", "in_proj_z"),  # Qwen3.5's linear attention
    ("in_proj_b", "in_proj_a"),
)
"""Last names of sibling layers that become one tensor."""

_SET = {name: number for number, names in enumerate(FUSED) for name in names}
_CROSSING = ("encoder_attn", "cross_attn", "crossattention")
"""Cross attention: its queries have another input than its keys and values."""


def fused_groups(names: Sequence[str], blocks: Sequence[int], roles: Sequence[Role]) -> list[int]:
    """The number of each layer's fused group, from 0 in the order of rows; -1 for a layer in none.

    A tensor that is fused on disk already (``qkv_proj``, ``c_attn``) is in no group, nor is a layer
    whose partners are absent, such as the queries of a block that shares its keys and values.

    Args:
        names: of the layers, without ``.weight``.
        blocks: -1 outside of blocks.
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
