"""Fused groups: what serving engines store as one tensor, the same from files and from models."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import protocol as p
from engine.checkpoint import fused_groups, list_layers, open_checkpoint
from engine.client import in_process
from engine.protocol import Role
from tests import tiny
from tests.drive import ended, settings, until

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")

EXPECTED: dict[str, tuple[tuple[str, ...], ...]] = {
    "llama": (QKV, GATE_UP),
    "qwen3": (QKV, GATE_UP),
    "gemma3": (QKV, GATE_UP),
    "mistral": (QKV, GATE_UP),
    "phi3": (),
    "gpt2": (),
    "opt": (QKV,),
    "falcon": (),
    "qwen3_moe": (QKV, EXPERTS),
    "mixtral": (QKV, EXPERTS),
    "gemma4": (QKV, GATE_UP),
}
"""Of every block, written down by hand from what vLLM packs for each architecture."""


def members(names: list[str], groups: list[int]) -> list[tuple[str, ...]]:
    """Names of each group's layers, by the group's number."""
    count = max(groups, default=-1) + 1
    return [
        tuple(name for name, group in zip(names, groups, strict=True) if group == number)
        for number in range(count)
    ]


def groups_of(names: list[str], role: Role = "linear") -> list[int]:
    return fused_groups(names, [0] * len(names), [role] * len(names))


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
def test_groups_of_the_files_are_those_that_serving_engines_make(arch: str, tmp_path: Path) -> None:
    rows = list_layers(open_checkpoint(tiny.build(arch, tmp_path)))
    names = [row.name for row in rows]
    blocks = [-1 if row.block is None else row.block for row in rows]
    found = members(names, fused_groups(names, blocks, [row.role for row in rows]))
    homes = sorted({n.split(".self_attn")[0] for n in names if ".self_attn" in n}) or [""]
    expected = [tuple(f"{home}.{kind}" for kind in one) for home in homes for one in EXPECTED[arch]]
    if arch == "gemma4":  # later blocks share the keys and values of earlier ones
        expected = [one for one in expected if one[1] in names]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("arch", ["llama", "mixtral", "gemma4"])
def test_the_model_leaves_the_groups_as_the_files_have_them(
    arch: str, tmp_path: Path, prose: Path
) -> None:
    source = tiny.build(arch, tmp_path / arch)
    client = in_process(str(source))
    try:
        client.send(p.Open(str(source), settings(prose)))
        events = until(client, ended("open"))
    finally:
        client.close()
    listed = [e for e in events if isinstance(e, p.LayersListed)]
    assert all(len(e.groups) == len(e.names) for e in listed)
    first, last = listed[0], listed[-1]
    assert sorted(members(first.names, first.groups)) == sorted(members(last.names, last.groups))
    assert client.session.layers.groups == last.groups


def test_shared_experts_are_a_group_beside_the_routed_ones() -> None:
    home = "model.layers.0.mlp"
    names = [
        f"{home}.shared_expert.gate_proj", f"{home}.shared_expert.up_proj",
        f"{home}.shared_expert.down_proj", f"{home}.experts.gate_up_proj",
        f"{home}.experts.down_proj",
    ]  # fmt: skip
    roles: list[Role] = ["linear"] * 3 + ["experts"] * 2  # type: ignore[assignment]
    assert fused_groups(names, [0] * 5, roles) == [0, 0, -1, 1, 1]


def test_both_latent_projections_of_deepseek_are_one_group_and_others_none() -> None:
    home = "model.layers.0.self_attn"
    kinds = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
    assert groups_of([f"{home}.{kind}" for kind in kinds]) == [0, -1, 0, -1, -1]
    # Without a low rank of queries there is nothing to fuse with.
    kinds = ["q_proj", "kv_a_proj_with_mqa", "kv_b_proj"]
    assert groups_of([f"{home}.{kind}" for kind in kinds]) == [-1, -1, -1]


def test_groups_do_not_cross_blocks_parents_or_inputs() -> None:
    assert fused_groups(["l.0.a.q_proj", "l.1.a.k_proj"], [0, 1], ["linear"] * 2) == [-1, -1]
    assert groups_of(["l.0.a.q_proj", "l.0.b.k_proj"]) == [-1, -1]
    cross = [f"l.0.encoder_attn.{kind}" for kind in ("q_proj", "k_proj", "v_proj")]
    assert groups_of(cross) == [-1, 0, 0]
    assert fused_groups(["q_proj", "k_proj"], [-1, -1], ["linear"] * 2) == [-1, -1]
    assert fused_groups([], [], []) == []


def test_a_lone_tensor_of_experts_is_no_group() -> None:
    assert groups_of(["l.0.mlp.experts.up_proj"], "experts") == [-1]
