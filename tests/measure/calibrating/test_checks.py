"""Repetition, duplicates, overlap and distance against loops over plain tuples and NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.measure.calibrating.checks import (
    distance,
    duplicates,
    overlap,
    repetition,
    together,
)


def runs(ids: Tensor, length: int) -> list[list[tuple[int, ...]]]:
    rows = ids.tolist()
    return [[tuple(row[i : i + length]) for i in range(len(row) - length + 1)] for row in rows]


def some_windows() -> Tensor:
    """Windows of few different tokens, so that runs recur; the last copies an earlier one."""
    ids = torch.randint(4, (12, 40), generator=torch.Generator().manual_seed(0))
    ids[-1, :30] = ids[2, :30]
    return ids


@pytest.mark.parametrize("length", [1, 3, 5])
def test_repetition_is_one_less_the_share_of_distinct_runs(length: int) -> None:
    every = [run for row in runs(some_windows(), length) for run in row]
    assert repetition(some_windows(), length) == pytest.approx(1 - len(set(every)) / len(every))


def test_duplicates_are_windows_that_earlier_ones_have_half_of() -> None:
    ids, seen, copies = some_windows(), set[tuple[int, ...]](), 0
    for row in runs(ids, 8):
        copies += 2 * len(set(row) & seen) >= len(set(row))
        seen |= set(row)
    assert copies == 1
    assert duplicates(ids) == pytest.approx(copies / len(ids))


@pytest.mark.parametrize("length", [3, 13])
def test_overlap_is_the_share_of_the_evaluation_texts_runs_that_the_set_has(length: int) -> None:
    ids = some_windows()
    evaluated = torch.randint(4, (5, 40), generator=torch.Generator().manual_seed(1))
    evaluated[0] = ids[3]
    mine = {run for row in runs(ids, length) for run in row}
    theirs = [run for row in runs(evaluated, length) for run in row]
    expected = sum(run in mine for run in theirs) / len(theirs)
    assert expected > 0
    assert overlap(ids, evaluated, length) == pytest.approx(expected)


def test_windows_shorter_than_a_run_share_and_repeat_nothing() -> None:
    short = torch.zeros(3, 4, dtype=torch.int64)
    assert (repetition(short), duplicates(short), overlap(short, short)) == (0.0, 0.0, 0.0)


def test_distance_is_the_mean_over_inputs_of_the_median_over_channels() -> None:
    random = np.random.default_rng(0)
    one = {name: random.normal(size=(50, 9)) * random.uniform(0.1, 3, 9) for name in "ab"}
    other = {name: random.normal(size=(70, 9)) for name in "ab"}

    def energies(x: dict[str, np.ndarray]) -> dict[str, tuple[Tensor, int]]:  # type: ignore[type-arg]
        return {k: (torch.tensor((v**2).sum(0)), len(v)) for k, v in x.items()}

    apart = {
        name: np.abs(np.log2((one[name] ** 2).mean(0)) - np.log2((other[name] ** 2).mean(0)))
        for name in "ab"
    }
    found = distance(energies(one), energies(other))
    assert found.mean == pytest.approx(np.mean([np.median(each) for each in apart.values()]))
    worst = max(apart, key=lambda name: float(np.median(apart[name])))
    assert (found.worst, found.largest) == (worst, pytest.approx(np.median(apart[worst])))
    assert found.fourfold == pytest.approx((apart[worst] >= 2).mean())
    assert distance(energies(one), energies(one)).mean == 0


def test_a_channel_that_is_always_zero_is_as_far_as_can_be_said() -> None:
    quiet = {"a": (torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64), 1)}
    loud = {"a": (torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64), 1)}
    assert distance(quiet, quiet).mean == 0
    assert math.isfinite(distance(quiet, loud).mean)


def test_energies_of_two_parts_are_those_of_both() -> None:
    x = torch.randn(30, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parts = [{"a": (p.square().sum(0), len(p))} for p in (x[:11], x[11:])]
    energy, tokens = together(*parts)["a"]
    assert tokens == 30
    torch.testing.assert_close(energy, x.square().sum(0))
