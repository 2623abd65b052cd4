"""Experts stored as codes, or kept beside codes: plain transformers merges what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.checkpoint import DiskLayer, list_layers, open_checkpoint, read_layer
from engine.export.compressed.writer import export_checkpoint
from engine.export.load_check import _Question, digest, problem_of
from engine.export.refusal import NotExportable
from engine.export.writer import Request
from engine.formats.grammar import parse_format
from engine.quant.quantize import dequantized, scale_dtype_for
from tests import tiny

SOURCES = {"mixtral": torch.bfloat16, "qwen3_moe": torch.float32}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("experts")
    return {
        arch: tiny.build(arch, folder / arch, dtype=dtype, num_hidden_layers=2)
        for arch, dtype in SOURCES.items()
    }


def rows_of(source: Path) -> dict[str, DiskLayer]:
    return {row.name: row for row in list_layers(open_checkpoint(source))}


def recipe(source: Path, linear: str, experts: str, first: str = "") -> dict[str, str]:
    """Formats of all linear layers and all experts; ``first`` of the first of those instead."""
    rows = rows_of(source).values()
    found = {row.name: linear for row in rows if row.role == "linear" and linear}
    held = [row.name for row in rows if row.role == "experts"]
    found |= dict.fromkeys(held, experts) if experts else {}
    return {**found, held[0]: first} if first else found


@pytest.mark.parametrize("arch", SOURCES)
@pytest.mark.parametrize(
    ("linear", "experts", "first"),
    [
        ("int4-g32", "", ""),
        ("", "int4-g32-sym", ""),
        ("int8+a8", "int3-g32-sym", ""),
        ("int4-g32", "fp8-e4m3", "fp8-e4m3-tensor"),
        ("int4-g32", "", "fp8-e4m3"),
    ],
)
def test_what_is_merged_scores_as_it_was_measured(
    arch: str, linear: str, experts: str, first: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    source, dtype = sources[arch], SOURCES[arch]
    held = recipe(source, linear, experts, first)
    checkpoint = open_checkpoint(source)
    export_checkpoint(Request(checkpoint=checkpoint, recipe=held, out=tmp_path / "out"))

    plain: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    rows, scale_dtype = rows_of(source), scale_dtype_for(dtype)
    wanted: dict[str, dict[int, str]] = {}
    for name, text in held.items():
        weight, fmt = read_layer(checkpoint, rows[name]), parse_format(text.removesuffix("+a8"))
        approx = dequantized(weight, fmt, scale_dtype, name).to(dtype)
        if rows[name].role == "experts":
            wanted[name] = {expert: digest(each) for expert, each in enumerate(approx)}
            parameter = plain.get_parameter(name)
        else:
            parameter = plain.get_parameter(f"{name}.weight")
        parameter.data.copy_(approx)
    assert problem_of(_Question(str(tmp_path / "out"), {}, False, wanted)) == ""
    if "a8" in linear:
        return
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    ids = tiny.ids(2, 16)
    with torch.no_grad():
        found = again(input_ids=ids, use_cache=False).logits
        assert torch.equal(found, plain(input_ids=ids, use_cache=False).logits)


@pytest.mark.parametrize(
    ("experts", "first", "why"),
    [
        ("int4-g32", "", "no zero points of experts"),
        ("int8+a8", "", "inputs of experts"),
        ("mxfp4", "", "integer formats and fp8-e4m3 only"),
        ("", "int8", "drops plain ones such as model.layers.0.mlp.experts.0.down_proj.weight"),
        ("int8", "int4-g32-sym", "from one integer format: give all experts the same"),
        ("int8", "fp8-e4m3", "drops plain ones"),
    ],
)
def test_what_is_not_merged_is_refused_before_anything_is_written(
    experts: str, first: str, why: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    source = sources["mixtral"] if experts == "mxfp4" else sources["qwen3_moe"]
    request = Request(
        checkpoint=open_checkpoint(source),
        recipe=recipe(source, "int8", experts, first),
        out=tmp_path / "out",
    )
    before = set(tmp_path.iterdir())
    with pytest.raises(NotExportable, match=why):
        export_checkpoint(request)
    assert set(tmp_path.iterdir()) == before
