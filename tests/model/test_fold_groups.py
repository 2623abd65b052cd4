"""What absorbs a scale in front of layers: really folded into it, the model is the same."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.errors import UsageError
from engine.model.fold_groups import FoldGroup, absorbed, fold_groups
from engine.model.load import load_network
from engine.model.network import Network, Preempted, StandIn
from tests import tiny
from tests.model.small import small

EVERY = pytest.mark.parametrize("network", list(tiny.ARCHITECTURES), indirect=True)

GATED = {"q_proj": "input_layernorm", "o_proj": "read 2 times", "down_proj": "up_proj"}
LLAMA = {**GATED, "up_proj": "post_attention_layernorm"}
GEMMA = {**GATED, "up_proj": "pre_feedforward_layernorm"}
MIXTURE = {**GATED, "gate_up_proj": "gate, which is no layer, reads", "down_proj": "gate_up_proj"}
OPT_NORM = "self_attn_layer_norm"
EXPECTED = {
    "llama": LLAMA,
    "qwen3": LLAMA,
    "mistral": LLAMA,
    "gemma3": GEMMA,
    "gemma4": {**GEMMA, "o_proj": "nothing before", "per_layer_input_gate": "nothing before"},
    "phi3": {
        "qkv_proj": "input_layernorm",
        "o_proj": "qkv_proj.* read 2 times",
        "gate_up_proj": "post_attention_layernorm",
        "down_proj": "gate_up_proj",
    },
    "gpt2": {"c_attn": "ln_1", "attn.c_proj": "c_attn", "c_fc": "ln_2", "mlp.c_proj": "nothing"},
    "opt": {"v_proj": OPT_NORM, "out_proj": "v_proj", "fc1": "final_layer_norm", "fc2": "fc1"},
    "falcon": {
        "query_key_value": "input_layernorm",
        "dense_h_to_4h": "input_layernorm",
        "dense": "read 4 times",
        "dense_4h_to_h": "nothing before",
    },
    "mixtral": MIXTURE,
    "qwen3_moe": MIXTURE,
}
"""By the end of a layer's name what its absorber ends in, or words of the reason."""


def some_scale(width: int, seed: int = 0) -> Tensor:
    """Between 1/3 and 3, no powers of two."""
    generator = torch.Generator().manual_seed(seed)
    return 3 ** (2 * torch.rand(width, generator=generator) - 1)


def groups_of(network: Network) -> list[FoldGroup]:
    return list(dict.fromkeys(fold_groups(network).values()))


def folded_model(network: Network, group: FoldGroup, scale: Tensor, dtype: torch.dtype) -> Any:
    """A copy of the model with ``1 / scale`` written into the absorber; layers are as they were."""
    model = copy.deepcopy(network.model)
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in absorbed(network, group, scale, dtype).items():
            assert tensor.dtype == dtype
            state[name].copy_(tensor)
    return model


def multiplied(model: Any, network: Network, group: FoldGroup, scale: Tensor) -> None:
    """Multiplies the columns of the group's layers."""
    with torch.no_grad():
        for name in group.layers:
            layer = network.layers[name]
            path = layer.module if layer.role == "experts" else f"{layer.module}.weight"
            turned = layer.role == "conv1d"
            model.get_parameter(path).mul_(scale[:, None] if turned else scale)


