"""A checkpoint beyond its budget: the figures of one that fits, for two reads of its blocks."""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path

import pytest

from engine import protocol as p
from engine.errors import EngineError, UsageError
from engine.formats.grammar import parse_format
from engine.measure.counts import JobCounts
from engine.measure.estimate.estimate import estimate
from engine.measure.evaluation.evaluate import baseline, evaluate
from engine.measure.sweep.sweep import sweep
from engine.measure.symptoms.symptoms import find_symptoms
from engine.model.memory_tiers import DiskTier
from engine.model.streamed_blocks import StreamedBlocks
from engine.store.facts import FactStore
from engine.workspace import Loaded
from tests import tiny
from tests.drive import load, settings
from tests.measure.test_streamed import learnt

ARCHS = sorted({*tiny.ARCHITECTURES, *tiny.PLACED, *tiny.UNCALLED})
QUICK = {"llama", "mixtral", "gemma4"}
"""Those that a short run takes."""
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


@pytest.mark.parametrize(
    "arch",
    [arch if arch in QUICK else pytest.param(arch, marks=pytest.mark.soak) for arch in ARCHS],
)
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


def test_a_calibrated_format_reads_its_blocks_once_more_for_the_text(
    tmp_path: Path, prose: Path
) -> None:
    folder = tiny.build("llama", tmp_path / "model", num_hidden_layers=6)
    chosen = {"memory_budget": 900_000, "calib": str(prose)}  # half the rest holds a block's Grams
    loaded = opened(folder, tmp_path / "facts", prose, **chosen)
    blocks = loaded.network.blocks
    assert isinstance(blocks, StreamedBlocks)
    before = list(blocks.reads)
    format = parse_format("int4-g32+gptq")
    assert learnt(estimate(loaded, [format], "degrade", JobCounts(job="j"), "j"))
    reads = [now - then for now, then in zip(blocks.reads, before, strict=True)]
    assert reads == [3] * 6, "forward, backward, and the calibration text"


@pytest.mark.parametrize("arch", ["llama"])
def test_passes_of_exact_measurements_are_said_before_the_first(
    arch: str, folder: Path, tmp_path: Path, prose: Path
) -> None:
    loaded = opened(folder, tmp_path / "facts", prose, memory_budget=1)
    blocks = loaded.network.blocks
    assert isinstance(blocks, StreamedBlocks)
    before = units = number = measured = 0
    for event in sweep(loaded, ["int4-g32"], "degrade", "j", exact="all", by="block"):
        if isinstance(event, p.Notice) and (
            said := re.match(
                r"measuring (\d+) in int4-g32 takes \d+ pass.* (\d+) blocks read", event.message
            )
        ):
            before, units, number = sum(blocks.reads), int(said[1]), int(said[2])
        measured += isinstance(event, p.Learned) and isinstance(event.facts[0], p.Sensitivity)
        if units and measured == units:
            break
    assert number
    assert sum(blocks.reads) - before == number


