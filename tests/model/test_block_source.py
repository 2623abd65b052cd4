"""Blocks whose weights come and go give what resident ones give, and are read once a stretch."""

from __future__ import annotations

import pytest
import torch

from engine.model.fold_groups import fold_groups
from engine.model.gradients import block_gradients, layers_of
from engine.model.inputs import watch_inputs
from engine.model.lanes import Lane
from engine.model.network import Network, Preempted
from engine.model.selfcheck import check_resuming
from tests import tiny
from tests.model.streamed import streamed

ARCHS = ("llama", "gpt2", "qwen3_moe")


@pytest.mark.parametrize("network", ARCHS, indirect=True)
def test_forwards_and_weights_are_equal_to_the_bit(network: Network) -> None:
    ids, n = tiny.ids(2, 24), len(network.blocks)
    whole, states = network.run(ids, None), network.states(ids)
    weights = {name: network.weight(name).clone() for name in network.layers}
    with streamed(network):
        assert check_resuming(network)
        assert torch.equal(network.run(ids, None), whole)
        assert all(map(torch.equal, network.states(ids), states))
        for k in range(n + 1):
            assert torch.equal(network.resume(ids, k, states[k]), whole)
        for name, weight in weights.items():
            assert torch.equal(network.weight(name), weight)
            with network.holding({name: weight * 1.5}):
                changed = network.resume(ids, -1, None)
            assert not torch.equal(changed, whole)
        network.assert_at_rest()


@pytest.mark.parametrize("network", ARCHS, indirect=True)
def test_inputs_and_gradients_need_their_block_alone(network: Network) -> None:
    ids = tiny.ids(2, 24)
    states = network.states(ids)
    cotangent = torch.randn(states[1].shape, generator=torch.Generator().manual_seed(0))

    def seen() -> list[torch.Tensor]:
        found: list[torch.Tensor] = []

        def take(_layer: str, _expert: int | None, inputs: torch.Tensor) -> None:
            found.append(inputs.clone())

        watch_inputs(network, ids, 1, states[1], take)
        watched = [n for n in layers_of(network, 1) if network.layers[n].role != "experts"]
        taps, cotangents = block_gradients(network, ids, 1, states[1], [cotangent], {}, watched)
        return [*found, *(g for tap in taps for g in tap.gradients), *cotangents]

    resident = seen()
    with streamed(network) as source:
        before = list(source.reads)
        assert all(map(torch.equal, seen(), resident))
        assert [now - then for now, then in zip(source.reads, before, strict=True)] == [0, 2, 0]


@pytest.mark.parametrize("network", ["llama"], indirect=True)
def test_what_absorbs_a_scale_is_known_after_its_block_has_gone(network: Network) -> None:
    groups = {name: group.weight for name, group in fold_groups(network).items()}
    with streamed(network):
        assert any(weight is not None and weight.numel() for weight in groups.values())


@pytest.mark.parametrize("network", ARCHS, indirect=True)
@pytest.mark.parametrize("at_once", [1, 2])
def test_lanes_go_through_a_block_together_and_read_it_once(network: Network, at_once: int) -> None:
    batches, n = [tiny.ids(2, 24), tiny.ids(1, 16), tiny.ids(2, 24).flip(1)], len(network.blocks)
    name = next(name for name, layer in network.layers.items() if layer.start == 1)
    held = {name: network.weight(name) * 1.25}
    expected = [network.states(ids)[-1] for ids in batches]
    with network.holding(held):
        changed = network.states(batches[0])[-1]
    from_one = network.states(batches[0])[1]
    with streamed(network, at_once) as source:
        before = list(source.reads)
        lanes = [Lane(network, ids, -1, None) for ids in batches]
        lanes.append(Lane(network, batches[0], 1, from_one, held))
        for stretch in network.stretches(-1, n):
            with network.at_hand(stretch):
                for lane in lanes:
                    lane.advance(stretch.stop)
        assert [now - then for now, then in zip(source.reads, before, strict=True)] == [1] * n
    for lane, state in zip(lanes, [*expected, changed], strict=True):
        assert torch.equal(lane.reached(), state)


@pytest.mark.parametrize("network", ["llama", "gemma4"], indirect=True)
def test_stretches_cover_every_block_once(network: Network) -> None:
    n = len(network.blocks)
    for start in range(-1, n + 1):
        for until in range(max(start, 0), n + 1):
            with streamed(network):
                found = network.stretches(start, until)
            assert [k for stretch in found for k in stretch] == list(range(start, until))
            assert found == [] or network.stretches(start, until) == [range(start, until)]
            if not network.resumable:  # a whole forward, or none
                assert len(found) <= 1


@pytest.mark.parametrize("network", ["llama"], indirect=True)
def test_a_lane_that_is_pre_empted_stays_where_it_was(network: Network) -> None:
    ids = tiny.ids(1, 16)
    lane = Lane(network, ids, -1, None)
    network.should_stop = lambda: True
    with pytest.raises(Preempted):
        lane.advance(2)
    assert lane.at == -1
    network.should_stop = None
    for until in (1, 2, 1):
        lane.advance(until)
    assert lane.at == 2
    assert torch.equal(lane.reached(), network.states(ids)[2])
