"""The listing of layers, and their names joined to the disk's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from engine.checkpoint import list_layers, open_checkpoint
from engine.model.load import load_network
from engine.model.network import Network
from tests import tiny

EVERY = pytest.mark.parametrize("network", list(tiny.ARCHITECTURES), indirect=True)


def on_disk(folder: Path) -> dict[str, torch.Tensor]:
    return {k: t for file in folder.glob("*.safetensors") for k, t in load_file(file).items()}


@EVERY
def test_every_linear_is_a_layer(network: Network) -> None:
    listed = {layer.module for layer in network.layers.values()}
    modules = dict(network.model.named_modules())
    expected = {n for n, m in modules.items() if isinstance(m, nn.Linear | Conv1D)}
    assert expected <= listed
    for layer in network.layers.values():
        if layer.role == "linear":
            module = modules[layer.module]
            assert layer.shape == (module.out_features, module.in_features)


@EVERY
def test_layers_know_their_place(network: Network) -> None:
    layers, n = list(network.layers.values()), len(network.blocks)
    assert layers[0].role == "embedding"
    assert (layers[0].block, layers[0].start) == (None, -1)
    assert layers[-1].role == "head"
    assert (layers[-1].name, layers[-1].block, layers[-1].start) == ("lm_head", None, n)
    inside = [layer.block for layer in layers if layer.block is not None]
    assert inside == sorted(inside)
    assert set(inside) == set(range(n))
    for layer in layers:
        assert tuple(network.weight(layer.name).shape) == layer.shape
        assert layer.kind == layer.name.split(".")[-1]
        if layer.block is not None:
            assert layer.start == layer.block
            assert f".{layer.block}." in layer.module


@EVERY
def test_disk_names_exist_and_hold_the_weight(network: Network) -> None:
    disk = on_disk(Path(network.config.name_or_path))
    for layer in network.layers.values():
        assert all(name in disk for name in layer.disk), layer
        if not layer.disk:
            assert layer.name == "lm_head"
            assert network.tied
        elif len(layer.disk) == 1:
            assert layer.name == layer.disk[0].removesuffix(".weight")
            stored = disk[layer.disk[0]]
            stored = stored.T if layer.role == "conv1d" else stored
            assert torch.equal(network.weight(layer.name), stored), layer


@pytest.mark.parametrize(
    ("network", "gate", "up"),
    [("mixtral", "w1", "w3"), ("qwen3_moe", "gate_proj", "up_proj")],
    indirect=["network"],
)
def test_fused_experts_are_their_disk_tensors_stacked(network: Network, gate: str, up: str) -> None:
    disk = on_disk(Path(network.config.name_or_path))
    layer = network.layers["model.layers.1.mlp.experts.gate_up_proj"]
    assert layer.role == "experts"
    assert len(layer.disk) == 2 * layer.shape[0]
    assert [name.split(".")[-2] for name in layer.disk] == [gate, up] * layer.shape[0]
    pairs = zip(layer.disk[::2], layer.disk[1::2], strict=True)
    stacked = torch.stack([torch.cat([disk[g], disk[u]]) for g, u in pairs])
    assert torch.equal(network.weight(layer.name), stacked)
    down = network.layers["model.layers.1.mlp.experts.down_proj"]
    assert torch.equal(network.weight(down.name), torch.stack([disk[n] for n in down.disk]))


@EVERY
def test_the_model_and_the_files_list_the_same_layers(network: Network) -> None:
    rows = {
        row.name: row for row in list_layers(open_checkpoint(Path(network.config.name_or_path)))
    }
    assert rows.keys() == network.layers.keys()
    for name, layer in network.layers.items():
        row = rows[name]
        assert (row.kind, row.block, row.shape, row.role) == (
            layer.kind,
            layer.block,
            layer.shape,
            layer.role,
        )
        if layer.disk:
            assert row.parts == layer.disk


@pytest.mark.parametrize("network", ["mixtral", "qwen3_moe"], indirect=True)
def test_routers_are_no_layers(network: Network) -> None:
    assert not [name for name in network.layers if name.endswith("gate") or "router" in name]


def test_a_linear_router_is_no_layer(tmp_path: Path) -> None:
    tiny.ARCHITECTURES["qwen2_moe"] = (
        "Qwen2MoeConfig",
        {
            **tiny.SIZES,
            **tiny.EXPERTS,
            "num_experts": 4,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    )
    try:
        network = load_network(tiny.build("qwen2_moe", tmp_path / "moe"), device="cpu")
    finally:
        del tiny.ARCHITECTURES["qwen2_moe"]
    kinds = {layer.kind for layer in network.layers.values()}
    assert isinstance(network.model.model.layers[0].mlp.shared_expert_gate, nn.Linear)
    assert "shared_expert_gate" not in kinds
    assert {"gate_up_proj", "gate_proj", "down_proj"} <= kinds


def test_transposed_experts_are_listed_out_by_in(tmp_path: Path) -> None:
    tiny.ARCHITECTURES["gpt_oss"] = (
        "GptOssConfig",
        {
            **tiny.SIZES,
            **tiny.EXPERTS,
            "head_dim": 16,
            "num_local_experts": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "sliding_window": 8,
        },
    )
    try:
        network = load_network(tiny.build("gpt_oss", tmp_path / "oss"), device="cpu")
    finally:
        del tiny.ARCHITECTURES["gpt_oss"]
    name = "model.layers.0.mlp.experts.gate_up_proj"
    assert network.layers[name].shape == (4, 256, 64)
    stored = on_disk(tmp_path / "oss")[name]
    assert torch.equal(network.weight(name), stored.transpose(1, 2))
    ids = tiny.ids(1, 16)
    whole = network.resume(ids, -1, None)
    with network.holding({name: network.weight(name).clone()}):
        assert torch.equal(network.resume(ids, -1, None), whole)
    with network.holding({name: network.weight(name) * 2}):
        assert not torch.equal(network.resume(ids, -1, None), whole)
    network.assert_at_rest()


def test_a_gpt2_saved_without_its_prefix_keeps_the_names_on_disk(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    source = folder("gpt2")
    stripped = {key.removeprefix("transformer."): tensor for key, tensor in on_disk(source).items()}
    for i in range(3):  # buffers that old files carry
        stripped[f"h.{i}.attn.bias"] = torch.ones(1, 1, 128, 128).tril()
    save_file(stripped, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    network, whole = load_network(tmp_path, device="cpu"), load_network(source, device="cpu")
    layer = network.layers["h.1.attn.c_attn"]
    assert (layer.module, layer.disk) == (
        "transformer.h.1.attn.c_attn",
        ("h.1.attn.c_attn.weight",),
    )
    ids = tiny.ids(1, 16)
    assert torch.equal(network.resume(ids, -1, None), whole.resume(ids, -1, None))


@pytest.mark.parametrize("arch", ["llama", "mixtral"])
def test_shards_load_as_one_file_does(
    folder: Callable[[str], Path], tmp_path: Path, arch: str
) -> None:
    sharded = load_network(tiny.build(arch, tmp_path / arch, shards=4), device="cpu")
    index = json.loads((tmp_path / arch / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) >= 4
    whole = load_network(folder(arch), device="cpu")
    assert sharded.layers == whole.layers
    assert all(torch.equal(sharded.weight(n), whole.weight(n)) for n in whole.layers)
