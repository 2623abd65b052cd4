"""Errors of a recipe: every figure against float64 NumPy on what plain transformers computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from engine import protocol as p
from engine.formats.grammar import parse_format
from engine.measure.calibration.approximate import approximation
from engine.measure.counts import JobCounts
from engine.measure.errors import block_by_block
from engine.measure.errors.drift import with_noise
from engine.measure.errors.measuring import first_windows, measure_errors
from engine.model.blocks import find_blocks
from engine.store.facts import FactStore
from engine.workspace import Loaded
from tests import tiny
from tests.drive import load
from tests.drive import settings as chosen
from tests.planning.test_planning import drained

FORMAT = "int3-g32"
Array = np.ndarray[Any, Any]


def opened(arch: str, tmp_path: Path, prose: Path, **given: object) -> Loaded:
    source = tiny.build(arch, tmp_path / arch)
    given = {"calib_tokens": 256, "tokens": 256, "calib": str(prose), **given}
    return load(source, FactStore(tmp_path / "facts.sqlite"), chosen(prose, **given))


def found(
    loaded: Loaded, recipe: Mapping[str, str], counts: JobCounts | None = None
) -> tuple[dict[str, p.OutputError], p.Drift]:
    events, _ = drained(measure_errors(loaded, recipe, counts or JobCounts()))
    facts = [fact for e in events if isinstance(e, p.Learned) for fact in e.facts]
    (drift,) = (fact for fact in facts if isinstance(fact, p.Drift))
    return {f.layer: f for f in facts if isinstance(f, p.OutputError)}, drift


def body(loaded: Loaded) -> dict[str, str]:
    return {n: FORMAT for n, layer in loaded.network.layers.items() if layer.role != "embedding"}


class Plain:
    """The checkpoint in plain transformers, with weights that can be replaced."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            loaded.opened.path, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.blocks = find_blocks(self.model)[1]
        self.ids = first_windows(loaded)

    def parameter(self, layer: str) -> torch.nn.Parameter:
        found = self.loaded.network.layers[layer]
        path = found.module if found.role == "experts" else f"{found.module}.weight"
        return self.model.get_parameter(path)

    @contextmanager
    def holding(self, recipe: Mapping[str, str]) -> Iterator[None]:
        # The head changes no block, and may be one tensor with the embedding here.
        layers = self.loaded.network.layers
        held = {name: f for name, f in recipe.items() if layers[name].role != "head"}
        before = {name: self.parameter(name).data for name in held}
        try:
            for name, format in held.items():
                turned = self.loaded.network.slot(name).turned
                weight = approximation(self.loaded, name, parse_format(format))
                self.parameter(name).data = weight.transpose(-1, -2) if turned else weight
            yield
        finally:
            for name, data in before.items():
                self.parameter(name).data = data

    @torch.no_grad()
    def outputs(self, recipe: Mapping[str, str]) -> list[Array]:
        """What every block returns."""
        states: list[Array] = []

        def take(_module: Any, _args: Any, output: Any) -> None:
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            states.append(hidden.double().numpy())

        hooks = [block.register_forward_hook(take) for block in self.blocks]
        with self.holding(recipe):
            self.model(input_ids=self.ids)
        for hook in hooks:
            hook.remove()
        return states

    @torch.no_grad()
    def attention(self, recipe: Mapping[str, str]) -> list[Array]:
        """Probabilities of every block on the first two windows."""
        with self.holding(recipe):
            attentions = self.model(input_ids=self.ids[:2], output_attentions=True).attentions
        return [each.double().numpy() for each in attentions]

    @torch.no_grad()
    def inputs(self) -> dict[str, list[tuple[int | None, Array]]]:
        """The inputs of every layer, of experts each one's own."""
        seen: dict[str, list[tuple[int | None, Array]]] = {}

        def taking(name: str) -> Callable[..., None]:
            def take(_module: Any, args: Any) -> None:
                x = args[0].reshape(-1, args[0].shape[-1]).double().numpy()
                seen.setdefault(name, []).append((None, x))

            return take

        def routing(up: str, down: str) -> Callable[..., None]:
            def take(module: Any, args: Any) -> None:
                hidden, chosen = args[0], args[1]
                for expert in range(module.num_experts):
                    x = hidden[(chosen == expert).any(-1)]
                    gate, inner = (x @ module.gate_up_proj[expert].T).chunk(2, -1)
                    inner = module.act_fn(gate) * inner
                    seen.setdefault(up, []).append((expert, x.double().numpy()))
                    seen.setdefault(down, []).append((expert, inner.double().numpy()))

            return take

        hooks = []
        for name, layer in self.loaded.network.layers.items():
            if layer.role in ("linear", "conv1d", "head"):
                for path in layer.modules:  # several where blocks share the weight
                    module = self.model.get_submodule(path)
                    hooks.append(module.register_forward_pre_hook(taking(name)))
            elif layer.kind == "gate_up_proj":
                path = layer.module.removesuffix(".gate_up_proj")
                down = name.removesuffix("gate_up_proj") + "down_proj"
                module = self.model.get_submodule(path)
                hooks.append(module.register_forward_pre_hook(routing(name, down)))
        self.model(input_ids=self.ids)
        for hook in hooks:
            hook.remove()
        return seen


