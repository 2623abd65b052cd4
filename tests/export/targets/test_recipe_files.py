"""Recipes in other tools' words: what each tool decides for every layer, and hostile names.

``decided/TARGET.json`` has what the real library decided, its version and the file it was given
(`tests.export.targets.renew`). A test here compares the file with the one that is written now, so
that a change of it must be shown to the tool again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint import Checkpoint, list_layers, open_checkpoint
from engine.errors import UsageError
from engine.export.refusal import NotExportable
from engine.export.target import Weight, Words, WordsFor, target_named, targets
from engine.formats.grammar import parse_format
from tests.export.exporting import export_checkpoint
from tests.export.targets.matching import RULES
from tests.export.targets.mixes import EMBEDDING, HEAD, LINEAR, recipe_for, save_tiny
from tests.export.targets.renew import ASKED, HERE, ask

BY_MODULE = [target for target in ASKED if target != "llama-quantize"]
"""Targets whose answers are by the names of modules."""
FILES = [target.name for target in targets() if target.words is not None and target.name in RULES]

_GPTQ = ("bits", "group_size", "sym", "desc_act", "damp_percent", "static_groups")
_LLMC = ("num_bits", "type", "symmetric", "strategy", "group_size", "actorder", "inputs", "solved")
_ROUND = ("bits", "group_size", "sym", "data_type", "act_bits")
_QUARK = ("dtype", "qscheme", "ch_axis", "group_size", "symmetric", "observer_cls")
_MX = {"-1": 32, "type": "dynamic", "scale_bits": [8, 0]}


def _llmc(*values: object) -> dict[str, Any]:
    return dict(zip(_LLMC, (*values, *(None,) * (len(_LLMC) - len(values))), strict=True))


def _gptq(*values: object) -> dict[str, Any]:
    return dict(zip(_GPTQ, (*values, *(False, 0.05, False)[len(values) - 3 :]), strict=True))


def _round(*values: object) -> dict[str, Any]:
    return dict(zip(_ROUND, (*values, 16), strict=True))


def _nvidia(bits: object, axis: object, blocks: object) -> dict[str, Any]:
    return {"num_bits": bits, "axis": axis, "block_sizes": blocks, "inputs": False}


def _intx(bits: int, block: int, *, zero_point: bool) -> dict[str, Any]:
    return {
        "tensor": "IntxUnpackedToInt8Tensor", "block_size": [1, block],
        "dtype": f"torch.int{bits}", "zero_point": zero_point,
    }  # fmt: skip


def _quark(*values: object) -> dict[str, Any]:
    return dict(zip(_QUARK, values, strict=True))


def _affine(bits: int, group: int, mode: str = "affine") -> dict[str, Any]:
    return {"group_size": group, "bits": bits, "mode": mode}


DECISIONS: dict[str, dict[str, dict[str, Any]]] = {
    "llm-compressor": {
        "int4-g32": _llmc(4, "int", False, "group", 32),
        "int4-g64-sym": _llmc(4, "int", True, "group", 64),
        "int8": _llmc(8, "int", True, "channel"),
        "int8+a8": _llmc(8, "int", True, "channel", None, None, 8),
        "int3-channel-sym": _llmc(3, "int", True, "channel"),
        "fp8-e4m3": _llmc(8, "float", True, "channel"),
        "fp8-e4m3-tensor": _llmc(8, "float", True, "tensor"),
        "fp8-e4m3-block128": _llmc(8, "float", True, "block"),
        "int4-g32+gptq": _llmc(4, "int", False, "group", 32, None, None, "gptq 0.01"),
        "int4-g32-sym+gptq:actorder": _llmc(4, "int", True, "group", 32, "group", None,
                                            "gptq 0.01"),
        "int4-g32+gptq:damp=.05": _llmc(4, "int", False, "group", 32, None, None, "gptq 0.05"),
        "mxfp4": _llmc(4, "float", True, "group", 32),
        "nvfp4": _llmc(4, "float", True, "tensor_group", 16),
    },
    "gptqmodel": {
        "int4-g32": _gptq(4, 32, False),
        "int8": _gptq(8, -1, True),
        "int4-g64-sym": _gptq(4, 64, True),
        "int3-g32-sym+gptq:actorder": _gptq(3, 32, True, True, 0.01),
        "int4-g32+gptq:damp=.02": _gptq(4, 32, False, False, 0.02),
        "int2-g32": _gptq(2, 32, False),
        "int4-g32+gptq:actorder:static": _gptq(4, 32, False, True, 0.01, True),
    },
    "auto-round": {
        "int4-g32": _round(4, 32, False, "int"),
        "int8-g64": _round(8, 64, True, "int"),
        "int4-channel-sym": _round(4, -1, True, "int"),
        "int2-g32": _round(2, 32, False, "int"),
        "mxfp4": _round(4, 32, True, "mx_fp"),
        "fp8-e4m3": _round(8, -1, True, "fp"),
    },
    "model-optimizer": {
        "int4-g32-sym": _nvidia(4, None, {"-1": 32}),
        "int8": _nvidia(8, 0, None),
        "fp8-e4m3": _nvidia([4, 3], 0, None),
        "fp8-e4m3-tensor": _nvidia([4, 3], None, None),
        "fp8-e4m3-block128": _nvidia([4, 3], None, {"-1": 128, "-2": 128}),
        "mxfp4": _nvidia([2, 1], None, _MX),
        "nvfp4": _nvidia([2, 1], None, {**_MX, "-1": 16, "scale_bits": [4, 3]}),
        "mxfp8": _nvidia([4, 3], None, _MX),
    },
    "bitsandbytes": {
        "nf4-g64:dq": {"quant_type": "nf4", "blocksize": 64, "compress_statistics": True}
    },
    "hqq": {
        "int4-g64+hqq": {"nbits": 4, "group_size": 64, "axis": 1},
        "int3-g32+hqq": {"nbits": 3, "group_size": 32, "axis": 1},
        "int8-g128-asym+hqq": {"nbits": 8, "group_size": 128, "axis": 1},
    },
    "mlx": {
        "int4-g32": _affine(4, 32), "int4-g64": _affine(4, 64), "int8-g64-asym": _affine(8, 64),
        "int3-g128": _affine(3, 128), "int6-g32": _affine(6, 32),
        "mxfp4": _affine(4, 32, "mxfp4"), "nvfp4": _affine(4, 16, "nvfp4"),
        "mxfp8": _affine(8, 32, "mxfp8"),
    },
    "exllamav3": {
        "int4-g128": {"bits": 4}, "int3-g128": {"bits": 3}, "int5-g64-sym": {"bits": 5},
        "int8": {"bits": 8},
    },
    "quark": {
        "int4-g32-sym": _quark("int4", "per_group", -1, 32, True, "PerGroupMinMaxObserver"),
        "int4-g32": _quark("uint4", "per_group", -1, 32, False, "PerGroupMinMaxObserver"),
        "int8": _quark("int8", "per_channel", 0, None, True, "PerChannelMinMaxObserver"),
        "int8-asym": _quark("uint8", "per_channel", 0, None, False, "PerChannelMinMaxObserver"),
        "int3-g32-sym": _quark("int3", "per_group", -1, 32, True, "PerGroupMinMaxObserver"),
        "fp8-e4m3": _quark("fp8_e4m3", "per_channel", 0, None, True, "PerChannelMinMaxObserver"),
        "fp8-e5m2": _quark("fp8_e5m2", "per_channel", 0, None, True, "PerChannelMinMaxObserver"),
        "fp8-e4m3-tensor": _quark("fp8_e4m3", "per_tensor", None, None, True,
                                  "PerTensorMinMaxObserver"),
        "mxfp4": _quark("fp4", "per_group", -1, 32, None, "PerBlockMXObserver"),
        "mxfp8": _quark("fp8_e4m3", "per_group", -1, 32, None, "PerBlockMXObserver"),
        "int2-channel-sym": _quark("int2", "per_channel", 0, None, True,
                                   "PerChannelMinMaxObserver"),
    },
}  # fmt: skip
"""What each tool should decide for a layer in a format, in the tool's terms."""


