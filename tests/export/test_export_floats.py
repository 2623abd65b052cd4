"""Float formats in an exported checkpoint: as compressed-tensors writes them, as measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
    preset_name_to_scheme,
)
from compressed_tensors.quantization.utils import (
    calculate_qparams,
    generate_gparam,
    maybe_pad_tensor_for_block_quant,
)
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import protocol as p
from engine.checkpoint import Checkpoint, DiskLayer, list_layers, open_checkpoint, read_layer
from engine.client import in_process
from engine.export.compressed.folder import why_not_exported
from engine.export.compressed.layouts import tensors
from engine.export.refusal import NotExportable
from engine.formats.grammar import Format, parse_format
from engine.formats.storage import stored_bits
from engine.quant.quantize import dequantized, scale_dtype_for, stored_form
from tests import tiny
from tests.drive import ended, facts, settings, until
from tests.export.exporting import export_checkpoint

WIDE = {"hidden_size": 128, "intermediate_size": 384}
FLOATS = ("fp8-e4m3", "fp8-e4m3-tensor", "fp8-e4m3-block128")
BRAIN = ("mxfp4", "mxfp8", "nvfp4", "mxfp4+clip", "mxfp8+clip", "nvfp4+clip", "fp8-e4m3+clip")
"""What goes with bfloat16 alone, and ranges that were searched for."""
PAIRS = [
    ("int8", "mxfp4"),
    ("int4-g32", "nvfp4"),
    ("int4-g128", "fp8-e4m3"),
    ("mxfp8", "nvfp4"),
    ("int4-g32+clip", "int8+clip"),
]


@pytest.fixture(autouse=True)
def _uncompiled() -> Iterator[None]:
    """compressed-tensors compiles its cast to 4 bits, which takes long and changes nothing."""
    with torch.compiler.set_stance("force_eager"):
        yield


def _spread(checkpoint: Checkpoint, formats: tuple[str, ...]) -> dict[str, str]:
    """The formats in turn over all layers that can be exported in them, the head included."""
    rows = [row for row in list_layers(checkpoint) if row.role != "embedding"]
    chosen = {row.name: formats[i % len(formats)] for i, row in enumerate(rows)}
    refused = why_not_exported(checkpoint, chosen)
    return {name: text for name, text in chosen.items() if name not in refused}


def _loaded(folder: Path) -> Any:
    """A model as a user loads it, after one forward pass."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model(input_ids=tiny.ids(1, 4))
    return model


def _same_weights(model: Any, checkpoint: Checkpoint, recipe: dict[str, str]) -> None:
    stored: torch.dtype = getattr(torch, checkpoint.dtype)
    for row in list_layers(checkpoint):
        weight = read_layer(checkpoint, row)
        if row.name in recipe:
            fmt = parse_format(recipe[row.name])
            weight = dequantized(weight, fmt, scale_dtype_for(stored), row.name).to(stored)
        found = model.get_submodule(row.name).weight
        assert found.dtype == weight.dtype, row.name
        assert torch.equal(found, weight), row.name


