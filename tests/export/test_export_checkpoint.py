"""An exported checkpoint, loaded by plain transformers, is what the engine measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import protocol as p
from engine.checkpoint import Checkpoint, list_layers, open_checkpoint, read_header, read_layer
from engine.client import in_process
from engine.demo import DEMO_PATH
from engine.errors import (
    CheckpointError,
    EngineError,
    FormatError,
    InfeasibleError,
    UsageError,
)
from engine.export.compressed.folder import why_not_exported
from engine.export.refusal import NotExportable
from engine.formats.grammar import parse_format
from engine.quant.quantize import dequantized, scale_dtype_for
from engine.texts.corpora import held_out_library
from tests import tiny
from tests.drive import ended, facts, settings, until
from tests.export.exporting import export_checkpoint

MIXED = {
    "model.layers.0.self_attn.q_proj": "int4-g32",
    "model.layers.0.self_attn.k_proj": "int4-g32-sym",
    "model.layers.0.self_attn.v_proj": "int8",
    "model.layers.0.self_attn.o_proj": "int8-asym",
    "model.layers.0.mlp.gate_proj": "int3-channel",
    "model.layers.0.mlp.up_proj": "int2-g32",
    "model.layers.0.mlp.down_proj": "int5-g64-sym",
    "model.layers.1.self_attn.q_proj": "int6-tensor",
    "model.layers.1.self_attn.k_proj": "int7-tensor-sym",
    "model.layers.1.self_attn.v_proj": "int8-g32",
    "model.layers.1.mlp.down_proj": "int4-g128",
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _loaded(folder: Path) -> Any:
    """A model as a user loads it, after one forward pass."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model(input_ids=tiny.ids(1, 4))
    return model


def _expected(checkpoint: Checkpoint, recipe: dict[str, str]) -> dict[str, Tensor]:
    """Every layer's weight in the checkpoint's dtype, by the name of its module."""
    stored: torch.dtype = getattr(torch, checkpoint.dtype)
    found = {}
    for row in list_layers(checkpoint):
        weight = read_layer(checkpoint, row)
        if row.name in recipe:
            fmt = parse_format(recipe[row.name])
            weight = dequantized(weight, fmt, scale_dtype_for(stored), row.name)
        found[row.name] = weight.to(stored)
    return found


def _same_weights(model: Any, expected: dict[str, Tensor]) -> None:
    for name, weight in expected.items():
        found = model.get_submodule(name).weight
        assert found.dtype == weight.dtype, name
        assert torch.equal(found, weight), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen3"])
