"""Every type that the gguf package dequantises is read to the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, dequantize
from gguf.constants import GGML_QUANT_SIZES

from engine.checkpoint import open_checkpoint, remarks, stored_rows
from engine.checkpoint.gguf import checkpoint as module
from engine.checkpoint.layers import list_layers
from engine.errors import CheckpointError
from engine.ggml_types import NUMBERS, QUANTISED
from engine.quant.gguf_stored import decoded
from tests.checkpoint.gguf.files import File, string, tensor, whole

READ = [name for name in QUANTISED if name not in module.UNREAD]
WIDTH = 256


@pytest.mark.parametrize("name", READ)
def test_random_bytes_are_read_as_the_gguf_package_reads_them(name: str) -> None:
    kind = GGMLQuantizationType(NUMBERS[name])
    block, size = GGML_QUANT_SIZES[kind]
    rows = np.random.default_rng(7).integers(0, 256, (24, 512 // block * size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = dequantize(rows, kind)
    found = decoded(name, torch.from_numpy(rows)).numpy()
    assert found.dtype == expected.dtype == np.float32
    assert found.shape == expected.shape
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    ours, theirs = (np.where(np.isnan(x), 0, x).view(np.uint32) for x in (found, expected))
    zeros = np.where(np.isnan(expected), 0, expected) == 0
    # A weight of 0 may have either sign.
    assert np.array_equal(np.where(zeros, 0, ours), np.where(zeros, 0, theirs))


def small(path: Path, kind: str, *, extra: list[bytes] | None = None, more: int = 0) -> Path:
    """A file of one block, whose output projection is stored in a type, in a few random rows."""
    settings = {
        "context_length": 64, "embedding_length": WIDTH, "block_count": 1,
        "feed_forward_length": WIDTH, "attention.head_count": 2,
    }  # fmt: skip
    each = QUANTISED[kind]
    bytes_ = 8 * WIDTH // each.block * each.bytes
    tensors = [
        tensor("token_embd.weight", (WIDTH, 8), 0, 0),
        tensor("blk.0.attn_output.weight", (WIDTH, 8), NUMBERS[kind], 8 * WIDTH * 4),
        *(extra or []),
    ]
    keys = [string("general.architecture", "llama")]
    keys += [whole(f"llama.{key}", value) for key, value in settings.items()]
    keys.append(
        string("llama.attention.layer_norm_rms_epsilon", "")[:-12]
        + b"\x06\0\0\0" + np.float32(1e-5).tobytes()
    )  # fmt: skip
    File(keys=keys, tensors=tensors, weights=8 * WIDTH * 4 + bytes_ + more).write(path)
    raw = bytearray(path.read_bytes())
    raw[len(raw) - bytes_ - more : len(raw) - more] = (
        np.random.default_rng(3).integers(0, 120, bytes_, dtype=np.uint8).tobytes()
    )
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("kind", ["q4_k", "iq2_xxs", "mxfp4", "q8_0"])
def test_rows_of_a_file_are_dequantised(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(small(tmp_path / "x.gguf", kind))
    name = "model.layers.0.self_attn.o_proj.weight"
    info = checkpoint.tensors[name]
    assert (info.dtype, info.shape) == (kind, (8, WIDTH))
    raw = np.fromfile(info.file, np.uint8, info.bytes, offset=info.start).reshape(8, -1)
    expected = dequantize(raw, GGMLQuantizationType(NUMBERS[kind]))
    assert np.array_equal(checkpoint.read(name).numpy(), expected, equal_nan=True)
    assert np.array_equal(checkpoint.read_rows(name, 2, 5).numpy(), expected[2:5], equal_nan=True)
    monkeypatch.setattr(module, "_CHUNK", raw.shape[1] * 3)  # rows are read a few at a time
    assert np.array_equal(checkpoint.read(name).numpy(), expected, equal_nan=True)
    row = next(row for row in list_layers(checkpoint) if row.kind == "o_proj")
    assert row.dtype == kind
    assert stored_rows(checkpoint, row) is None
    assert kind in checkpoint.dequantised
    assert remarks(checkpoint, list_layers(checkpoint)) == []


def test_an_nvfp4_weight_is_multiplied_by_its_scale(tmp_path: Path) -> None:
    size = 8 * WIDTH // 64 * 36
    file = small(
        tmp_path / "x.gguf",
        "nvfp4",
        extra=[tensor("blk.0.attn_output.scale", (1,), 0, 8 * WIDTH * 4 + size)],
        more=32,
    )
    raw = bytearray(file.read_bytes())
    raw[-32:-28] = np.float32(0.5).tobytes()
    file.write_bytes(raw)
    checkpoint = open_checkpoint(file)
    name = "model.layers.0.self_attn.o_proj.weight"
    info = checkpoint.tensors[name]
    blocks = np.fromfile(info.file, np.uint8, info.bytes, offset=info.start).reshape(8, -1)
    expected = dequantize(blocks, GGMLQuantizationType.NVFP4) * np.float32(0.5)
    assert np.array_equal(checkpoint.read(name).numpy(), expected, equal_nan=True)


@pytest.mark.parametrize("kind", sorted(module.UNREAD))
def test_types_that_nothing_dequantises_are_named(kind: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"'blk.0.attn_output.weight' in {kind}"):
        open_checkpoint(small(tmp_path / "x.gguf", kind))
