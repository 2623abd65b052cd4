"""The GPTQ layout: what a reader written from its description finds equals what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from engine import protocol as p
from engine.checkpoint import list_layers, open_checkpoint
from engine.checkpoint.packed.unpacking import unpacked
from engine.client import in_process
from engine.errors import InfeasibleError
from engine.export.gptq import words
from engine.export.gptq.expressed import why_not_expressed
from engine.export.load_check import NotReadBack
from engine.export.refusal import NotExportable
from engine.formats.grammar import parse_format
from engine.quant.quantize import dequantized, stored_form
from tests import tiny
from tests.drive import ended, settings, until
from tests.export.exporting import export_checkpoint

FORMATS = (
    "int2-g32", "int3-g32", "int4-g32", "int4-g64-sym", "int8", "int8-g32-asym", "int4-channel",
    "int3-channel-sym", "int4-g32+clip",
)  # fmt: skip


def bits_of(words: NDArray[np.int32], bits: int, count: int) -> NDArray[np.int64]:
    """Codes of a stream of words ``[n]``, lowest bits first, one bit after the other."""
    stream = [(int(word) & 0xFFFFFFFF) >> bit & 1 for word in words for bit in range(32)]
    return np.array(
        [sum(stream[at * bits + bit] << bit for bit in range(bits)) for at in range(count)]
    )


def read(tensors: dict[str, torch.Tensor], prefix: str, bits: int) -> NDArray[np.float32]:
    """A weight ``[out, in]``, by the words of the layout's description, element by element."""
    qweight = tensors[f"{prefix}.qweight"].numpy()
    qzeros = tensors[f"{prefix}.qzeros"].numpy()
    scales = tensors[f"{prefix}.scales"].to(torch.float32).numpy()
    groups = tensors[f"{prefix}.g_idx"].numpy()
    rows, columns = len(groups), qweight.shape[1]
    zeros = np.stack([bits_of(line, bits, columns) for line in qzeros])
    zeros = (zeros + 1) & (2**bits - 1)
    found = np.empty((columns, rows), dtype=np.float32)
    for column in range(columns):
        codes = bits_of(qweight[:, column], bits, rows)
        group = groups.astype(int)
        found[column] = (codes - zeros[group, column]).astype(np.float32) * scales[group, column]
    return found


@pytest.mark.parametrize("text", FORMATS)
def test_a_weight_is_read_as_it_was_measured(text: str) -> None:
    fmt = parse_format(text)
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(5))
    weight[1] = -weight[1].abs()  # a zero point at the end of the codes
    weight[2, :32] = 0
    form = stored_form(weight, fmt, torch.float16, "layer")
    found = words.tensors("layer", fmt, form)
    slots = words.slots("layer", fmt, (64, 128), torch.float16)
    assert {name: (slot.dtype, tuple(slot.shape)) for name, slot in slots.items()} == {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in found.items()
    }
    expected = dequantized(weight, fmt, torch.float16).numpy()
    np.testing.assert_array_equal(read(found, "layer", fmt.bits), expected)
    short = {name.removeprefix("layer."): tensor for name, tensor in found.items()}
    np.testing.assert_array_equal(words.dequantised(short, fmt.bits).numpy(), expected)


def test_symmetric_zero_points_are_the_words_that_kernels_expect() -> None:
    fmt = parse_format("int4-g64-sym")
    form = stored_form(torch.randn(64, 128), fmt, torch.float16, "layer")
    zeros = words.tensors("layer", fmt, form)["layer.qzeros"]
    assert (zeros == 0x77777777).all()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama")


