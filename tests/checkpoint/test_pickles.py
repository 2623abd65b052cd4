"""Old checkpoints: tensors read in their place, whatever part of a storage they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from engine.checkpoint import open_checkpoint
from engine.errors import CheckpointError


def folder_of(folder: Path, tensors: dict[str, torch.Tensor], *, zipped: bool = True) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    file = folder / "pytorch_model.bin"
    torch.save(tensors, file, _use_new_zipfile_serialization=zipped)
    return folder


@pytest.mark.parametrize("zipped", [True, False])
def test_every_part_of_a_storage_reads_as_torch_reads_it(zipped: bool, tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "whole": whole,
        "again": whole,
        "rows": whole[1:3],
        "columns": whole[:, 1:3],
        "turned": whole.T,
        "half": torch.arange(5).to(torch.bfloat16),
        "number": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(3)),
    }
    found = open_checkpoint(folder_of(tmp_path, tensors, zipped=zipped))
    for name, tensor in tensors.items():
        assert torch.equal(found.read(name), tensor), name
        if tensor.ndim and len(tensor) > 1:
            assert torch.equal(found.read_rows(name, 1, 2), tensor[1:2]), name


def test_tensors_have_a_place_in_the_file_if_they_lie_there_end_to_end(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    found = open_checkpoint(folder_of(tmp_path, {"rows": whole[1:3], "turned": whole.T}))
    rows = found.tensors["rows"]
    raw = (tmp_path / "pytorch_model.bin").read_bytes()[rows.start : rows.end]
    assert torch.equal(torch.frombuffer(bytearray(raw), dtype=torch.float32), whole[1:3].flatten())
    assert found.tensors["turned"].start == 0


def test_a_file_that_shrinks_after_it_was_opened_is_an_error_that_names_it(tmp_path: Path) -> None:
    found = open_checkpoint(folder_of(tmp_path, {"a": torch.ones(1 << 20)}))
    with (tmp_path / "pytorch_model.bin").open("r+b") as stream:
        stream.truncate(1 << 20)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin ends within 'a'"):
        found.read("a")
