"""Tensors that are no layers are expected, remarked on, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.checkpoint import list_layers, open_checkpoint, remarks
from engine.errors import CheckpointError
from tests import tiny
from tests.checkpoint.test_disk_layers import save

MATRIX = torch.ones(4, 4)


def llama(blocks: int = 3) -> dict[str, Tensor]:
    kinds = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
    return {
        f"model.layers.{i}.{kind}.weight": MATRIX.clone() for i in range(blocks) for kind in kinds
    }


def remarks_on(folder: Path, tensors: dict[str, Tensor], **config: object) -> list[str]:
    checkpoint = open_checkpoint(save(folder, tensors, **config))
    return remarks(checkpoint, list_layers(checkpoint))


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
def test_known_architectures_need_no_remark(arch: str, tmp_path: Path) -> None:
    """Gemma 4's second table of embeddings is one: it is quantised by nobody here."""
    checkpoint = open_checkpoint(tiny.build(arch, tmp_path))
    said = remarks(checkpoint, list_layers(checkpoint))
    assert len(said) == (arch == "gemma4")
    assert all("embed_tokens_per_layer" in sentence for sentence in said)


@pytest.mark.parametrize("method", ["some", None])
def test_codes_that_are_not_read_are_refused_by_name(method: str | None, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.up_proj"
    stored = {"quantization_config": {"quant_method": method}} if method else {}
    tensors = {name: torch.zeros(4, 4, dtype=torch.uint8)}
    with pytest.raises(CheckpointError, match=f"{name}' packed in uint8 by {method or ''}"):
        list_layers(open_checkpoint(save(tmp_path, tensors, **stored)))


@pytest.mark.parametrize(
    ("ending", "lacks"),
    [("W_q", "scale"), ("weight._data", "weight._scale"), ("_weight_qdata", "_weight_scale")],
)
@pytest.mark.parametrize("method", ["some", None])
def test_codes_without_what_dequantises_them_are_refused_by_name(
    ending: str, lacks: str, method: str | None, tmp_path: Path
) -> None:
    name = f"model.layers.0.mlp.up_proj.{ending}"
    stored = {"quantization_config": {"quant_method": method}} if method else {}
    tensors = {name: torch.zeros(4, 4, dtype=torch.uint8)}
    with pytest.raises(CheckpointError, match=f"'{name}' without its '{lacks}'"):
        list_layers(open_checkpoint(save(tmp_path, tensors, **stored)))


def test_a_block_of_nothing_but_unknown_weights_is_refused(tmp_path: Path) -> None:
    tensors = llama() | {
        "model.layers.3.mlp.codes": MATRIX.clone(),
        "model.layers.3.norm": MATRIX[0],
    }
    with pytest.raises(
        CheckpointError, match=r"model\.layers\.3 .* 'model\.layers\.3\.mlp\.codes'"
    ):
        list_layers(open_checkpoint(save(tmp_path, tensors)))


def test_a_block_without_weights_is_a_remark(tmp_path: Path) -> None:
    """A block may have been pruned to its norms."""
    tensors = llama()
    for name in [name for name in tensors if ".1." in name]:
        del tensors[name]
    tensors["model.layers.1.input_layernorm.weight"] = MATRIX[0]
    assert remarks_on(tmp_path, tensors) == ["block 1 of 3 has no layers"]


def test_weights_of_unknown_names_are_counted(tmp_path: Path) -> None:
    tensors = llama() | {f"model.layers.{i}.mlp.extra": MATRIX.clone() for i in range(3)}
    (said,) = remarks_on(tmp_path, tensors)
    assert said.startswith("3 tensors, 20.0% of all numbers in the files, are not layers")
    assert said.endswith("model.layers.*.mlp.extra")


def test_codes_beside_layers_are_named_however_small(tmp_path: Path) -> None:
    tensors = llama() | {"model.layers.0.mlp.tiny": torch.zeros(1, 1, dtype=torch.int32)}
    (said,) = remarks_on(tmp_path, tensors)
    assert "model.layers.*.mlp.tiny" in said


def test_a_layer_that_one_block_alone_lacks_is_named(tmp_path: Path) -> None:
    tensors = llama()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    (said,) = remarks_on(tmp_path, tensors)
    assert said.startswith("block 1 lacks mlp.up_proj, which other blocks have")


def test_other_senses_are_no_remark(tmp_path: Path) -> None:
    assert not remarks_on(tmp_path, llama() | {"model.visual.blocks.0.attn.qkv": MATRIX})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_config_of_a_quantiser_beside_plain_weights_is_told_to_be_stale(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    tensors = {name: weight.to(dtype) for name, weight in llama().items()}
    folder = save(tmp_path, tensors, quantization_config={"quant_method": "gptq"})
    with pytest.raises(CheckpointError, match=r"remove quantization_config from config\.json"):
        list_layers(open_checkpoint(folder))


def test_a_quantiser_of_unknown_codes_is_told(tmp_path: Path) -> None:
    tensors = llama() | {"model.layers.0.mlp.codes": torch.zeros(4, 4, dtype=torch.int16)}
    folder = save(tmp_path, tensors, quantization_config={"quant_method": "of_tomorrow"})
    with pytest.raises(CheckpointError, match=r"already quantised, .*'of_tomorrow'"):
        list_layers(open_checkpoint(folder))
