"""The table of layers from headers alone is the table that the model in memory has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.checkpoint import list_layers, open_checkpoint, read_layer
from engine.checkpoint.layers import DiskLayer
from engine.errors import CheckpointError
from engine.model.load import load_network
from tests import tiny


def layers_of(folder: Path) -> dict[str, DiskLayer]:
    rows = list_layers(open_checkpoint(folder))
    assert len({row.name for row in rows}) == len(rows)
    return {row.name: row for row in rows}


def save(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
def test_the_rows_are_those_of_the_model_in_memory(arch: str, tmp_path: Path) -> None:
    """Names, kinds, blocks, roles, shapes, and the very weights."""
    folder = tiny.build(arch, tmp_path, shards=2)
    checkpoint = open_checkpoint(folder)
    ours = {row.name: row for row in list_layers(checkpoint)}
    network = load_network(folder, device="cpu", dtype="fp32")
    theirs = network.layers
    assert sorted(ours) == sorted(theirs)
    for name, row in ours.items():
        live = theirs[name]
        assert (row.kind, row.block, row.role, row.shape) == (
            live.kind,
            live.block,
            live.role,
            live.shape,
        ), name
        weight = read_layer(checkpoint, row)
        assert weight.shape == row.shape
        assert weight.is_contiguous()
        assert torch.equal(weight, network.weight(name)), name


@pytest.mark.parametrize(
    ("config_name", "fields"),
    [
        (
            "DeepseekV3Config",
            {
                **tiny.SIZES,
                "num_key_value_heads": 4,
                "moe_intermediate_size": 32,
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
                "n_group": 2,
                "topk_group": 1,
                "q_lora_rank": 16,
                "kv_lora_rank": 16,
                "qk_rope_head_dim": 8,
                "qk_nope_head_dim": 8,
                "v_head_dim": 8,
                "first_k_dense_replace": 1,
            },
        ),
        (
            "Qwen3NextConfig",
            {
                **tiny.SIZES,
                "num_hidden_layers": 4,
                "moe_intermediate_size": 32,
                "shared_expert_intermediate_size": 32,
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "head_dim": 16,
                "linear_num_value_heads": 4,
                "linear_num_key_heads": 2,
                "linear_key_head_dim": 8,
                "linear_value_head_dim": 8,
            },
        ),
        ("GptOssConfig", {**tiny.SIZES, "num_local_experts": 4, "head_dim": 16}),
        ("Llama4TextConfig", {**tiny.SIZES, "num_local_experts": 4, "head_dim": 16}),
        ("GraniteMoeConfig", {**tiny.SIZES, "num_local_experts": 4}),
        ("PhimoeConfig", {**tiny.SIZES, "num_local_experts": 4}),
        ("GPTNeoXConfig", {k: v for k, v in tiny.SIZES.items() if "key_value" not in k}),
        ("GPTBigCodeConfig", {"vocab_size": 320, "n_embd": 64, "n_layer": 2, "n_head": 4}),
        ("BloomConfig", {"vocab_size": 320, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
        ("MambaConfig", {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2}),
        (
            "OPTConfig",
            {
                "vocab_size": 320,
                "hidden_size": 64,
                "word_embed_proj_dim": 32,
                "ffn_dim": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "do_layer_norm_before": False,
            },
        ),
    ],
)
def test_the_rows_are_the_linear_and_expert_weights_of_the_model(
    config_name: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    """Against the modules themselves: shapes and weights of every layer, and of nothing else."""
    import transformers

    config = getattr(transformers, config_name)(**fields)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    head = model.get_output_embeddings()
    expected: list[tuple[int, ...]] = [tuple(model.get_input_embeddings().weight.shape)]
    for path, module in model.named_modules():
        last = path.rpartition(".")[2]
        if isinstance(module, torch.nn.Linear):
            routes = "outer" in type(module).__name__ or last in ("router", "shared_expert_gate")
            if not routes or module is head:
                expected.append(tuple(module.weight.shape))
        elif last == "experts":
            turned = config_name in ("GptOssConfig", "Llama4TextConfig")
            for weight in (module.gate_up_proj, module.down_proj):
                shape = weight.shape
                expected.append((shape[0], shape[2], shape[1]) if turned else tuple(shape))
    rows = layers_of(tmp_path)
    assert sorted(row.shape for row in rows.values()) == sorted(expected)
    assert not [name for name in rows if "router" in name or name.endswith(".gate")]
    checkpoint = open_checkpoint(tmp_path)
    state = model.state_dict()
    for row in rows.values():
        found = state.get(f"{row.name}.weight", state.get(row.name))
        if found is not None:
            wanted = found.transpose(-1, -2) if row.transposed else found
            assert torch.equal(read_layer(checkpoint, row), wanted), row.name


def test_the_order_is_embedding_blocks_by_number_head(tmp_path: Path) -> None:
    rows = list(layers_of(tiny.build("llama", tmp_path, num_hidden_layers=11)).values())
    assert rows[0].role == "embedding"
    assert rows[-1].role == "head"
    blocks = [row.block for row in rows[1:-1]]
    assert blocks == sorted(blocks, key=lambda b: b or 0)
    assert [row.kind for row in rows[1:8]] == [
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    ]


def test_a_tied_head_is_a_row_of_the_embeddings_tensor(tmp_path: Path) -> None:
    rows = layers_of(tiny.build("qwen3", tmp_path))
    assert rows["lm_head"].parts == rows["model.embed_tokens"].parts
    assert rows["lm_head"].role == "head"


def test_a_head_that_is_neither_tied_nor_there_has_no_row(tmp_path: Path) -> None:
    folder = tiny.build("llama", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    assert "lm_head" not in layers_of(folder)


def test_mixtral_experts_are_fused_gate_above_up(tmp_path: Path) -> None:
    folder = tiny.build("mixtral", tmp_path)
    stored = load_file(folder / "model.safetensors")
    row = layers_of(folder)["model.layers.1.mlp.experts.gate_up_proj"]
    home = "model.layers.1.block_sparse_moe.experts"
    assert row.parts[:3] == (f"{home}.0.w1.weight", f"{home}.0.w3.weight", f"{home}.1.w1.weight")
    whole = read_layer(open_checkpoint(folder), row)
    assert torch.equal(whole[2, :128], stored[f"{home}.2.w1.weight"])
    assert torch.equal(whole[2, 128:], stored[f"{home}.2.w3.weight"])


def test_the_tenth_expert_does_not_come_before_the_second(tmp_path: Path) -> None:
    folder = tiny.build("qwen3_moe", tmp_path, num_experts=12)
    row = layers_of(folder)["model.layers.0.mlp.experts.down_proj"]
    assert [int(part.split(".")[5]) for part in row.parts] == list(range(12))


def test_gpt2_names_without_their_usual_head_are_found(tmp_path: Path) -> None:
    folder = tiny.build("gpt2", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): t for name, t in tensors.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    save_file(bare, folder / "model.safetensors")
    rows = layers_of(folder)
    assert rows["h.0.attn.c_attn"].shape == (192, 64)
    assert rows["h.0.attn.c_attn"].transposed
    assert set(rows) == {
        "wte",
        "lm_head",
        *(f"h.{i}.attn.{k}" for i in range(3) for k in ("c_attn", "c_proj")),
        *(f"h.{i}.mlp.{k}" for i in range(3) for k in ("c_fc", "c_proj")),
    }


def test_vision_towers_and_extra_heads_are_not_layers(tmp_path: Path) -> None:
    w = torch.zeros(8, 8)
    names = [
        "model.language_model.embed_tokens.weight",
        "model.language_model.layers.0.self_attn.q_proj.weight",
        "model.language_model.layers.1.self_attn.q_proj.weight",
        "model.vision_tower.encoder.layers.0.self_attn.q_proj.weight",
        "model.vision_tower.embeddings.embedding.weight",
        "model.multi_modal_projector.linear_1.weight",
        "mtp.layers.0.self_attn.q_proj.weight",
        "lm_head.weight",
    ]
    many = {f"model.vision_tower.encoder.layers.{i}.fc1.weight": w.clone() for i in range(1, 9)}
    folder = save(
        tmp_path,
        {name: w.clone() for name in names} | many,
        text_config={"num_hidden_layers": 1},
    )
    assert list(layers_of(folder)) == [
        "model.language_model.embed_tokens",
        "model.language_model.layers.0.self_attn.q_proj",
        "lm_head",
    ]


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    folder = tiny.build("mixtral", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.block_sparse_moe.experts.2.w3.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks w3 of expert 2 for model\.layers\.1\.mlp"):
        layers_of(folder)


def test_an_expert_of_another_shape_is_named(tmp_path: Path) -> None:
    folder = tiny.build("qwen3_moe", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.experts.2.down_proj.weight"] = torch.zeros(64, 31)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"experts\.2\.down_proj\.weight' as float32 \[64, 31"
    ):
        layers_of(folder)


def test_experts_that_do_nothing_have_half_of_their_weights(tmp_path: Path) -> None:
    """LongCat's: transformers makes the first half for them too, and they are at the end."""
    home = "model.layers.0.mlp.experts"
    tensors = {
        f"{home}.{e}.{kind}.weight": torch.zeros(4, 4)
        for e in range(5)
        for kind in (("gate_proj", "up_proj", "down_proj") if e < 3 else ("gate_proj", "up_proj"))
    }
    for name in ("idle", "cut"):
        (tmp_path / name).mkdir()
    rows = layers_of(save(tmp_path / "idle", tensors, zero_expert_num=2))
    assert rows[f"{home}.gate_up_proj"].shape == (5, 8, 4)
    assert rows[f"{home}.down_proj"].shape == (3, 4, 4)
    with pytest.raises(CheckpointError, match="lacks down_proj of expert 3"):
        layers_of(save(tmp_path / "cut", tensors))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("w13_weight", "w2_weight"),
        ("gate_up_proj", "down_proj"),
        ("gate_proj", "down_proj"),
        ("fc1", "fc2"),
    ],
)
def test_experts_in_one_tensor_go_by_several_names(first: str, second: str, tmp_path: Path) -> None:
    home = "model.layers.0.mlp.experts"
    tensors = {f"{home}.{first}": torch.zeros(3, 16, 4), f"{home}.{second}": torch.zeros(3, 4, 8)}
    rows = layers_of(save(tmp_path, tensors, hidden_size=4))
    assert {name: (row.role, row.shape) for name, row in rows.items()} == {
        f"{home}.{first}": ("experts", (3, 16, 4)),
        f"{home}.{second}": ("experts", (3, 4, 8)),
    }


