"""What layers are given: watched block by block, and changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.errors import UsageError
from engine.model.inputs import shared_inputs, watch_inputs, watched_layers, why_unseen
from engine.model.network import Network, Preempted, StandIn
from tests import tiny
from tests.model.small import small

EVERY = pytest.mark.parametrize("network", list(tiny.ARCHITECTURES), indirect=True)
MIXTURES = pytest.mark.parametrize("network", ["mixtral", "qwen3_moe"], indirect=True)
SHARING = pytest.mark.parametrize("network", ["gemma4"], indirect=True)

Seen = dict[tuple[str, int | None], Tensor]


def watched(network: Network, ids: Tensor, block: int, *rest: Any) -> tuple[Seen, Tensor | None]:
    """All that one call hands out, rows of several calls of a layer joined."""
    seen: dict[tuple[str, int | None], list[Tensor]] = defaultdict(list)

    def take(layer: str, expert: int | None, inputs: Tensor) -> None:
        assert not torch.is_grad_enabled()
        seen[layer, expert].append(inputs.clone())

    output = watch_inputs(network, ids, block, *(rest[:1] or (None,)), take, *rest[1:])
    return {key: torch.cat(parts) for key, parts in seen.items()}, output


def hooked(network: Network, ids: Tensor) -> dict[str, Tensor]:
    """The same for all ordinary layers, by plain hooks in one whole forward."""
    seen: dict[str, Tensor] = {}
    hooks = []
    for name, layer in network.layers.items():
        if layer.role in ("experts", "embedding"):
            continue
        module = network.model.get_submodule(layer.module)

        def hook(_module: Any, args: tuple[Tensor, ...], name: str = name) -> None:
            seen[name] = args[0].reshape(-1, args[0].shape[-1]).clone()

        hooks.append(module.register_forward_pre_hook(hook))
    with torch.no_grad():
        network.model(input_ids=ids, use_cache=False)
    for handle in hooks:
        handle.remove()
    return seen


def one_by_one(module: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Iterator[Any]:
    """Each expert's index, tokens and intermediate, as the paper has them."""
    for expert in range(module.num_experts):
        rows = hidden[(chosen == expert).any(-1)]
        gate, up = (rows @ module.gate_up_proj[expert].T).chunk(2, -1)
        yield expert, rows, module.act_fn(gate) * up


def by_rows(tensor: Tensor) -> Tensor:
    """Rows in an order of their own."""
    return tensor[torch.argsort(tensor[:, 0])]


@EVERY
def test_a_block_alone_gives_what_hooks_see_in_the_whole_forward(network: Network) -> None:
    ids, n = tiny.ids(2, 24), len(network.blocks)
    states, plain = network.states(ids), hooked(network, ids)
    found: Seen = {}
    for block in range(-1, n + 1):
        state = states[block] if block >= 0 else None
        seen, output = watched(network, ids, block, state)
        assert {layer for layer, _ in seen} == set(watched_layers(network, block))
        if 0 <= block < n:
            assert output is not None
            assert torch.equal(output, states[block + 1])
        else:
            assert output is None
        found |= seen
        network.assert_at_rest()
    ordinary = {layer: inputs for (layer, expert), inputs in found.items() if expert is None}
    assert ordinary.keys() == plain.keys()
    assert all(torch.equal(ordinary[name], plain[name]) for name in plain)


@EVERY
def test_with_no_state_the_blocks_before_are_run(network: Network) -> None:
    ids, n = tiny.ids(1, 16), len(network.blocks)
    states = network.states(ids)
    for block in (1, n):
        with_state, without = (
            watched(network, ids, block, states[block]),
            watched(network, ids, block),
        )
        assert with_state[0].keys() == without[0].keys()
        assert all(torch.equal(without[0][key], x) for key, x in with_state[0].items())


@MIXTURES
def test_experts_are_given_their_own_tokens_and_their_own_intermediate(network: Network) -> None:
    ids, block = tiny.ids(2, 24), 1
    module = network.blocks.modules[block].mlp.experts
    routed: list[tuple[Tensor, ...]] = []
    handle = module.register_forward_pre_hook(lambda _m, args: routed.append(args))
    seen, _ = watched(network, ids, block)
    handle.remove()
    gate_up, down = (n for n in watched_layers(network, block) if ".experts." in n)
    given = 0
    for expert, rows, inner in one_by_one(module, *routed[0]):
        if rows.shape[0] == 0:
            assert (gate_up, expert) not in seen
            continue
        given += 1
        torch.testing.assert_close(by_rows(seen[gate_up, expert]), by_rows(rows))
        torch.testing.assert_close(by_rows(seen[down, expert]), by_rows(inner))
    assert given > 1