def _of_torchao(fmt: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """torchao says the shape of a block, which the layer's own shape is part of."""
    match fmt:
        case "int4-g32" | "int4-g64-sym" | "int8-g32":
            size = int(fmt.split("-g")[1].split("-")[0])
            return _intx(int(fmt[3]), size, zero_point=fmt == "int4-g32")
        case "int3-channel-sym":
            return _intx(3, shape[1], zero_point=False)
        case "int8" | "int8-tensor" | "int8+a8":
            block = list(shape) if fmt == "int8-tensor" else [1, shape[1]]
            return {
                "tensor": "Int8Tensor", "block_size": block, "qdata": "torch.int8",
                "act_quant_kwargs": fmt == "int8+a8",
            }  # fmt: skip
    block = list(shape) if fmt.endswith("tensor") else [1, shape[1]]
    kind = "float8_e5m2" if "e5m2" in fmt else "float8_e4m3fn"
    return {
        "tensor": "Float8Tensor", "block_size": block, "qdata": f"torch.{kind}",
        "act_quant_kwargs": False,
    }  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "tiny")


def written(target: str, checkpoint: Checkpoint, folder: Path, recipe: Mapping[str, str]) -> str:
    file = folder / f"recipe{target_named(target).ending}"
    export_checkpoint(checkpoint, recipe, file, target)
    return file.read_text()


