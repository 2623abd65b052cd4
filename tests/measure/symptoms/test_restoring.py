"""Layers given back on texts that show a symptom, against plain forwards with copied weights."""

from __future__ import annotations

from collections.abc import Generator
from copy import deepcopy
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from engine import protocol as p
from engine.diagnosis.of_symptoms import Shown
from engine.measure.counts import JobCounts
from engine.measure.symptoms.restoring import (
    BLOCKS,
    Failing,
    Restoring,
    Unit,
    units_first,
    units_within,
)
from engine.model.load import load_network
from engine.model.network import Network
from engine.texts.prompts import Prompt, Tokens
from tests import tiny

T = TypeVar("T")
TEXTS = [([5, 9, 14, 3], [7, 7, 21, 8, 40, 2]), ([11, 4, 90], [60, 61, 62]), ([1], [8, 8, 8, 8])]


def run(steps: Generator[Any, None, T]) -> T:
    """What a generator returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            value: T = end.value
            return value


def failing(prompt: list[int], said: list[int]) -> Failing:
    one = p.Continuation(text="", tokens=tuple(said), ended=False)
    fact = p.Continued(
        prompt="", recipe="", id="", text="", sampling=p.Sampling(), prompt_tokens=len(prompt),
        reference=one, changed=one,
    )  # fmt: skip
    return Failing(Shown(fact), Tokens(Prompt("", ""), "", prompt))


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma4"])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Network:
    """Of which the last cannot be resumed."""
    folder = tmp_path_factory.mktemp("restoring") / request.param
    return load_network(tiny.build(request.param, folder), device="cpu")


def damaged(network: Network, some: list[str]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: weight + 0.5 * weight.std() * torch.randn(weight.shape, generator=generator)
        for name in some
        for weight in [network.weight(name)]
    }


def kls(network: Network, held: dict[str, Tensor]) -> list[float]:
    """KL of each text by whole forwards of one row, with the weights copied into another model."""
    copy = deepcopy(network.model)
    found = []
    with torch.no_grad():
        for name, weight in held.items():
            slot = network.slot(name)
            for path, module in network.model.named_modules():
                if module is slot.owner:
                    own = getattr(copy.get_submodule(path), slot.attribute)
                    own.copy_(slot.oriented(weight))  # a square one may be transposed too
        for prompt, said in TEXTS:
            ids = torch.tensor([[*prompt, *said]])
            one, other = (
                model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
                for model in (network.model, copy)
            )
            found.append(float((one.exp() * (one - other)).sum(-1).mean()))
    return found


@pytest.mark.parametrize("budget", [1 << 30, 0])
def test_what_a_layer_wins_is_the_fall_of_kl_in_plain_forwards(
    network: Network, budget: int
) -> None:
    body = [name for name, layer in network.layers.items() if layer.block is not None]
    some = [*body[1:9:3], next(n for n, layer in network.layers.items() if layer.role == "head")]
    held = damaged(network, some)
    restoring = Restoring(
        network, [failing(*each) for each in TEXTS], held,
        recipe="r", key="k", budget=budget, counts=JobCounts(),
    )  # fmt: skip
    run(restoring.prepare())
    whole = kls(network, held)
    units = [Unit(name, (name,), "layer") for name in some]
    for unit in [*units, Unit("two", tuple(some[:2]), "block")]:
        fact = run(restoring.restored(unit))
        left = kls(network, {n: each for n, each in held.items() if n not in unit.layers})
        wins = torch.tensor([a - b for a, b in zip(whole, left, strict=True)])
        assert fact.kl == pytest.approx(float(wins.mean()), rel=1e-3, abs=1e-5)
        assert fact.kl_se == pytest.approx(float(wins.std() / 3**0.5), rel=1e-3, abs=1e-5)
        assert fact.whole == pytest.approx(sum(whole) / 3, rel=1e-3)
        assert (fact.zeroed, fact.nonfinite) == (0, 0)
    network.assert_at_rest()


def test_rows_of_zeros_and_values_that_are_not_finite_are_told(network: Network) -> None:
    name = next(iter(n for n, layer in network.layers.items() if layer.block == 1))
    weight = network.weight(name).clone()
    weight[: len(weight) // 4] = 0
    weight[-1, 0] = float("nan")
    restoring = Restoring(
        network, [failing(*TEXTS[0])], {name: weight},
        recipe="r", key="k", budget=1 << 30, counts=JobCounts(),
    )  # fmt: skip
    run(restoring.prepare())
    fact = run(restoring.restored(Unit(name, (name,), "layer")))
    assert fact.zeroed == 0.25
    assert fact.nonfinite == 1 / weight.numel()


def test_of_many_layers_blocks_come_first(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dict.fromkeys(network.layers, "int4")
    few = units_first(network, recipe)
    assert [unit.name for unit in few] == list(recipe)
    monkeypatch.setattr("engine.measure.symptoms.restoring.MANY", 3)
    units = units_first(network, recipe)
    assert sorted(name for unit in units for name in unit.layers) == sorted(recipe)
    blocks = [unit for unit in units if unit.by == "block"]
    assert len(blocks) == len(network.blocks)
    wins = {unit.name: float(at) for at, unit in enumerate(units)}
    facts = [
        (unit, p.SymptomRestored(recipe="", prompts="", unit=unit.name, layers=unit.layers,
                                 by=unit.by, kl=wins[unit.name], kl_se=0, whole=1, texts=1))
        for unit in units
    ]  # fmt: skip
    best = sorted(blocks, key=lambda unit: -wins[unit.name])[:BLOCKS]
    expected = [name for unit in best for name in unit.layers]
    assert [unit.name for unit in units_within(facts)] == expected
    ranked = [fact for _, fact in sorted(facts, key=lambda each: -each[1].kl)]
    restoring = Restoring(
        network, [failing(*TEXTS[0])], {name: network.weight(name) for name in recipe},
        recipe="r", key="k", budget=0, counts=JobCounts(),
    )  # fmt: skip
    back = [layers for layers, _ in restoring.cures(ranked)]
    assert back[-1] == best[0].layers  # the whole block comes last
    for layers, held in restoring.cures(ranked):
        assert {*layers, *held} == recipe.keys()
        assert not {*layers} & held.keys()
