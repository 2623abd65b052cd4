"""How often an interval over a few windows holds what all windows say."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

DRAWS = 500
FEW = 16


def coverage(
    values: NDArray[np.float64], *, draws: int = DRAWS, few: int = FEW, seed: int = 0
) -> float:
    """Share of draws whose 95% interval holds the mean of all windows.

    Args:
        values: ``[windows]``, measured or estimated, of one layer in one format; 400 or more.
        draws: samples of ``few`` windows, without replacement.
        few: windows of a sample; the interval is Student's t over them, as everywhere in qtui.
        seed: of the samples, the same for every layer.
    """
    assert len(values) >= 400
    chance = np.random.default_rng(seed)
    factor = float(stats.t.ppf(0.975, few - 1)) / math.sqrt(few)
    held = 0
    for _ in range(draws):
        sample = values[chance.permutation(len(values))[:few]]
        half = factor * sample.std(ddof=1)
        held += abs(sample.mean() - values.mean()) <= half
    return held / draws
