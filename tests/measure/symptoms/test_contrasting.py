"""Prompts that fail against others: channels and heads that are known to differ are found."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import protocol as p
from engine.measure.counts import JobCounts
from engine.measure.symptoms.contrasting import LISTED, Contrasted, Contrasting
from engine.model.load import load_network
from engine.model.network import Held, Network, StandIn
from tests import constructed as c
from tests import tiny

NEW = 12
PROMPTS = c.prompts(12)
CHANCE = 1 / math.comb(12, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return c.build(tmp_path_factory.mktemp("contrasting") / "model")


@pytest.fixture(scope="module")
def network(folder: Path) -> Network:
    return load_network(folder, device="cpu")


def run(steps: Generator[Any, None, p.SymptomContrast]) -> p.SymptomContrast:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: p.SymptomContrast = end.value
            return found


def texts(failing: str, new: int = NEW) -> list[Contrasted]:
    """Of every prompt, with what the model says; those of some languages fail."""
    at = {token: number for number, token in enumerate(c.TOKENS)}
    return [
        Contrasted(
            [at[token] for token in (*prompt, *c.says(prompt, new))], prompt[-1][0] in failing
        )
        for prompt in PROMPTS
    ]


def contrast(
    network: Network, given: list[Contrasted], held: Mapping[str, Held]
) -> p.SymptomContrast:
    found = run(Contrasting(network, given, held, JobCounts()).run("r", "k"))
    network.assert_at_rest()
    return found


def test_channels_that_fire_on_a_topic_alone_are_those_of_its_neurons(network: Network) -> None:
    down = c.MLP[-1]
    held = {name: torch.zeros_like(network.weight(name)) for name in c.MLP}
    found = contrast(network, texts("t", c.TOPIC), held)
    assert (found.failing, found.healthy, found.why) == (4, 8, "")
    assert {each.layer for each in found.channels} == {down}
    assert len(found.channels) == LISTED
    for each in found.channels:
        assert each.channel in c.CHANNELS
        assert each.chance == pytest.approx(CHANCE)
        assert each.healthy < 1e-3 * each.failing
        assert each.share > each.share_healthy
    assert sum(each.share for each in found.channels) > 0.9


def test_a_head_that_diverges_on_some_prompts_alone_is_found(network: Network) -> None:
    """Keys no longer know what was before, so that nothing is found where there is something."""
    _, key, *_ = c.ATTENTION
    weight = network.weight(key).clone()
    before = c.tensors()["model.layers.0.self_attn.o_proj.weight"][:, : c.HEAD]
    directions = torch.linalg.svd(before[:-1])[0][:, : len(c.TOKENS)]  # what block 0 writes
    weight[:, :-1] -= weight[:, :-1] @ directions @ directions.T
    found = contrast(network, texts("c"), {key: weight})
    best, *others = found.heads
    assert (best.block, best.head, best.module) == (c.BLOCKS - 1, 0, 0)
    assert best.failing > 1
    assert best.healthy < 1e-2
    assert best.chance == pytest.approx(CHANCE)
    assert all(each.chance > 0.05 for each in others)


def test_figures_are_those_of_plain_forwards(folder: Path, network: Network) -> None:
    from transformers import AutoModelForCausalLM

    given = texts("t")[3:9]
    generator = torch.Generator().manual_seed(2)
    held = {
        name: network.weight(name)
        * (1 + 0.3 * torch.randn(network.layers[name].shape, generator=generator))
        for name in (*c.MLP, *c.ATTENTION)
    }
    found = contrast(network, given, held)
    one, other = (
        AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager") for _ in range(2)
    )
    inputs: dict[str, list[Tensor]] = {name: [] for name in held}
    for name in held:
        other.get_submodule(name).weight.data.copy_(held[name])
        one.get_submodule(name).register_forward_pre_hook(
            lambda _module, args, name=name: inputs[name].append(args[0][0, 1:].double())
        )
    kl: list[list[Tensor]] = []
    with torch.no_grad():
        for text in given:
            ids = torch.tensor([text.ids])
            pair = zip(
                *(m(ids, output_attentions=True).attentions for m in (one, other)), strict=True
            )
            kl.append([_kl(*(each[0].double() for each in both)) for both in pair])
    there = torch.tensor([text.failing for text in given])

    def means(values: list[Tensor]) -> tuple[float, float]:
        stacked = torch.stack(values)
        return float(stacked[there].mean()), float(stacked[~there].mean())

    assert found.heads
    for head in found.heads:
        expected = means([each[head.block][head.head] for each in kl])
        assert (head.failing, head.healthy) == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert found.layers
    for layer in found.layers:
        weight = network.weight(layer.layer).double()
        apart = held[layer.layer].double() - weight
        expected = means(
            [(x @ apart.T).norm() / (x @ weight.T).norm() for x in inputs[layer.layer]]
        )
        assert (layer.failing, layer.healthy) == pytest.approx(expected, rel=1e-4)
    assert found.channels
    for channel in found.channels:
        xs = inputs[channel.layer]
        expected = means([x[:, channel.channel].abs().mean() for x in xs])
        assert (channel.failing, channel.healthy) == pytest.approx(expected, rel=1e-4, abs=1e-7)
        apart = held[channel.layer].double() - network.weight(channel.layer).double()
        square = torch.stack([x.square().mean(0) for x in xs])[there].mean(0)
        parts = square * apart.square().sum(0)
        assert channel.share == pytest.approx(float(parts[channel.channel] / parts.sum()), rel=1e-4)


def _kl(reference: Tensor, recipe: Tensor) -> Tensor:
    """Of each head; a query sees nothing after it."""
    logs = torch.xlogy(reference, reference) - torch.xlogy(reference, recipe.clamp(min=1e-38))
    return logs.sum(-1).mean(-1)


def test_without_other_prompts_there_are_heads_and_layers_by_size_alone(network: Network) -> None:
    held = {name: torch.zeros_like(network.weight(name)) for name in c.ATTENTION}
    found = contrast(network, [each for each in texts("c") if each.failing], held)
    assert (found.failing, found.healthy, found.channels) == (4, 0, ())
    assert (found.heads[0].block, found.heads[0].head) == (c.BLOCKS - 1, 0)
    assert math.isnan(found.heads[0].healthy)
    assert math.isnan(found.heads[0].chance)
    assert found.layers[0].failing == pytest.approx(1.0)


def test_layers_whose_inputs_are_rounded_too_are_said_to_be_left_out(network: Network) -> None:
    held: dict[str, Held] = {name: torch.zeros_like(network.weight(name)) for name in c.MLP}
    name = c.MLP[-1]
    held[name] = StandIn(network.weight(name), torch.round)
    found = contrast(network, texts("t", c.TOPIC), held)
    assert name not in {each.layer for each in (*found.layers, *found.channels)}
    assert found.why == "not compared: layers whose inputs are changed as well (1)"


def test_a_model_that_cannot_be_run_block_by_block_says_so(tmp_path: Path) -> None:
    network = load_network(tiny.build("gemma4", tmp_path / "model"), device="cpu")
    name = next(name for name, layer in network.layers.items() if layer.block == 0)
    given = [Contrasted([3, 4, 5], failing=True), Contrasted([6, 7, 8], failing=False)]
    found = contrast(network, given, {name: torch.zeros_like(network.weight(name))})
    assert (found.channels, found.layers, found.heads) == ((), (), ())
    assert "block by block" in found.why
