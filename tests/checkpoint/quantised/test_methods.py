"""Every quantiser that a config may name is read, or refused by that name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.checkpoint import list_layers, open_checkpoint
from engine.checkpoint.unread import UNREAD
from engine.errors import CheckpointError
from engine.opening.inspect import inspect_headers
from tests.checkpoint.quantised.fixtures import MODULE, cases, save, tensors

READ = {
    "awq": ("autoawq", "gemm-g32"),
    "bitsandbytes_4bit": ("bitsandbytes", "nf4-64-32x64"),
    "bitsandbytes_8bit": ("bitsandbytes", "int8"),
    "gptq": ("gptqmodel", "gptq-4-asym-g32"),
    "gptqmodel": ("gptqmodel", "gptq-4-asym-g32"),
    "quanto": ("quanto", "int4-g128"),
    "hqq": ("hqq", "4-g32-axis1-bfloat16"),
    "compressed-tensors": ("compressed-tensors", "pack-4-sym-g32"),
    "fbgemm_fp8": ("compressed-tensors", "float-8-channel"),
    "torchao": ("torchao", "int4-g32"),
    "bitnet": ("transformers", "bitlinear"),
    "fp8": ("transformers", "deepseek-fp8"),
    "mxfp8": ("transformers", "mxfp8"),
    "auto-round": ("auto-round", "mxint4"),
    "metal": ("transformers", "metal-4"),
    "modelopt": ("model-optimizer", "nvfp4"),
    "exl3": ("exllamav3", "4-3inst-signs"),
}
"""A weight of each that another tool has written."""
ELSEWHERE = ("gguf", "mxfp4")
"""A file by itself; experts, see ``tests.checkpoint.test_disk_layers``."""
HALF, BYTES = torch.ones(32, 1).half(), torch.ones(32, 32, dtype=torch.uint8)
STORED: dict[str, dict[str, Tensor]] = {
    "aqlm": {
        "codes": torch.ones(32, 8, 1, dtype=torch.int16),
        "codebooks": torch.ones(1, 256, 1, 8).half(),
        "scales": torch.ones(32, 1, 1, 1).half(),
    },
    "vptq": {
        "indices": torch.ones(1, 8, 16, dtype=torch.int32),
        "centroids": torch.ones(1, 256, 8).half(),
    },
    "spqr": {"dense_weights": torch.ones(4, 32, dtype=torch.int64)},
    "higgs": {"weight": BYTES, "scales": HALF, "tables": torch.ones(16, 1).half()},
    "eetq": {"weight": BYTES.to(torch.int8), "weight_scales": torch.ones(32).half()},
    "fp_quant": {"qweight": BYTES, "scales": BYTES},
    "sinq": {"W_q": BYTES, "scale": HALF, "zero": HALF, "scale2": HALF},
    "fouroversix": {"weight": BYTES, "weight_scale": HALF},
    "gemma": {"weight": BYTES.to(torch.int8), "scale": HALF.float()},
    "nvfp4": {"weight": BYTES, "weight_sf": torch.ones(32, 1, dtype=torch.int32)},
    "quark": {"weight": torch.ones(32, 8, dtype=torch.int32), "weight_scale": HALF},
    "exl2": {"q_weight": torch.ones(8, 32, dtype=torch.int32)},
    "paroquant": {"qweight": torch.ones(64, 4, dtype=torch.int32), "theta": HALF},
    "marlin": {"B": torch.ones(4, 64, dtype=torch.int32), "s": HALF},
    "bitblas": {"qweight": BYTES.to(torch.int8), "scales": HALF},
    "qqq": {"B": torch.ones(4, 64, dtype=torch.int32), "s_channel": HALF},
}
"""The tensors of a weight in each layout that is not read, by the names that its tool gives."""
SPARSE: dict[str, dict[str, Tensor]] = {
    "sparse_bitmask": {"compressed": torch.ones(500).half(), "bitmask": BYTES[:, :4].contiguous()},
    "sparse_24_bitmask": {"compressed": BYTES.half(), "bitmask": BYTES[:, :8].contiguous()},
    "marlin_24": {
        "weight_packed": torch.ones(1, 64, dtype=torch.int32),
        "scale_packed": torch.ones(2, 32).half(),
        "meta": torch.ones(32, 2, dtype=torch.int16),
    },
}
"""Formats of compressed-tensors that it has given up."""


def test_every_method_of_transformers_is_here() -> None:
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as KNOWN

    assert set(KNOWN) - {*READ, *STORED, *ELSEWHERE} == set()
    assert {*STORED, *SPARSE} == set(UNREAD)


@pytest.mark.parametrize("method", READ)
def test_it_is_read(method: str, tmp_path: Path) -> None:
    tool, name = READ[method]
    case = cases(tool)[name]
    config = {**case["config"], "quant_method": method.removesuffix("_4bit").removesuffix("_8bit")}
    more = config.pop("", {})
    checkpoint = save(tmp_path, tensors(case), config, case.get("metadata"), **more)
    (row,) = list_layers(checkpoint)
    assert row.reader


@pytest.mark.parametrize("method", STORED)
def test_it_is_refused_by_name(method: str, tmp_path: Path) -> None:
    stored = {f"{MODULE}.{name}": each.clone() for name, each in STORED[method].items()}
    said = rf"by {method} \(.*which qtui does not read"
    with pytest.raises(CheckpointError, match=said) as refused:
        save(tmp_path, stored, {"quant_method": method})
    assert refused.value.exit_code == 3
    assert str(refused.value) == inspect_headers(str(tmp_path)).problem


@pytest.mark.parametrize("key", ["checkpoint_format", "version"])
def test_a_format_of_a_kernel_is_refused_by_its_name(key: str, tmp_path: Path) -> None:
    stored = {f"{MODULE}.{name}": tensor for name, tensor in STORED["marlin"].items()}
    with pytest.raises(CheckpointError, match=r"by marlin \("):
        save(tmp_path, stored, {"quant_method": "gptq", key: "marlin"})


@pytest.mark.parametrize("format", SPARSE)
@pytest.mark.parametrize("where", ["format", "sparsity_config"])
def test_a_format_that_compressed_tensors_gave_up_is_refused_by_name(
    format: str, where: str, tmp_path: Path
) -> None:
    stored = {f"{MODULE}.{name}": each.clone() for name, each in SPARSE[format].items()}
    named = format.replace("_", "-")
    config: dict[str, object] = {"quant_method": "compressed-tensors"}
    config |= {"format": named} if where == "format" else {where: {"format": named}}
    with pytest.raises(CheckpointError, match=rf"by {format} \(.*which qtui does not read"):
        save(tmp_path, stored, config)


@pytest.mark.parametrize("nested", ["scale_q", "zero_q", "zero_scale"])
def test_scales_of_hqq_that_are_quantised_themselves_are_refused_as_such(
    nested: str, tmp_path: Path
) -> None:
    stored = {**tensors(cases("hqq")["4-g32-axis1-bfloat16"])}
    for name in ("scale", "zero"):
        if name in nested:
            del stored[f"{MODULE}.{name}"]
    stored[f"{MODULE}.{nested}"] = torch.ones(8, dtype=torch.uint8)
    with pytest.raises(CheckpointError, match="its scales are quantised themselves"):
        save(tmp_path, stored, {"quant_method": "hqq"})


def test_what_quark_stores_in_fp8_is_read(tmp_path: Path) -> None:
    case = cases("compressed-tensors")["float-8-channel"]
    save(tmp_path, tensors(case), {"quant_method": "quark"})
    (row,) = list_layers(open_checkpoint(tmp_path))
    assert row.reader == "fp8"