@pytest.mark.parametrize("target", BY_MODULE)
def test_the_tool_decides_what_the_recipe_says(
    target: str, tiny: Checkpoint, tmp_path: Path
) -> None:
    answer = json.loads((HERE / "decided" / f"{target}.json").read_text())
    recipe = recipe_for(target)
    text = written(target, tiny, tmp_path, recipe)
    assert text == answer["file"], f"it was written otherwise for {target} {answer['version']}"
    assert set(LINEAR) <= answer["decided"].keys()
    for name, decided in answer["decided"].items():
        if name not in recipe:
            assert decided is None, name
        elif target == "torchao":
            assert decided == _of_torchao(recipe[name], tiny.tensors[f"{name}.weight"].shape), name
        else:
            assert decided == DECISIONS[target][recipe[name]], name


@pytest.mark.parametrize("target", BY_MODULE)
def test_the_rule_written_again_decides_as_the_tool_does(target: str) -> None:
    answer = json.loads((HERE / "decided" / f"{target}.json").read_text())
    names = [name for name in answer["decided"] if name not in (EMBEDDING, HEAD)]
    found = RULES[target](answer["file"], names)
    for name in names:
        assert (found[name] is None) == (answer["decided"][name] is None), name


@pytest.mark.soak
@pytest.mark.parametrize("target", ASKED)
def test_the_tool_itself_still_says_so(target: str, tmp_path: Path) -> None:
    """With ``QTUI_TOOLS``, a folder of environments that have the tools."""
    python = Path(os.environ.get("QTUI_TOOLS", "")) / target / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"no environment with {target}: see tests/export/targets/renew.py")
    before = json.loads((HERE / "decided" / f"{target}.json").read_text())
    assert json.loads(ask(target, python, tmp_path))["decided"] == before["decided"]


# --- what is installed is asked here -------------------------------------------------------------