def test_half_of_a_pair_is_refused(tmp_path: Path) -> None:
    tensors = {f"model.layers.0.mlp.experts.{e}.w1.weight": torch.zeros(4, 4) for e in range(2)}
    with pytest.raises(CheckpointError, match="without its other half"):
        layers_of(save(tmp_path, tensors))


def test_a_folder_without_blocks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no numbered blocks"):
        layers_of(save(tmp_path, {"fc.weight": torch.zeros(2, 2)}))


@pytest.mark.parametrize("name", ["q_proj.weight", "experts.up_proj"])
def test_packed_weights_are_refused_by_name(name: str, tmp_path: Path) -> None:
    tensors = {f"model.layers.0.self_attn.{name}": torch.zeros(4, 4, dtype=torch.int8)}
    folder = save(tmp_path, tensors, quantization_config={"quant_method": "gptq"})
    with pytest.raises(CheckpointError, match=rf"{name}' packed in int8 by gptq"):
        layers_of(folder)


@pytest.mark.parametrize(
    ("suffix", "shape", "factor"),
    [
        ("_scale_inv", (3, 2), lambda r, c: (r // 2) * 2 + c // 4),
        ("_scale", (5, 1), lambda r, c: r),
        ("_scale", (), lambda r, c: 0),
    ],
)
def test_eight_bit_weights_are_read_times_their_scale(
    suffix: str, shape: tuple[int, ...], factor: Any, tmp_path: Path
) -> None:
    codes = torch.randn(5, 7).to(torch.float8_e4m3fn)
    scale = torch.randn(shape)
    name = "model.layers.0.self_attn.q_proj"
    folder = save(
        tmp_path,
        {f"{name}.weight": codes, f"{name}.weight{suffix}": scale},
        quantization_config={"quant_method": "fp8", "weight_block_size": [2, 4]},
    )
    row = layers_of(folder)[name]
    weight = read_layer(open_checkpoint(folder), row)
    flat = scale.flatten()
    for r in range(5):
        for c in range(7):
            assert weight[r, c] == codes[r, c].float() * flat[factor(r, c)]


def test_mxfp4_experts_are_unpacked_as_transformers_does(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = torch.randint(0, 256, (3, 8, 2, 16), dtype=torch.uint8)
    scales = torch.randint(110, 140, (3, 8, 2), dtype=torch.uint8)
    name = "model.layers.0.mlp.experts.down_proj"
    folder = save(
        tmp_path,
        {f"{name}_blocks": blocks, f"{name}_scales": scales, f"{name}_bias": torch.zeros(3, 8)},
        model_type="gpt_oss",
        quantization_config={"quant_method": "mxfp4"},
    )
    checkpoint = open_checkpoint(folder)
    (row,) = list_layers(checkpoint)
    assert (row.name, row.role, row.shape) == (name, "experts", (3, 8, 64))
    assert checkpoint.parameters == 3 * 8 * 64 + 3 * 8
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert torch.equal(read_layer(checkpoint, row), theirs.transpose(1, 2))


def test_mxfp4_blocks_without_fitting_scales_are_refused(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.down_proj_blocks"
    tensors = {name: torch.zeros(3, 8, 2, 16, dtype=torch.uint8)}
    folder = save(tmp_path, tensors, quantization_config={"quant_method": "mxfp4"})
    with pytest.raises(CheckpointError, match=r"down_proj_blocks' in mxfp4 .* without its scale"):
        layers_of(folder)


def test_a_scale_that_does_not_fit_is_named(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors = {name: torch.zeros(5, 7).to(torch.float8_e5m2), f"{name}_scale": torch.ones(4, 1)}
    with pytest.raises(CheckpointError, match=r"weight_scale', but a scale of \[4, 1\]"):
        layers_of(save(tmp_path, tensors))
