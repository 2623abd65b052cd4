"""Planted faults that only running the model shows: found by name, with the cause."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import protocol as p
from engine.client import in_process
from engine.diagnosis.finding import Finding
from engine.diagnosis.findings import findings
from engine.measure.activations.gather import activations
from engine.measure.calibration.calibration import need_calibration
from engine.measure.counts import JobCounts
from engine.session import Session, apply
from engine.store.facts import FactStore
from engine.workspace import Loaded
from tests import tiny
from tests.diagnosis.planting import State, altered
from tests.drive import ended, load, settings, until
from tests.planning.test_planning import drained

FORMAT = "int4-g128"


def opened(source: Path, prose: Path, store: Path) -> Loaded:
    chosen = settings(prose, calib_tokens=512, tokens=128, calib=str(prose))
    return load(source, FactStore(store), chosen)


def found_in_activations(loaded: Loaded) -> list[Finding]:
    """Findings from one pass over the calibration text."""
    session = Session()
    apply(session, loaded.opened.listed())
    for event in drained(activations(loaded, JobCounts()))[0]:
        if isinstance(event, p.Learned):
            apply(session, event)
    return [each for each in findings(session, "int4-g32") if each.severity != "info"]


def test_a_massive_token_is_named_where_the_mlp_makes_it(tmp_path: Path, prose: Path) -> None:
    source = tiny.build("llama", tmp_path / "model")
    _, calibration = drained(need_calibration(opened(source, prose, tmp_path / "facts.sqlite")))
    ids = calibration.windows.ids
    tokens, counts = ids.unique(return_counts=True)
    token = int(tokens[counts.argmin()])
    positions = {int(at) for at in (ids == token).nonzero()[:, 1]}
    file = source / "model.safetensors"
    state = load_file(file)
    embedding = state["model.embed_tokens.weight"]
    direction = torch.zeros_like(embedding[0])
    direction[::2], direction[1::2] = 1.0, -1.0
    embedding[token] = 10 * direction  # what attention adds is little beside it
    for kind in ("gate_proj", "up_proj"):  # one hidden unit that answers to this token alone
        state[f"model.layers.0.mlp.{kind}.weight"][3] = direction
    save_file(state, file, {"format": "pt"})
    found = found_in_activations(opened(source, prose, tmp_path / "after.sqlite"))
    named = [each for each in found if each.id == "massive-token"]
    assert [each.layer for each in named] == ["model.layers.0.mlp.down_proj"]
    assert int(named[0].evidence["position"]) in positions


def test_an_expert_that_the_router_never_takes_is_named(tmp_path: Path, prose: Path) -> None:
    source = tiny.build("qwen3_moe", tmp_path / "model", num_experts=5, num_experts_per_tok=2)
    file = source / "model.safetensors"
    state = load_file(file)
    router = state["model.layers.0.mlp.gate.weight"]
    # Of two pairs of opposite logits two are above 0, which expert 3 always has.
    router[1], router[2], router[4] = -router[0], router[4], -router[4]
    router[3] = 0.0
    save_file(state, file, {"format": "pt"})
    found = [
        x
        for x in found_in_activations(opened(source, prose, tmp_path / "facts.sqlite"))
        if "expert" in x.id
    ]
    found = [each for each in found if each.id == "unseen-expert"]
    kinds = ("gate_up_proj", "down_proj")
    assert {each.layer for each in found} == {f"model.layers.0.mlp.experts.{x}" for x in kinds}
    assert "1 of 5 experts got no token of the calibration text (3)" in found[0].sentence


def widened(state: State, norm: str, layers: list[str], channels: list[int], times: float) -> None:
    """Make input channels of layers as much larger as their norm makes them smaller.

    The model computes what it did; on the grid these channels leave no room for the others.
    """
    state[norm][channels] /= times
    for layer in layers:
        state[f"{layer}.weight"][:, channels] *= times


def fragile(state: State) -> None:
    """A first block some ten times as sensitive as it was, and a fragile head."""
    block = "model.layers.0"
    attention = [f"{block}.self_attn.{kind}_proj" for kind in "qkv"]
    mlp = [f"{block}.mlp.{kind}_proj" for kind in ("gate", "up")]
    widened(state, f"{block}.input_layernorm.weight", attention, [5, 133], 24.0)
    widened(state, f"{block}.post_attention_layernorm.weight", mlp, [5, 133], 24.0)
    widened(state, "model.norm.weight", ["lm_head"], [9, 200], 8.0)


@pytest.fixture(scope="module")
def diagnosed(tmp_path_factory: pytest.TempPathFactory) -> list[Finding]:
    """Findings of a demo with fragile parts, by estimated effects."""
    folder = altered(tmp_path_factory.mktemp("fragile") / "demo", fragile)
    chosen = settings(sweep_formats=(FORMAT,), tokens=256, seq_len=64)
    client = in_process(str(folder))
    try:
        client.send(p.Open(str(folder), chosen))
        client.send(p.Sweep((FORMAT,), exact="none", only=True))
        last = until(client, ended("sweep"))[-1]
        assert isinstance(last, p.JobEnded)
        assert last.status == "done", last.message
        return [each for each in findings(client.session, FORMAT) if each.severity == "warning"]
    finally:
        client.close()


def test_a_fragile_first_block_and_head_are_named(diagnosed: list[Finding]) -> None:
    found = {each.id: each for each in diagnosed}
    assert found["fragile-head"].layer == "lm_head"
    first = found["first-block"]
    assert first.evidence["kl"] > 10 * first.evidence["median"]
    assert "the first block costs" in first.sentence
    assert set(found) <= {"fragile-head", "first-block", "fragile-layer"}
    assert all(x.layer.startswith("model.layers.0.") for x in diagnosed if x.id == "fragile-layer")