def test_a_mix_is_written_with_a_rule_for_each_module(source: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(source)
    body = [row for row in list_layers(checkpoint) if row.role == "linear"]
    formats = ("int4-g32", "int8", "int3-g32", "kept")
    recipe = {row.name: formats[at % 4] for at, row in enumerate(body)}
    recipe = {name: held for name, held in recipe.items() if held != "kept"}
    done = export_checkpoint(checkpoint, recipe, tmp_path / "out", to="gptq", check=True)
    assert set(done.quantised) == set(recipe)
    assert any("read back" in note for note in done.notes)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert json.loads((tmp_path / "out" / "quantize_config.json").read_text()) == config
    assert (config["quant_method"], config["checkpoint_format"]) == ("gptq", "gptq")
    # What GPTQModel asks of writers of asymmetric weights.
    assert config["meta"]["quantizer"] == ["qtui", "gptqmodel:0.9.0"]
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    for row in body:
        held = recipe.get(row.name)
        decided = decide(config, row.name)
        if held is None:
            assert decided is None
            assert torch.equal(tensors[f"{row.name}.weight"], checkpoint.read(row.parts[0]))
            continue
        fmt = parse_format(held)
        assert decided == {
            "bits": fmt.bits, "group_size": fmt.group_size or -1, "sym": fmt.symmetric
        }  # fmt: skip
        assert f"{row.name}.weight" not in tensors
        whole = checkpoint.read(row.parts[0])
        expected = dequantized(whole, fmt, tensors[f"{row.name}.scales"].dtype)
        np.testing.assert_array_equal(
            read(tensors, row.name, fmt.bits), expected.to(torch.float32).numpy()
        )


def decide(config: dict[str, object], module: str) -> dict[str, object] | None:
    """What GPTQModel takes for a module: left out, a rule's values, or the config's own."""
    keys = ("bits", "group_size", "sym")
    rules: dict[str, dict[str, object]] = config["dynamic"]  # type: ignore[assignment]
    for rule in rules:
        if rule.startswith("-:") and re.match(rule[2:], module):
            return None
    for rule, values in rules.items():
        if rule.startswith("+:") and re.match(rule[2:], module):
            return {key: values.get(key, config[key]) for key in keys}
    return {key: config[key] for key in keys}


def test_reordered_columns_keep_their_groups(source: Path, prose: Path, tmp_path: Path) -> None:
    client = in_process(str(source))
    try:
        client.send(p.Open(str(source), settings(prose, calib=str(prose), calib_tokens=1024)))
        name = next(
            row.name for row in list_layers(open_checkpoint(source)) if row.role == "linear"
        )
        out = tmp_path / "out"
        held = {name: "int4-g32+gptq:actorder"}
        client.send(p.Export(out=str(out), layers=held, to="gptq"))
        end = until(client, ended("export"))[-1]
        assert isinstance(end, p.JobEnded)
        assert end.status == "done", end.message
    finally:
        client.close()
    tensors = load_file(out / "model.safetensors")
    groups = tensors[f"{name}.g_idx"]
    assert not torch.equal(groups, groups.sort().values)
    assert groups.bincount().tolist() == [32] * (len(groups) // 32)
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["desc_act"]


def test_other_words_than_were_measured_are_not_left(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(source)
    name = next(row.name for row in list_layers(checkpoint) if row.role == "linear")
    real = words.packed

    def wrong(codes: torch.Tensor, bits: int, *, dense: bool) -> torch.Tensor:
        found = real(codes, bits, dense=dense)
        found[0, 0] ^= 1
        return found

    monkeypatch.setattr(words, "packed", wrong)
    with pytest.raises(NotReadBack, match="other weights"):
        export_checkpoint(checkpoint, {name: "int4-g32"}, tmp_path / "out", to="gptq", check=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "shape", "why"),
    [
        ("int5-g32", (64, 64), "2, 3, 4 and 8 bits"),
        ("nf4", (64, 64), "integer formats only"),
        ("int4-tensor", (64, 64), "per group or channel"),
        ("int4-g32", (64, 48), "does not divide"),
        ("int3-g32", (40, 64), "32 codes at a time: 40 outputs"),
        ("int4-g32+awq:online", (64, 64), "no ':online' of '+awq'"),
        ("int4-g32+hqq", (64, 64), "hqq"),
        ("int8+a8", (64, 64), "a8"),
    ],
)
def test_what_the_layout_cannot_hold_is_told(text: str, shape: tuple[int, int], why: str) -> None:
    said = why_not_expressed(parse_format(text), shape, "bfloat16")
    assert said is not None
    assert why in said


def test_layers_that_cannot_be_are_named(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.build("gpt2", tmp_path / "gpt2"))
    name = next(row.name for row in list_layers(checkpoint) if row.role == "conv1d")
    with pytest.raises(NotExportable, match="GPTQ layout quantises linear modules only"):
        export_checkpoint(checkpoint, {name: "int4-g32"}, tmp_path / "out", to="gptq")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_groups_of_zeros_get_a_zero_point_that_every_reader_has(bits: int) -> None:
    """Readers that add 1 to whole words, as GPTQModel does, carry where one is all ones."""
    fmt = parse_format(f"int{bits}-g32-asym")
    weight = 0.02 * torch.randn(64, 64, generator=torch.Generator().manual_seed(3))
    weight[5] = 0.0  # a dead row
    weight[9, 32:] = 0.0
    form = stored_form(weight, fmt, torch.float16)
    found = words.tensors("w", fmt, form)
    zeros = unpacked(found["w.qzeros"], bits, 64)
    assert int(zeros.max()) < (1 << bits) - 1
    read = {name.removeprefix("w."): tensor for name, tensor in found.items()}
    assert torch.equal(words.dequantised(read, bits), dequantized(weight, fmt, torch.float16))


def test_a_group_without_negative_weights_is_refused_by_name() -> None:
    fmt = parse_format("int4-g32")
    weight = 0.02 * torch.randn(64, 64, generator=torch.Generator().manual_seed(3))
    weight[7, :32] = weight[7, :32].abs()
    with pytest.raises(InfeasibleError, match=r"w: 1 of its rows .* symmetric"):
        words.tensors("w", fmt, stored_form(weight, fmt, torch.float16))
