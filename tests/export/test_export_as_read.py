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
from engine.formats.grammar import parse_format
from engine.quant.quantize import dequantized, scale_dtype_for
from tests import tiny
from tests.export.exporting import export_checkpoint


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
