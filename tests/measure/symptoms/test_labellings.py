"""Differences between two groups of texts, against SciPy's permutation test."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import permutation_test

from engine.measure.symptoms import labellings
from engine.measure.symptoms.labellings import Labellings

FAILING = [True, False, True, True, False, False, False, True]


def drawn(things: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(len(FAILING), things, generator=torch.Generator().manual_seed(seed)).double()


def test_the_chance_of_one_thing_is_that_of_a_permutation_test() -> None:
    values, floor = drawn(1), 0.1
    found = Labellings(FAILING)
    (difference,) = found.differences(values, floor).tolist()
    logs = np.log(values[:, 0].numpy() + floor)
    mask = np.array(FAILING)
    expected = permutation_test(
        (logs[mask], logs[~mask]), lambda a, b: a.mean() - b.mean(),
        permutation_type="independent", alternative="greater", n_resamples=math.inf,
    )  # fmt: skip
    assert difference == pytest.approx(expected.statistic)
    assert found.chance(difference) == pytest.approx(expected.pvalue)


def test_of_many_things_the_largest_counts_however_they_are_taken() -> None:
    values = drawn(60)
    whole, parts = Labellings(FAILING), Labellings(FAILING)
    differences = whole.differences(values, 0.1)
    for some in values.split(7, -1):
        parts.differences(some, 0.1)
    torch.testing.assert_close(whole.largest, parts.largest)
    single = Labellings(FAILING)
    alone = single.differences(values[:, differences.argmax()].unsqueeze(-1), 0.1)
    assert whole.chance(float(alone)) > single.chance(float(alone))
    values[torch.tensor(FAILING), 3] = 1e6
    planted = Labellings(FAILING)
    assert planted.differences(values, 0.1).argmax() == 3
    assert planted.chance(float(planted.differences(values, 0.1)[3])) == 1 / math.comb(8, 4)


def test_what_is_not_finite_is_left_out_and_what_is_small_does_not_count() -> None:
    values = drawn(3)
    values[0, 1] = math.nan
    values[:, 2] = 1e-9
    values[torch.tensor(FAILING), 2] = 1e-6
    found = Labellings(FAILING).differences(values, 0.1)
    assert found[1] == -math.inf
    assert abs(float(found[2])) < 1e-4


def test_of_too_many_labellings_some_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labellings, "LABELLINGS", 40)
    few, all_of_them = Labellings(FAILING), Labellings([True, False, True])
    assert few.largest.shape == (40,)
    assert all_of_them.largest.shape == (3,)
    value = float(few.differences(drawn(1), 0.1)[0])
    assert few.chance(value) >= 1 / 40  # the true one is among them
