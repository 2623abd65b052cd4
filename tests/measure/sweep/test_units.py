"""Layers given back, and blocks, kinds and groups changed at once, equal a brute-force loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast, get_args

import pytest
import torch
from torch import Tensor, nn

from engine import protocol as p
from engine.errors import UsageError
from engine.measure.sweep.job import SWEEP
from engine.measure.sweep.units import units
from engine.model.layers import Layer
from tests import brute_force, tiny
from tests.drive import facts, figures, settings, sweeps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def of(arch: str) -> Path:
        if arch not in made:
            made[arch] = tiny.build(arch, tmp_path_factory.mktemp("units") / arch)
        return made[arch]

    return of


class Loop:
    """Plain transformers on the same windows: 8 of 32 tokens."""

    def __init__(self, source: Path, prose: Path) -> None:
        self.model = brute_force.load(source)
        self.rows = brute_force.windows(source, prose.read_text(), 256, 32)
        self.before = list(brute_force.log_probabilities(self.model, self.rows, 8))
        self.modules = brute_force.weights(self.model)
        self.changes: dict[nn.Module, Tensor] = {
            module: brute_force.quantised(brute_force.oriented(module), 4, 32, torch.float16)
            for module in self.modules.values()
        }
        outside = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        self.body = {m: changed for m, changed in self.changes.items() if m not in outside}

    def degraded(self, layers: list[str]) -> brute_force.Effect:
        changes = {self.modules[name]: self.changes[self.modules[name]] for name in layers}
        return brute_force.together(self.model, changes, self.rows, 8, self.before)

    def restored(self, layers: list[str]) -> brute_force.Effect:
        back = [self.modules[name] for name in layers]
        return brute_force.restored(self.model, self.body, back, self.rows, 8, self.before)


def close(ours: float, theirs: float) -> bool:
    """As `brute_force.close`; a difference of two comparisons has twice their rounding."""
    return abs(ours - theirs) <= max(2e-5 * abs(theirs), 4e-7)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma4"])
def test_giving_a_layer_back_equals_the_brute_force_loop(
    arch: str, folder: Callable[[str], Path], prose: Path
) -> None:
    chosen = settings(prose, tokens=256)
    (events,) = sweeps(folder(arch), chosen, p.Sweep(direction="restore"))
    rows = figures(events)
    loop = Loop(folder(arch), prose)
    body = {name for name, module in loop.modules.items() if module in loop.body}
    assert set(rows) == body
    for name in list(rows)[::3]:
        expected = loop.restored([name])
        assert close(rows[name].kl, expected.kl), (name, rows[name].kl, expected.kl)
        assert close(rows[name].dnll, expected.dnll), (name, rows[name].dnll, expected.dnll)
        assert rows[name].direction == "restore"


def test_what_restoring_says_of_perplexity_is_exact_algebra(
    folder: Callable[[str], Path], prose: Path
) -> None:
    (events,) = sweeps(folder("llama"), settings(prose, tokens=256), p.Sweep(direction="restore"))
    (together,) = facts(events, p.RecipeScore)
    (additivity,) = facts(events, p.Additivity)
    assert isinstance(together, p.RecipeScore)
    assert isinstance(additivity, p.Additivity)
    rows = figures(events)
    for row in rows.values():
        assert row.dppl == pytest.approx(together.ppl - math.exp(together.nll - row.dnll))
        assert row.dppl_low <= row.dppl <= row.dppl_high
    assert additivity.direction == "restore"
    assert additivity.layers == len(rows)
    assert additivity.together_kl == together.kl
    assert additivity.sum_kl == pytest.approx(sum(row.kl for row in rows.values()))
    assert additivity.kl == pytest.approx(together.kl / additivity.sum_kl)


def test_restore_sweep_of_an_unquantised_model_is_zero(
    folder: Callable[[str], Path], prose: Path
) -> None:
    """Every layer holds the dtype it is stored in: there is nothing to regain."""
    (events,) = sweeps(
        folder("llama"), settings(prose, tokens=256), p.Sweep(("fp32",), direction="restore")
    )
    rows = figures(events)
    assert len(rows) == 21
    for row in rows.values():
        assert (row.kl, row.dnll, row.kl_se, row.dnll_se, row.dppl) == (0.0,) * 5
        assert row.top1 == 1.0


def test_the_standard_error_of_restoring_is_that_of_the_windows_differences(
    folder: Callable[[str], Path], prose: Path
) -> None:
    (events,) = sweeps(folder("llama"), settings(prose, tokens=256), p.Sweep(direction="restore"))
    loop = Loop(folder("llama"), prose)
    name = "model.layers.1.mlp.down_proj"
    back = [loop.modules[name]]
    each = torch.tensor(
        [brute_force.restored(loop.model, loop.body, back, row[None], 1).kl for row in loop.rows],
        dtype=torch.float64,
    )
    expected = float(each.std(unbiased=True)) / len(each) ** 0.5
    assert figures(events)[name].kl_se == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("direction", get_args(p.Direction))
def test_blocks_kinds_and_groups_changed_at_once_equal_the_brute_force_loop(
    direction: p.Direction, folder: Callable[[str], Path], prose: Path
) -> None:
    asked = [p.Sweep(direction=direction, by=by) for by in ("block", "kind", "group")]
    source = folder("llama")
    found = sweeps(source, settings(prose, tokens=256), *asked)
    loop = Loop(source, prose)
    names = [name for name, module in loop.modules.items() if module in loop.body]
    expected = {
        "block": {"2": [name for name in names if ".layers.2." in name]},
        "kind": {"o_proj": [name for name in names if name.endswith("o_proj")]},
        "group": {
            "model.layers.1.self_attn.q_proj": [
                f"model.layers.1.self_attn.{kind}_proj" for kind in "qkv"
            ],
            "model.layers.0.mlp.gate_proj": [
                f"model.layers.0.mlp.{kind}_proj" for kind in ("gate", "up")
            ],
            "model.layers.2.mlp.down_proj": ["model.layers.2.mlp.down_proj"],
        },
    }
    counts = {"block": 3, "kind": 7, "group": 12}
    for sweep, events in zip(asked, found, strict=True):
        rows = figures(events)
        outside = 2 if direction == "degrade" and sweep.by != "block" else 0
        assert len(rows) == counts[sweep.by] + outside
        assert all(row.by == sweep.by for row in rows.values())
        for unit, layers in expected[sweep.by].items():
            theirs = getattr(loop, "degraded" if direction == "degrade" else "restored")(layers)
            assert close(rows[unit].kl, theirs.kl), (unit, rows[unit].kl, theirs.kl)
            assert close(rows[unit].dnll, theirs.dnll), (unit, rows[unit].dnll, theirs.dnll)


def test_units_answer_no_question_about_layers(folder: Callable[[str], Path], prose: Path) -> None:
    source, chosen = folder("gpt2"), settings(prose, tokens=256)
    by_group, by_layer, again = sweeps(
        source, chosen, p.Sweep(by="group"), p.Sweep(), p.Sweep(by="group")
    )
    assert not figures([e for e in by_layer if isinstance(e, p.Learned) and not e.fresh])
    ended = again[-1]
    assert isinstance(ended, p.JobEnded)
    assert ended.measured == 0
    # GPT-2 has no fused groups: every layer is a unit of its own, and measures the same.
    alone = {name: (row.kl, row.dnll) for name, row in figures(by_layer).items()}
    assert {name: (row.kl, row.dnll) for name, row in figures(by_group).items()} == alone
    assert figures(again) == figures(by_group)


def layer(name: str, block: int | None, role: p.Role = "linear") -> Layer:
    start = -1 if role == "embedding" else 2 if block is None else block
    return Layer(name, name.split(".")[-1], block, role, (8, 8), (name,), (name,), (start,))


def test_units_are_named_and_begin_where_their_first_layer_does() -> None:
    layers = {
        each.name: each
        for each in (
            layer("embed", None, "embedding"),
            *(layer(f"blocks.{b}.attn.{kind}", b) for b in (0, 1) for kind in ("q_proj", "k_proj")),
            layer("blocks.1.mlp.experts.gate_up_proj", 1, "experts"),
            layer("blocks.1.mlp.experts.down_proj", 1, "experts"),
            layer("head", None, "head"),
        )
    }
    told = {
        by: [(unit.name, len(unit.layers), unit.start) for unit in units(layers, by)]
        for by in get_args(p.By)
    }
    assert told["layer"] == [(name, 1, each.start) for name, each in layers.items()]
    assert told["block"] == [("0", 2, 0), ("1", 4, 1)]
    assert told["kind"] == [
        ("embed", 1, -1), ("q_proj", 2, 0), ("k_proj", 2, 0), ("gate_up_proj", 1, 1),
        ("down_proj", 1, 1), ("head", 1, 2),
    ]  # fmt: skip
    assert told["group"] == [
        ("embed", 1, -1), ("blocks.0.attn.q_proj", 2, 0), ("blocks.1.attn.q_proj", 2, 1),
        ("blocks.1.mlp.experts.gate_up_proj", 2, 1), ("head", 1, 2),
    ]  # fmt: skip
    assert [unit.body for unit in units(layers, "kind")] == [False, True, True, True, True, False]


@pytest.mark.parametrize("by", ["block", "kind", "group"])
def test_units_are_not_estimated_and_a_sweep_that_measures_nothing_is_refused(by: p.By) -> None:
    command = p.Sweep(("int4-g128",), exact="none", by=by)
    with pytest.raises(UsageError, match=f"--by {by} needs measurements"):
        SWEEP.accept(cast(Any, None), command)
