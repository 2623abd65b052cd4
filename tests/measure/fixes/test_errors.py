"""Errors of outputs: against float64 NumPy on inputs that plain transformers computes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from engine import protocol as p
from engine.formats.grammar import parse_format
from engine.measure.calibration.approximate import approximated
from engine.measure.calibration.calibration import need_calibration
from engine.measure.counts import JobCounts
from engine.measure.fixes.errors import tried_errors
from engine.measure.fixes.knowing import fresh_session
from engine.measure.fixes.trying import try_fixes
from engine.model.network import StandIn
from engine.store.facts import FactStore
from engine.workspace import Loaded
from tests import brute_force, tiny
from tests.drive import load
from tests.drive import settings as chosen
from tests.planning.test_planning import drained

Array = np.ndarray[Any, Any]
LAYER = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp("fixes")
    text = folder / "prose.txt"
    text.write_text("the quick brown fox jumps over a lazy dog while seven boxers sleep. " * 200)
    source = tiny.build("llama", folder / "llama")
    given = chosen(text, tokens=128, calib=str(text), calib_tokens=256)
    return load(source, FactStore(folder / "facts.sqlite"), given)


def inputs_of(loaded: Loaded, layer: str) -> Array:
    """Inputs of a layer over the calibration text, float64 ``[tokens, in]``, by a plain hook."""
    _, calibration = drained(need_calibration(loaded))
    model = brute_force.load(loaded.opened.path)
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(layer).register_forward_pre_hook(
        lambda _, given: seen.append(given[0].detach())
    )
    with torch.no_grad():
        model(input_ids=calibration.windows.ids)
    hook.remove()
    return torch.cat([each.reshape(-1, each.shape[-1]) for each in seen]).double().numpy()


def relative(y: Array, near: Array) -> float:
    return float(np.sqrt(((near - y) ** 2).sum() / (y**2).sum()))


@pytest.mark.parametrize("format", ["int4-g32", "int3-g64+gptq", "int4-g32+awq", "nf4"])
def test_errors_are_those_of_numpy(format: str, loaded: Loaded) -> None:
    counts = JobCounts()
    _, calibration = drained(need_calibration(loaded))
    fmt = parse_format(format)
    _, inputs = drained(calibration.inputs(LAYER, calibration.reference, counts))
    _, held = drained(approximated(loaded, LAYER, fmt, counts))
    assert isinstance(held, torch.Tensor)
    weight = loaded.network.weight(LAYER)
    found = tried_errors(weight, held, inputs)
    x = inputs_of(loaded, LAYER)
    w, approx = weight.double().numpy(), held.double().numpy()
    assert found.tokens == len(x)
    assert found.output == pytest.approx(relative(x @ w.T, x @ approx.T), rel=1e-4)
    assert found.weight == pytest.approx(relative(w, approx), rel=1e-9)


def rounded_tokens(x: Array) -> Array:
    """Every token in 8 bits, in the dtype given: the greatest magnitude is 127.5 steps, a tie."""
    scale = np.abs(x).max(1, keepdims=True) / 127.5
    return np.clip(np.round(x / scale), -128, 127) * scale


def test_rounded_inputs_are_part_of_the_error(loaded: Loaded) -> None:
    counts = JobCounts()
    _, calibration = drained(need_calibration(loaded))
    _, inputs = drained(calibration.inputs(LAYER, calibration.reference, counts))
    _, held = drained(approximated(loaded, LAYER, parse_format("int8+a8"), counts))
    assert isinstance(held, StandIn)
    weight = loaded.network.weight(LAYER)
    found = tried_errors(weight, held, inputs)
    x, w = inputs.sample.double().numpy(), weight.double().numpy()
    near = rounded_tokens(inputs.sample.numpy()).astype(float) @ held.weight.double().numpy().T
    assert found.tokens == len(x)
    assert found.output == pytest.approx(relative(x @ w.T, near), rel=1e-4)
    assert found.weight == pytest.approx(relative(w, held.weight.double().numpy()), rel=1e-9)
    scaled = tried_errors(weight, held, inputs, scaled=True)
    assert math.isnan(scaled.weight)
    assert scaled.output == found.output


def test_experts_are_weighted_by_their_own_tokens() -> None:
    from engine.measure.calibration.solve import LayerInputs
    from engine.quant.input_statistics import InputStatistics

    random = np.random.default_rng(3)
    weight = torch.tensor(random.normal(size=(2, 5, 8)), dtype=torch.float32)
    held = weight + torch.tensor(random.normal(size=(2, 5, 8)) * 0.1, dtype=torch.float32)
    tokens = [random.normal(size=(count, 8)).astype(np.float32) for count in (7, 30)]
    experts = []
    for x in tokens:
        experts.append(InputStatistics.empty(8))
        experts[-1].add(torch.tensor(x))
    inputs = LayerInputs(InputStatistics.empty(8), torch.empty(0), tuple(experts))
    w, approx = weight.double().numpy(), held.double().numpy()
    pairs = list(zip(tokens, w, approx, strict=True))
    error = sum(((x @ (b - a).T) ** 2).sum() for x, a, b in pairs)
    signal = sum(((x @ a.T) ** 2).sum() for x, a, _ in pairs)
    found = tried_errors(weight, held, inputs)
    assert found.output == pytest.approx(math.sqrt(error / signal), rel=1e-5)


def test_without_inputs_only_the_weight_has_an_error() -> None:
    found = tried_errors(torch.ones(2, 4), torch.ones(2, 4) * 1.1, None)
    assert found.weight == pytest.approx(0.1)
    assert math.isnan(found.output)
    assert found.tokens == 0


def test_a_format_that_the_layer_cannot_take_is_refused_with_the_reason(loaded: Loaded) -> None:
    session = fresh_session(loaded.opened)
    layer = "model.embed_tokens"
    drained(try_fixes(loaded, session, [layer], "int4-g32", 1.0, "job"))
    tried = session.fixes[layer]
    assert "lookup" in tried["int4-g32+gptq"].refused
    assert tried["int4-g32"].weight_error > 0
    assert math.isnan(tried["int4-g32"].output_error)
    measured = session.sensitivity(session.index[layer], p.EffectKey("degrade", "int4-g32"))
    assert measured is not None
