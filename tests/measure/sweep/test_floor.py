"""The floor of a dtype: the same evaluation, rounded differently."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine import protocol as p
from engine.measure.sweep.control import rounded_otherwise
from engine.model.load import load_network
from engine.model.network import StandIn
from tests import tiny
from tests.drive import facts, settings, sweeps


@pytest.mark.parametrize("arch", ["llama", "gpt2", "mixtral"])
def test_layers_whose_sums_are_reordered_compute_the_same(arch: str, tmp_path: Path) -> None:
    network = load_network(tiny.build(arch, tmp_path / arch), device="cpu", dtype="fp32")
    held = rounded_otherwise(network, tiny.ids(2, 32))
    network.assert_at_rest()
    left_out = {name for name in network.layers if name not in held}
    assert {network.layers[name].role for name in left_out} <= {"embedding", "experts"}
    for name, each in held.items():
        assert isinstance(each, StandIn)
        assert each.inputs is not None
        inputs = torch.randn(3, network.layers[name].shape[-1], dtype=torch.float64)
        expected = inputs @ network.weight(name).double().T
        assert torch.allclose(each.inputs(inputs) @ each.weight.double().T, expected)
        assert not torch.equal(each.weight, network.weight(name))
    ids = tiny.ids(2, 32)
    plain = network.resume(ids, -1, None)
    with network.holding(held):
        other = network.resume(ids, -1, None)
    assert not torch.equal(plain, other)
    assert torch.allclose(plain, other, atol=1e-4)


def test_the_floor_of_16_bits_is_far_above_that_of_32(tmp_path: Path, prose: Path) -> None:
    source = tiny.build("llama", tmp_path / "llama")
    floors = {}
    for dtype in ("fp32", "bf16"):
        (events,) = sweeps(source, settings(prose, dtype=dtype), p.Sweep(exact="none"))
        (control,) = facts(events, p.Control)
        assert isinstance(control, p.Control)
        assert (control.max_abs_dnll, control.max_abs_kl) == (0.0, 0.0)
        floors[dtype] = control
    assert 0 < floors["fp32"].floor_dnll < 1e-4
    assert floors["bf16"].floor_dnll > 10 * floors["fp32"].floor_dnll
    assert floors["bf16"].floor_kl > 10 * floors["fp32"].floor_kl > 0
