"""Codes without their scales, and scales without their codes, are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.checkpoint import list_layers, open_checkpoint, read_layer
from engine.checkpoint.companions import plain_codes
from engine.checkpoint.quantised.reader import readers, scale_names
from engine.errors import CheckpointError
from tests.checkpoint.test_disk_layers import save

BLOCK = "model.layers.0"
F8 = torch.float8_e4m3fn


def fp8(count: int = 2) -> dict[str, Tensor]:
    return {f"{BLOCK}.mlp.experts.{i}.{kind}_proj.weight": torch.randn(4, 4).to(F8)
            for i in range(count) for kind in ("gate", "up", "down")}  # fmt: skip


def mxfp4() -> dict[str, Tensor]:
    blocks = torch.zeros(2, 8, 2, 16, dtype=torch.uint8)
    return {
        f"{BLOCK}.mlp.experts.{kind}_proj_blocks": blocks.clone() for kind in ("gate_up", "down")
    }


CODES = {"fp8": fp8, "mxfp4": mxfp4}
"""Codes in every layout that is read."""


def scaled(layout: str) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    """A whole set of tensors, and the name of each tensor of codes with that of its scale."""
    (reader,) = (each for each in readers() if each.name == layout)
    codes = CODES[layout]()
    pairs = [(name, scale_names(reader, name)[0]) for name in codes]
    scales = {
        scale: torch.ones(1) if layout == "fp8" else codes[name][..., 0].clone()
        for name, scale in pairs
    }
    return codes | scales, pairs


def refusal(folder: Path, tensors: dict[str, Tensor], method: str | None) -> str:
    stored = {"quantization_config": {"quant_method": method}} if method else {}
    with pytest.raises(CheckpointError) as caught:
        list_layers(open_checkpoint(save(folder, tensors, **stored)))
    return str(caught.value)


def test_every_layout_that_is_read_is_tried_here() -> None:
    assert {each.name for each in readers() if each.read is not None} == set(CODES)


@pytest.mark.parametrize("layout", CODES)
def test_every_missing_scale_is_named(layout: str, tmp_path: Path) -> None:
    """Also that of one expert alone."""
    whole, pairs = scaled(layout)
    stored = {"quantization_config": {"quant_method": layout}}
    assert len(list_layers(open_checkpoint(save(tmp_path, whole, **stored)))) == 2
    for codes, scale in pairs:
        told = refusal(tmp_path, {k: v for k, v in whole.items() if k != scale}, layout)
        assert f"{codes!r}" in told
        assert f"without its scale: no {scale!r}" in told


@pytest.mark.parametrize("layout", CODES)
def test_every_scale_without_codes_is_named(layout: str, tmp_path: Path) -> None:
    whole, pairs = scaled(layout)
    for codes, scale in pairs:
        told = refusal(tmp_path, {k: v for k, v in whole.items() if k != codes}, layout)
        assert f"the scale {scale!r}" in told
        assert f"no {codes!r}" in told


def test_a_scale_of_a_plain_weight_is_refused(tmp_path: Path) -> None:
    whole, ((codes, scale), *_) = scaled("fp8")
    whole[codes] = torch.ones(4, 4)
    told = refusal(tmp_path, whole, None)
    assert f"{scale!r}, but {codes!r} is stored plain, in float32" in told


def test_two_scales_are_one_too_many(tmp_path: Path) -> None:
    whole, ((codes, scale), *_) = scaled("fp8")
    whole[f"{codes}_scale"] = whole[scale].clone()
    assert "2 scales" in refusal(tmp_path, whole, "fp8")


def test_scales_that_another_tool_names_differently_are_told(tmp_path: Path) -> None:
    name = f"{BLOCK}.mlp.up_proj"
    tensors = {f"{name}.weight": torch.ones(4, 4).to(F8), f"{name}.scb": torch.ones(1)}
    assert f"only {name}.scb" in refusal(tmp_path, tensors, "fp8")


def test_missing_scales_are_missed_without_a_config_too(tmp_path: Path) -> None:
    whole, ((codes, scale), *_) = scaled("fp8")
    del whole[scale]
    assert codes in refusal(tmp_path, whole, None)


def test_eight_bit_floats_without_any_scale_are_numbers_if_no_quantiser_is_named(
    tmp_path: Path,
) -> None:
    """As plain transformers reads them."""
    name = f"{BLOCK}.mlp.up_proj"
    weight = torch.randn(4, 4).to(F8)
    checkpoint = open_checkpoint(save(tmp_path, {f"{name}.weight": weight}))
    (row,) = list_layers(checkpoint)
    assert plain_codes(checkpoint) == [f"{name}.weight"]
    assert torch.equal(read_layer(checkpoint, row).float(), weight.float())
    assert "without its scale" in refusal(tmp_path, {f"{name}.weight": weight}, "fp8")


@pytest.mark.parametrize("largest", [224.0, 448.0])
def test_numbers_no_weight_could_be_are_codes(largest: float, tmp_path: Path) -> None:
    name = f"{BLOCK}.mlp.up_proj"
    weight = torch.randn(4, 4)
    weight[1, 2] = -largest
    checkpoint = open_checkpoint(save(tmp_path, {f"{name}.weight": weight.to(F8)}))
    (row,) = list_layers(checkpoint)
    with pytest.raises(CheckpointError, match=f"{name}.weight' .*{largest:g}.* scales are missing"):
        read_layer(checkpoint, row)


def test_powers_of_two_are_scales_not_weights(tmp_path: Path) -> None:
    """float8_e8m0fnu holds the scales of MX and of DeepSeek-V3.1."""
    name = f"{BLOCK}.mlp.up_proj.weight"
    weight = torch.randn(4, 4).to(F8)
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "quantization_config": {"quant_method": "fp8"}}'
    )
    head = {
        name: {"dtype": "F8_E4M3", "shape": [4, 4], "data_offsets": [0, 16]},
        f"{name}_scale_inv": {"dtype": "F8_E8M0", "shape": [1, 1], "data_offsets": [16, 17]},
    }
    text = json.dumps(head).encode()
    data = weight.view(torch.uint8).numpy().tobytes() + bytes([129])
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    checkpoint = open_checkpoint(tmp_path)
    (row,) = list_layers(checkpoint)
    assert torch.equal(read_layer(checkpoint, row), weight.float() * 4)


@pytest.mark.parametrize("name", ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
def test_experts_of_whole_numbers_are_refused(name: str, tmp_path: Path) -> None:
    tensors = {f"{BLOCK}.{name}": torch.zeros(2, 4, 4, dtype=torch.int8)}
    assert f"{name}' packed in int8" in refusal(tmp_path, tensors, None)


def test_every_producer_of_fp8_has_its_own_name_and_meaning(tmp_path: Path) -> None:
    """Mistral's name; GPTQModel's scales divide where its config says so; stacked experts."""
    name = f"{BLOCK}.mlp.up_proj"
    weight, scale = torch.randn(4, 4).to(F8), torch.tensor([3.0])
    for beside, config, expected in (
        (f"{name}.qscale_weight", {}, weight.float() * 3),
        (f"{name}.weight_scale_inv", {}, weight.float() * 3),
        (
            f"{name}.weight_scale_inv",
            {"weight_scale_semantics": "inverse"},
            weight.float() * torch.tensor(3.0).reciprocal(),
        ),
    ):
        stored = {"quantization_config": {"quant_method": "fp8", **config}}
        tensors = {f"{name}.weight": weight, beside: scale}
        checkpoint = open_checkpoint(save(tmp_path, tensors, **stored))
        (row,) = list_layers(checkpoint)
        assert torch.equal(read_layer(checkpoint, row), expected)
    experts = torch.randn(2, 8, 4).to(F8)
    scales = torch.rand(2, 1, 1) + 1
    name = f"{BLOCK}.mlp.experts.gate_up_proj"
    tensors = {name: experts, f"{name}_scales_inv": scales}
    stored = {"quantization_config": {"quant_method": "fp8"}}
    checkpoint = open_checkpoint(save(tmp_path, tensors, **stored))
    (row,) = list_layers(checkpoint)
    assert torch.equal(read_layer(checkpoint, row), experts.float() * scales)
