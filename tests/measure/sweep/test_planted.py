"""A layer that one format ruins is ranked first by measurement, on three architectures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine import protocol as p
from tests import brute_force, planted, tiny
from tests.drive import facts, figures, settings, sweeps


@pytest.mark.parametrize("arch", list(planted.PLANTED))
def test_a_planted_fault_is_the_worst_layer_and_only_in_the_format_it_was_planted_for(
    arch: str, tmp_path: Path, prose: Path
) -> None:
    fault = planted.plant(arch, tmp_path / arch)
    asked = p.Sweep((planted.FORMAT, "fp8-e4m3"), by="layer")
    chosen = settings(prose, tokens=512)
    (events,) = sweeps(tmp_path / arch, chosen, asked)
    kl: dict[str, dict[str, float]] = {planted.FORMAT: {}, "fp8-e4m3": {}}
    for fact in facts(events, p.Sensitivity):
        assert isinstance(fact, p.Sensitivity)
        kl[fact.format][fact.layer] = fact.kl
    ranked = sorted(kl[planted.FORMAT], key=lambda name: -kl[planted.FORMAT][name])
    assert ranked[0] == fault
    assert kl[planted.FORMAT][fault] > 2 * kl[planted.FORMAT][ranked[1]]
    assert max(kl["fp8-e4m3"], key=lambda name: kl["fp8-e4m3"][name]) != fault


@pytest.mark.parametrize("arch", list(planted.PLANTED))
def test_a_planted_fault_is_the_first_to_give_back(arch: str, tmp_path: Path, prose: Path) -> None:
    fault = planted.plant(arch, tmp_path / arch)
    chosen = settings(prose, tokens=512)
    (events,) = sweeps(tmp_path / arch, chosen, p.Sweep(exact="top:1", direction="restore"))
    rows = figures(events)
    assert max(rows, key=lambda name: rows[name].kl) == fault


@pytest.mark.parametrize("arch", list(planted.PLANTED))
def test_planting_changes_no_function(arch: str, tmp_path: Path) -> None:
    """Or the fault would be the model's, not the format's."""
    planted.plant(arch, tmp_path / "planted")
    tiny.build(arch, tmp_path / "plain")
    ids = tiny.ids(2, 32)
    with torch.no_grad():
        one = brute_force.load(tmp_path / "planted")(input_ids=ids).logits
        other = brute_force.load(tmp_path / "plain")(input_ids=ids).logits
    assert torch.allclose(one, other, atol=1e-4)
    assert float(other.std()) > 0.1
