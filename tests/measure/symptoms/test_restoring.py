"""Layers given back on texts that show a symptom, against plain forwards with copied weights."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor

from engine import protocol as p
from engine.diagnosis.of_symptoms import Shown
from engine.measure.counts import JobCounts
from engine.measure.symptoms.restoring import Failing, Restoring
from engine.measure.symptoms.units import BLOCKS, Unit, sets_to_try, units_first, units_within
from engine.model.load import load_network
from engine.model.network import Network
from engine.steps import drained
from engine.texts.prompts import Prompt, Tokens
from tests import tiny

TEXTS = [([5, 9, 14, 3], [7, 7, 21, 8, 40, 2]), ([11, 4, 90], [60, 61, 62]), ([1], [8, 8, 8, 8])]


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
    drained(restoring.prepare())
    whole = kls(network, held)
    units = [Unit(name, (name,), "layer") for name in some]
    for unit in [*units, Unit("two", tuple(some[:2]), "block")]:
        fact = drained(restoring.restored(unit))
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
    drained(restoring.prepare())
    fact = drained(restoring.restored(Unit(name, (name,), "layer")))
    assert fact.zeroed == 0.25
    assert fact.nonfinite == 1 / weight.numel()


MODULES = {"llama": ["self_attn", "mlp"], "gpt2": ["attn", "mlp"], "gemma4": ["self_attn", "mlp"]}


def fact(unit: Unit, kl: float) -> p.SymptomRestored:
    return p.SymptomRestored(
        recipe="", prompts="", unit=unit.name, layers=unit.layers, by=unit.by, kl=kl, kl_se=0,
        whole=1, texts=1,
    )  # fmt: skip


def test_modules_of_blocks_are_given_back_as_well(network: Network) -> None:
    recipe = dict.fromkeys(network.layers, "int4")
    units = units_first(network, recipe)
    assert [unit.name for unit in units if unit.by == "layer"] == list(recipe)
    modules = [unit for unit in units if unit.by == "module"]
    kinds = MODULES[
        {"gpt2": "gpt2", "gemma4_text": "gemma4"}.get(network.config.model_type, "llama")
    ]
    for block in range(len(network.blocks)):
        for kind in kinds:
            (found,) = [unit for unit in modules if unit.name == f"block {block} {kind}"]
            assert all(f".{block}.{kind}." in name for name in found.layers)
            assert len(found.layers) > 1


def test_of_many_layers_blocks_come_first(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dict.fromkeys(network.layers, "int4")
    monkeypatch.setattr("engine.measure.symptoms.units.MANY", 3)
    units = units_first(network, recipe)
    assert sorted(name for unit in units for name in unit.layers) == sorted(recipe)
    blocks = [unit for unit in units if unit.by == "block"]
    assert len(blocks) == len(network.blocks)
    wins = {unit.name: float(at) for at, unit in enumerate(units)}
    facts = [(unit, fact(unit, wins[unit.name])) for unit in units]
    best = sorted(blocks, key=lambda unit: -wins[unit.name])[:BLOCKS]
    expected = [name for unit in best for name in unit.layers]
    within = units_within(network, facts)
    assert [unit.name for unit in within if unit.by == "layer"] == expected
    inside = [name for unit in within if unit.by == "module" for name in unit.layers]
    assert set(inside) <= set(expected)
    assert {unit.by for unit in within} == {"layer", "module"}


def test_layers_that_are_alone_in_their_block_are_given_back_with_others(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.measure.symptoms.units.MANY", 1)
    names = [next(n for n, x in network.layers.items() if x.block == block) for block in (0, 1)]
    units = units_first(network, dict.fromkeys(names, "int4"))
    assert units == [Unit(name, (name,), "layer") for name in names]
    facts = [fact(unit, 0.5) for unit in units]
    assert set(names) in [set(layers) for layers in sets_to_try(network, facts)]


def test_sets_to_cure_with_have_ever_more_weights_and_leave_the_rest(network: Network) -> None:
    recipe = dict.fromkeys(network.layers, "int4")
    units = units_first(network, recipe)
    damaged = next(unit for unit in units if unit.by == "module")
    facts = [fact(unit, 0.9 if unit is damaged else 0.02) for unit in units]
    restoring = Restoring(
        network, [failing(*TEXTS[0])], {name: network.weight(name) for name in recipe},
        recipe="r", key="k", budget=0, counts=JobCounts(),
    )  # fmt: skip
    sizes = []
    for layers, held in restoring.cures(facts):
        assert {*layers, *held} == recipe.keys()
        assert not {*layers} & held.keys()
        sizes.append(sum(network.weight(name).numel() for name in layers))
    assert sizes == sorted(sizes)
    assert set(damaged.layers) in [set(layers) for layers, _ in restoring.cures(facts)]
    facts = [fact(unit, 0.9 if unit is damaged else 0.001) for unit in units]
    assert sets_to_try(network, facts) == [tuple(sorted(damaged.layers))]
    little = [fact(unit, 0.001) for unit in units]
    assert len(sets_to_try(network, little)) > 1  # damage that is spread over all layers
