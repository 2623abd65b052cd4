"""One expert read alone is that expert of the whole layer, whatever the storage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engine.checkpoint import Checkpoint, list_layers, open_checkpoint, read_expert, read_layer
from engine.checkpoint.layers import DiskLayer
from tests import tiny


def experts_of(folder: Path) -> tuple[Checkpoint, list[DiskLayer]]:
    checkpoint = open_checkpoint(folder)
    return checkpoint, [row for row in list_layers(checkpoint) if row.role == "experts"]


def assert_each_is_its_part(folder: Path) -> None:
    checkpoint, layers = experts_of(folder)
    assert layers
    for layer in layers:
        whole = read_layer(checkpoint, layer)
        assert whole.shape == layer.shape
        for index in range(layer.shape[0]):
            one = read_expert(checkpoint, layer, index)
            assert one.is_contiguous()
            assert torch.equal(one, whole[index]), (layer.name, index)


def save(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("arch", ["mixtral", "qwen3_moe"])
def test_experts_stored_one_by_one(arch: str, tmp_path: Path) -> None:
    assert_each_is_its_part(tiny.build(arch, tmp_path))


@pytest.mark.parametrize("config_name", ["GptOssConfig", "Llama4TextConfig", "GraniteMoeConfig"])
def test_experts_stored_as_one_tensor_either_way_round(config_name: str, tmp_path: Path) -> None:
    import transformers

    fields = {**tiny.SIZES, "num_local_experts": 4}
    if config_name != "GraniteMoeConfig":
        fields["head_dim"] = 16
    config = getattr(transformers, config_name)(**fields)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert_each_is_its_part(tmp_path)


def test_a_lone_expert(tmp_path: Path) -> None:
    home = "model.layers.0.mlp.experts.0"
    kinds = {"gate_proj": (8, 6), "up_proj": (8, 6), "down_proj": (6, 8)}
    assert_each_is_its_part(
        save(tmp_path, {f"{home}.{k}.weight": torch.randn(shape) for k, shape in kinds.items()})
    )


def test_mxfp4_and_eight_bit_experts(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts"
    (tmp_path / "four").mkdir()
    (tmp_path / "eight").mkdir()
    assert_each_is_its_part(
        save(
            tmp_path / "four",
            {
                f"{name}.down_proj_blocks": torch.randint(0, 256, (3, 8, 2, 16)).to(torch.uint8),
                f"{name}.down_proj_scales": torch.randint(110, 140, (3, 8, 2)).to(torch.uint8),
            },
            model_type="gpt_oss",
            quantization_config={"quant_method": "mxfp4"},
        )
    )
    for shape in ((3, 6, 1), (3, 6), (1, 6, 1), ()):
        assert_each_is_its_part(
            save(
                tmp_path / "eight",
                {
                    f"{name}.down_proj": torch.randn(3, 6, 8).to(torch.float8_e4m3fn),
                    f"{name}.down_proj_scale": torch.rand(shape),
                },
                hidden_size=6,
                quantization_config={"quant_method": "fp8"},
            )
        )


def test_no_other_expert_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, layers = experts_of(tiny.build("mixtral", tmp_path))
    read: list[str] = []
    whole = Checkpoint.read

    def spy(self: Checkpoint, name: str) -> torch.Tensor:
        read.append(name)
        return whole(self, name)

    monkeypatch.setattr(Checkpoint, "read", spy)
    read_expert(checkpoint, layers[0], 2)
    assert read
    assert all(".experts.2." in name for name in read)


def test_an_expert_that_is_not_there_is_named(tmp_path: Path) -> None:
    checkpoint, layers = experts_of(tiny.build("mixtral", tmp_path))
    for index in (-1, 4):
        with pytest.raises(IndexError, match=f"no expert {index}"):
            read_expert(checkpoint, layers[0], index)
