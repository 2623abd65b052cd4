"""Blocks read from a checkpoint: the same values as loaded ones, two at a time, and said so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.model.load import load_network
from engine.model.network import Network
from engine.model.streamed_blocks import StreamedBlocks
from tests import tiny

STREAMED = sorted({*tiny.ARCHITECTURES, *tiny.PLACED, *tiny.UNCALLED} - {"gemma4", "zamba2"})
"""But for those whose blocks share something: see below."""


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
def test_every_weight_and_every_state_is_that_of_the_loaded_model(built: Path) -> None:
    resident, (network, blocks) = load_network(built, device="cpu"), streamed(built)
    assert blocks.reads == [2] * len(blocks), "opening takes two passes"
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
