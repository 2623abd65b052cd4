"""What is checked when a model opens, beyond resuming: causality, long texts, odd products."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from engine.errors import CheckpointError
from engine.model.gradients import WeightTap, block_gradients
from engine.model.inputs import takes_no_product, why_unseen
from engine.model.network import Network
from engine.model.selfcheck import check_on_window
from tests import tiny
from tests.exact import in_float32
from tests.model.small import small

LLAMA = pytest.mark.parametrize("network", ["llama"], indirect=True)


def bert(**fields: Any) -> Network:
    return small("BertConfig", num_hidden_layers=2, **fields)


def test_a_model_that_sees_later_tokens_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"not causal.*already seen.*\"is_decoder\": true"):
        bert(is_decoder=False)


def test_the_same_model_as_a_decoder_is_not() -> None:
    assert bert(is_decoder=True).resumable


@LLAMA
def test_what_acts_on_long_texts_alone_is_checked_on_a_window(network: Network) -> None:
    left: list[Tensor] = []
    leaves, reads = network.blocks.modules[0].forward, network.blocks.modules[2].forward

    def leaving(*args: Tensor, **kwargs: object) -> Tensor:
        left[:] = args[:1]
        return leaves(*args, **kwargs)

    def reading(*args: Tensor, **kwargs: object) -> Tensor:
        output: Tensor = reads(*args, **kwargs)
        return output + left[0] if output.shape[1] > 20 else output

    window = tiny.ids(1, 24)
    try:
        network.blocks.modules[0].__dict__["forward"] = leaving
        network.blocks.modules[2].__dict__["forward"] = reading
        check_on_window(network, window)
        assert network.resumable, "every layer acts on a few tokens"
        network.without_effect = ("model.layers.0.self_attn.q_proj",)
        check_on_window(network, window)
        assert not network.resumable
        assert "on 24 tokens block 2 depends" in str(network.why_not_resumable)
    finally:
        del network.blocks.modules[0].__dict__["forward"]
        del network.blocks.modules[2].__dict__["forward"]
        network.without_effect = ()
        network.resumable, network.why_not_resumable = True, None


def test_blocks_that_share_an_indexer_run_whole() -> None:
    shared = small(
        "GlmMoeDsaConfig",
        num_key_value_heads=4,
        moe_intermediate_size=32,
        n_routed_experts=4,
        num_experts_per_tok=2,
        kv_lora_rank=32,
        q_lora_rank=32,
        qk_rope_head_dim=16,
        qk_nope_head_dim=16,
        v_head_dim=16,
        index_head_dim=16,
        index_n_heads=2,
        index_topk=20,
        indexer_types=["full", "shared", "full"],
        mlp_layer_types=["dense"] * 3,
    )
    assert not shared.resumable


@pytest.fixture(scope="module")
def grouped() -> Network:
    return small(
        "DeepseekV4Config",
        num_hidden_layers=1,
        layer_types=["sliding_attention"],
        mlp_layer_types=["hash_moe"],
        moe_intermediate_size=32,
        n_routed_experts=4,
        num_experts_per_tok=2,
        head_dim=16,
        q_lora_rank=32,
        qk_rope_head_dim=16,
        hc_mult=2,
        o_groups=2,
        o_lora_rank=32,
        sliding_window=8,
        num_key_value_heads=1,
    )


def test_hidden_states_of_several_streams_are_as_large_as_they_are(grouped: Network) -> None:
    assert grouped.states(tiny.ids(1, 16))[0].shape == (1, 16, 2, 64)
    assert grouped.state_size == 128


def test_a_grouped_linear_layer_has_the_gradient_of_its_weight(
    grouped: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_float32(monkeypatch)
    name = next(name for name in grouped.layers if name.endswith("o_a_proj"))
    assert takes_no_product(grouped, name)
    assert "each group of its inputs" in str(why_unseen(grouped, name))
    ids = tiny.ids(1, 16)
    state, last = grouped.states(ids)
    cotangent = torch.randn(last.shape, generator=torch.Generator().manual_seed(0))
    (tap,), _ = block_gradients(grouped, ids, 0, state, [cotangent], {}, [name])
    assert isinstance(tap, WeightTap)

    parameter = grouped.slot(name).parameter.requires_grad_(True)
    reached: list[Tensor] = []
    hook = grouped.blocks.modules[0].register_forward_hook(lambda _m, _a, o: reached.append(o))
    try:
        grouped.model(input_ids=ids, use_cache=False)
    finally:
        hook.remove()
    (expected,) = torch.autograd.grad(reached[0], parameter, cotangent)
    parameter.requires_grad_(False)
    torch.testing.assert_close(tap.gradients[0], expected)
    grouped.assert_at_rest()