@MIXTURES
def test_experts_watched_or_changed_by_nothing_compute_the_same_bit_for_bit(
    network: Network,
) -> None:
    ids = tiny.ids(2, 24)
    states, whole = network.states(ids), network.resume(ids, -1, None)
    assert all(
        torch.equal(watched(network, ids, k, states[k])[1], states[k + 1])
        for k in range(len(network.blocks))
    )
    experts = [n for n, layer in network.layers.items() if layer.role == "experts"]
    with network.holding({n: StandIn(network.weight(n), lambda x: x.clone()) for n in experts}):
        assert torch.equal(network.resume(ids, -1, None), whole)


@MIXTURES
@pytest.mark.parametrize("kind", ["gate_up_proj", "down_proj"])
def test_inputs_scaled_and_weights_scaled_back_change_nothing(network: Network, kind: str) -> None:
    ids, whole = tiny.ids(2, 24), network.resume(tiny.ids(2, 24), -1, None)
    name = next(n for n, layer in network.layers.items() if layer.kind == kind and layer.block == 1)
    scale = 2.0 ** torch.randint(-2, 3, (network.layers[name].shape[-1],)).float()
    calls: list[int] = []

    def change(inputs: Tensor) -> Tensor:
        calls.append(len(inputs))
        return inputs / scale

    with network.holding({name: StandIn(network.weight(name), change)}):
        assert not torch.allclose(network.resume(ids, -1, None), whole, atol=1e-3)
    with network.holding({name: StandIn(network.weight(name) * scale, change)}):
        assert torch.equal(network.resume(ids, -1, None), whole)
    assert sum(calls) == 2 * ids.numel() * 2  # two experts a token, held twice
    network.assert_at_rest()


@pytest.mark.parametrize("network", ["llama", "mixtral"], indirect=True)
def test_held_weights_are_followed_and_inputs_are_those_before_the_change(
    network: Network,
) -> None:
    ids, block = tiny.ids(1, 16), 1
    before = watched(network, ids, block)[0]
    names = watched_layers(network, block)
    held = {name: StandIn(network.weight(name), torch.zeros_like) for name in names}
    first = [n for n in names if n.endswith(("q_proj", "k_proj", "v_proj"))]
    seen, output = watched(network, ids, block, None, held)
    assert all(torch.equal(seen[name, None], before[name, None]) for name in first)
    last = "o_proj"
    name = next(n for n in names if n.endswith(last))
    assert before[name, None].any()
    assert not seen[name, None].any()
    assert output is not None
    assert torch.equal(output, network.states(ids)[block])  # nothing was added to the residual
    network.assert_at_rest()


@pytest.mark.parametrize("network", ["llama"], indirect=True)
def test_layers_that_read_one_tensor_are_found(network: Network) -> None:
    shared = shared_inputs(network)
    at = "model.layers.1."
    qkv = tuple(f"{at}self_attn.{kind}_proj" for kind in "qkv")
    both = (f"{at}mlp.gate_proj", f"{at}mlp.up_proj")
    assert all(shared[name] == qkv for name in qkv)
    assert all(shared[name] == both for name in both)
    for name in (f"{at}self_attn.o_proj", f"{at}mlp.down_proj", "lm_head"):
        assert shared[name] == (name,)
    assert shared_inputs(network) is shared


@EVERY
def test_layers_said_to_share_an_input_are_given_equal_values(network: Network) -> None:
    shared, plain = shared_inputs(network), hooked(network, tiny.ids(1, 16))
    assert shared.keys() == {n for n, x in network.layers.items() if x.role != "embedding"}
    for name, group in shared.items():
        assert name in group
        assert all(shared[other] == group for other in group)
        if name in plain:
            equal = {other for other in plain if torch.equal(plain[other], plain[name])}
            assert equal == set(group)
        else:
            assert group == (name,)


