"""Sweeps and evaluations with blocks that are read: the same figures, and few reads of a block."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine import protocol as p
from engine.measure.counts import Account
from engine.measure.evaluation.evaluate import baseline, evaluate
from engine.measure.evaluation.reference import Reference
from engine.measure.sweep.sweep import sweep
from engine.opening.stages import open_job
from engine.store.journal import FactStore
from engine.workspace import Workspace
from tests import tiny
from tests.drive import settings
from tests.model.streamed import StreamedBlocks, streamed

BLOCKS, BATCHES = 3, 2


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, prose: Path) -> Callable[[str], Workspace]:
    made: dict[str, Workspace] = {}

    def of(arch: str) -> Workspace:
        if arch not in made:
            folder = tiny.build(arch, tmp_path_factory.mktemp("streamed") / arch)
            chosen = settings(prose, tokens=256, calib_tokens=256, draws=1)
            workspace = Workspace(FactStore(folder / "facts"), chosen)
            for _ in open_job(workspace, str(folder), model=True):
                pass
            made[arch] = workspace
        return made[arch]

    return of


@pytest.fixture
def anew(opened: Callable[[str], Workspace], tmp_path: Path) -> Callable[[str], Workspace]:
    """A workspace that has measured nothing, and keeps no state but in its budget."""
    numbers = iter(range(1000))

    def of(arch: str) -> Workspace:
        workspace = opened(arch)
        network, before = workspace.need_network()
        reference = Reference(network, before.windows, 128, 1 << 30)
        assert len(reference.batches) == BATCHES
        return replace(
            workspace,
            facts=FactStore(tmp_path / f"facts-{next(numbers)}"),
            reference=reference,
            recent_runs=None,
            calibration=None,
            tallies={},
        )

    return of


def learnt(steps: Generator[Any, None, Any]) -> dict[str, p.AnyFact]:
    """The last fact under every key."""
    found: dict[str, p.AnyFact] = {}
    for event in steps:
        if isinstance(event, p.Learned):
            found.update(zip(event.keys, event.facts, strict=True))
    return found


def both(
    workspace: Callable[[], Workspace], job: Callable[[Workspace], Generator[Any, None, Any]]
) -> tuple[dict[str, p.AnyFact], dict[str, p.AnyFact], list[int]]:
    """Facts with resident and with streamed blocks, and how often each block was read."""
    resident = learnt(job(workspace()))
    again = workspace()
    network, _ = again.need_network()
    with streamed(network) as source:
        assert isinstance(source, StreamedBlocks)
        found = learnt(job(again))
        network.assert_at_rest()
    return resident, found, source.reads


@pytest.mark.parametrize("arch", ["llama", "qwen3_moe"])
@pytest.mark.parametrize(
    ("direction", "exact"), [("degrade", "all"), ("degrade", "top:2"), ("restore", "all")]
)
def test_a_sweep_gives_the_same_figures(
    arch: str, direction: p.Direction, exact: str, anew: Callable[[str], Workspace]
) -> None:
    def job(workspace: Workspace) -> Generator[Any, None, Any]:
        return sweep(workspace, ["int4-g32"], direction, "job", exact=exact)

    resident, found, _ = both(lambda: anew(arch), job)
    assert found == resident
    assert any(isinstance(fact, p.Sensitivity) for fact in found.values())
    assert any(isinstance(fact, p.Estimate) for fact in found.values())


@pytest.mark.parametrize("format", ["int4-g32", "int4-g32+gptq"])
def test_a_recipe_scores_the_same(format: str, anew: Callable[[str], Workspace]) -> None:
    def job(workspace: Workspace) -> Generator[Any, None, Any]:
        network, _ = workspace.need_network()
        names = [n for n, layer in network.layers.items() if layer.role != "embedding"]
        return evaluate(workspace, dict.fromkeys(names, format), "job")

    resident, found, _ = both(lambda: anew("llama"), job)
    assert found == resident
    assert any(isinstance(fact, p.RecipeScore) for fact in found.values())


def test_a_pass_over_all_windows_reads_each_block_once(anew: Callable[[str], Workspace]) -> None:
    resident, found, reads = both(lambda: anew("llama"), lambda w: baseline(w, Account()))
    assert found == resident
    assert reads == [1] * BLOCKS


def test_a_recipe_reads_each_block_once_beside_the_reference(
    anew: Callable[[str], Workspace],
) -> None:
    def job(workspace: Workspace) -> Generator[Any, None, Any]:
        network, _ = workspace.need_network()
        names = [n for n, layer in network.layers.items() if layer.block is not None]
        return evaluate(workspace, dict.fromkeys(names, "int4-g32"), "job")

    _, _, reads = both(lambda: anew("llama"), job)
    assert reads == [2] * BLOCKS  # the unchanged network's pass, and the recipe's


def test_exact_measurements_of_all_layers_read_each_block_once(
    anew: Callable[[str], Workspace],
) -> None:
    """Blocks are read for the reference, and once for all candidates on all windows together."""
    from engine.formats.grammar import parse_format
    from engine.measure.sweep.candidates import Candidate, Measuring, SweepTable, figure_key
    from engine.measure.sweep.units import units

    def job(workspace: Workspace) -> Generator[Any, None, Any]:
        network, _ = workspace.need_network()
        table = SweepTable(parse_format("int4-g32"), "degrade", "layer")
        wanted = [unit for unit in units(network.layers, "layer") if unit.body]
        todo = [Candidate(unit, figure_key(workspace, unit, table), []) for unit in wanted]
        measuring = Measuring(workspace, table, 0.0, Account())
        for group in measuring.groups(todo):
            for due in measuring.turns(group, measuring.micro_batches):
                yield from measuring.measure(due, keep=True)
        for each in todo:
            fact = measuring.figure(each)
            yield p.Learned((each.key,), (fact,))

    resident, found, reads = both(lambda: anew("llama"), job)
    assert found == resident
    assert reads == [2] * BLOCKS


def test_resident_blocks_run_in_one_forward(anew: Callable[[str], Workspace]) -> None:
    workspace = anew("llama")
    network, reference = workspace.need_network()
    assert not network.streamed
    assert reference.lanes == 1
    assert network.stretches(-1, BLOCKS) == [range(-1, BLOCKS)]
    with network.blocks.block(0) as module:
        assert module is network.blocks.modules[0]