def test_reloaded_weights_equal_the_dequantised_ones(
    arch: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(tiny.build(arch, tmp_path / "in", dtype=dtype))
    done = export_checkpoint(checkpoint, MIXED, tmp_path / "out")
    assert set(done.quantised) == set(MIXED)
    _same_weights(_loaded(tmp_path / "out"), _expected(checkpoint, MIXED))
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("fox").input_ids


@pytest.mark.parametrize(
    "recipe",
    [
        {"lm_head": "int8"},
        {"lm_head": "int4-g32", "model.embed_tokens": "bf16"},
        {"model.embed_tokens": "bf16"},
        {"lm_head": "bf16"},
    ],
    ids=["head", "both", "embedding cast", "head cast"],
)
def test_changing_a_tied_head_or_embedding_leaves_the_other(
    recipe: dict[str, str], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(tiny.build("qwen3", tmp_path / "in", dtype=torch.float16))
    done = export_checkpoint(checkpoint, recipe, tmp_path / "out")
    assert any("tied" in note for note in done.notes)
    model = _loaded(tmp_path / "out")
    _same_weights(model, _expected(checkpoint, recipe))
    assert model.lm_head.weight is not model.model.embed_tokens.weight


def test_a_tied_head_that_is_kept_stays_tied(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.build("qwen3", tmp_path / "in", dtype=torch.float16))
    recipe = {**MIXED, "lm_head": "fp16"}
    done = export_checkpoint(checkpoint, recipe, tmp_path / "out")
    assert not any("tied" in note for note in done.notes)
    model = _loaded(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    _same_weights(model, _expected(checkpoint, MIXED))


def test_kept_formats_are_cast(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.build("gpt2", tmp_path / "in"))
    recipe = {"transformer.h.0.attn.c_attn": "bf16", "transformer.h.1.mlp.c_fc": "fp16"}
    export_checkpoint(checkpoint, recipe, tmp_path / "out")
    written = open_checkpoint(tmp_path / "out")
    assert written.tensors["transformer.h.0.attn.c_attn.weight"].dtype == "bfloat16"
    assert "quantization_config" not in written.config
    model = _loaded(tmp_path / "out")
    expected = _expected(checkpoint, recipe)
    for name in recipe:
        assert torch.equal(model.get_submodule(name).weight.T, expected[name])


def _nll(model: Any, windows: Tensor) -> float:
    with torch.no_grad():
        logits = model(input_ids=windows).logits[:, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()))


def test_demo_with_int4_and_int8_mixed_scores_what_the_engine_measured(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(DEMO_PATH)
    body = [row.name for row in list_layers(checkpoint) if row.block is not None]
    recipe = {name: "int8" if "down_proj" in name else "int4-g128" for name in body}
    export_checkpoint(checkpoint, recipe, tmp_path / "out")
    _same_weights(_loaded(tmp_path / "out"), _expected(checkpoint, recipe))

    seq_len, tokens = 128, 1024
    chosen = settings(tokens=tokens, seq_len=seq_len, batch_tokens=512, dtype="fp32")
    client = in_process(str(DEMO_PATH))
    try:
        client.send(p.Open(str(DEMO_PATH), chosen))
        client.send(p.Evaluate(layers=recipe))
        events = until(client, ended("evaluate"))
    finally:
        client.close()
    score = facts(events, p.RecipeScore)[-1]
    baseline = facts(events, p.Baseline)[-1]
    assert isinstance(score, p.RecipeScore)
    assert isinstance(baseline, p.Baseline)
    assert score.nll > baseline.nll + 1e-3

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer(held_out_library().content).input_ids[:tokens]
    windows = torch.tensor(ids).view(-1, seq_len)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert _nll(reloaded, windows) == pytest.approx(score.nll, abs=1e-5)
    # As stored, in float16, which rounds the activations too.
    assert _nll(_loaded(tmp_path / "out"), windows) == pytest.approx(score.nll, abs=1e-4)


# --- equal to compressed-tensors' own writer -----------------------------------------------------


def _arguments(text: str) -> QuantizationArgs:
    fmt = parse_format(text)
    return QuantizationArgs(
        num_bits=fmt.bits,
        type="int",
        strategy=fmt.strategy,
        group_size=fmt.group_size,
        symmetric=fmt.symmetric,
    )


def _parameters(weight: Tensor, args: QuantizationArgs) -> tuple[Tensor, Tensor]:
    """Scale and zero point by compressed-tensors' formula, in the shape of the module's."""
    if args.strategy == "tensor":
        lo, hi = (end.reshape(1) for end in weight.aminmax())
    elif args.strategy == "channel":
        lo, hi = weight.aminmax(dim=1, keepdim=True)
    else:
        lo, hi = weight.unflatten(1, (-1, args.group_size)).aminmax(dim=2)
    return calculate_qparams(lo, hi, args)


def test_tensors_and_config_equal_those_of_model_compressor(tmp_path: Path) -> None:
    folder = tiny.build("llama", tmp_path / "in")
    recipe = {**MIXED, "lm_head": "int8"}
    export_checkpoint(open_checkpoint(folder), recipe, tmp_path / "out")

    model = AutoModelForCausalLM.from_pretrained(folder)
    groups: dict[str, list[str]] = {}
    for name, text in recipe.items():
        groups.setdefault(text, []).append(name)
    schemes = {
        f"group_{i}": QuantizationScheme(targets=names, weights=_arguments(text))
        for i, (text, names) in enumerate(groups.items())
    }
    apply_quantization_config(model, QuantizationConfig(config_groups=schemes))
    for name, text in recipe.items():
        module = model.get_submodule(name)
        scale, zero_point = _parameters(module.weight.detach(), _arguments(text))
        module.weight_scale.data.copy_(scale.to(torch.float16))
        module.weight_zero_point.data.copy_(zero_point)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path / "theirs")
    compressor.update_config(tmp_path / "theirs")

    ours = load_file(tmp_path / "out" / "model.safetensors")
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        found = ours[name]
        if name.endswith("weight_scale"):
            assert found.dtype == torch.float16  # theirs has the dtype of the model
            found = found.float()
        assert found.dtype == tensor.dtype, name
        assert torch.equal(found, tensor), name
    our_config, their_config = (
        json.loads((tmp_path / side / "config.json").read_text())["quantization_config"]
        for side in ("out", "theirs")
    )
    assert set(our_config) == set(their_config)
    parsed = [QuantizationConfig.model_validate(c) for c in (our_config, their_config)]
    by_target = [
        {
            target: group.model_dump(exclude={"targets"})
            for group in config.config_groups.values()
            for target in group.targets
        }
        for config in parsed
    ]
    assert by_target[0] == by_target[1]
    assert set(parsed[0].ignore or ()) == set(parsed[1].ignore or ())
    assert our_config["format"] == their_config["format"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_codes_of_16_bit_checkpoints_equal_compressed_tensors_in_float32(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(tiny.build("llama", tmp_path / "in", dtype=dtype))
    export_checkpoint(checkpoint, MIXED, tmp_path / "out")
    ours = load_file(tmp_path / "out" / "model.safetensors")
    for name, text in MIXED.items():
        args = _arguments(text)
        weight = checkpoint.read(f"{name}.weight").float()
        scale, zero_point = _parameters(weight, args)
        stored = scale.to(scale_dtype_for(dtype))
        theirs = PackedQuantizationCompressor.compress(
            {
                "weight": weight,
                "weight_scale": stored.float(),
                "weight_zero_point": zero_point,
            },
            QuantizationScheme(targets=[name], weights=args),
        )
        assert torch.equal(ours[f"{name}.weight_scale"], stored)
        del theirs["weight_scale"]
        for kind, tensor in theirs.items():
            assert torch.equal(ours[f"{name}.{kind}"], tensor), (name, kind)


# --- files ---------------------------------------------------------------------------------------


def test_shards_have_an_index_and_are_read_by_safetensors(tmp_path: Path) -> None:
    folder = tiny.build("llama", tmp_path / "in", dtype=torch.bfloat16, shards=3)
    checkpoint = open_checkpoint(folder)
    assert len(checkpoint.files) > 1
    seen: list[tuple[int, int]] = []
    done = export_checkpoint(
        checkpoint, MIXED, tmp_path / "out", on_progress=lambda a, b, _: seen.append((a, b))
    )
    assert seen == sorted(seen)
    assert seen[-1] == (done.bytes, done.bytes)
    written = open_checkpoint(tmp_path / "out")
    assert len(written.files) == len(checkpoint.files)
    assert written.bytes == done.bytes
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == done.bytes
    for file in written.files:
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            assert set(opened.keys()) == {
                k for k, v in index["weight_map"].items() if v == file.name
            }
        for tensor in read_header(file).values():
            assert tensor.start % (tensor.bytes // max(1, tensor.elements) or 1) == 0
    _same_weights(_loaded(tmp_path / "out"), _expected(checkpoint, MIXED))


def test_an_old_pickled_checkpoint_is_exported_as_safetensors(tmp_path: Path) -> None:
    folder = tiny.build("llama", tmp_path / "in", dtype=torch.float16)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    checkpoint = open_checkpoint(folder)
    export_checkpoint(checkpoint, MIXED, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.bin"))
    _same_weights(_loaded(tmp_path / "out"), _expected(checkpoint, MIXED))


def test_the_exported_dtype_is_that_of_the_weights(tmp_path: Path) -> None:
    """A config that says otherwise would have the scales rounded on loading."""
    folder = tiny.build("llama", tmp_path / "in", dtype=torch.float16)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "bfloat16"
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(folder)
    export_checkpoint(checkpoint, MIXED, tmp_path / "out")
    _same_weights(_loaded(tmp_path / "out"), _expected(checkpoint, MIXED))


def test_values_that_are_not_finite_are_stored_as_zero_and_told(tmp_path: Path) -> None:
    folder = tiny.build("llama", tmp_path / "in", dtype=torch.float16)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    tensors[f"{name}.weight"][3, 5] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    checkpoint = open_checkpoint(folder)
    done = export_checkpoint(checkpoint, MIXED, tmp_path / "out")
    assert any(name in note for note in done.notes)
    expected = _expected(checkpoint, MIXED)
    assert expected[name].isnan().sum() == 1
    expected[name].nan_to_num_(0)
    _same_weights(_loaded(tmp_path / "out"), expected)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "layer", "text", "why"),
    [
        ("gpt2", "transformer.h.0.attn.c_attn", "int8", "Conv1D"),
        ("qwen3_moe", "model.layers.0.mlp.experts.gate_up_proj", "int8", "drops plain ones"),
        ("llama", "model.embed_tokens", "int8", "cannot load an embedding"),
        ("llama", "model.layers.0.self_attn.q_proj", "int4-g48", "shorter"),
        ("llama", "model.layers.0.self_attn.q_proj", "nf4", "no nf4"),
        ("llama", "model.layers.0.self_attn.q_proj", "q8_0", "GGUF"),
        ("llama", "model.layers.0.self_attn.q_proj", "fp8-e5m2", "no fp8-e5m2"),
        ("llama", "model.layers.0.self_attn.q_proj", "int4-g32+awq:online", "run time"),
        ("llama", "model.layers.0.self_attn.q_proj", "int8+a8:static", "not implemented yet"),
        ("llama", "model.layers.0.self_attn.q_proj", "int4-g32+a8", "per channel or tensor"),
        ("gpt2", "transformer.h.0.attn.c_attn", "int8+gptq", "Conv1D"),
    ],
)
def test_what_cannot_be_expressed_is_refused_with_the_reason(
    arch: str, layer: str, text: str, why: str, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(tiny.build(arch, tmp_path / "in"))
    with pytest.raises(NotExportable, match=why) as caught:
        export_checkpoint(checkpoint, {layer: text}, tmp_path / "out")
    assert set(caught.value.refused) == {layer}
    assert layer in str(caught.value)
    assert isinstance(caught.value, InfeasibleError)
    assert why_not_exported(checkpoint, {layer: text}) == caught.value.refused
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        ("model.layers.1.shared_transformer.self_attn.q_proj", "several blocks share its weight"),
        ("lm_head", "the weights that blocks share"),
    ],
)
def test_what_no_reader_loads_of_shared_weights_is_refused(
    layer: str, why: str, tmp_path: Path
) -> None:
    folder = tiny.build("zamba2", tmp_path / "source", num_hidden_layers=6)
    with pytest.raises(NotExportable, match=why):
        export_checkpoint(open_checkpoint(folder), {layer: "int4-g32"}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_layers_of_a_model_that_shares_weights_are_exported(tmp_path: Path) -> None:
    folder = tiny.build("zamba2", tmp_path / "source")
    checkpoint, layer = open_checkpoint(folder), "model.layers.4.linear"
    export_checkpoint(checkpoint, {layer: "int8"}, tmp_path / "out")
    row = next(row for row in list_layers(checkpoint) if row.name == layer)
    expected = dequantized(read_layer(checkpoint, row), parse_format("int8"), torch.float16)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.get_parameter(f"{layer}.weight").data.copy_(expected)
    ids = tiny.ids(1, 16)
    with torch.no_grad():
        wanted = model(input_ids=ids, use_cache=False).logits
        reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
        assert torch.equal(reloaded.eval()(input_ids=ids, use_cache=False).logits, wanted)


def test_all_layers_that_cannot_be_expressed_are_listed(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.build("llama", tmp_path / "in"))
    bad = {f"model.layers.{i}.mlp.up_proj": "nf4" for i in range(3)}
    found = why_not_exported(checkpoint, {**MIXED, **bad})
    assert set(found) == set(bad)
    with pytest.raises(NotExportable) as caught:
        export_checkpoint(checkpoint, {**MIXED, **bad}, tmp_path / "out")
    assert all(layer in str(caught.value) for layer in bad)


def test_an_unknown_layer_or_format_is_an_error(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.build("llama", tmp_path / "in"))
    with pytest.raises(UsageError, match=r"no layer 'model\.nothing'"):
        export_checkpoint(checkpoint, {"model.nothing": "int8"}, tmp_path / "out")
    with pytest.raises(FormatError, match="int9"):
        export_checkpoint(checkpoint, {"lm_head": "int9"}, tmp_path / "out")


def test_a_quantised_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.build("llama", tmp_path / "in", dtype=torch.float16))
    checkpoint.config["quantization_config"] = {"quant_method": "fp8"}
    with pytest.raises(CheckpointError, match="is already quantised"):
        export_checkpoint(checkpoint, {"lm_head": "int8"}, tmp_path / "out")


def test_a_scale_that_overflows_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tiny.build("llama", tmp_path / "in")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"][0, 0] = 1e30
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    before = set(tmp_path.iterdir())
    with pytest.raises(FormatError, match=r"layers\.2\.mlp\.down_proj"):
        export_checkpoint(
            open_checkpoint(folder), {"model.layers.2.mlp.down_proj": "int8"}, tmp_path / "out"
        )
    assert set(tmp_path.iterdir()) == before


def test_nothing_is_overwritten_unless_told(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.build("llama", tmp_path / "in", dtype=torch.float16))
    out = tmp_path / "out"
    export_checkpoint(checkpoint, {"lm_head": "int8"}, out)
    with pytest.raises(UsageError, match="exists already"):
        export_checkpoint(checkpoint, MIXED, out)
    assert "lm_head.weight_packed" in load_file(out / "model.safetensors")
    (out / "stale.txt").write_text("")
    export_checkpoint(checkpoint, MIXED, out, overwrite=True)
    assert "lm_head.weight" in load_file(out / "model.safetensors")
    assert not (out / "stale.txt").exists()
    assert {path.name for path in tmp_path.iterdir()} >= {"in", "out"}
    assert not list(tmp_path.glob(".out*"))


def test_the_source_and_foreign_folders_are_never_overwritten(tmp_path: Path) -> None:
    folder = tiny.build("llama", tmp_path / "models" / "in", dtype=torch.float16)
    checkpoint = open_checkpoint(folder)
    for out in (folder, tmp_path / "models"):
        with pytest.raises(UsageError, match="is the checkpoint being exported"):
            export_checkpoint(checkpoint, MIXED, out, overwrite=True)
    letters = tmp_path / "letters"
    letters.mkdir()
    (letters / "a.txt").write_text("dear")
    with pytest.raises(UsageError, match="is not a checkpoint"):
        export_checkpoint(checkpoint, MIXED, letters, overwrite=True)
    with pytest.raises(UsageError, match="is not a folder"):
        export_checkpoint(checkpoint, MIXED, letters / "a.txt", overwrite=True)
    with pytest.raises(EngineError, match="not a writable folder"):
        export_checkpoint(checkpoint, MIXED, tmp_path / "nowhere" / "out")


def test_an_export_that_is_abandoned_leaves_what_was_there(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.build("llama", tmp_path / "in", dtype=torch.float16))
    out = tmp_path / "out"
    export_checkpoint(checkpoint, {"lm_head": "int8"}, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def stop(done: int, _total: int, _tensor: str) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(checkpoint, MIXED, out, overwrite=True, on_progress=stop)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert not list(tmp_path.glob(".out*"))


def test_a_full_disk_is_an_error_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(tiny.build("llama", tmp_path / "in", dtype=torch.float16))
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: real._replace(free=1000))
    with pytest.raises(EngineError, match="another disk"):
        export_checkpoint(checkpoint, MIXED, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_layers_that_servers_fuse_are_told_where_their_formats_differ(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.build("llama", tmp_path / "in", dtype=torch.float16))
    attention = [f"model.layers.0.self_attn.{kind}_proj" for kind in "qkv"]
    alike = export_checkpoint(checkpoint, dict.fromkeys(attention, "int8"), tmp_path / "alike")
    assert not alike.notes
    unlike = export_checkpoint(checkpoint, {attention[0]: "int8"}, tmp_path / "unlike")
    assert all(layer in unlike.notes[0] for layer in attention)
