"""What a forward costs: the experts a token meets count, not all of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from engine.measure.counts import JobCounts
from engine.measure.evaluation.reference import Reference
from engine.measure.sweep.progress import SweepProgress
from engine.measure.sweep.units import Unit
from engine.model.cost import cost_of, experts_per_token, forward_cost
from engine.model.network import Network
from engine.texts.windows import cut
from tests import tiny
from tests.model.small import small


@pytest.mark.parametrize(("arch", "experts"), [("qwen3_moe", 4), ("mixtral", 4)])
def test_a_token_pays_for_the_experts_it_is_routed_to(
    arch: str, experts: int, loaded: Callable[[str], Network]
) -> None:
    network = loaded(arch)
    assert experts_per_token(network.config) == 2
    dense = sum(
        math.prod(x.shape) for x in network.layers.values() if x.block == 0 and x.role == "linear"
    )
    all_experts = sum(
        math.prod(x.shape) for x in network.layers.values() if x.block == 0 and x.role == "experts"
    )
    assert all_experts
    cost = cost_of(network)
    assert cost.blocks == (dense + all_experts * 2 / experts,) * 3
    assert cost.head == 2 * math.prod(network.layers["lm_head"].shape)
    assert cost.resumed(2) == cost.blocks[2] + cost.head
    assert cost.resumed(-1) == cost.resumed(0) == math.fsum(cost.blocks) + cost.head
    assert cost.resumed(3) == cost.head


def test_a_dense_model_pays_for_all_it_has(loaded: Callable[[str], Network]) -> None:
    network = loaded("llama")
    body = sum(math.prod(x.shape) for x in network.layers.values() if x.block is not None)
    cost = cost_of(network)
    assert math.fsum(cost.blocks) == body
    assert cost.head_in_blocks == pytest.approx(cost.head / (body / 3))


def test_blocks_without_layers_cost_as_much_as_a_head(loaded: Callable[[str], Network]) -> None:
    network = loaded("llama")
    head = {name: x for name, x in network.layers.items() if x.role == "head"}
    assert forward_cost(head, 3, network.config).head_in_blocks == 1.0


def test_progress_and_the_plan_of_what_is_kept_go_by_one_cost() -> None:
    """They differed by as much as a token leaves experts out: sevenfold on real mixtures."""
    network = small(
        "Qwen3MoeConfig", num_experts=16, num_experts_per_tok=2, moe_intermediate_size=64
    )
    windows = cut(tiny.ids(1, 256).flatten(), 32, 256)
    in_blocks = Reference(network, windows, 64, 0).sizes.head
    layers = [n for n, x in network.layers.items() if x.start in (0, len(network.blocks))]
    first, head = (
        Unit(name, (name,), network.layers[name].start, True) for name in (layers[0], "lm_head")
    )
    progress = SweepProgress(JobCounts(job="job"), network, [first, head], 2)
    block = (progress.work(first) - progress.work(head)) / len(network.blocks)
    assert progress.work(head) / block == pytest.approx(in_blocks)
    every = sum(math.prod(x.shape) for x in network.layers.values() if x.block == 0)
    assert block < every / 4
