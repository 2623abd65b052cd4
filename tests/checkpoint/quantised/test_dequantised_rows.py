"""Rows that are dequantised a few at a time are those of the whole layer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import torch

from engine import protocol as p
from engine.checkpoint import dequantised_rows, list_layers, open_checkpoint, read_layer
from engine.measure.weights.stored import stored_codes
from engine.store.facts import FactStore
from tests import tiny
from tests.checkpoint.quantised.fixtures import written
from tests.drive import open_files, settings
from tests.export.exporting import export_checkpoint

SOME = (
    ("gptqmodel", "gptq-4-asym-g32"),
    ("compressed-tensors", "pack-4-asym-channel"),
    ("compressed-tensors", "experts-3-asym-g32"),
    ("torchao", "nvfp4-scaled-swizzled"),
    ("quanto", "int2-g128"),
    ("hqq", "3-g64-axis0-float16"),
    ("exllamav3", "3-mul1"),
    ("transformers", "deepseek-fp8"),
)


@pytest.mark.parametrize(("tool", "name"), SOME)
def test_spans_of_any_size_from_several_threads(tool: str, name: str, tmp_path: Path) -> None:
    checkpoint = written(tmp_path, tool, name)
    (layer,) = list_layers(checkpoint)
    rows = dequantised_rows(checkpoint, layer)
    assert rows is not None
    whole = read_layer(checkpoint, layer).reshape(-1, rows.width)
    assert (rows.height, rows.dtype) == (len(whole), str(whole.dtype).removeprefix("torch."))
    whole = whole.to(getattr(torch, rows.read_as))
    size = rows.width * whole.element_size()

    def read(span: tuple[int, int]) -> bytes:
        room = bytearray(size * (span[1] - span[0]))
        rows.read(span[0], memoryview(room))
        return bytes(room)

    ends = [(step, at) for step in (1, 7, 64) for at in range(0, rows.height, step)]
    spans = [(at, min(at + step, rows.height)) for step, at in ends]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(read, spans))
    for (first, last), some in zip(spans, found, strict=True):
        assert some == whole[first:last].contiguous().view(torch.uint8).numpy().tobytes()
    held = stored_codes(checkpoint, layer, rows)
    assert str(held) == str(stored_codes(checkpoint, layer))  # NaN is not equal to itself


@pytest.mark.parametrize("kernels", ["compiled", "missing"])
def test_triage_finds_of_them_what_it_finds_of_the_plain_weights(
    kernels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mixture, so that a layer is made of many weights."""
    from engine.measure.weights import measuring, stored
    from engine.measure.weights.triage import triage

    source = open_checkpoint(tiny.build("mixtral", tmp_path / "plain"))
    body = [row.name for row in list_layers(source) if row.role in ("linear", "experts")]
    export_checkpoint(
        source, dict.fromkeys(body, "int4-g32-sym"), tmp_path / "packed", to="checkpoint"
    )
    exported = open_checkpoint(tmp_path / "packed")
    plain = tmp_path / "dequantised"
    export_checkpoint(exported, {}, plain)
    if kernels == "missing":
        for module in (measuring, stored):
            monkeypatch.setattr(module, "kernels", lambda: "none")

    def facts(folder: Path) -> dict[str, p.LayerWeights]:
        opened = open_files(folder, FactStore(tmp_path / f"{folder.name}.sqlite"), settings())
        steps = [step for step in triage(opened, [], "j1") if isinstance(step, p.Learned)]
        learned = [fact for step in steps for fact in step.facts]
        return {fact.layer: fact for fact in learned if isinstance(fact, p.LayerWeights)}

    ours, theirs = facts(tmp_path / "packed"), facts(plain)
    assert ours.keys() == theirs.keys()
    for layer, fact in ours.items():
        assert (fact.codes is not None) == (layer in body)
        assert msgspec.structs.replace(fact, codes=None) == theirs[layer]
