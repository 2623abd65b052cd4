"""The format that a weight is said to be stored in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.checkpoint import list_layers
from engine.errors import CheckpointError
from tests.checkpoint.quantised.fixtures import MODULE, WEIGHT, cases, save, tensors


@pytest.mark.parametrize(
    ("tool", "name", "codes", "form"),
    [
        ("quanto", "float8", "weight._data", "fp8-e5m2"),
        ("torchao", "float8", "_weight_qdata", "fp8-e5m2"),
        ("compressed-tensors", "float-8-g16", "weight", "fp8-e5m2-g16"),
    ],
)
def test_the_two_kinds_of_fp8_are_told_apart(
    tool: str, name: str, codes: str, form: str, tmp_path: Path
) -> None:
    case = cases(tool)[name]
    stored = tensors(case)
    whole = stored[f"{MODULE}.{codes}"]
    (row,) = list_layers(save(tmp_path / "4", stored, case["config"], case.get("metadata")))
    assert row.dtype.startswith("fp8-e4m3")
    stored[f"{MODULE}.{codes}"] = whole.float().to(torch.float8_e5m2)
    (row,) = list_layers(save(tmp_path / "5", stored, case["config"], case.get("metadata")))
    assert row.dtype.startswith(form)


@pytest.mark.parametrize("bits", [5, 6, 7])
def test_codes_of_hqq_that_take_a_byte_have_the_bits_that_it_says(
    bits: int, tmp_path: Path
) -> None:
    case = cases("hqq")["8-g64-axis1-float16"]
    stored = tensors(case)
    stored[f"{MODULE}.nbits"] = torch.tensor([bits])
    stored[f"{MODULE}.W_q"] &= (1 << bits) - 1
    checkpoint = save(tmp_path, stored, case["config"])
    assert checkpoint.quantised[WEIGHT].form.startswith(f"int{bits}")
    loaded = checkpoint.quantised[WEIGHT].load()
    assert loaded.codes(0, 1).levels == 1 << bits
    assert int(loaded.codes(0, 32).codes.max()) == (1 << bits) - 1


def test_a_mode_of_mlx_that_is_no_word(tmp_path: Path) -> None:
    stored = tensors(cases("mlx")["affine-4-g64-bfloat16"])
    with pytest.raises(CheckpointError, match="mode '\\[\\]', which is not known"):
        save(tmp_path, stored, None, quantization={"group_size": 64, "bits": 4, "mode": []})


def test_targets_of_compressed_tensors_that_are_no_list(tmp_path: Path) -> None:
    case = cases("compressed-tensors")["pack-4-sym-g32"]
    config = case["config"] | {
        "config_groups": {
            name: group | {"targets": 5} for name, group in case["config"]["config_groups"].items()
        }
    }
    assert save(tmp_path, tensors(case), config).quantised[WEIGHT].form == "int4-g32-sym"
