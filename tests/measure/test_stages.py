"""No stage of a job is silent: each is named, counted, and says how long it still takes."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import get_args

import pytest

from engine import protocol as p
from engine.measure.counts import JobCounts
from engine.measure.sweep.progress import SweepProgress
from engine.measure.sweep.units import Unit
from engine.model.cost import cost_of
from qtui.views.progress import PHASES
from tests.model.small import small


def spend(counts: JobCounts, seconds: float) -> None:
    counts.timings["measure_s"] = counts.timings.get("measure_s", 0.0) + seconds


def test_the_time_left_of_a_stage_is_that_of_its_steps_and_of_what_follows() -> None:
    counts = JobCounts(job="sweep-1", timings={"load_s": 1000.0, "measure_s": 7.0})
    stage = counts.stage("reference", 10, then=30.0)
    first = stage.step(0)
    assert first is not None
    assert (first.phase, first.done, first.total) == ("reference", 0, 10)
    assert math.isnan(first.seconds_left)
    stage._told = -math.inf
    spend(counts, 8.0)
    later = stage.step(4)
    assert later is not None
    assert later.seconds_left == pytest.approx(8.0 / 4 * (6 + 30))


def test_without_a_job_there_is_nothing_to_announce() -> None:
    assert JobCounts().stage("control", 3).step(1) is None


def test_the_time_left_of_a_sweep_does_not_jump_between_early_and_late_layers() -> None:
    """Units cost a constant and what grows with the blocks after them; they come in any order."""
    network = small("LlamaConfig", num_hidden_layers=8)
    blocks = len(network.blocks)
    cost = cost_of(network)
    todo = [Unit(str(at), (), at % (blocks + 1), True) for at in range(60)]
    todo.sort(key=lambda unit: (unit.start * 7) % 5)
    seconds = {unit.name: 0.5 + 2.0 * cost.resumed(unit.start) / cost.resumed(0) for unit in todo}
    counts = JobCounts(job="sweep-1")
    progress = SweepProgress(counts, network, todo, len(todo))
    progress.begin()
    errors = []
    for done, unit in enumerate(todo, 1):
        for _ in range(4):
            spend(counts, seconds[unit.name] / 4)
            progress.advance(unit, 0.25)
        progress.finish(unit)
        left = sum(seconds[each.name] for each in todo[done:])
        if done > 4 and left:
            errors.append(abs(progress.seconds_left() / left - 1))
    assert max(errors) < 0.15


def test_a_cheap_first_layer_does_not_make_the_others_look_endless() -> None:
    """The head comes first, being the worst; its constant part is nearly all it costs."""
    network = small("LlamaConfig", num_hidden_layers=8)
    cost, blocks = cost_of(network), 8
    todo = [Unit("head", (), blocks, True), *(Unit(str(at), (), at, True) for at in range(blocks))]
    seconds = {unit.name: 0.5 + 2.0 * cost.resumed(unit.start) / cost.resumed(0) for unit in todo}
    counts = JobCounts(job="sweep-1", forward=2.0)
    progress = SweepProgress(counts, network, todo, len(todo))
    assert progress.seconds_left() > 0
    spend(counts, seconds["head"])
    progress.advance(todo[0], 1.0)
    progress.finish(todo[0])
    left = sum(seconds[unit.name] for unit in todo[1:])
    assert left / 1.5 < progress.seconds_left() < left * 1.5


def test_what_waits_for_another_job_is_not_counted_as_the_sweeps_own() -> None:
    network = small("LlamaConfig")
    units = [Unit(str(at), (), 0, True) for at in range(10)]
    counts = JobCounts(job="sweep-1")
    progress = SweepProgress(counts, network, units, 10)
    seen = []
    for unit in units[:5]:
        spend(counts, 1.0)
        progress.advance(unit, 1.0)
        progress.finish(unit)
        seen.append(progress.seconds_left())
    assert all(a > b for a, b in pairwise(seen))
    assert seen[-1] == pytest.approx(5.0)


def test_every_phase_has_words() -> None:
    assert set(PHASES) == set(get_args(p.Phase)) - {""}
