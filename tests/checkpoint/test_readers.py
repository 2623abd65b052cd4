"""Layouts of quantised weights: those that come with qtui, and one from outside."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.checkpoint import list_layers, open_checkpoint, read_layer
from engine.checkpoint.quantised import reader
from engine.checkpoint.quantised.reader import readable_methods
from engine.errors import CheckpointError
from tests.checkpoint.test_disk_layers import save
from tests.plugins.example import layout

NAME = "model.layers.0.self_attn.q_proj"


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch) -> None:
    reader.readers()
    monkeypatch.setattr(reader, "_READERS", dict(reader._READERS))


def test_quantisers_that_can_be_read() -> None:
    assert readable_methods() == {
        *("fp8", "mxfp4", "compressed-tensors", "bitsandbytes", "modelopt", "bitnet"),
        *("hqq", "torchao", "quanto", "exl3", "metal", "mxfp8", "fbgemm_fp8"),
        *("gptq", "awq", "gptqmodel", "auto-round", "intel/auto-round"),
    }


@pytest.mark.parametrize(
    ("ending", "tensor"),
    [
        (".weight.absmax", torch.zeros(4, dtype=torch.uint8)),
        (".weight.quant_state.bitsandbytes__nf4", torch.zeros(4, dtype=torch.uint8)),
        (".weight", torch.zeros(4, 4, dtype=torch.int8)),
    ],
)
def test_what_is_recognised_and_not_read_is_refused(
    ending: str, tensor: Tensor, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=f"{NAME}{ending}' packed in"):
        list_layers(open_checkpoint(save(tmp_path, {f"{NAME}{ending}": tensor})))


def test_a_layout_from_outside_is_read(tmp_path: Path) -> None:
    """Rows of int8, which are recognised only without it."""
    codes = torch.randint(-127, 128, (5, 7), dtype=torch.int8)
    absmax = torch.rand(5)
    folder = save(tmp_path, {f"{NAME}.weight": codes, f"{NAME}.row_max": absmax})
    with pytest.raises(CheckpointError, match="packed in int8"):
        list_layers(open_checkpoint(folder))
    layout.register()
    checkpoint = open_checkpoint(folder)
    (row,) = list_layers(checkpoint)
    assert (row.name, row.scales, row.reader) == (NAME, (f"{NAME}.row_max",), "example-int8")
    assert torch.equal(read_layer(checkpoint, row), codes.float() * absmax[:, None] / 127)
    assert "example" in readable_methods()
    with pytest.raises(ValueError, match=r"a reader of 'example-int8' already"):
        layout.register()


def test_the_page_of_layouts_has_them_all() -> None:
    page = (Path(__file__).parents[2] / "docs" / "layouts.md").read_text()
    named = {each.name for each in reader.readers() if each.read or each.weights}
    assert {name for name in named if f"| {name} |" not in page} == set()
