"""Layers that act elsewhere than their names say: measured, they equal plain transformers.

A projection after the blocks (OPT), a stored tensor that several blocks share (Zamba2), and what
is made before the blocks and given to each beside the hidden state (Gemma 4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from engine import protocol as p
from engine.formats.grammar import parse_format
from engine.measure.evaluation.evaluate import evaluate
from engine.measure.evaluation.recipe_run import RecipeRun
from engine.measure.evaluation.reference import Reference, reference_of
from engine.measure.sweep.sweep import sweep
from engine.model.network import Network
from engine.quant.quantize import dequantized
from engine.store.facts import FactStore
from engine.workspace import Loaded
from tests import tiny
from tests.drive import load, settings
from tests.exact import in_float32
from tests.measure.estimate.test_estimate import walked
from tests.model.streamed import streamed

PLACED = list(tiny.PLACED)
FORMAT = "int3-g32"
SHARED = "model.layers.1.shared_transformer"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, prose: Path) -> Callable[[str], Loaded]:
    made: dict[str, Loaded] = {}

    def of(arch: str) -> Loaded:
        if arch not in made:
            folder = tiny.build(arch, tmp_path_factory.mktemp("placed") / arch)
            chosen = settings(prose, tokens=128, batch_tokens=64, sweep_formats=(FORMAT,))
            made[arch] = load(folder, FactStore(folder / "facts"), chosen)
        return made[arch]

    return of


@pytest.fixture(params=PLACED)
def loaded(request: pytest.FixtureRequest, opened: Callable[[str], Loaded]) -> Loaded:
    return opened(request.param)


def logits(loaded: Loaded, changed: Mapping[str, Tensor]) -> Tensor:
    """Of the same checkpoint in plain transformers, its head untied, some weights overwritten."""
    model: Any = AutoModelForCausalLM.from_pretrained(loaded.opened.path, dtype=torch.float32)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    with torch.no_grad():
        for name, weight in changed.items():
            model.get_parameter(f"{loaded.network.layers[name].module}.weight").copy_(weight)
        ids = reference_of(loaded).windows.ids
        found: Tensor = model.eval()(input_ids=ids, use_cache=False).logits[:, :-1]
    return found


_unchanged: dict[Path, Tensor] = {}


def divergence(loaded: Loaded, changed: Mapping[str, Tensor]) -> float:
    if loaded.opened.path not in _unchanged:
        _unchanged[loaded.opened.path] = torch.log_softmax(logits(loaded, {}).double(), -1)
    before = _unchanged[loaded.opened.path]
    after = torch.log_softmax(logits(loaded, changed).double(), -1)
    return float((before.exp() * (before - after)).sum(-1).mean())


def without(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != "hidden_states"}


def quantised(network: Network, name: str) -> Tensor:
    return dequantized(network.weight(name), parse_format(FORMAT), torch.float16)


def score(loaded: Loaded, layers: list[str]) -> p.RecipeScore:
    """As a toggle measures it: with what is cached of recipes before."""
    scores = []
    for event in evaluate(loaded, dict.fromkeys(layers, FORMAT), "job"):
        if isinstance(event, p.Learned):
            scores += [fact for fact in event.facts if isinstance(fact, p.RecipeScore)]
    return scores[-1]


def test_regions_are_those_that_plain_hooks_see(loaded: Loaded) -> None:
    """A weight acts in a block if its output changes while its input is given."""
    network = loaded.network
    model: Any = AutoModelForCausalLM.from_pretrained(loaded.opened.path, dtype=torch.float32)
    model.eval()
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    path = next(n for n, m in network.model.named_modules() if m is network.blocks.modules[0])
    blocks = model.get_submodule(path.rpartition(".")[0])
    ids, given, end = tiny.ids(1, 16), {}, len(blocks)
    outputs: dict[int, Tensor] = {}

    def before(i: int) -> Callable[..., Any]:
        def hook(_module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            if i == 0:
                outputs[-1] = hidden.clone()
            state = given.setdefault(i, hidden.clone())
            return ((state, *args[1:]), kwargs) if args else ((state,), without(kwargs))

        return hook

    def after(i: int) -> Callable[..., Any]:
        def hook(_module: object, _args: object, output: Any) -> Any:
            state = output if isinstance(output, Tensor) else output[0]
            outputs[i] = state.clone()
            if i + 1 < end:
                return None
            kept = given.setdefault(end, state.clone())
            return kept if isinstance(output, Tensor) else (kept, *output[1:])

        return hook

    def run() -> dict[int, Tensor]:
        outputs.clear()
        with torch.no_grad():
            outputs[end] = model(input_ids=ids, use_cache=False).logits
        return dict(outputs)

    for i, block in enumerate(blocks):
        block.register_forward_pre_hook(before(i), with_kwargs=True)
        block.register_forward_hook(after(i))
    whole = run()
    for name, layer in network.layers.items():
        weight = model.get_parameter(f"{layer.module}.weight")
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.copy_(weight.flip(0) * 0.5 + 0.01)
            changed = run()
            weight.copy_(kept)
        assert layer.uses == tuple(i for i in sorted(whole) if not whole[i].equal(changed[i])), name


def test_a_row_is_a_stored_tensor(opened: Callable[[str], Loaded]) -> None:
    loaded = opened("zamba2")
    stored = {name.removesuffix(".weight") for name in loaded.opened.checkpoint.tensors}
    assert set(loaded.network.layers) - {"lm_head"} <= stored
    assert loaded.network.layers[f"{SHARED}.self_attn.q_proj"].uses == (1, 4)
    assert list(loaded.opened.rows) == list(loaded.network.layers)


def test_each_layer_alone_equals_plain_transformers(loaded: Loaded) -> None:
    """All that act elsewhere than in their block alone; of others one."""
    network, seen = loaded.network, set()
    for name, layer in network.layers.items():
        kind = "" if layer.uses == (layer.block,) else (layer.kind, layer.uses)
        if kind in seen:
            continue
        seen.add(kind)
        expected = divergence(loaded, {name: quantised(network, name)})
        assert expected > 0, name
        assert score(loaded, [name]).kl == pytest.approx(expected, rel=1e-3, abs=1e-8), name
    network.assert_at_rest()


def test_recipes_resumed_from_others_equal_plain_transformers(loaded: Loaded) -> None:
    """A block's layer joins one that acts before, beside or after it."""
    network, end = loaded.network, len(loaded.network.blocks)
    elsewhere = [n for n, layer in network.layers.items() if layer.uses != (layer.block,)]
    elsewhere = [*[n for n in elsewhere if network.layers[n].role != "head"][:4], "lm_head"]
    late = next(n for n, layer in network.layers.items() if layer.uses == (end - 1,))
    score(loaded, [late])
    for name in elsewhere:
        changed = {each: quantised(network, each) for each in (name, late)}
        expected = divergence(loaded, changed)
        assert score(loaded, [name]).kl > 0
        assert score(loaded, [name, late]).kl == pytest.approx(expected, rel=1e-3), name


