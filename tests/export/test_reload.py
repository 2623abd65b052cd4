"""Every export is loaded once by plain transformers before it is called done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from engine.checkpoint import Checkpoint, list_layers, open_checkpoint, read_layer
from engine.export import reload
from engine.export.compressed import layouts
from engine.export.reload import UnloadableError
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
    export_checkpoint(checkpoint, recipe, tmp_path / "out", reload=True)
    fmt, scales = parse_format("int4-g32"), scale_dtype_for(torch.float32)
    rows = {row.name: row for row in list_layers(checkpoint)}
    weights = {
        name: dequantized(read_layer(checkpoint, rows[name]), fmt, scales, name) for name in recipe
    }
    right = logits(llama.folder, weights)
    torch.testing.assert_close(logits(tmp_path / "out"), right, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arch", "dtype", "recipe"),
    [
        ("qwen3", torch.bfloat16, {"lm_head": "int8", "model.embed_tokens": "fp16"}),
        ("qwen3", torch.float16, {"model.layers.0.mlp.up_proj": "int8+a8", "lm_head": "int4-g32"}),
        ("gpt2", torch.float32, {"transformer.h.0.attn.c_attn": "bf16"}),
    ],
)
def test_what_is_compared_is_what_was_measured(
    arch: str, dtype: torch.dtype, recipe: dict[str, str], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(tiny.build(arch, tmp_path / "in", dtype=dtype))
    done = export_checkpoint(checkpoint, recipe, tmp_path / "out", reload=True)
    assert not any("not loaded" in note for note in done.notes)


def test_codes_that_readers_unpack_to_others_are_not_kept(
    llama: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = layouts.packed
    monkeypatch.setattr(layouts, "packed", lambda codes, bits: right(codes.roll(1, -1), bits))
    with pytest.raises(UnloadableError, match="as another model, so it is not kept"):
        export_checkpoint(llama, body(llama, "int4-g32"), tmp_path / "out", reload=True)
    assert not [*tmp_path.glob("out*"), *tmp_path.glob(".out*")]


def test_a_loader_that_touches_a_quantised_weight_is_a_reason_and_nothing_is_kept(
    llama: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = modeling_llama.LlamaPreTrainedModel._init_weights

    def touching(self: Any, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            assert module.weight.dim() == 2
        plain(self, module)

    monkeypatch.setattr(modeling_llama.LlamaPreTrainedModel, "_init_weights", touching)
    with pytest.raises(UnloadableError, match=r"cannot load this export.*'weight'"):
        export_checkpoint(llama, body(llama, "int4-g32"), tmp_path / "out", reload=True)
    assert not [*tmp_path.glob("out*"), *tmp_path.glob(".out*")]


def test_an_export_that_could_not_be_loaded_says_so(
    llama: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"model.layers.0.mlp.up_proj": "int3-g32"}
    monkeypatch.setattr(reload, "find_spec", lambda _: None)
    done = export_checkpoint(llama, recipe, tmp_path / "a", reload=True)
    assert any("compressed-tensors is not installed" in note for note in done.notes)
    monkeypatch.setattr(reload, "find_spec", lambda _: object())
    monkeypatch.setattr(reload, "memory_free", lambda _: 1)
    done = export_checkpoint(llama, recipe, tmp_path / "b", reload=True)
    assert any("0.0 GiB are free" in note for note in done.notes)
    assert any("codes of 3 bits" in note and "0.18" in note for note in done.notes)