@pytest.mark.parametrize(
    ("dtype", "formats"),
    [
        (torch.float32, FLOATS),
        (torch.float16, FLOATS),
        (torch.bfloat16, FLOATS),
        (torch.bfloat16, BRAIN),
    ],
    ids=str,
)
def test_reloaded_weights_equal_the_dequantised_ones(
    dtype: torch.dtype, formats: tuple[str, ...], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(tiny.build("llama", tmp_path / "in", dtype=dtype, **WIDE))
    recipe = _spread(checkpoint, formats)
    assert set(recipe.values()) == set(formats)
    done = export_checkpoint(checkpoint, recipe, tmp_path / "out")
    assert set(done.quantised) == set(recipe)
    _same_weights(_loaded(tmp_path / "out"), checkpoint, recipe)


def _nll(model: Any, windows: Tensor) -> float:
    """In batches of four windows, as the engine's micro-batches are."""
    sums = []
    with torch.no_grad():
        for batch in windows.split(4):
            logits = model(input_ids=batch).logits[:, :-1].float().flatten(0, 1)
            targets = batch[:, 1:].flatten()
            sums.append(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
    return float(torch.stack(sums).sum() / windows[:, 1:].numel())


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_two_forms_in_one_checkpoint_score_what_the_engine_measured(
    pair: tuple[str, str], prose: Path, tmp_path: Path
) -> None:
    folder = tiny.build("llama", tmp_path / "in", dtype=torch.bfloat16, **WIDE)
    checkpoint = open_checkpoint(folder)
    recipe = _spread(checkpoint, pair)
    assert set(recipe.values()) == set(pair)
    export_checkpoint(checkpoint, recipe, tmp_path / "out")
    reloaded = _loaded(tmp_path / "out")
    _same_weights(reloaded, checkpoint, recipe)

    chosen = settings(prose, dtype="bf16")
    client = in_process(str(folder))
    try:
        client.send(p.Open(str(folder), chosen))
        client.send(p.Evaluate(layers=recipe))
        events = until(client, ended("evaluate"))
    finally:
        client.close()
    score = facts(events, p.RecipeScore)[-1]
    baseline = facts(events, p.Baseline)[-1]
    assert isinstance(score, p.RecipeScore)
    assert isinstance(baseline, p.Baseline)
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")(prose.read_text()).input_ids
    windows = torch.tensor(ids[: chosen.tokens]).view(-1, chosen.seq_len)
    assert _nll(AutoModelForCausalLM.from_pretrained(folder), windows) == pytest.approx(
        baseline.nll, abs=1e-4
    )
    assert score.kl > 1e-3
    assert _nll(reloaded, windows) == pytest.approx(score.nll, abs=1e-4)


# --- equal to compressed-tensors' own writer -----------------------------------------------------


def _theirs(text: str) -> QuantizationArgs:
    presets = {"mxfp4": "MXFP4A16", "mxfp8": "MXFP8A16", "nvfp4": "NVFP4A16"}
    presets["fp8-e4m3-block128"] = "FP8_BLOCK"
    if text in presets:
        weights = preset_name_to_scheme(presets[text], ["Linear"]).weights
        assert weights is not None
        return weights
    scope = "tensor" if text.endswith("tensor") else "channel"
    return QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy=scope)


def _their_parameters(weight: Tensor, args: QuantizationArgs) -> dict[str, Tensor]:
    """Scales by compressed-tensors' formulas, as a module holds them before it is compressed."""
    found = {}
    if args.strategy == "tensor_group":
        found["weight_global_scale"] = generate_gparam(*weight.aminmax())
    if args.strategy == "tensor":
        lo, hi = (end.reshape(1) for end in weight.aminmax())
    elif args.strategy == "channel":
        lo, hi = weight.aminmax(dim=1, keepdim=True)
    elif args.strategy == "block":
        padded = maybe_pad_tensor_for_block_quant(weight, (128, 128))
        blocks = padded.unflatten(1, (-1, 128)).unflatten(0, (-1, 128))
        lo, hi = blocks.transpose(1, 2).flatten(2).aminmax(dim=2)
    else:
        lo, hi = weight.unflatten(1, (-1, args.group_size)).aminmax(dim=2)
    scale, _ = calculate_qparams(lo, hi, args, found.get("weight_global_scale"))
    stored = args.num_bits == 8 and args.group_size is None
    found["weight_scale"] = scale.to(torch.bfloat16).float() if stored else scale
    return found


def test_tensors_and_config_equal_those_of_model_compressor(tmp_path: Path) -> None:
    """Theirs of the same weights in float32, for which their arithmetic is exact."""
    folder = tiny.build("llama", tmp_path / "in", dtype=torch.bfloat16, **WIDE)
    checkpoint = open_checkpoint(folder)
    recipe = _spread(checkpoint, (*FLOATS, "mxfp4", "mxfp8", "nvfp4"))
    export_checkpoint(checkpoint, recipe, tmp_path / "out")

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    groups: dict[str, list[str]] = {}
    for name, text in recipe.items():
        groups.setdefault(text, []).append(name)
    schemes = {
        f"group_{i}": QuantizationScheme(
            targets=names,
            weights=_theirs(text),
            format="float-quantized" if text.startswith("fp8") else None,
        )
        for i, (text, names) in enumerate(groups.items())
    }
    apply_quantization_config(model, QuantizationConfig(config_groups=schemes))
    for name, text in recipe.items():
        module = model.get_submodule(name)
        for kind, value in _their_parameters(module.weight.detach(), _theirs(text)).items():
            getattr(module, kind).data.copy_(value)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path / "theirs")
    compressor.update_config(tmp_path / "theirs")

    ours = load_file(tmp_path / "out" / "model.safetensors")
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    assert set(ours) == set(theirs)
    for name in recipe:
        for key in (key for key in theirs if key.startswith(f"{name}.weight")):
            found, expected = ours[key], theirs[key]
            if expected.dtype == torch.float32 and not key.endswith("global_scale"):
                assert found.dtype == torch.bfloat16  # theirs has the dtype of the model
                found = found.float()
            assert found.dtype == expected.dtype, key
            assert torch.equal(found.float(), expected.float()), key
    our_config, their_config = (
        json.loads((tmp_path / side / "config.json").read_text())["quantization_config"]
        for side in ("out", "theirs")
    )
    by_target = [
        {
            target: group.model_dump(exclude={"targets"})
            for group in QuantizationConfig.model_validate(config).config_groups.values()
            for target in group.targets
        }
        for config in (our_config, their_config)
    ]
    assert by_target[0] == by_target[1]
    assert our_config["format"] == their_config["format"] == "mixed-precision"