def relative(state: Array, reference: Array) -> float:
    """The mean over tokens of ``‖h′ − h‖ / ‖h‖``."""
    difference = np.linalg.norm(state - reference, axis=-1)
    return float((difference / np.linalg.norm(reference, axis=-1)).mean())


def kl(reference: Array, recipe: Array) -> list[float]:
    """By head: the mean over windows and queries of Σ p log(p / q)."""
    p_, q = reference, np.maximum(recipe, np.finfo(np.float32).tiny)
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(p_ > 0, p_ * np.log(p_ / q), 0.0)
    return [float(value) for value in each.sum(-1).mean((0, 2))]


OTHERS = ("qwen3", "gemma3", "mistral", "phi3", "opt")


@pytest.mark.parametrize(
    "arch",
    ["llama", "gpt2", "qwen3_moe", *(pytest.param(a, marks=pytest.mark.soak) for a in OTHERS)],
)
def test_figures_are_those_of_plain_transformers(arch: str, tmp_path: Path, prose: Path) -> None:
    loaded = opened(arch, tmp_path, prose)
    recipe = body(loaded)
    outputs, drift = found(loaded, recipe)
    loaded.network.assert_at_rest()
    plain = Plain(loaded)
    blocks = len(plain.blocks)
    in_block = loaded.network.layers

    def those(some: range) -> dict[str, str]:
        return {n: f for n, f in recipe.items() if in_block[n].block in some}

    reference, whole = plain.outputs({}), plain.outputs(recipe)
    assert [each.block for each in drift.blocks] == list(range(blocks))
    assert drift.tokens == plain.ids.numel()
    assert drift.embedding == 0.0
    for k, each in enumerate(drift.blocks):
        alone = plain.outputs(those(range(k, k + 1)))[k]
        before = plain.outputs(those(range(k)))[k]
        assert each.drift == pytest.approx(relative(whole[k], reference[k]), rel=1e-4)
        assert each.injected == pytest.approx(relative(alone, reference[k]), rel=1e-4)
        propagated = relative(before, reference[k])
        assert each.propagated == pytest.approx(propagated, rel=1e-4)
        assert (each.propagated == each.control == 0.0) == (k == 0)

    own, other = plain.attention({}), plain.attention(recipe)
    assert drift.no_attention == ""
    assert drift.attention_windows == 2
    for each, p_, q in zip(drift.blocks, own, other, strict=True):
        assert each.attention == pytest.approx(kl(p_, q), rel=1e-3, abs=1e-9)

    inputs = plain.inputs()
    assert set(outputs) == set(recipe) == set(inputs)
    for name, fact in outputs.items():
        check_channels(fact, loaded, name, inputs[name])


