"""Weights swapped in and out again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.errors import UsageError
from engine.model.load import load_network
from engine.model.network import Compact, Network, Preempted
from tests import tiny

ONE_OF_EACH = pytest.mark.parametrize(
    ("network", "name"),
    [
        ("llama", "model.layers.1.mlp.down_proj"),
        ("gpt2", "transformer.h.1.attn.c_attn"),
        ("mixtral", "model.layers.1.mlp.experts.gate_up_proj"),
        ("llama", "model.embed_tokens"),
        ("qwen3", "lm_head"),
    ],
    indirect=["network"],
)


@ONE_OF_EACH
def test_the_original_storage_comes_back_also_after_an_error(network: Network, name: str) -> None:
    ids, layer = tiny.ids(1, 16), network.layers[name]
    experts = layer.role == "experts"
    path = layer.module if experts else f"{layer.module}.weight"
    before = network.model.get_parameter(path)
    pointer, values = before.data_ptr(), before.detach().clone()
    whole = network.resume(ids, -1, None)

    def break_off() -> None:
        with network.holding({name: network.weight(name) * 2}):
            assert network.model.get_parameter(path).data_ptr() != pointer
            assert not torch.equal(network.resume(ids, -1, None), whole)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    after = network.model.get_parameter(path)
    assert after is before
    assert after.data_ptr() == pointer
    assert torch.equal(after, values)
    assert torch.equal(network.resume(ids, -1, None), whole)


@ONE_OF_EACH
def test_a_layer_held_for_itself_changes_nothing(network: Network, name: str) -> None:
    ids = tiny.ids(2, 24)
    whole = network.resume(ids, -1, None)
    with network.holding({name: network.weight(name).clone()}):
        assert torch.equal(network.resume(ids, -1, None), whole)


@ONE_OF_EACH
def test_a_compact_weight_is_whole_only_while_its_block_runs(network: Network, name: str) -> None:
    ids, layer, slot = tiny.ids(2, 24), network.layers[name], network.slot(name)
    reference, weight = slot.parameter, network.weight(name) * 1.5
    made: list[bool] = []

    def make() -> torch.Tensor:
        made.append(True)
        return weight.clone()

    with network.holding({name: weight}):
        expected = network.resume(ids, -1, None)
    with network.holding({name: Compact(make, tuple(weight.shape), 1)}):
        assert (slot.parameter is reference) == (layer.block is not None)
        assert torch.equal(network.resume(ids, -1, None), expected)
        assert (slot.parameter is reference) == (layer.block is not None)
        assert len(made) == 1
    assert slot.parameter is reference
    network.assert_at_rest()


@pytest.mark.parametrize("network", ["llama"], indirect=True)
def test_a_compact_weight_is_put_back_where_its_block_fails(network: Network) -> None:
    name = "model.layers.1.mlp.down_proj"
    weight = network.weight(name).clone()
    network.should_stop = lambda: weight[0, 0].item() == 7
    held = Compact(lambda: weight.fill_(7), tuple(weight.shape), 1)
    try:
        with pytest.raises(Preempted), network.holding({name: held}):
            network.resume(tiny.ids(1, 16), -1, None)  # stops before the block that comes next
    finally:
        network.should_stop = None
    network.assert_at_rest()


@pytest.mark.parametrize("network", ["gpt2", "mixtral"], indirect=True)
def test_held_weights_are_the_reference_for_nobody(network: Network) -> None:
    name = next(n for n, layer in network.layers.items() if layer.role in ("conv1d", "experts"))
    reference = network.weight(name).clone()
    with network.holding({name: torch.zeros_like(reference)}):
        assert torch.equal(network.weight(name), reference)


@pytest.mark.parametrize("network", ["llama"], indirect=True)
def test_weights_of_another_dtype_are_cast(network: Network) -> None:
    name = "model.layers.0.mlp.up_proj"
    ids, half = tiny.ids(1, 16), network.weight(name).to(torch.bfloat16)
    with network.holding({name: half}):
        low = network.resume(ids, -1, None)
    with network.holding({name: half.float()}):
        assert torch.equal(network.resume(ids, -1, None), low)


@pytest.mark.parametrize("network", ["llama"], indirect=True)
def test_holding_refuses_what_it_cannot_hold(network: Network) -> None:
    name = "model.layers.0.self_attn.k_proj"
    weight = network.weight(name)
    with pytest.raises(UsageError, match=r"k_proj has shape \[32, 64\].*\[64, 32\]"):
        network.holding({name: weight.T}).__enter__()
    with pytest.raises(UsageError, match="'nothing' is not a layer"):
        network.holding({name: weight, "nothing": weight}).__enter__()
    with network.holding({name: weight * 2}):
        with pytest.raises(RuntimeError, match="held already"):
            network.holding({name: weight}).__enter__()
        with pytest.raises(AssertionError, match="weights are held"):
            network.assert_at_rest()


@pytest.mark.parametrize("network", ["qwen3", "gemma3", "gpt2", "falcon"], indirect=True)
def test_a_tied_head_and_its_embedding_change_apart(network: Network) -> None:
    ids = tiny.ids(1, 16)
    assert network.tied
    assert network.config.tie_word_embeddings is False
    apart = network.model.get_input_embeddings(), network.model.get_output_embeddings()
    assert apart[0].weight.data_ptr() != apart[1].weight.data_ptr()
    embedding = next(n for n, layer in network.layers.items() if layer.role == "embedding")
    assert torch.equal(network.weight("lm_head"), network.weight(embedding))
    states = network.states(ids)
    whole = network.logits(ids, states[-1], (0, 16))
    with network.holding({"lm_head": network.weight("lm_head") * 2}):
        assert torch.equal(network.model.get_input_embeddings().weight, network.weight(embedding))
        assert all(map(torch.equal, network.states(ids), states))
        assert not torch.equal(network.logits(ids, states[-1], (0, 16)), whole)
    with network.holding({embedding: network.weight(embedding) * 2}):
        assert torch.equal(network.logits(ids, states[-1], (0, 16)), whole)
        assert not torch.equal(network.states(ids)[0], states[0])


def test_a_head_of_its_own_is_not_called_tied(folder: Callable[[str], Path]) -> None:
    assert not load_network(folder("llama"), device="cpu").tied
