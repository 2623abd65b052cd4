"""What plain transformers makes of an export: its logits, and what its notes say of readers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from engine.checkpoint import Checkpoint, list_layers, open_checkpoint, read_layer
from engine.export import packing
from engine.formats.grammar import parse_format
from engine.quant.quantize import dequantized, scale_dtype_for
from tests import tiny
from tests.export.exporting import export_checkpoint
from tests.export.test_packing import read_bits


def body(checkpoint: Checkpoint, format: str) -> dict[str, str]:
    return {row.name: format for row in list_layers(checkpoint) if row.role == "linear"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(tiny.build("llama", tmp_path_factory.mktemp("reload") / "llama"))


def logits(folder: Path, weights: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder)
    for name, weight in (weights or {}).items():
        model.get_submodule(name).weight = nn.Parameter(weight)
    with torch.no_grad():
        found: torch.Tensor = model(tiny.ids(2, 16)).logits
    return found


def test_two_weights_of_a_config_that_says_tied_stay_two(llama: Checkpoint, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for file in llama.folder.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert "lm_head.weight" in load_file(source / "model.safetensors")
    checkpoint = open_checkpoint(source)
    recipe = body(checkpoint, "int4-g32")
    export_checkpoint(checkpoint, recipe, tmp_path / "out", check=True)
    fmt, scales = parse_format("int4-g32"), scale_dtype_for(torch.float32)
    rows = {row.name: row for row in list_layers(checkpoint)}
    weights = {
        name: dequantized(read_layer(checkpoint, rows[name]), fmt, scales, name) for name in recipe
    }
    right = logits(llama.folder, weights)
    torch.testing.assert_close(logits(tmp_path / "out"), right, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("format", "said"), [("int3-g32", True), ("int4-g32", False)])
def test_codes_that_other_versions_read_otherwise_are_said(
    format: str, said: bool, llama: Checkpoint, tmp_path: Path
) -> None:
    done = export_checkpoint(llama, {"model.layers.0.mlp.up_proj": format}, tmp_path / "out")
    assert any("codes of 3 bits" in note and "0.18" in note for note in done.notes) == said


@pytest.mark.parametrize(
    ("format", "said"), [("int4-g32", True), ("int8-channel-asym", True), ("int4-g32-sym", False)]
)
def test_zero_points_that_later_versions_do_not_load_are_said(
    format: str, said: bool, llama: Checkpoint, tmp_path: Path
) -> None:
    done = export_checkpoint(llama, {"model.layers.0.mlp.up_proj": format}, tmp_path / "out")
    assert any("0.18 to 0.20.1" in note for note in done.notes) == said


@pytest.mark.parametrize("installed", ["0.17.1", "0.20.0"])
@pytest.mark.parametrize("format", ["int3-g32", "int5-channel-sym", "int6-g32", "int4-g32"])
def test_a_file_is_read_bit_by_bit_as_its_version_says(
    installed: str,
    format: str,
    llama: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a reader that knows nothing but the stamp: codes, zero points and scales."""
    name = "model.layers.0.mlp.up_proj"
    monkeypatch.setattr(packing, "version", lambda _package: installed)
    packing.is_dense.cache_clear()
    try:
        export_checkpoint(llama, {name: format}, tmp_path / "out")
    finally:
        packing.is_dense.cache_clear()
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    dense = tuple(map(int, config["version"].split("."))) >= (0, 18)
    assert dense == (installed == "0.20.0")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    fmt = parse_format(format)
    out, row = stored[f"{name}.weight_shape"].tolist()
    words = stored[f"{name}.weight_packed"]
    codes = torch.tensor([read_bits(each, fmt.bits, row, dense=dense) for each in words])
    scale = stored[f"{name}.weight_scale"].float()
    zero = torch.zeros(out, scale.shape[1])
    if not fmt.symmetric:
        points = stored[f"{name}.weight_zero_point"].T
        zero = torch.tensor([read_bits(each, fmt.bits, out, dense=dense) for each in points]).T
    each = row // scale.shape[1]
    read = (codes - zero.repeat_interleave(each, 1)) * scale.repeat_interleave(each, 1)
    (layer,) = [each for each in list_layers(llama) if each.name == name]
    weight = read_layer(llama, layer)
    scales = scale_dtype_for(weight.dtype)
    assert torch.equal(read, dequantized(weight, fmt, scales, name).float())