def test_compressed_tensors_matches_the_recipe_for_llm_compressor(
    tiny: Checkpoint, tmp_path: Path
) -> None:
    import yaml
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from transformers import AutoConfig, AutoModelForCausalLM

    recipe = {layer: "int4-g32" if at % 2 else "int8" for at, layer in enumerate(LINEAR[:9])}
    text = written("llm-compressor", tiny, tmp_path, {**recipe, HEAD: "int3-g32-sym"})
    stages = yaml.safe_load(text)
    groups = stages["qtui0_stage"]["qtui0_modifiers"]["QuantizationModifier"]["config_groups"]
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny.folder))
    apply_quantization_config(model, QuantizationConfig(config_groups=groups))
    bits = {
        name: module.quantization_scheme.weights.num_bits
        for name, module in model.named_modules()
        if getattr(module, "quantization_scheme", None) is not None
    }
    wanted = {layer: parse_format(fmt).bits for layer, fmt in recipe.items()}
    assert bits == {**wanted, HEAD: 3}


@pytest.mark.parametrize("tied", [False, True])
def test_llama_quantize_has_a_type_for_every_tensor(tmp_path: Path, tied: bool) -> None:
    checkpoint = save_tiny(tmp_path / "tiny", tied=tied)
    recipe = recipe_for("llama-quantize")
    if tied:
        recipe[HEAD] = recipe[EMBEDDING]
    text = written("llama-quantize", checkpoint, tmp_path, recipe)
    kinds = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
             "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down"}  # fmt: skip
    there = {EMBEDDING: "token_embd.weight"} | ({} if tied else {HEAD: "output.weight"})
    for layer in LINEAR:
        block, kind = layer.removeprefix("model.layers.").split(".", 1)
        there[layer] = f"blk.{block}.{kinds[kind]}.weight"
    assert len(text.splitlines()) == len(there)
    found = RULES["llama-quantize"](text, there.values())
    types = {layer: held.removesuffix("+imatrix") for layer, held in recipe.items()}
    assert found == {tensor: types.get(layer, "bf16") for layer, tensor in there.items()}
    if not tied:
        answer = json.loads((HERE / "decided" / "llama-quantize.json").read_text())
        assert text == answer["file"]
        assert found == answer["decided"]


def test_llama_quantize_takes_small_types_with_an_importance_matrix_only(tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path / "tiny")
    small = ("iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs")
    for layer, held in zip(LINEAR, small, strict=False):
        with pytest.raises(NotExportable, match=f"write {held}\\+imatrix") as refused:
            written("llama-quantize", checkpoint, tmp_path, {layer: held})
        assert refused.value.nearest == {layer: f"{held}+imatrix"}
    outside = {EMBEDDING: "iq2_s", HEAD: "iq3_xxs", LINEAR[0]: "iq3_s"}
    assert written("llama-quantize", checkpoint, tmp_path, outside)
    (tmp_path / "informed").mkdir()
    informed = {layer: f"{held}+imatrix" for layer, held in zip(LINEAR, small, strict=False)}
    assert written("llama-quantize", checkpoint, tmp_path / "informed", informed)


