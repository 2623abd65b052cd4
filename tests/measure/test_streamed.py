"""Sweeps and evaluations with blocks that are read: the same figures, and few reads of a block."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine import protocol as p
from engine.measure.counts import JobCounts
from engine.measure.errors.measuring import measure_errors
from engine.measure.evaluation.evaluate import baseline, evaluate
from engine.measure.evaluation.reference import Reference, reference_of
from engine.measure.sweep.sweep import sweep
from engine.store.facts import FactStore
from engine.workspace import Loaded, Workspace
from tests import tiny
from tests.drive import load, settings
from tests.model.streamed import StreamedBlocks, streamed

BLOCKS, BATCHES = 3, 2


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, prose: Path) -> Callable[[str], Loaded]:
    made: dict[str, Loaded] = {}

    def of(arch: str) -> Loaded:
        if arch not in made:
            folder = tiny.build(arch, tmp_path_factory.mktemp("streamed") / arch)
            chosen = settings(prose, tokens=256, calib_tokens=256, draws=1)
            made[arch] = load(folder, FactStore(folder / "facts"), chosen)
        return made[arch]

    return of


@pytest.fixture
def anew(opened: Callable[[str], Loaded], tmp_path: Path) -> Callable[[str], Loaded]:
    """A model that has measured nothing, and keeps no state but in its budget."""
    numbers = iter(range(1000))

    def of(arch: str) -> Loaded:
        loaded = opened(arch)
        reference = Reference(loaded.network, loaded.windows, 128, 1 << 30)
        assert len(reference.batches) == BATCHES
        workspace = Workspace(FactStore(tmp_path / f"facts-{next(numbers)}"), loaded.settings)
        opened_anew = replace(loaded.opened, workspace=workspace)
        return replace(loaded, opened=opened_anew, _parts={Reference: reference})

    return of


def learnt(steps: Generator[Any, None, Any]) -> dict[str, p.AnyFact]:
    """The last fact under every key."""
    found: dict[str, p.AnyFact] = {}
    for event in steps:
        if isinstance(event, p.Learned):
            found.update(zip(event.keys, event.facts, strict=True))
    return found


def both(
    loaded: Callable[[], Loaded], job: Callable[[Loaded], Generator[Any, None, Any]]
) -> tuple[dict[str, p.AnyFact], dict[str, p.AnyFact], list[int]]:
    """Facts with resident and with streamed blocks, and how often each block was read."""
    resident = learnt(job(loaded()))
    again = loaded()
    network = again.network
    with streamed(network) as source:
        assert isinstance(source, StreamedBlocks)
        found = learnt(job(again))
        network.assert_at_rest()
    return resident, found, source.reads


@pytest.mark.parametrize("arch", ["llama", "qwen3_moe"])
def test_errors_of_a_recipe_are_the_same(arch: str, anew: Callable[[str], Loaded]) -> None:
    def job(loaded: Loaded) -> Generator[Any, None, Any]:
        layers = loaded.network.layers
        recipe = {n: "int4-g32" for n, layer in layers.items() if layer.role != "embedding"}
        return measure_errors(loaded, recipe, JobCounts())

    resident, found, reads = both(lambda: anew(arch), job)
    assert found == resident
    assert max(reads) == 1, "a block is read once, for all windows and everything compared"


@pytest.mark.parametrize("arch", ["llama", "qwen3_moe"])
@pytest.mark.parametrize(
    ("direction", "exact"), [("degrade", "all"), ("degrade", "top:2"), ("restore", "all")]
)
def test_a_sweep_gives_the_same_figures(
    arch: str, direction: p.Direction, exact: str, anew: Callable[[str], Loaded]
) -> None:
    def job(loaded: Loaded) -> Generator[Any, None, Any]:
        return sweep(loaded, ["int4-g32"], direction, "job", exact=exact)

    resident, found, _ = both(lambda: anew(arch), job)
    assert found == resident
    assert any(isinstance(fact, p.Sensitivity) for fact in found.values())
    assert any(isinstance(fact, p.Estimate) for fact in found.values())


@pytest.mark.parametrize("format", ["int4-g32", "int4-g32+gptq"])
def test_a_recipe_scores_the_same(format: str, anew: Callable[[str], Loaded]) -> None:
    def job(loaded: Loaded) -> Generator[Any, None, Any]:
        network = loaded.network
        names = [n for n, layer in network.layers.items() if layer.role != "embedding"]
        return evaluate(loaded, dict.fromkeys(names, format), "job")

    resident, found, _ = both(lambda: anew("llama"), job)
    assert found == resident
    assert any(isinstance(fact, p.RecipeScore) for fact in found.values())


def test_a_pass_over_all_windows_reads_each_block_once(anew: Callable[[str], Loaded]) -> None:
    resident, found, reads = both(lambda: anew("llama"), lambda w: baseline(w, JobCounts()))
    assert found == resident
    assert reads == [1] * BLOCKS


def test_a_recipe_reads_each_block_once_beside_the_reference(
    anew: Callable[[str], Loaded],
) -> None:
    def job(loaded: Loaded) -> Generator[Any, None, Any]:
        network = loaded.network
        names = [n for n, layer in network.layers.items() if layer.block is not None]
        return evaluate(loaded, dict.fromkeys(names, "int4-g32"), "job")

    _, _, reads = both(lambda: anew("llama"), job)
    assert reads == [2] * BLOCKS  # the unchanged network's pass, and the recipe's


def test_a_recipe_has_one_block_at_hand_at_a_time(anew: Callable[[str], Loaded]) -> None:
    loaded = anew("llama")
    network = loaded.network
    names = [n for n, layer in network.layers.items() if layer.block is not None]
    with streamed(network) as source:
        learnt(evaluate(loaded, dict.fromkeys(names, "int4-g32"), "job"))
    assert source.most == source.at_once == 1


def test_exact_measurements_of_all_layers_read_each_block_once(
    anew: Callable[[str], Loaded],
) -> None:
    """Blocks are read for the reference, and once for all candidates on all windows together."""
    from engine.formats.grammar import parse_format
    from engine.measure.sweep.candidates import (
        Candidate,
        CandidateMeasurement,
        SweepTable,
        figure_key,
    )
    from engine.measure.sweep.units import units

    def job(loaded: Loaded) -> Generator[Any, None, Any]:
        network = loaded.network
        table = SweepTable(parse_format("int4-g32"), "degrade", "layer")
        wanted = [unit for unit in units(network.layers, "layer") if unit.body]
        todo = [Candidate(unit, figure_key(loaded, unit, table), []) for unit in wanted]
        measuring = CandidateMeasurement(loaded, table, 0.0, JobCounts())
        for group in measuring.groups(todo):
            for due in measuring.turns(group, measuring.micro_batches):
                yield from measuring.measure(due, keep=True)
        for each in todo:
            fact = measuring.figure(each)
            yield p.Learned((each.key,), (fact,))

    resident, found, reads = both(lambda: anew("llama"), job)
    assert found == resident
    assert reads == [2] * BLOCKS


def test_resident_blocks_run_in_one_forward(anew: Callable[[str], Loaded]) -> None:
    loaded = anew("llama")
    network, reference = loaded.network, reference_of(loaded)
    assert not network.streamed
    assert reference.lanes == 1
    assert network.stretches(-1, BLOCKS) == [range(-1, BLOCKS)]
    with network.blocks.block(0) as module:
        assert module is network.blocks.modules[0]