@pytest.mark.parametrize("network", ["llama", "gemma4", "mixtral"], indirect=True)
def test_a_preempted_watch_has_taken_nothing_and_leaves_the_network_at_rest(
    network: Network,
) -> None:
    ids = tiny.ids(1, 16)
    states = network.states(ids)
    for block in range(-1, len(network.blocks) + 1):
        taken: list[str] = []

        def take(layer: str, _expert: int | None, _x: Tensor, taken: list[str] = taken) -> None:
            taken.append(layer)

        network.should_stop = lambda: True
        with pytest.raises(Preempted):
            watch_inputs(network, ids, block, states[block] if block >= 0 else None, take)
        assert not taken
        network.should_stop = None
        network.assert_at_rest()


@SHARING
def test_a_watch_preempted_on_its_way_has_taken_nothing(network: Network) -> None:
    ids, asked, taken = tiny.ids(1, 16), 0, []

    def at_the_second() -> bool:
        nonlocal asked
        asked += 1
        return asked == 2

    network.should_stop = at_the_second
    with pytest.raises(Preempted):  # a layer before the block runs, whose output the block is given
        watch_inputs(network, ids, 0, None, lambda layer, _expert, _x: taken.append(layer))
    assert not taken
    network.assert_at_rest()
    seen, _ = watched(network, ids, 0)
    assert {layer for layer, _ in seen} == set(watched_layers(network, 0))
    assert any(network.layers[layer].block is None for layer, _ in seen)


UNUSUAL = {
    "gpt-oss": ("GptOssConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "llama 4": (
        "Llama4TextConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 64},
    ),
    "jetmoe": ("JetMoeConfig", {"num_local_experts": 4, "kv_channels": 16}),
    "aria": ("AriaTextConfig", {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1}),
    "nemotron-h": (
        "NemotronHConfig",
        {
            **{"layers_block_type": ["full_attention", "moe", "mlp"], "n_routed_experts": 4},
            **{"moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32},
        },
    ),
}
"""Turned, with biases, interleaved; given scores; sorted before; turned; with no gate."""


@pytest.mark.parametrize("arch", list(UNUSUAL))
def test_experts_of_unusual_layout_are_told_apart_too(arch: str) -> None:
    config, fields = UNUSUAL[arch]
    network = small(config, head_dim=16, **fields)
    ids = tiny.ids(2, 12)
    whole, states = network.resume(ids, -1, None), network.states(ids)
    names = [n for n in watched_layers(network, 1) if network.layers[n].role == "experts"]
    assert len(names) >= 2
    seen, output = watched(network, ids, 1)
    assert output is not None
    assert torch.equal(output, states[2])
    for name in names:
        tokens = {e: len(x) for (layer, e), x in seen.items() if layer == name}
        assert sum(tokens.values()) % ids.numel() == 0
        assert all(x.any(-1).all() for (layer, _), x in seen.items() if layer == name)
    scale = {n: 2.0 ** torch.randint(-2, 3, (network.layers[n].shape[-1],)).float() for n in names}
    changed = {n: StandIn(network.weight(n) * s, lambda x, s=s: x / s) for n, s in scale.items()}
    with network.holding(changed):
        assert torch.equal(network.resume(ids, -1, None), whole)  # powers of two round nothing
    with network.holding({n: StandIn(network.weight(n), lambda x: x / 2) for n in names}):
        assert not torch.allclose(network.resume(ids, -1, None), whole, atol=1e-3)
    network.assert_at_rest()


def test_a_layer_that_is_never_called_is_told() -> None:
    network = small("MambaConfig", state_size=8)
    name = "backbone.layers.1.mixer.dt_proj"
    assert "dt_proj is never called" in str(why_unseen(network, name))
    assert shared_inputs(network)[name] == (name,)
    assert why_unseen(network, name.replace("dt_proj", "x_proj")) is None
    assert "given tokens" in str(why_unseen(network, "backbone.embeddings"))


@MIXTURES
def test_experts_of_a_way_of_their_own_are_refused_with_the_reason(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = network.blocks.modules[0].mlp.experts
    monkeypatch.setattr(type(module), "_apply_gate", None)
    monkeypatch.delattr(type(module), "_apply_gate")
    name = next(n for n, layer in network.layers.items() if layer.role == "experts")
    with pytest.raises(
        UsageError, match=rf"experts.*{type(module).__name__} has its own implementation of experts"
    ):
        network.holding({name: StandIn(network.weight(name), torch.clone)}).__enter__()
    assert name not in watched_layers(network, 0)
