"""A folder of quantised weights opens as the plain model that they stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import protocol as p
from engine.checkpoint import list_layers, open_checkpoint, read_layer
from engine.client import in_process
from engine.formats.grammar import parse_format
from engine.model.load import load_network
from engine.opening.inspect import inspect_headers
from engine.quant.quantize import dequantized
from tests import tiny
from tests.drive import ended, settings, until
from tests.export.exporting import export_checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def written(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """GPTQ in three formats, one layer in four left alone."""
    checkpoint = open_checkpoint(source)
    body = [row for row in list_layers(checkpoint) if row.role == "linear"]
    formats = ("int4-g32-sym", "int8-g32-asym", "int3-g32", "")
    recipe = {row.name: formats[at % 4] for at, row in enumerate(body) if formats[at % 4]}
    folder = tmp_path_factory.mktemp("written") / "gptq"
    export_checkpoint(checkpoint, recipe, folder, to="gptq")
    for file in source.glob("token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder, recipe


def test_the_table_has_the_same_rows_in_their_own_formats(
    source: Path, written: tuple[Path, dict[str, str]]
) -> None:
    folder, recipe = written
    plain = list_layers(open_checkpoint(source))
    checkpoint = open_checkpoint(folder)
    rows = list_layers(checkpoint)
    assert [(row.name, row.shape) for row in rows] == [(row.name, row.shape) for row in plain]
    for row, original in zip(rows, plain, strict=True):
        held = recipe.get(row.name)
        assert row.dtype == (str(parse_format(held)) if held else original.dtype)
        expected = read_layer(open_checkpoint(source), original)
        if held:
            dtype = checkpoint.tensors[row.parts[0]].dtype
            expected = dequantized(expected, parse_format(held), getattr(torch, dtype))
            expected = expected.to(getattr(torch, dtype))
        assert torch.equal(read_layer(checkpoint, row), expected)
    assert checkpoint.bytes == sum(
        tensor.nbytes for tensor in load_file(folder / "model.safetensors").values()
    )


def test_transformers_gets_a_plain_model(
    source: Path, written: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    folder, _ = written
    checkpoint = open_checkpoint(folder)
    plain = {name: checkpoint.read(name) for name in checkpoint.tensors}
    save_file(plain, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.arange(24)[None]
    network = load_network(folder, device="cpu")
    assert "stored in gptq, dequantised as reference" in network.notes
    assert getattr(network.model.config, "quantization_config", None) is None
    with torch.no_grad():
        assert torch.equal(network.model(ids).logits, expected(ids).logits)


def test_a_session_says_what_is_stored_and_measures_it(
    written: tuple[Path, dict[str, str]], prose: Path
) -> None:
    folder, recipe = written
    client = in_process(str(folder))
    try:
        client.send(p.Open(str(folder), settings(prose)))
        until(client, lambda event: isinstance(event, p.ModelReady))
        session = client.session
        assert session.checkpoint is not None
        assert session.checkpoint.stored == "gptq"
        for name, held in recipe.items():
            row = session.index[name]
            assert session.shown(row) == str(parse_format(held))
        assert session.artefact_bytes() == open_checkpoint(folder).bytes
        client.send(p.Triage(("int4-g32",)))
        until(client, ended("triage"))
        assert all(known is not None for known in session.layers.weights)
        client.send(p.SetFormat(tuple(recipe)[:2], "int8"))
        until(client, ended("evaluate"))
        client.send(p.SetFormat(tuple(recipe)[:2], "kept"))
        until(client, lambda event: isinstance(event, p.RecipeChanged))
        assert not session.changed
    finally:
        client.close()


@pytest.mark.usefixtures("checked_here")
def test_it_can_be_exported_again(written: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    folder, recipe = written
    checkpoint = open_checkpoint(folder)
    name = next(iter(recipe))
    done = export_checkpoint(checkpoint, {name: "int8"}, tmp_path / "out", check=True)
    assert any("written dequantised" in note for note in done.notes)
    again = open_checkpoint(tmp_path / "out")
    for each in list(recipe)[1:]:
        assert torch.equal(again.read(f"{each}.weight"), checkpoint.read(f"{each}.weight"))


def test_inspecting_it_says_so_too(written: tuple[Path, dict[str, str]]) -> None:
    found = inspect_headers(str(written[0]))
    assert not found.problem
    assert "stored in gptq, dequantised as reference" in found.note