def test_no_more_than_two_blocks_or_one_and_the_head_are_in_memory(
    tmp_path: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.build("llama", tmp_path / "model", vocab_size=2048)
    most, fill = 0, StreamedBlocks._fill

    def filling(blocks: StreamedBlocks, k: int) -> None:
        nonlocal most
        fill(blocks, k)
        there = {k, *(each for each, count in blocks._open.items() if count)}
        there |= set() if blocks._ahead is None else {blocks._ahead.k}
        most = max(most, sum(p.nbytes for each in there for p in blocks._own[each].values()))

    monkeypatch.setattr(StreamedBlocks, "_fill", filling)
    loaded = opened(folder, tmp_path / "facts", prose, memory_budget=1)
    learnt(sweep(loaded, ["int4-g32"], "degrade", "j", exact="none"))
    names = [name for name, layer in loaded.network.layers.items() if layer.role != "embedding"]
    learnt(evaluate(loaded, dict.fromkeys(names, "int8"), "j"))
    blocks = loaded.network.blocks
    assert isinstance(blocks, StreamedBlocks)
    head = 2048 * 64 * 4
    assert 0 < most <= max(2 * blocks.largest, blocks.largest + head)


@pytest.mark.parametrize("arch", ["llama"])
def test_a_first_sweep_of_estimates_reads_its_blocks_three_times(
    arch: str, folder: Path, tmp_path: Path, prose: Path
) -> None:
    loaded = opened(folder, tmp_path / "facts", prose, memory_budget=1)
    blocks = loaded.network.blocks
    assert isinstance(blocks, StreamedBlocks)
    opening = blocks.reads[:]
    assert max(opening) == 4
    learnt(sweep(loaded, ["int4-g32"], "degrade", "j", exact="none"))
    reads = [now - before for now, before in zip(blocks.reads, opening, strict=True)]
    assert reads == [3] * len(blocks), "estimates twice, the control once"


@pytest.mark.parametrize("arch", ["llama", "mixtral"])
@pytest.mark.parametrize("exact", ["all", "top:2"])
def test_exact_figures_and_recipes_are_equal_too(
    arch: str, exact: str, folder: Path, tmp_path: Path, prose: Path
) -> None:
    def facts(**given: object) -> dict[str, p.AnyFact]:
        loaded = opened(folder, tmp_path / f"{len(given)}", prose, **given)
        swept = learnt(sweep(loaded, ["int4-g32"], "degrade", "j", exact=exact))
        names = [name for name, layer in loaded.network.layers.items() if layer.start >= 1]
        return swept | learnt(evaluate(loaded, dict.fromkeys(names, "int8"), "j"))

    resident, streamed = facts(), facts(memory_budget=1)
    assert streamed == resident
    assert any(isinstance(fact, p.RecipeScore) for fact in streamed.values())


@pytest.mark.parametrize("arch", ["llama"])
def test_a_recipe_is_scored_from_the_first_block_that_it_changes(
    arch: str, folder: Path, tmp_path: Path, prose: Path
) -> None:
    loaded = opened(folder, tmp_path / "facts", prose, memory_budget=1)
    blocks = loaded.network.blocks
    assert isinstance(blocks, StreamedBlocks)
    learnt(baseline(loaded, JobCounts()))
    before = list(blocks.reads)
    late = {name: "int8" for name, layer in loaded.network.layers.items() if layer.start == 2}
    learnt(evaluate(loaded, late, "j"))
    assert [now - then for now, then in zip(blocks.reads, before, strict=True)] == [0, 0, 1]


@pytest.mark.parametrize("arch", ["llama"])
def test_no_room_for_states_is_said_and_loses_nothing(
    arch: str, folder: Path, tmp_path: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = opened(folder, tmp_path / "facts", prose, memory_budget=1)
    monkeypatch.setattr(DiskTier, "put", lambda _tier, _tensor: None)
    with pytest.raises(EngineError, match=r"no room for the states.*TMPDIR.*saved"):
        learnt(baseline(loaded, JobCounts()))
    loaded.assert_at_rest()
    monkeypatch.undo()
    assert learnt(baseline(loaded, JobCounts()))


@pytest.mark.parametrize("arch", ["llama"])
def test_progress_and_protocol_say_that_blocks_are_read(
    arch: str, folder: Path, tmp_path: Path, prose: Path
) -> None:
    loaded = opened(folder, tmp_path / "facts", prose, memory_budget=1)
    assert loaded.protocol.streamed is True
    assert "blocks are read from disk" in loaded.network.notes[-1]
    steps = sweep(loaded, ["int4-g32"], "degrade", "j", exact="none")
    said = {event.detail for event in steps if isinstance(event, p.Progress)}
    assert "2 formats, reading block 1 of 3" in said or "1 format, reading block 1 of 3" in said
    assert any(each.startswith("reading ") for each in said)  # not each: one a moment


@pytest.mark.parametrize("arch", ["llama"])
def test_symptoms_are_refused_since_they_would_read_the_file_for_every_token(
    arch: str, folder: Path, tmp_path: Path, prose: Path
) -> None:
    loaded = opened(folder, tmp_path / "facts", prose, memory_budget=1)
    command = p.FindSymptoms(prompts=("a few words",))
    recipe = {"model.layers.0.mlp.down_proj": "int4-g32"}
    with pytest.raises(UsageError, match="symptoms need the whole model in memory"):
        learnt(find_symptoms(loaded, command, recipe, "j"))


@pytest.mark.parametrize("arch", ["llama"])
def test_a_toggle_while_a_block_is_read_interrupts_a_sweep_and_changes_nothing(
    arch: str, folder: Path, tmp_path: Path, prose: Path
) -> None:
    def facts(every: int) -> dict[str, p.AnyFact]:
        loaded = opened(folder, tmp_path / f"{every}", prose, memory_budget=1)
        asked = count(1)
        loaded.network.should_stop = lambda: every > 0 and next(asked) % every == 0
        return learnt(sweep(loaded, ["int4-g32"], "degrade", "j", exact="none"))

    assert facts(2) == facts(0)