def test_a_single_form_is_that_of_the_whole_checkpoint(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.build("llama", tmp_path / "in", dtype=torch.bfloat16))
    for text, form in (("nvfp4", "nvfp4-pack-quantized"), ("fp8-e4m3", "float-quantized")):
        out = tmp_path / text
        export_checkpoint(checkpoint, {"lm_head": text}, out)
        config = json.loads((out / "config.json").read_text())["quantization_config"]
        assert config["format"] == form


@pytest.mark.parametrize("text", ["fp8-e4m3", "fp8-e4m3-tensor", "mxfp4", "mxfp8", "nvfp4"])
def test_a_layer_takes_the_bits_that_are_counted(text: str, tmp_path: Path) -> None:
    """Against the file: all that stands for the layer, and nothing beside it."""
    checkpoint = open_checkpoint(tiny.build("llama", tmp_path / "in", dtype=torch.bfloat16))
    export_checkpoint(checkpoint, {"lm_head": text}, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    of_head = [tensor.nbytes for name, tensor in found.items() if name.startswith("lm_head.")]
    assert 8 * sum(of_head) == stored_bits(parse_format(text), (tiny.VOCABULARY, 64))


# --- what was solved already ---------------------------------------------------------------------


@pytest.mark.parametrize("text", ["int4-g32", "int8", "fp8-e4m3", "mxfp4", "mxfp8", "nvfp4"])
def test_codes_that_were_solved_already_are_written_instead(text: str, tmp_path: Path) -> None:
    """The codes of half the weight stand for what a method may have settled on."""
    checkpoint = open_checkpoint(tiny.build("llama", tmp_path / "in", dtype=torch.bfloat16))
    layer, other = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.gate_proj"
    recipe = {layer: text, other: text}
    asked: list[tuple[str, str]] = []

    def solved(row: DiskLayer, fmt: Format) -> Any:
        asked.append((row.name, str(fmt)))
        if row.name != layer:
            return None
        return stored_form(read_layer(checkpoint, row) / 2, fmt, torch.bfloat16)

    export_checkpoint(checkpoint, recipe, tmp_path / "out", solved=solved)
    assert sorted(asked) == sorted(recipe.items())
    model, fmt = _loaded(tmp_path / "out"), parse_format(text)
    for name, scale in ((layer, 0.5), (other, 1.0)):
        weight = checkpoint.read(f"{name}.weight") * scale
        expected = dequantized(weight, fmt, torch.bfloat16).to(torch.bfloat16)
        assert torch.equal(model.get_submodule(name).weight, expected), name


def test_a_stored_form_of_another_format_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.build("llama", tmp_path / "in", dtype=torch.bfloat16))
    form = stored_form(checkpoint.read("lm_head.weight"), parse_format("int8"), torch.bfloat16)
    with pytest.raises(TypeError, match="Quantized is not how mxfp4 is stored"):
        export_checkpoint(
            checkpoint, {"lm_head": "mxfp4"}, tmp_path / "out", solved=lambda _row, _fmt: form
        )
    assert not list(tmp_path.glob("*out*"))
    assert set(tensors("a", parse_format("int8"), form)) >= {"a.weight_packed", "a.weight_scale"}


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["mxfp4", "mxfp8", "nvfp4"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_what_unpacks_to_bfloat16_goes_with_bfloat16_alone(
    dtype: torch.dtype, text: str, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(tiny.build("llama", tmp_path / "in", dtype=dtype))
    with pytest.raises(NotExportable, match=f"unpacks {text} to bfloat16") as caught:
        export_checkpoint(checkpoint, {"lm_head": text}, tmp_path / "out")
    assert set(caught.value.refused) == {"lm_head"}
