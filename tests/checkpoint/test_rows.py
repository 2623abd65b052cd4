"""Rows read as bytes are those of the whole layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.checkpoint import list_layers, open_checkpoint, read_layer, stored_rows
from engine.errors import CheckpointError
from tests import tiny


def bytes_of(weight: Tensor) -> bytes:
    return weight.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("model", ["llama", "mixtral", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rows_are_those_of_the_layer(model: str, dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.build(model, tmp_path / "model", dtype=dtype))
    read = 0
    for layer in list_layers(checkpoint):
        rows = stored_rows(checkpoint, layer)
        if rows is None:
            assert layer.transposed or layer.dtype != str(dtype).removeprefix("torch.")
            continue
        read += 1
        whole = read_layer(checkpoint, layer).reshape(-1, layer.shape[-1])
        assert (rows.height, rows.width) == whole.shape
        rows.announce(0, rows.height)
        for first, count in ((0, rows.height), (1, 3), (rows.height // 2 - 1, 2)):
            room = bytearray(count * rows.row_bytes)
            rows.read(first, memoryview(room))
            assert bytes(room) == bytes_of(whole[first : first + count])
    assert read


def test_a_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    folder = tiny.build("llama", tmp_path / "model")
    checkpoint = open_checkpoint(folder)
    rows = stored_rows(checkpoint, list_layers(checkpoint)[-1])
    assert rows is not None
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:4000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors ends within"):
        rows.read(0, memoryview(bytearray(rows.height * rows.row_bytes)))