def check_channels(
    fact: p.OutputError, loaded: Loaded, name: str, inputs: list[tuple[int | None, Array]]
) -> None:
    weight = loaded.network.weight(name).double().numpy()
    approx = approximation(loaded, name, parse_format(FORMAT)).double().numpy()
    errors: dict[tuple[int, int], float] = {}
    above = below = 0.0
    for expert, x in inputs:
        w, other = (weight, approx) if expert is None else (weight[expert], approx[expert])
        if not len(x):
            continue
        y, changed = x @ w.T, x @ other.T
        above, below = above + ((y - changed) ** 2).sum(), below + (y**2).sum()
        each = np.abs(y - changed).mean(0) / np.abs(y).mean(0)
        errors |= {(expert or 0, at): float(value) for at, value in enumerate(each)}
    values = np.array(list(errors.values()))
    assert fact.relative == pytest.approx(float(np.sqrt(above / below)), rel=1e-4)
    assert fact.channels == len(values)
    assert fact.tokens == sum(len(x) for _, x in inputs)
    assert fact.over_10 == pytest.approx((values > 0.1).sum(), abs=1)  # one may lie on the bound
    assert fact.over_50 == pytest.approx((values > 0.5).sum(), abs=1)
    edges = [0, *p.OUTPUT_ERROR_BOUNDS, np.inf]
    assert np.abs(np.array(fact.counts) - np.histogram(values, edges)[0]).max() <= 1
    listed = zip(fact.worst_experts or [0] * len(fact.worst), fact.worst, strict=True)
    assert [errors[one] for one in listed] == pytest.approx(fact.worst_errors, rel=1e-3)
    assert fact.worst_errors == pytest.approx(np.sort(values)[::-1][:16].tolist(), rel=1e-3)


def test_the_control_is_the_reference_s_block_on_noise_of_the_drift_s_norm(
    tmp_path: Path, prose: Path
) -> None:
    loaded = opened("llama", tmp_path, prose)
    recipe = body(loaded)
    _, drift = found(loaded, recipe)
    plain = Plain(loaded)
    reference, whole = plain.outputs({}), plain.outputs(recipe)
    k = 2
    before, drifted = (torch.tensor(each[k - 1]).float() for each in (reference, whole))
    seed = loaded.settings.seed
    seeds = [(seed << 40) + (k << 24) + window for window in range(len(before))]
    noisy = with_noise(before, drifted, seeds)
    norms = [(each.double() - before.double()).norm(dim=-1) for each in (noisy, drifted)]
    assert torch.allclose(*norms, rtol=1e-4)
    hook = plain.blocks[k].register_forward_pre_hook(lambda _module, args: (noisy, *args[1:]))
    control = plain.outputs({})[k]
    hook.remove()
    assert drift.blocks[k].control == pytest.approx(relative(control, reference[k]), rel=1e-4)


def test_before_the_first_quantised_layer_nothing_drifts_at_all(
    tmp_path: Path, prose: Path
) -> None:
    loaded = opened("llama", tmp_path, prose)
    outputs, drift = found(loaded, {"model.layers.1.mlp.up_proj": FORMAT})
    assert list(outputs) == ["model.layers.1.mlp.up_proj"]
    first, second, third = drift.blocks
    assert (first.drift, first.injected, first.propagated, first.control) == (0, 0, 0, 0)
    assert first.attention == second.attention == [0.0] * 4
    assert second.drift == second.injected > 0 == second.propagated == second.control
    assert third.injected == 0 < third.propagated == third.drift
    assert third.control > 0
    assert min(third.attention) > 0


def test_the_damaged_block_is_where_most_is_injected(tmp_path: Path, prose: Path) -> None:
    loaded = opened("llama", tmp_path, prose)
    recipe = {n: "int2-g32" if ".1." in n else "int8-channel" for n in body(loaded)}
    _, drift = found(loaded, recipe)
    injected = [each.injected for each in drift.blocks]
    assert injected.index(max(injected)) == 1
    assert injected[1] > 10 * max(injected[0], injected[2])
    assert drift.blocks[2].propagated > 10 * drift.blocks[2].injected


def test_a_quantised_embedding_is_a_drift_before_the_first_block(
    tmp_path: Path, prose: Path
) -> None:
    loaded = opened("llama", tmp_path, prose)
    name = next(n for n, layer in loaded.network.layers.items() if layer.role == "embedding")
    outputs, drift = found(loaded, {name: FORMAT})
    weight = loaded.network.weight(name).double().numpy()
    approx = approximation(loaded, name, parse_format(FORMAT)).double().numpy()
    ids = first_windows(loaded).numpy()
    assert drift.embedding == pytest.approx(relative(approx[ids], weight[ids]), rel=1e-5)
    assert "tokens, not a hidden state" in outputs[name].why
    assert drift.blocks[0].injected == 0 < drift.blocks[0].propagated


