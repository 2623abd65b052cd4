"""A format family and an export target from outside, with no edit in engine or qtui."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from safetensors.torch import load_file
from torch import Tensor

from engine import plugins
from engine import protocol as p
from engine.checkpoint import list_layers, open_checkpoint, read_layer
from engine.client import InProcess, in_process
from engine.errors import EngineError, FormatError, UsageError
from engine.export import target
from engine.formats import catalogue, family
from engine.formats.completion import complete_format, explain_format
from engine.formats.grammar import parse_format
from engine.formats.storage import stored_bits, why_not_held
from engine.quant.quantize import dequantized, stored_form
from engine.recipes.mixes import better_than
from engine.service import commands
from tests import tiny
from tests.drive import ended, facts, settings, until

LAYER = "model.layers.0.self_attn.q_proj"


pytestmark = pytest.mark.usefixtures("example")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def client(source: Path, prose: Path) -> Iterator[InProcess]:
    found = in_process(str(source))
    found.send(p.Open(str(source), settings(prose), model=False))
    yield found
    found.close()


@pytest.mark.parametrize(
    ("formats", "why"),
    [
        ({"int4-g128": {}}, "would be two formats: int4 takes the option '-g128'"),
        ({"int8-channel": {}}, "would be two formats: int8 takes the option '-channel'"),
        ({"odd-sym": {}, "odd": {"options": ("sym",)}}, "odd takes the option '-sym'"),
        ({"kept": {}}, "the word for a layer that is left as it is stored"),
        ({"int4": {}}, "there is a format 'int4' already"),
        ({"Odd": {}}, "cannot be the name of a format"),
    ],
)
def test_a_family_cannot_take_what_another_format_is_written_as(
    formats: dict[str, dict[str, tuple[str, ...]]], why: str
) -> None:
    """Figures of both would be kept under one text."""
    before = list(catalogue.BASES)
    odd = family.Family(
        name="odd",
        formats={name: catalogue.Base(4, **fields) for name, fields in formats.items()},
        stored_bits=lambda fmt, out, row: fmt.bits * out * row,
        arithmetic=lambda: None,
    )
    with pytest.raises(ValueError, match=why):
        family.register_family(odd)
    assert list(catalogue.BASES) == before
    assert parse_format("int4-g128").family == "integer"


def ternarised(weight: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """By a loop over groups."""
    found = torch.zeros(weight.shape)
    for out in range(len(weight)):
        for start in range(0, weight.shape[1], size):
            group = weight[out, start : start + size].float()
            beyond = group.abs() > 0.7 * group.abs().mean()
            scale = group.abs()[beyond].mean().to(dtype).float() if beyond.any() else 0.0
            found[out, start : start + size] = group.sign() * beyond * scale
    return found


def test_its_formats_are_read_printed_and_refused_with_reasons() -> None:
    assert str(parse_format("TERNARY")) == "ternary-g64"
    assert str(parse_format("ternary-channel")) == "ternary-channel"
    assert str(parse_format("ternary-g32+hadamard")) == "ternary-g32+hadamard"
    assert parse_format("ternary").family == "ternary"
    for text, why in {
        "ternary-g1": "at least two",
        "ternary-sym": "takes -gN, -channel",
        "ternary+hqq": "only integer formats have",
        "ternary+gptq": "its own search",
        "ternery": "did you mean 'ternary'",
    }.items():
        with pytest.raises(FormatError, match=why):
            parse_format(text)


def test_it_is_listed_completed_and_explained() -> None:
    assert list(catalogue.BASES)[-1] == "ternary"
    assert family.families()[-1].name == "ternary"
    assert [each.text for each in complete_format("tern")] == ["ternary"]
    assert "ternary-g32" in [each.text for each in complete_format("ternary-")]
    assert complete_format("ternary")[0].says == "2.25 bits"
    assert explain_format("ternary", (8, 128)) == (
        "ternary-g64",
        "ternary-g64: 2.25 bits per weight",
    )


def test_bits_shapes_and_mixes_come_from_its_declaration() -> None:
    fmt = parse_format("ternary")
    assert stored_bits(fmt, (4, 128)) == 2 * 4 * 128 + 16 * 8
    assert stored_bits(fmt, (3, 4, 128)) == 3 * stored_bits(fmt, (4, 128))
    assert why_not_held(fmt, (4, 100)) is None
    assert better_than("ternary") == "int8"


@pytest.mark.parametrize("width", [128, 100])
def test_it_is_quantised_and_dequantised(width: int) -> None:
    weight = torch.randn(6, width, generator=torch.Generator().manual_seed(1))
    weight[2, 3], weight[4, 5] = torch.nan, torch.inf
    fmt = parse_format("ternary-g32")
    found = dequantized(weight, fmt, torch.float16)
    finite = weight.nan_to_num(0.0, posinf=0.0, neginf=0.0)
    # Groups that end a row count the filling as weights: there they are compared as one.
    whole = slice(0, width // 32 * 32)
    expected = ternarised(finite[:, whole], 32, torch.float16)
    form = stored_form(weight, fmt, torch.float16).approx()
    assert torch.allclose(form[:, whole], expected, rtol=1e-3)
    assert found[2, 3].isnan()
    assert found[4, 5].isinf()
    kept = weight.isfinite()
    assert torch.equal(found[kept], form[kept])
    experts = torch.stack([finite, -finite])
    both = dequantized(experts, fmt, torch.float16)
    assert torch.equal(both[0], -both[1])


def test_triage_finds_its_errors(client: InProcess, source: Path) -> None:
    client.send(p.Triage(formats=("ternary-g32",)))
    events = until(client, ended("triage"))
    found = {fact.layer: fact.error for fact in facts(events, p.LayerError)}
    checkpoint = open_checkpoint(source)
    row = next(row for row in list_layers(checkpoint) if row.name == LAYER)
    weight = read_layer(checkpoint, row).float()
    lost = (ternarised(weight, 32, getattr(torch, checkpoint.dtype)) - weight).norm()
    error = found[LAYER]
    assert error is not None
    assert error.frobenius == pytest.approx(float(lost), rel=1e-3)


@pytest.mark.usefixtures("checked_here")
def test_a_checkpoint_holds_it(client: InProcess, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    client.send(p.Export(out=str(out), layers={LAYER: "ternary-g32"}))
    end = until(client, ended("export"))[-1]
    assert isinstance(end, p.JobEnded)
    assert end.status == "done", end.message
    tensors = load_file(out / "model.safetensors")
    shape = torch.Size(tensors[f"{LAYER}.weight_shape"].tolist())
    codes = unpack_from_int32(tensors[f"{LAYER}.weight_packed"], 2, shape)
    scale = tensors[f"{LAYER}.weight_scale"]
    checkpoint = open_checkpoint(source)
    row = next(row for row in list_layers(checkpoint) if row.name == LAYER)
    measured = dequantized(read_layer(checkpoint, row), parse_format("ternary-g32"), scale.dtype)
    assert torch.equal(codes.float() * scale.float().repeat_interleave(32, 1), measured)


def test_a_target_writes_what_it_can_express(client: InProcess, tmp_path: Path) -> None:
    out = tmp_path / "out"
    client.send(p.Export(out=str(out), layers={LAYER: "ternary-g32"}, to="listing"))
    events = until(client, ended("export"))
    written = next(event for event in events if isinstance(event, p.Exported))
    assert written.notes == ["only a listing"]
    assert (out / "layers.txt").read_text() == f"{LAYER} ternary-g32\n"
    refused = tmp_path / "refused"
    client.send(p.Export(out=str(refused), layers={LAYER: "fp8-e4m3"}, to="listing"))
    end = until(client, ended("export"))[-1]
    assert isinstance(end, p.JobEnded)
    assert "1 layer of this recipe cannot be written as a listing" in end.message
    assert f"{LAYER}: a listing has no word for floats" in end.message
    assert not refused.exists()
    client.send(p.Export(out=str(refused), layers={LAYER: "int8"}, to="listng"))
    answer = until(client, lambda event: isinstance(event, p.Refused))[-1]
    assert isinstance(answer, p.Refused)
    assert "unknown export target 'listng'" in answer.message


def test_targets_are_listed_and_unknown_ones_refused() -> None:
    assert "listing (a text file, which people read)" in target.listed()
    with pytest.raises(
        UsageError, match=r"unknown export target 'listng': known are checkpoint \("
    ):
        target.target_named("listng")


def test_what_is_there_already_is_refused() -> None:
    from tests.plugins.example import family as ternary
    from tests.plugins.example import target as listing

    with pytest.raises(ValueError, match="a format family 'ternary' already"):
        ternary.register()
    with pytest.raises(ValueError, match="an export target 'listing' already"):
        listing.register()


def test_a_plugin_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match=r"'tests.plugins.absent' cannot be loaded"):
        plugins.load_plugin("tests.plugins.absent")
    monkeypatch.setattr(plugins, "_looked", False)
    monkeypatch.setenv(plugins.VARIABLE, "tests.plugins.absent")
    for _ in range(2):  # it is not left out in silence the second time
        with pytest.raises(EngineError, match=plugins.VARIABLE):
            plugins.load_plugins()
        with pytest.raises(EngineError, match=plugins.VARIABLE):
            commands.load()


def test_the_environment_names_plugins_and_they_import_no_tensor_library() -> None:
    program = (
        "import sys\n"
        "from engine.formats.completion import complete_format\n"
        "from engine.export.target import targets\n"
        "assert [each.text for each in complete_format('tern')] == ['ternary']\n"
        "assert 'listing' in [target.name for target in targets()]\n"
        "assert 'torch' not in sys.modules"
    )
    named = "tests.plugins.example.family:register, tests.plugins.example.target:register"
    environment = {**os.environ, plugins.VARIABLE: named}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=120)