def test_streamed_blocks_measure_the_same(opened: Callable[[str], Loaded], tmp_path: Path) -> None:
    loaded = opened("zamba2")
    names = [f"{SHARED}.self_attn.v_proj", "model.embed_tokens", "model.layers.3.mamba.out_proj"]
    expected = {name: score(loaded, [name]).kl for name in names}
    together = score(loaded, names).kl
    network = loaded.network
    with streamed(network):
        reference = Reference(network, loaded.windows, 64, 1 << 30)
        for batch in range(len(reference.batches)):
            reference.run(batch)
        for name in [*names, ""]:
            held = {n: quantised(network, n) for n in (names if not name else [name])}
            run = RecipeRun(reference, held)
            kl = sum(float(run.tally(batch).kl.sum()) for batch in range(len(reference.batches)))
            counted = loaded.windows.count * loaded.windows.targets
            wanted = expected[name] if name else together
            assert kl / counted == pytest.approx(wanted, rel=1e-5), name


def test_a_sweep_measures_every_use_together(opened: Callable[[str], Loaded]) -> None:
    loaded = opened("zamba2")
    found: dict[tuple[str, str], p.Sensitivity] = {}
    for event in sweep(loaded, (FORMAT,), "degrade", "job"):
        if isinstance(event, p.Learned):
            found |= {
                (fact.layer, fact.direction): fact
                for fact in event.facts
                if isinstance(fact, p.Sensitivity)
            }
    for kind in ("self_attn.q_proj", "feed_forward.down_proj"):
        name = f"{SHARED}.{kind}"
        expected = divergence(loaded, {name: quantised(loaded.network, name)})
        assert found[name, "degrade"].kl == pytest.approx(expected, rel=1e-3)


def test_sums_add_up_over_uses(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products with the gradients of plain transformers, in which ties are one parameter."""
    in_float32(monkeypatch)
    found = walked(loaded, [FORMAT])
    drawn = walked(loaded, [FORMAT], as_drawn=True)
    network, windows = loaded.network, reference_of(loaded).windows.ids
    model: Any = AutoModelForCausalLM.from_pretrained(loaded.opened.path, dtype=torch.float32)
    model.eval()
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    ids = windows[:1]
    predicted = model(input_ids=ids, use_cache=False).logits[0, :-1]
    torch.nn.functional.cross_entropy(predicted, ids[0, 1:], reduction="sum").backward()
    assert set(found) == set(network.layers)
    for name, layer in network.layers.items():
        gradient = model.get_parameter(f"{layer.module}.weight").grad
        delta = quantised(network, name) - network.weight(name)
        expected = float((delta.double() * gradient.double()).sum())
        scale = float(delta.norm() * gradient.norm())
        slope = found[name][parse_format(FORMAT)].slope[0, 0]
        assert float(slope) == pytest.approx(expected, abs=2e-3 * scale), name
        by_output = (delta.double() * gradient.double()).sum(0 if layer.role == "embedding" else -1)
        rows = float(drawn[name][parse_format(FORMAT)].rows[0, 0])
        assert rows == pytest.approx(float(by_output.square().sum()), rel=0.05), name
