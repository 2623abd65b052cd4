"""Blocks read from a checkpoint: the same values as loaded ones, two at a time, and said so."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.checkpoint import list_layers, open_checkpoint
from engine.errors import CheckpointError, OutOfMemoryError
from engine.model.load import load_network
from engine.model.network import Network
from engine.model.streamed_blocks import StreamedBlocks
from tests import tiny
from tests.checkpoint.gguf.models import tokenizer as gguf_tokenizer
from tests.export.exporting import export_checkpoint

FILE = "model.safetensors"

STREAMED = sorted({*tiny.ARCHITECTURES, *tiny.PLACED, *tiny.UNCALLED} - {"gemma4", "zamba2"})
"""But for those whose blocks share something: see below."""
EMBEDDED_AGAIN = {"gemma3n", "gemma4_per_layer"}
"""Their blocks are given something of the embedding too, so that it stays in memory."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {}


@pytest.fixture
def built(arch: str, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    if arch not in folders:
        folders[arch] = tiny.build(arch, tmp_path_factory.mktemp("streamed") / arch)
    return folders[arch]


def streamed(folder: Path) -> tuple[Network, StreamedBlocks]:
    network = load_network(folder, device="cpu", budget=1)
    assert isinstance(network.blocks, StreamedBlocks), network.notes
    return network, network.blocks


@pytest.mark.parametrize("arch", STREAMED)
def test_every_weight_and_every_state_is_that_of_the_loaded_model(arch: str, built: Path) -> None:
    resident, (network, blocks) = load_network(built, device="cpu"), streamed(built)
    if blocks.outside:
        assert blocks.reads == [2] * len(blocks), "opening takes two passes"
    assert blocks.outside == (arch not in EMBEDDED_AGAIN)
    ids = tiny.ids(2, 24)
    assert list(network.layers.values()) == list(resident.layers.values())
    assert (network.tied, network.zeroed, network.takes_positions, network.state_size) == (
        resident.tied, resident.zeroed, resident.takes_positions, resident.state_size,
    )  # fmt: skip
    assert torch.equal(network.run(ids, None), resident.run(ids, None))
    assert all(map(torch.equal, network.states(ids), resident.states(ids)))
    for name in resident.layers:
        assert torch.equal(network.weight(name), resident.weight(name)), name
    for k, module in enumerate(resident.blocks.modules):
        with network.blocks.block(k) as read:
            for (name, mine), theirs in zip(
                read.named_parameters(), module.parameters(), strict=True
            ):
                assert torch.equal(mine, theirs), name
                assert (mine.stride(), mine.dtype) == (theirs.stride(), theirs.dtype)
    network.assert_at_rest()


@pytest.mark.parametrize("arch", ["gemma4"])
def test_a_model_whose_blocks_pass_on_more_than_the_state_is_loaded_as_a_whole(
    built: Path,
) -> None:
    network = load_network(built, device="cpu", budget=1)
    assert not isinstance(network.blocks, StreamedBlocks)
    assert "cannot be streamed from disk: block" in network.notes[-1]
    assert torch.equal(
        network.run(tiny.ids(1, 8), None),
        load_network(built, device="cpu").run(tiny.ids(1, 8), None),
    )


@pytest.mark.parametrize("arch", ["zamba2"])
def test_a_model_whose_blocks_share_a_weight_is_refused_without_memory(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.model.load.memory_free", lambda _device: 1000)
    with pytest.raises(OutOfMemoryError, match=r"cannot be streamed from disk.*several places"):
        load_network(built, device="cpu")


@pytest.mark.parametrize("arch", ["llama"])
def test_two_blocks_are_read_at_most_and_the_next_one_in_advance(built: Path) -> None:
    network, blocks = streamed(built)
    with blocks.block(0):
        assert blocks._ahead is not None
        assert blocks._ahead.k == 1
        hollow = [p for k in (1, 2) for p in blocks.modules[k].parameters()]
        assert all(p.untyped_storage().nbytes() == p.itemsize for p in hollow)
        assert all(bool(torch.isnan(p).all()) for p in hollow)
    with blocks.block(2), blocks.block(1):
        assert blocks._ahead is not None
        assert blocks._ahead.k == 0
    own = sum(p.nbytes for p in network.model.parameters())
    tables = sum(p.nbytes for p in blocks.around)
    assert network.weights_in_memory == own - blocks.bytes - tables + 2 * blocks.largest
    assert all(p.untyped_storage().nbytes() == p.itemsize for p in blocks.around)


@pytest.mark.parametrize("tie", [True, False])
def test_a_head_larger_than_two_blocks_is_in_memory_without_them(tie: bool, tmp_path: Path) -> None:
    folder = tiny.build("llama", tmp_path / "wide", vocab_size=4096, tie_word_embeddings=tie)
    resident, (network, blocks) = load_network(folder, device="cpu"), streamed(folder)
    table = 4096 * 64 * 4
    norms = sum(p.nbytes for p in network.model.model.norm.parameters())
    assert network.weights_in_memory == table + norms > 2 * blocks.largest + norms
    assert network.tied == resident.tied == tie
    ids, before = tiny.ids(2, 24), blocks.reads_around
    states = network.states(ids)
    assert blocks.reads_around - before == 1, "the embedding"
    assert torch.equal(states[-1], resident.states(ids)[-1])
    with network.at_hand([len(blocks)]):
        for span in ((0, 16), (16, 24)):
            logits = network.logits(ids, states[-1], span)
            assert torch.equal(logits, resident.logits(ids, states[-1], span))
    assert blocks.reads_around - before == 2, "and the head"
    for name in ("lm_head", "model.embed_tokens"):
        assert torch.equal(network.weight(name), resident.weight(name))
    network.assert_at_rest()


@pytest.mark.parametrize("arch", ["llama"])
@pytest.mark.parametrize("how", ["written", "replaced", "gone"])
def test_a_file_that_changes_while_it_is_streamed_is_named(
    how: str, built: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(built, folder)
    network, blocks = streamed(folder)
    blocks._ahead = None
    file = folder / "model.safetensors"
    if how == "written":
        os.utime(file, ns=(0, 0))
    else:
        file.unlink()
        if how == "replaced":
            shutil.copy2(built / file.name, file)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is .*saved"), blocks.block(1):
        raise AssertionError("it was read")
    network.assert_at_rest()


@pytest.mark.parametrize("arch", ["qwen3_moe"])
def test_values_that_are_not_finite_are_zero_at_every_reading(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(built, folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.self_attn.q_proj.weight"
    tensors[name][3, 5] = float("inf")
    save_file(tensors, file, {"format": "pt"})
    network, blocks = streamed(folder)
    assert network.zeroed == load_network(folder, device="cpu").zeroed != ()
    for _ in range(2):
        with blocks.block(1):
            weight = network.weight(name.removesuffix(".weight"))
            assert weight[3, 5] == 0
            assert bool(weight.isfinite().all())


def fp8(plain: Path, out: Path) -> Path:
    shutil.copytree(plain, out)
    stored = {}
    for name, value in load_file(out / FILE).items():
        stored[name] = value
        if ".layers." in name and value.dim() == 2:
            stored[name] = value.to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = torch.full((1, 1), 0.5)
    config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    return quantised(out, stored, config)


def awq(plain: Path, out: Path) -> Path:
    """Of random codes: any are valid."""
    shutil.copytree(plain, out)
    draw = torch.Generator().manual_seed(0)
    stored = {}
    for name, value in load_file(out / FILE).items():
        stored[name] = value
        if ".layers." in name and value.dim() == 2:
            del stored[name]
            module, (rows, columns) = name.removesuffix(".weight"), value.shape
            for part, height in (("qweight", columns), ("qzeros", columns // 32)):
                codes = torch.randint(-(2**31), 2**31, (height, rows // 8), generator=draw)
                stored[f"{module}.{part}"] = codes.to(torch.int32)
            scales = torch.rand(columns // 32, rows, generator=draw) / 32
            stored[f"{module}.scales"] = scales.to(torch.float16)
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True}
    return quantised(out, stored, config | {"version": "gemm"})


def quantised(folder: Path, stored: dict[str, torch.Tensor], how: dict[str, object]) -> Path:
    save_file(stored, folder / FILE, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": how}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def exported(to: str, format: str) -> Callable[[Path, Path], Path]:
    def write(plain: Path, out: Path) -> Path:
        if to == "gguf":  # it holds a tokenizer of its own kind
            plain = shutil.copytree(plain, out)
            gguf_tokenizer("gpt-2").save_pretrained(plain)
            out = out.with_suffix(".gguf")
        checkpoint = open_checkpoint(plain)
        body = [row.name for row in list_layers(checkpoint) if row.role == "linear"]
        return export_checkpoint(checkpoint, dict.fromkeys(body, format), out, to=to).folder

    return write


LAYOUTS: dict[str, Callable[[Path, Path], Path]] = {
    "fp8": fp8,
    "awq": awq,
    "gptq": exported("gptq", "int4-g32-sym"),
    "compressed-tensors": exported("checkpoint", "int4-g32"),
    "gguf": exported("gguf", "q8_0"),
}
"""By what writes a plain checkpoint in it."""


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("arch", ["llama"])
def test_a_quantised_layout_is_dequantised_block_by_block(
    layout: str, built: Path, tmp_path: Path
) -> None:
    path = LAYOUTS[layout](built, tmp_path / "out")
    resident, (network, blocks) = load_network(path, device="cpu"), streamed(path)
    ids = tiny.ids(1, 16)
    assert torch.equal(network.run(ids, None), resident.run(ids, None))
    for name in resident.layers:
        assert torch.equal(network.weight(name), resident.weight(name)), name
    assert network.notes[2] == resident.notes[2]
    assert max(blocks.reads) == 3


@pytest.mark.parametrize("own", [True, False])
def test_a_head_that_config_json_ties_but_that_is_on_disk_is_the_one_on_disk(
    own: bool, tmp_path: Path
) -> None:
    folder = tiny.build("llama", tmp_path / "tied", tie_word_embeddings=True)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedding.flip(0) if own else embedding.clone()
    save_file(tensors, file, {"format": "pt"})
    resident, (network, _) = load_network(folder, device="cpu"), streamed(folder)
    assert network.tied == resident.tied == (not own)
    assert torch.equal(network.weight("lm_head"), tensors["lm_head.weight"])
    ids = tiny.ids(1, 16)
    assert torch.equal(network.run(ids, None), resident.run(ids, None))


@pytest.mark.parametrize("arch", ["llama"])
def test_what_the_model_does_not_fit_is_named(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "are more than a budget of 1 MiB holds" in streamed(built)[0].notes[-1]
    size = sum(p.nbytes for p in load_network(built, device="cpu").model.parameters())
    monkeypatch.setattr("engine.model.load.memory_free", lambda _device: size - 1)
    network = load_network(built, device="cpu", budget=1 << 50)
    assert "are more than what is free on cpu holds" in network.notes[-1]