@torch.no_grad()
def logits(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


@EVERY
def test_a_scale_really_folded_into_the_absorber_leaves_the_logits(network: Network) -> None:
    ids = tiny.ids(2, 24)
    whole, folds = logits(network.model, ids), 0
    for group in groups_of(network):
        block = network.layers[group.layers[0]].block
        if group.why_not or block not in (1, None):
            continue
        folds += 1
        scale = some_scale(network.layers[group.layers[0]].shape[-1])
        model = folded_model(network, group, scale, torch.float32)
        assert (logits(model, ids) - whole).abs().max() > 1e-2, group.layers
        multiplied(model, network, group, scale)
        torch.testing.assert_close(logits(model, ids), whole, rtol=1e-4, atol=2e-5)
    assert folds >= 2


@EVERY
def test_absorbers_are_those_of_the_architecture(network: Network) -> None:
    expected = EXPECTED[network.config.name_or_path.rpartition("/")[2]]
    groups = fold_groups(network)
    network.assert_at_rest()
    assert groups is fold_groups(network)
    assert groups.keys() == {n for n, x in network.layers.items() if x.role != "embedding"}
    for name, group in groups.items():
        assert name in group.layers
        assert bool(group.why_not) != bool(group.absorber)
        for end, words in expected.items():
            if name.endswith(f".{end}"):
                assert re.search(f"{words}$" if group.absorber else words, told(group)), name
    assert all(any(name.endswith(f".{end}") for name in groups) for end in expected)


def told(group: FoldGroup) -> str:
    return group.absorber or group.why_not


@pytest.mark.parametrize("network", ["llama", "falcon"], indirect=True)
def test_a_group_has_all_that_read_the_tensor(network: Network) -> None:
    names = {
        "llama": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "falcon": ["self_attention.query_key_value", "mlp.dense_h_to_4h"],
    }[network.config.name_or_path.rpartition("/")[2]]
    prefix = next(n for n in network.layers if n.endswith(names[0])).removesuffix(names[0])
    assert fold_groups(network)[prefix + names[-1]].layers == tuple(prefix + n for n in names)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("network", ["llama", "gemma3", "gpt2", "opt"], indirect=True)
def test_what_is_simulated_with_the_gain_is_what_ships(
    network: Network, dtype: torch.dtype
) -> None:
    ids = tiny.ids(2, 24)
    norms = [g for g in groups_of(network) if g.kind == "norm"]
    assert len(norms) == 7
    for group in (norms[0], norms[3], norms[-1]):
        scale = some_scale(len(group.weight)) if group.weight is not None else torch.empty(0)
        model = folded_model(network, group, scale, dtype)
        multiplied(model, network, group, scale)
        shipped = logits(model, ids)
        gain, offset = group.gain(scale, dtype), group.offset(scale, dtype)
        held = {
            name: StandIn(network.weight(name) * scale, lambda x: x * gain + offset)  # noqa: B023
            for name in group.layers
        }
        with network.holding(held):
            simulated = logits(network.model, ids)
        torch.testing.assert_close(simulated, shipped, rtol=1e-4, atol=2e-5)
        with network.holding({n: network.weight(n) * scale * (1 / scale) for n in group.layers}):
            unrounded = logits(network.model, ids)
        assert (unrounded - shipped).abs().max() > 5 * (simulated - shipped).abs().max()


def test_the_gain_follows_its_formula_and_is_one_over_the_scale_where_the_weight_is_0() -> None:
    weight, scale = torch.tensor([1.0, 0.0, -2.5, 1e-3]), torch.tensor([3.0, 3.0, 0.7, 1.3])
    bias = torch.tensor([0.5, 0.25, 0.0, -1.0])
    group = FoldGroup(("a",), "norm", "", "norm", weight=weight, bias=bias)
    gain = group.gain(scale, torch.bfloat16)
    for i, (w, s) in enumerate(zip(weight.double().tolist(), scale.double().tolist(), strict=True)):
        stored = float(torch.tensor(w / s).to(torch.bfloat16))
        assert float(gain[i]) == pytest.approx(stored / w if w else 1 / s, rel=1e-6)
    x = torch.randn(5, 4).double() * weight + bias  # what the norm gives
    stored_bias = (bias / scale).to(torch.bfloat16).double()
    shipped = (x - bias) / weight.where(weight != 0, 1) * (weight / scale).to(torch.bfloat16)
    torch.testing.assert_close(
        x * gain + group.offset(scale, torch.bfloat16), shipped + stored_bias, rtol=1e-6, atol=1e-6
    )
    unit = FoldGroup(("a",), "norm", "", "norm", weight=weight - 1, unit=1.0)
    expected = ((weight / scale - 1).to(torch.bfloat16).float() + 1) / weight
    torch.testing.assert_close(
        unit.gain(scale, torch.bfloat16), torch.where(weight == 0, 1 / scale, expected)
    )
    assert not unit.offset(scale, torch.bfloat16).any()


def test_a_scale_of_another_width_or_for_no_absorber_is_refused() -> None:
    norm = FoldGroup(("a",), "norm", "", "norm", weight=torch.ones(4))
    with pytest.raises(UsageError, match=r"a: a scale of shape \[3\], expected \[4\]"):
        norm.gain(torch.ones(3), torch.float16)
    with pytest.raises(UsageError, match="a: nothing absorbs"):
        FoldGroup(("a",), "", "nothing absorbs", "none").gain(torch.ones(4), torch.float16)


FUSED = {
    "one head a value": ("LlamaConfig", {"num_key_value_heads": 4}, "o_proj", range(64)),
    "gate and up side by side": ("Phi3Config", {}, "down_proj", range(128, 256)),
    "q, k and v of each head": (
        "GPTNeoXConfig",
        {},
        "attention.dense",
        [j for head in range(4) for j in range(48 * head + 32, 48 * head + 48)],
    ),
    "keys and values from a latent": (
        "DeepseekV3Config",
        {
            **{"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2},
            **{"moe_intermediate_size": 32, "n_shared_experts": 1, "q_lora_rank": 32},
            **{"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8},
            **{"v_head_dim": 16, "num_key_value_heads": 4},
        },
        "o_proj",
        [j for head in range(4) for j in range(24 * head + 8, 24 * head + 24)],
    ),
}
"""The config, the end of the layer's name, and the channels of the absorber that it reads."""


@pytest.mark.parametrize("case", list(FUSED))
def test_the_channels_of_a_fused_absorber_are_found(case: str) -> None:
    config, fields, end, channels = FUSED[case]
    network = small(config, **fields)
    name = next(n for n, x in network.layers.items() if n.endswith(end) and x.block == 1)
    group = fold_groups(network)[name]
    assert group.channels is not None, group.why_not
    assert group.channels.tolist() == list(channels)
    ids, scale = tiny.ids(1, 16), some_scale(len(group.channels))
    model = folded_model(network, group, scale, torch.float32)
    multiplied(model, network, group, scale)
    torch.testing.assert_close(logits(model, ids), logits(network.model, ids), rtol=1e-4, atol=5e-5)


OTHERWISE_READ = {
    "a norm that is the residual too": (
        "OPTConfig",
        {"do_layer_norm_before": False, "word_embed_proj_dim": 64, "ffn_dim": 128},
        "fc1",
        "self_attn_layer_norm gives is read elsewhere too",
    ),
    "a residual after the norm": (
        "BloomConfig",
        {"apply_residual_connection_post_layernorm": True, "n_head": 4, "n_layer": 3},
        "query_key_value",
        "input_layernorm gives is read elsewhere too",
    ),
    "an activation with a 1 added": (
        "GptOssConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
        "down_proj",
        "nothing before",
    ),
    "a norm of each head": (
        "Qwen3NextConfig",
        {
            **{"head_dim": 16, "num_experts": 4, "moe_intermediate_size": 32},
            **{"num_experts_per_tok": 2, "shared_expert_intermediate_size": 32},
            **{"linear_num_value_heads": 4, "linear_num_key_heads": 2},
            **{"linear_key_head_dim": 16, "linear_value_head_dim": 16},
            "layer_types": ["linear_attention"] * 3,
        },
        "out_proj",
        "norm has 16 weights for 64 channels",
    ),
    "experts that are given scores": (
        "Llama4TextConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 64,
         "head_dim": 16},
        "experts.gate_up_proj",
        "nothing before",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(OTHERWISE_READ))
def test_what_is_read_otherwise_too_absorbs_nothing(case: str) -> None:
    config, fields, end, words = OTHERWISE_READ[case]
    network = small(config, **fields)
    found = [g for n, g in fold_groups(network).items() if n.endswith(end)]
    assert len(found) == 3
    assert all(words in group.why_not for group in found), [g.why_not for g in found]
    network.assert_at_rest()


def test_a_reader_that_is_no_module_is_noticed_however_small_its_part() -> None:
    network = small("LlamaConfig")
    mlp = network.blocks.modules[1].mlp
    plain = mlp.forward
    mlp.forward = lambda x: plain(x) + 1e-3 * x
    groups = fold_groups(network)
    name = "model.layers.{}.mlp.up_proj"
    assert "read elsewhere too" in groups[name.format(1)].why_not
    assert not groups[name.format(0)].why_not
    assert not groups[name.format(2)].why_not


def test_what_a_later_block_reads_too_absorbs_nothing() -> None:
    values: list[Tensor] = []

    def share(model: Any) -> None:
        first, last = model.model.layers[0].mlp, model.model.layers[2].mlp
        plain = last.forward

        def giving(x: Tensor) -> Tensor:
            values[:] = [first.up_proj(x)]
            return first.down_proj(first.act_fn(first.gate_proj(x)) * values[0])

        first.forward = giving
        last.forward = lambda x: plain(x) + 0.01 * values[0][..., :64]

    network = small("LlamaConfig", change=share)
    assert not network.resumable
    groups = fold_groups(network)
    name = "model.layers.{}.mlp.down_proj"
    assert "up_proj gives is read elsewhere too" in groups[name.format(0)].why_not
    assert groups[name.format(1)].absorber.endswith("1.mlp.up_proj")


def test_channels_that_no_token_reaches_follow_the_others() -> None:
    def silence(model: Any) -> None:
        for block in model.model.decoder.layers:
            block.fc1.bias[::3] = -100.0

    network = small("OPTConfig", change=silence, word_embed_proj_dim=64, ffn_dim=128)
    for block in range(3):
        group = fold_groups(network)[f"model.decoder.layers.{block}.fc2"]
        assert group.absorber.endswith("fc1")
        assert group.channels is not None
        assert group.channels.tolist() == list(range(128))


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("arch", ["llama", "gemma3", "opt", "qwen3_moe"])
def test_half_precision_finds_the_same(
    arch: str, dtype: str, folder: Callable[[str], Path], loaded: Callable[[str], Network]
) -> None:
    half = load_network(folder(arch), device="cpu", dtype=dtype)
    expected = fold_groups(loaded(arch))
    for name, group in fold_groups(half).items():
        assert (group.layers, group.absorber) == (expected[name].layers, expected[name].absorber)
        assert group.unit == expected[name].unit


@pytest.mark.parametrize("arch", ["llama", "gemma4"])
def test_a_preempted_search_goes_on_where_it_stopped(
    arch: str, folder: Callable[[str], Path], loaded: Callable[[str], Network]
) -> None:
    network = load_network(folder(arch), device="cpu")
    calls, limit, preempted = 0, 8, 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return calls > limit

    network.should_stop = stop
    while True:
        try:
            found = fold_groups(network)
            break
        except Preempted:
            network.assert_at_rest()
            preempted += 1
            calls, limit = 0, limit + 4
    assert preempted > 1
    network.should_stop = None
    expected = fold_groups(loaded(arch))
    assert {n: g.absorber for n, g in found.items()} == {n: g.absorber for n, g in expected.items()}
