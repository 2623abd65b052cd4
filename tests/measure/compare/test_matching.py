"""Originals and finished checkpoints of which one has layers fused that the other has split."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.diagnosis.of_artefacts import artefact_findings
from engine.formats.grammar import parse_format
from engine.quant.quantize import dequantized
from tests import tiny
from tests.measure.compare.test_comparing import compared, finished, only, rounded

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def phi3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("phi3", tmp_path_factory.mktemp("matching") / "phi3")


def split(source: Path, folder: Path, format: str = "") -> Path:
    """A copy of a Phi-3 with q, k, v, gate and up by themselves, as a Llama has them."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    size = config["hidden_size"] // heads
    (file,) = folder.glob("*.safetensors")
    found: Tensors = {}
    for name, tensor in load_file(file).items():
        if "qkv_proj" in name:
            sizes, kinds, fused = [heads * size, groups * size, groups * size], "qkv", "qkv_proj"
            parts = dict(zip([f"{kind}_proj" for kind in kinds], tensor.split(sizes), strict=True))
        elif "gate_up_proj" in name:
            fused = "gate_up_proj"
            parts = dict(zip(("gate_proj", "up_proj"), tensor.chunk(2), strict=True))
        else:
            found[name] = tensor
            continue
        for kind, part in parts.items():
            whole = part.clone()
            if format:
                whole = dequantized(part.float(), parse_format(format), torch.float16)
            found[name.replace(fused, kind)] = whole.to(tensor.dtype)
    save_file(found, file, {"format": "pt"})
    config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("format", ["", "int4-g32"])
def test_what_is_fused_is_matched_with_what_is_split(
    format: str, phi3: Path, tmp_path: Path, prose: Path
) -> None:
    found = only(compared(phi3, prose, split(phi3, tmp_path / "split", format), score=False))
    assert found.opened.unmatched == ()
    layer = found.layers["model.layers.1.self_attn.qkv_proj"]
    assert layer.rounding == ("nearest" if format else "same")
    assert found.layers["model.layers.0.mlp.gate_up_proj"].rounding == layer.rounding
    assert artefact_findings(found) == []
    assert "model.layers.0.self_attn.k_proj" not in found.layers
    assert layer.bits == 32.0 or layer.bits == 16.0


def test_what_is_split_is_matched_with_what_is_fused(
    phi3: Path, tmp_path: Path, prose: Path
) -> None:
    source = split(phi3, tmp_path / "split")
    folder = finished(phi3, tmp_path / "int4", rounded("int4-g32"))
    found = only(compared(source, prose, folder, score=False))
    assert found.opened.unmatched == ()
    for kind in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj"):
        layer = found.layers[f"model.layers.1.{kind}"]
        assert (layer.rounding, layer.refused) == ("nearest", ""), kind
        assert 0 < layer.error.relative < 0.3
    assert artefact_findings(found) == []


def test_scores_need_no_match_of_names(phi3: Path, tmp_path: Path, prose: Path) -> None:
    """And what is fused in one of the two is not given back by itself."""
    folder = split(phi3, tmp_path / "split", "int4-g32")
    found = only(compared(phi3, prose, folder, restore=20))
    assert found.score is not None
    assert 0 < found.score.kl < 1
    assert not any("qkv" in layer or "gate_up" in layer for layer in found.restored)


def test_a_head_that_is_tied_in_one_and_stored_in_the_other(tmp_path: Path, prose: Path) -> None:
    source, folder = tiny.build("gpt2", tmp_path / "gpt2"), tmp_path / "untied"
    shutil.copytree(source, folder)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    name = next(each for each in tensors if each.endswith("wte.weight"))
    tensors["lm_head.weight"] = tensors[name].clone()
    save_file(tensors, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    found = only(compared(source, prose, folder, score=False))
    assert found.opened.unmatched == ()
    assert found.layers["lm_head"].rounding == "same"
    assert artefact_findings(found) == []