@pytest.mark.parametrize(
    ("arch", "attention", "split"),
    [
        ("falcon", "its own implementation of attention", ""),
        ("mamba", "no block of MambaForCausalLM returns", ""),
        ("gemma4", "cannot be run block by block", "cannot be run block by block"),
    ],
)
def test_what_a_model_does_not_give_is_said(
    arch: str, attention: str, split: str, tmp_path: Path, prose: Path
) -> None:
    loaded = opened(arch, tmp_path, prose, tokens=64)
    outputs, drift = found(loaded, body(loaded))
    loaded.network.assert_at_rest()
    assert attention in drift.no_attention
    assert split in drift.not_split
    assert bool(drift.not_split) == bool(split)
    assert all(each.drift > 0 and not each.attention for each in drift.blocks)
    assert all(np.isnan(each.injected) for each in drift.blocks) == bool(split)
    assert set(outputs) == set(body(loaded))
    for name, fact in outputs.items():
        assert fact.why.startswith(name) if fact.why else fact.relative > 0


def test_whole_forwards_give_the_same_drift_and_outputs(
    tmp_path: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = opened("llama", tmp_path, prose)
    outputs, drift = found(loaded, body(loaded))
    monkeypatch.setattr(loaded.network, "resumable", False)
    others, whole = found(loaded, body(loaded))
    assert others.keys() == outputs.keys()
    for name, fact in others.items():
        assert fact.relative == pytest.approx(outputs[name].relative, rel=1e-6)
        assert fact.worst == outputs[name].worst
    for one, other in zip(whole.blocks, drift.blocks, strict=True):
        assert one.drift == pytest.approx(other.drift, rel=1e-6)


def test_neither_interruptions_nor_a_small_budget_change_a_figure(
    tmp_path: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = opened("llama", tmp_path, prose)
    outputs, drift = found(loaded, body(loaded))
    asked = iter(range(10**9))
    loaded.network.should_stop = lambda: next(asked) % 3 == 0
    monkeypatch.setattr(block_by_block, "SHARE", 10**15)  # one micro-batch at a time
    others, again = found(loaded, body(loaded))
    assert others.keys() == outputs.keys()
    for name, fact in others.items():
        assert fact.relative == pytest.approx(outputs[name].relative, rel=1e-9)
    for one, other in zip(again.blocks, drift.blocks, strict=True):
        for field in ("drift", "injected", "propagated", "control", "attention"):
            assert getattr(one, field) == pytest.approx(getattr(other, field), rel=1e-9)


def test_facts_are_stored_and_a_toggle_measures_the_changed_layer_alone(
    tmp_path: Path, prose: Path
) -> None:
    loaded = opened("llama", tmp_path, prose)
    recipe = body(loaded)

    def run(recipe: Mapping[str, str]) -> JobCounts:
        counts = JobCounts()
        for event in drained(measure_errors(loaded, recipe, counts))[0]:
            if isinstance(event, p.Learned) and event.fresh:
                loaded.opened.workspace.facts.put(event.keys, event.facts)
        return counts

    layers = len(recipe)
    first, second = run(recipe), run(recipe)
    assert (first.measured, first.known) == (layers + 1, 0)
    assert (second.measured, second.known) == (0, layers + 1)
    third = run({**recipe, "lm_head": "int8-channel"})
    assert (third.measured, third.known) == (2, layers - 1)  # the layer, and the drift


def test_methods_with_inputs_belong_to_their_recipe(tmp_path: Path, prose: Path) -> None:
    loaded = opened("llama", tmp_path, prose)
    recipe = {n: f"{FORMAT}+gptq" for n in body(loaded) if ".mlp." in n}
    plain, _ = found(loaded, dict.fromkeys(recipe, FORMAT))
    solved, drift = found(loaded, recipe)
    assert {fact.recipe for fact in plain.values()} == {""}
    assert {fact.recipe for fact in solved.values()} == {drift.recipe}
    # They minimise this error, summed over a block's layers, on another text.
    assert sum(f.relative for f in solved.values()) < sum(f.relative for f in plain.values())


def test_a_weight_that_several_blocks_share_errs_in_each(tmp_path: Path, prose: Path) -> None:
    loaded = opened("zamba2", tmp_path, prose, tokens=32)
    name = "model.layers.1.shared_transformer.feed_forward.down_proj"
    assert loaded.network.layers[name].uses == (1, 4)
    outputs, drift = found(loaded, {name: FORMAT})
    injected = [each.block for each in drift.blocks if each.injected > 0]
    assert injected == [1, 4]
    inputs = Plain(loaded).inputs()[name]
    assert len(inputs) == 2
    both = np.concatenate([x for _, x in inputs])
    check_channels(outputs[name], loaded, name, [(None, both)])