def test_experts_are_three_tensors_in_gguf(tmp_path: Path) -> None:
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        hidden_size=256, intermediate_size=256, moe_intermediate_size=256, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, vocab_size=64, num_experts=4,
        num_experts_per_tok=2, head_dim=64,
    )  # fmt: skip
    Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "moe")
    checkpoint = open_checkpoint(tmp_path / "moe")
    experts = [row.name for row in list_layers(checkpoint) if row.role == "experts"]
    recipe = dict(zip(experts, ("q4_k", "q6_k"), strict=True))
    found = RULES["llama-quantize"](
        written("llama-quantize", checkpoint, tmp_path, recipe),
        [f"blk.0.{name}.weight" for name in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")],
    )
    assert list(found.values()) == ["q4_k", "q4_k", "q6_k"]
    with pytest.raises(NotExportable, match="torchao quantises no experts"):
        written("torchao", checkpoint, tmp_path, dict.fromkeys(experts, "int8"))


def test_gguf_names_are_those_of_the_architecture(tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path / "tiny")
    config = json.loads((checkpoint.folder / "config.json").read_text())
    from engine.export.recipe_file import disk_weights, words_for
    from engine.export.targets.llama_quantize import tensor_names

    words = words_for(checkpoint, disk_weights(checkpoint), {LINEAR[0]: "q4_k"}, trusted=False)
    assert config["model_type"] == words.model_type == "llama"
    assert tensor_names(words)[LINEAR[0]] == ["blk.0.attn_q.weight"]
    import msgspec

    unknown = msgspec.structs.replace(words, model_type="no-such-model")
    with pytest.raises(NotExportable, match="the gguf package has no architecture 'no-such-model'"):
        tensor_names(unknown)


# --- names ---------------------------------------------------------------------------------------

HOSTILE = (
    "model.layers.1.q", "model.layers.11.q", "model.layers.1.q.q", "x.model.layers.1.q",
    "model/layers.1.q", "modelXlayersX1Xq", "a*b.c", "axb.c", "a?b.c", "a[x]b.c", "a.(b|c)+$",
    "re:.*", "-:a.b", 'quote".b', "quote'.b", "new\nline.b", "# comment.b", "- item.b", "{{b}}.b",
    "a: b.c", "&anchor.b", "*alias.b", "!!python/object.b", "back\\slash.b", "$(touch pwned).b",
    "`touch pwned`.b", "; rm.b", "ünï.b", "_default", "Linear", "yes", "null", "1e3", "a b.c",
    "\u2028.b",
)  # fmt: skip
SAFE = {"llama-quantize"}
"""Targets whose files have names of their own."""


def _words(target: str, chosen: str) -> Words:
    """All hostile names as linear layers, one of them quantised."""
    fmt = parse_format(next(iter(recipe_for(target).values())))
    return Words(
        checkpoint="hostile",
        model_type="llama",
        blocks=1,
        layers=tuple(
            WordsFor(
                weight=Weight(
                    name=name, kind=f"k{at}", block=0, role="linear", shape=(256, 256),
                    dtype="bfloat16",
                ),
                module=name,
                tensors=(f"{name}.weight",),
                format=fmt if name == chosen else None,
            )
            for at, name in enumerate(HOSTILE)
        ),
    )  # fmt: skip


@pytest.mark.parametrize("target", [name for name in FILES if name not in SAFE | {"hqq"}])
def test_a_hostile_name_is_matched_alone(target: str) -> None:
    words = target_named(target).words
    assert words is not None
    for chosen in HOSTILE:
        found = RULES[target](words(_words(target, chosen)), HOSTILE)
        assert [name for name, what in found.items() if what is not None] == [chosen]


def test_commands_that_are_shown_quote_their_paths(tiny: Checkpoint, tmp_path: Path) -> None:
    import ast
    import shlex

    folder = tmp_path / "it's $(touch pwned); `x`"
    folder.mkdir()
    file = folder / "a b.txt"
    notes = export_checkpoint(tiny, {LINEAR[0]: "q4_k"}, file, "llama-quantize").notes
    assert shlex.split(notes[0])[5] == str(file)
    other = folder / "c.json"
    notes = export_checkpoint(tiny, {LINEAR[0]: "int8"}, other, "torchao").notes
    ran = notes[0].removeprefix("use it as: ")
    literals = [node.value for node in ast.walk(ast.parse(ran)) if isinstance(node, ast.Constant)]
    assert str(other) in literals


def test_every_target_says_how_its_file_is_used() -> None:
    for target in targets():
        if target.words is not None:
            assert target.ending
            assert re.search(r"\{(file|path)\}", target.use), target.name


def test_no_file_of_the_checkpoint_is_overwritten(tiny: Checkpoint) -> None:
    config = tiny.folder / "config.json"
    before = config.read_bytes()
    with pytest.raises(UsageError, match="the checkpoint's own folder"):
        export_checkpoint(tiny, {LINEAR[0]: "int8"}, config, "torchao", overwrite=True)
    assert config.read_bytes() == before
