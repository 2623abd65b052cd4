"""A checkpoint beyond its budget: the figures of one that fits, for two reads of its blocks."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import protocol as p
from engine.formats.grammar import parse_format
from engine.measure.counts import JobCounts
from engine.measure.estimate.estimate import estimate
from engine.measure.sweep.sweep import sweep
from engine.model.streamed_blocks import StreamedBlocks
from engine.store.facts import FactStore
from engine.workspace import Loaded
from tests import tiny
from tests.drive import load, settings
from tests.measure.test_streamed import learnt

ARCHS = sorted({*tiny.ARCHITECTURES, *tiny.PLACED, *tiny.UNCALLED})
SHARED = {"gemma4", "zamba2"}
"""Their blocks share something, so that they are never streamed."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {}


@pytest.fixture
def folder(arch: str, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    if arch not in folders:
        folders[arch] = tiny.build(arch, tmp_path_factory.mktemp("checkpoint") / arch)
    return folders[arch]


def opened(folder: Path, at: Path, prose: Path, **given: object) -> Loaded:
    chosen = settings(prose, tokens=256, calib_tokens=256, draws=1, **given)
    return load(folder, FactStore(at), chosen)


def without_times(facts: dict[str, p.AnyFact]) -> dict[str, p.AnyFact]:
    return facts


@pytest.mark.parametrize("arch", ARCHS)
def test_a_sweep_of_estimates_is_equal_to_the_last_digit(
    arch: str, folder: Path, tmp_path: Path, prose: Path
) -> None:
    def facts(**given: object) -> tuple[Loaded, dict[str, p.AnyFact]]:
        loaded = opened(folder, tmp_path / f"{len(given)}", prose, **given)
        return loaded, learnt(sweep(loaded, ["int4-g32", "int8"], "degrade", "j", exact="none"))

    _, resident = facts()
    loaded, streamed = facts(memory_budget=1)
    assert isinstance(loaded.network.blocks, StreamedBlocks) == (arch not in SHARED)
    assert streamed == resident
    assert any(isinstance(fact, p.Estimate) for fact in streamed.values())
    assert any(isinstance(fact, p.Control) for fact in streamed.values())


@pytest.mark.parametrize("arch", ["llama", "mixtral"])
def test_all_formats_are_estimated_in_two_reads(
    arch: str, folder: Path, tmp_path: Path, prose: Path
) -> None:
    loaded = opened(folder, tmp_path / "facts", prose, memory_budget=1)
    blocks = loaded.network.blocks
    assert isinstance(blocks, StreamedBlocks)
    before = list(blocks.reads)
    formats = [parse_format(each) for each in ("int4-g32", "int8", "int3-g32", "nf4-g32")]
    found = learnt(estimate(loaded, formats, "degrade", JobCounts(job="j"), "j"))
    assert found
    assert [now - then for now, then in zip(blocks.reads, before, strict=True)] == [2] * len(blocks)
