"""Forwards resumed at a block equal plain transformers' forwards, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from engine.model.load import load_network
from engine.model.network import Network, Preempted
from engine.model.selfcheck import check_resuming
from tests import tiny

EVERY = pytest.mark.parametrize("network", list(tiny.ARCHITECTURES), indirect=True)
RESUMABLE = pytest.mark.parametrize("network", tiny.RESUMABLE, indirect=True)
SHARING = pytest.mark.parametrize("network", ["gemma4"], indirect=True)
LLAMA = pytest.mark.parametrize("network", ["llama"], indirect=True)


def plain(network: Network, ids: Tensor, changed: dict[str, Tensor] | None = None) -> Tensor:
    """Logits of the same checkpoint loaded by transformers alone, some weights overwritten."""
    model = AutoModelForCausalLM.from_pretrained(network.config.name_or_path, dtype=torch.float32)
    model.eval()
    with torch.no_grad():
        for name, weight in (changed or {}).items():
            layer = network.layers[name]
            experts = layer.role == "experts"
            parameter = model.get_parameter(layer.module if experts else f"{layer.module}.weight")
            parameter.copy_(weight.T if layer.role == "conv1d" else weight)
        return model(input_ids=ids, use_cache=False).logits


def halved(network: Network, name: str) -> Tensor:
    """A weight that is plainly not the reference."""
    weight = network.weight(name)
    return weight * 0.5 + weight.mean()


@RESUMABLE
def test_resume_from_every_block_is_exact(network: Network) -> None:
    ids = tiny.ids(2, 24)
    whole, states = plain(network, ids), network.states(ids)
    assert network.resumable
    assert network.why_not_resumable is None
    assert len(states) == len(network.blocks) + 1
    for k, state in enumerate(states):
        assert torch.equal(network.resume(ids, k, state), whole), k
        assert torch.equal(network.final_state(ids, k, state), states[-1]), k
    assert torch.equal(network.resume(ids, -1, None), whole)


@RESUMABLE
def test_resume_starts_from_the_state_it_is_given(network: Network) -> None:
    ids = tiny.ids(1, 16)
    states = network.states(ids)
    for k, state in enumerate(states):
        assert not torch.equal(network.final_state(ids, k, state.flip(1)), states[-1]), k


@EVERY
def test_states_equal_those_that_hooks_see(network: Network) -> None:
    ids = tiny.ids(2, 24)
    model = AutoModelForCausalLM.from_pretrained(network.config.name_or_path, dtype=torch.float32)
    prefix = next(n for n, m in network.model.named_modules() if m is network.blocks.modules[0])
    blocks = model.eval().get_submodule(prefix.rpartition(".")[0])
    seen: list[Tensor] = []

    def take(_module: object, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    def take_last(_module: object, _args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        seen.append(output if isinstance(output, Tensor) else output[0])

    for block in blocks:
        block.register_forward_pre_hook(take, with_kwargs=True)
    blocks[-1].register_forward_hook(take_last)
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    states = network.states(ids)
    assert len(states) == len(seen)
    for state, expected in zip(states, seen, strict=True):
        assert torch.equal(state, expected)


@EVERY
def test_chunks_of_the_head_equal_the_whole(network: Network) -> None:
    ids = tiny.ids(2, 32)
    whole, last = plain(network, ids), network.states(ids)[-1]
    for a in range(0, 32, 16):
        chunk = network.logits(ids, last, (a, a + 16))
        assert torch.equal(chunk, network.logits(ids, last, slice(a, a + 16)))
        assert torch.equal(chunk, whole[:, a : a + 16])


@EVERY
def test_a_changed_layer_gives_what_the_changed_model_gives(network: Network) -> None:
    ids = tiny.ids(2, 16)
    states, whole = network.states(ids), plain(network, ids)
    chosen = [layer for layer in network.layers.values() if layer.block in (1, len(states) - 2)]
    chosen = [*chosen[:2], *chosen[-2:], network.layers["lm_head"]]
    for layer in chosen:
        if network.tied and layer.role == "head":
            continue  # plain transformers cannot change one of a tied pair
        changed = {layer.name: halved(network, layer.name)}
        with network.holding(changed):
            last = network.final_state(ids, layer.start, states[layer.start])
            logits = network.logits(ids, last, (0, 16))
        assert torch.equal(logits, plain(network, ids, changed)), layer.name
        assert not torch.equal(logits, whole), layer.name


@SHARING
def test_shared_keys_and_values_fall_back_and_say_so(network: Network) -> None:
    assert not network.resumable
    assert network.why_not_resumable is not None
    assert "cannot run without the blocks before it" in network.why_not_resumable
    assert "whole model" in network.why_not_resumable
    ids = tiny.ids(2, 24)
    whole, states = plain(network, ids), network.states(ids)
    for k, state in enumerate(states[:-1]):
        wrong = torch.zeros_like(state)
        assert torch.equal(network.final_state(ids, k, wrong), states[-1])
        assert torch.equal(network.resume(ids, k, wrong), whole)
    assert torch.equal(network.resume(ids, len(states) - 1, states[-1]), whole)


@LLAMA
def test_a_network_whose_head_cannot_be_resumed_runs_it_whole(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "resumable", False)
    monkeypatch.setattr(network, "head_resumable", False)
    ids, name = tiny.ids(1, 16), "model.layers.0.mlp.down_proj"
    changed = {name: halved(network, name)}
    with network.holding(changed):
        logits = network.logits(ids, torch.zeros(1, 16, 64), (4, 12))
    assert torch.equal(logits, plain(network, ids, changed)[:, 4:12])


@LLAMA
def test_a_network_without_logits_to_keep_slices_whole_logits(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "takes_positions", False)
    ids = tiny.ids(1, 16)
    logits = network.logits(ids, network.states(ids)[-1], (3, 9))
    assert torch.equal(logits, plain(network, ids)[:, 3:9])


@LLAMA
def test_the_self_check_sees_a_block_that_reads_what_another_left(network: Network) -> None:
    left: list[Tensor] = []
    leaves, reads = network.blocks.modules[0].forward, network.blocks.modules[2].forward

    def leaving(*args: Tensor, **kwargs: object) -> Tensor:
        left[:] = args[:1]
        return leaves(*args, **kwargs)

    def reading(*args: Tensor, **kwargs: object) -> Tensor:
        return reads(*args, **kwargs) + left[0]  # stale, not absent, when block 0 is skipped

    try:
        network.blocks.modules[0].__dict__["forward"] = leaving
        network.blocks.modules[2].__dict__["forward"] = reading
        assert not check_resuming(network)
        assert "block 2 depends on more than its input" in str(network.why_not_resumable)
        assert network.blocks.modules[0].__dict__["forward"] is leaving
    finally:
        del (
            network.blocks.modules[0].__dict__["forward"],
            network.blocks.modules[2].__dict__["forward"],
        )
        assert check_resuming(network)


@LLAMA
def test_the_self_check_sees_a_block_that_writes_into_its_input(network: Network) -> None:
    block, ids = network.blocks.modules[1].forward, tiny.ids(1, 16)
    entering = network.states(ids)[1]

    def forward(*args: Tensor, **kwargs: object) -> Tensor:
        output = block(*args, **kwargs)
        args[0].add_(1.0)
        return output

    try:
        network.blocks.modules[1].__dict__["forward"] = forward
        assert not check_resuming(network)
        assert "the input of block 1 is written to" in str(network.why_not_resumable)
        assert torch.equal(network.states(ids)[1], entering)
    finally:
        del network.blocks.modules[1].__dict__["forward"]
        assert check_resuming(network)


@pytest.mark.parametrize("network", ["falcon"], indirect=True)
def test_tensors_beside_the_state_do_not_hinder_a_model_that_ignores_them(
    network: Network,
) -> None:
    block, ids = network.blocks.modules[1].forward, tiny.ids(2, 24)
    try:
        network.blocks.modules[1].__dict__["forward"] = lambda *a, **k: (
            block(*a, **k)[0],
            torch.ones(1),
        )
        assert check_resuming(network)
        assert torch.equal(network.resume(ids, 2, network.states(ids)[2]), plain(network, ids))
    finally:
        del network.blocks.modules[1].__dict__["forward"]
        assert check_resuming(network)


@pytest.mark.parametrize("network", ["falcon"], indirect=True)
def test_a_model_that_needs_what_a_block_returns_beside_the_state_is_not_resumed(
    network: Network,
) -> None:
    block, head = network.blocks.modules[1].forward, network.model.transformer.ln_f
    beside: list[Tensor] = []

    def forward(*args: Tensor, **kwargs: object) -> tuple[Tensor, ...]:
        beside[:] = [torch.ones(1)]
        return (block(*args, **kwargs)[0], beside[0])

    def needs(_module: object, _args: object, output: Tensor) -> Tensor:
        return output + beside.pop()  # nothing is there when block 1 was skipped

    hook = head.register_forward_hook(needs)
    try:
        network.blocks.modules[1].__dict__["forward"] = forward
        assert not check_resuming(network)
        ids = tiny.ids(1, 16)
        whole = network.resume(ids, -1, None)
        last = network.final_state(ids, 2, torch.zeros(1, 16, 64))
        beside.clear()
        assert torch.equal(network.logits(ids, last, (0, 16)), whole)
    finally:
        hook.remove()
        del network.blocks.modules[1].__dict__["forward"]
        assert check_resuming(network)


@EVERY
def test_preemption_leaves_the_network_at_rest(network: Network) -> None:
    ids, name = tiny.ids(1, 16), next(iter(network.layers))
    states, calls = network.states(ids), 0

    def third_time() -> bool:
        nonlocal calls
        calls += 1
        return calls == 3

    network.should_stop = third_time
    with pytest.raises(Preempted), network.holding({name: halved(network, name)}):
        network.final_state(ids, -1, None)
    assert calls == 3
    network.assert_at_rest()
    calls = 0
    with pytest.raises(Preempted):
        network.states(ids)
    network.should_stop = None
    network.assert_at_rest()
    assert all(map(torch.equal, network.states(ids), states))


@LLAMA
def test_no_grad_ends_with_the_call_and_its_tensors_can_be_differentiated(
    network: Network,
) -> None:
    ids = tiny.ids(1, 16)
    state = network.states(ids)[1]
    assert torch.is_grad_enabled()
    assert not state.is_inference()
    assert not state.requires_grad
    scale = torch.ones(64, requires_grad=True)
    (state * scale).sum().backward()
    assert scale.grad is not None


@LLAMA
def test_an_error_in_a_forward_leaves_the_network_at_rest(network: Network) -> None:
    ids = tiny.ids(1, 16)
    with pytest.raises(RuntimeError):
        network.final_state(ids, 1, torch.zeros(1, 16, 63))
    network.assert_at_rest()


@pytest.mark.parametrize("change", ["weight", "forward", "hook", "grad"])
def test_at_rest_notices_what_is_left_behind(folder: Callable[[str], Path], change: str) -> None:
    network = load_network(folder("llama"), device="cpu")
    network.assert_at_rest()
    if change == "weight":
        with torch.no_grad():
            next(iter(network.model.parameters())).add_(1.0)
    elif change == "forward":
        network.blocks.modules[1].__dict__["forward"] = network.blocks.modules[1].forward
    elif change == "hook":
        network.blocks.modules[1].register_forward_hook(lambda *_: None)
    grad = torch.is_grad_enabled()
    try:
        torch.set_grad_enabled(change != "grad")
        with pytest.raises(AssertionError):
            network.assert_at_rest()
    finally:
        torch.set_grad_enabled(grad)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("arch", list(tiny.ARCHITECTURES))
def test_on_cuda_resuming_stays_within_the_noise_of_running_twice(
    folder: Callable[[str], Path], arch: str
) -> None:
    network = load_network(folder(arch), device="cuda")
    assert (network.device.type, network.dtype) == ("cuda", torch.bfloat16)
    assert network.resumable is (arch in tiny.RESUMABLE)
    ids = tiny.ids(2, 32).cuda()
    whole, again = network.resume(ids, -1, None), network.resume(ids, -1, None)
    floor = (whole - again).abs().max()
    states = network.states(ids)
    for k, state in enumerate(states):
        assert (network.resume(ids, k, state) - whole).abs().max() <= floor, k
    for name in network.layers:
        with network.holding({name: network.weight(name).clone()}):
            assert (network.resume(ids, -1, None) - whole).abs().max() <= floor, name
    network.assert_at_rest()
