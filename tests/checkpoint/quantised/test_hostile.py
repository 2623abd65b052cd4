"""Payloads that no tool writes: each is refused in a sentence that names the tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.checkpoint import Checkpoint, list_layers, read_layer
from engine.checkpoint.companions import layouts_of
from engine.checkpoint.quantised.reader import readers
from engine.errors import CheckpointError
from tests.checkpoint.quantised.fixtures import MODULE, WEIGHT, cases, save, tensors, written
from tests.checkpoint.quantised.hostile import AO, GPTQ, MLX, SCALED, TRAITS, Spoil


def _read(checkpoint: Checkpoint) -> Tensor:
    (row,) = list_layers(checkpoint)
    return read_layer(checkpoint, row)


@pytest.mark.parametrize(("case", "spoil", "told"), TRAITS)
def test_it_is_refused_by_name(
    case: tuple[str, str], spoil: Spoil, told: str, tmp_path: Path
) -> None:
    found = cases(case[0])[case[1]]
    stored, config = tensors(found), dict(found["config"])
    more = config.pop("", {})
    spoil(stored, config)
    with pytest.raises(CheckpointError, match=told) as caught:
        _read(save(tmp_path, stored, config or None, found.get("metadata"), **more))
    assert MODULE in str(caught.value) or "quantization_config" in str(caught.value)


@pytest.mark.parametrize("bits", [7, 0, -1, "4", 10**9, None])
def test_mlx_of_impossible_bits(bits: object, tmp_path: Path) -> None:
    found = cases(MLX[0])[MLX[1]]
    settings = {"group_size": 64, "bits": bits, "mode": "affine"}
    with pytest.raises(CheckpointError, match=f"{WEIGHT}'.*do not hold codes of"):
        save(tmp_path, tensors(found), None, quantization=settings)


@pytest.mark.parametrize("bits", [7, 0, -1, "4", 10**9, None])
@pytest.mark.parametrize("size", [0, -5, 2**20, "32", None])
def test_gptq_goes_by_its_shapes_where_the_config_cannot_be(
    bits: object, size: object, tmp_path: Path
) -> None:
    found = cases(GPTQ[0])["gptq_v2-4-asym-g32"]
    config = {**found["config"], "bits": bits, "group_size": size}
    right = save(tmp_path / "right", tensors(found), found["config"]).read(WEIGHT)
    assert torch.equal(save(tmp_path / "wrong", tensors(found), config).read(WEIGHT), right)


@pytest.mark.parametrize("config", [[], "gptq", 5, {"config_groups": [1]}, {"dynamic": 3}])
def test_a_config_of_another_kind(config: Any, tmp_path: Path) -> None:
    found = cases(GPTQ[0])["gptq_v2-4-asym-g32"]
    save(tmp_path, tensors(found), config).read(WEIGHT)


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ("load", "does not describe it"),
        ({"_type": "AffineQuantizedTensor", "_data": {}}, "'AffineQuantizedTensor', which is not"),
        ({"_type": "Int8Tensor", "_data": "load"}, "does not describe it"),
        ({"_type": ["torch"], "_data": {"dtype": {"_data": "load"}}}, "which is not read"),
    ],
)
def test_torchao_of_other_types(about: object, told: str, tmp_path: Path) -> None:
    found = cases(AO[0])[AO[1]]
    metadata = {f"{MODULE}.weight": json.dumps(about), "tensor_names": "[]"}
    with pytest.raises(CheckpointError, match=told):
        save(tmp_path, tensors(found), {"quant_method": "torchao"}, metadata)


def test_every_layout_that_is_read_is_in_the_table_of_scales(tmp_path: Path) -> None:
    read = {reader.name for reader in readers() if reader.read or reader.weights}
    layouts = set()
    for at, each in enumerate(SCALED):
        checkpoint = written(tmp_path / str(at), each.tool, each.case)
        layouts |= set(layouts_of(checkpoint))
    assert layouts >= read - {"mxfp4"}  # of experts alone: `tests.faults.traits.payloads` has it
