"""Models that see or hear beside their language model: opened, changed and exported as plain ones.

Right values come from plain transformers, given tokens only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from engine.checkpoint import list_layers, open_checkpoint, read_layer, remarks
from engine.formats.grammar import parse_format
from engine.model.load import load_network
from engine.model.network import Network
from engine.opening.inspect import inspect_headers
from engine.quant.quantize import dequantized
from tests import tiny, wrappers
from tests.export.exporting import export_checkpoint

IDS = tiny.ids(2, 24)


@pytest.fixture(scope="module", params=wrappers.WRAPPERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("wrappers") / request.param
    return wrappers.build(request.param, where, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def network(folder: Path) -> Network:
    return load_network(folder, device="cpu", dtype="fp32")


def plain(folder: Path) -> Any:
    return transformers.AutoModelForMultimodalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def test_the_language_model_is_measured_and_nothing_else(folder: Path, network: Network) -> None:
    checkpoint = open_checkpoint(folder)
    rows = list_layers(checkpoint)
    assert not remarks(checkpoint, rows)
    assert inspect_headers(str(folder)).problem == ""
    assert network.why_not_resumable is None
    assert sorted(row.name for row in rows) == sorted(network.layers)
    assert len(rows) == 2 * 7 + 2
    for row in rows:
        assert torch.equal(read_layer(checkpoint, row).float(), network.weight(row.name)), row.name
    assert torch.equal(network.run(IDS, None), logits(plain(folder)))


@pytest.mark.parametrize("place", ["layers.1.mlp.down_proj", "lm_head"])
def test_a_changed_layer_changes_the_logits_as_in_plain_transformers(
    place: str, folder: Path, network: Network
) -> None:
    model = plain(folder)
    (name,) = [each for each in network.layers if each.endswith(place)]
    weight = dequantized(network.weight(name), parse_format("int4-g32"), torch.bfloat16, name=name)
    if place == "lm_head":
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(weight)
    else:
        (module,) = [m for n, m in model.get_decoder().named_modules() if n.endswith(place)]
        module.weight.data.copy_(weight)
    with network.holding({name: weight}):
        assert torch.equal(network.run(IDS, None), logits(model))


def test_an_export_reloads_with_the_weights_that_were_measured(
    folder: Path, network: Network, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(folder)
    recipe = {row.name: "int8" for row in list_layers(checkpoint) if row.block is not None}
    export_checkpoint(checkpoint, recipe, tmp_path / "out")
    held = {
        name: dequantized(network.weight(name), parse_format("int8"), torch.bfloat16, name=name)
        for name in recipe
    }
    model = transformers.AutoModelForMultimodalLM.from_pretrained(
        tmp_path / "out", dtype=torch.bfloat16
    ).eval()
    with torch.no_grad():
        model(input_ids=IDS[:1, :4])  # unpacks
    modules = dict(model.get_decoder().named_modules())
    for name, weight in held.items():
        path = name[name.index("layers.") :]
        assert torch.equal(modules[path].weight.float(), weight.to(torch.bfloat16).float()), name
    visual = [n for n, m in model.named_modules() if "vis" in n or "audio" in n or "connector" in n]
    assert all("weight_packed" not in n for n in visual)
