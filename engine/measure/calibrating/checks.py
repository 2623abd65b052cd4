"""What is told of calibration windows before anything is quantised: repetition, overlap, distance.

Plain functions of token ids ``[windows, tokens]`` and of sums over channels, in NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

REPEATED = 8
"""Tokens of a sequence that counts as repeated where it occurs again."""
OVERLAP = 13
"""Tokens of a sequence that two texts share by copying, not by chance: GPT-3's choice (Brown et al.
2020, arXiv 2005.14165, appendix C)."""
FOURFOLD = 2.0
"""Logarithm to base 2 of a ratio of energies that is counted as large."""

Energies: TypeAlias = Mapping[str, tuple[Tensor, int]]
"""By input, ``Σ x²`` of its channels ``[in]`` and the number of tokens."""


class Distance(NamedTuple):
    """How far inputs of layers differ between two texts."""

    mean: float
    """Over inputs, the mean of their distances."""
    worst: str
    """The input that differs most; empty if there is none."""
    largest: float
    """Its distance."""
    fourfold: float
    """Share of its channels whose energies differ four times or more."""


def sequences(ids: Tensor, length: int) -> NDArray[np.uint64]:
    """A hash of every run of ``length`` tokens within a window, ``[windows, runs]``."""
    tokens = np.ascontiguousarray(ids.numpy()).astype(np.uint64)
    count = tokens.shape[1] - length + 1
    if count < 1:
        return np.empty((len(tokens), 0), np.uint64)
    mixed = _mixed(tokens + np.uint64(1))
    found = np.zeros((len(tokens), count), np.uint64)
    for at in range(length):
        found = found * np.uint64(0x9E3779B97F4A7C15) + mixed[:, at : at + count]
    return _mixed(found)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Each number with its bits spread (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def repetition(ids: Tensor, length: int = REPEATED) -> float:
    """Share of runs of tokens that occurred before: ``1 − distinct runs / runs``."""
    found = sequences(ids, length)
    return 1.0 - len(np.unique(found)) / found.size if found.size else 0.0


def duplicates(ids: Tensor, length: int = REPEATED) -> float:
    """Share of windows with half of their runs of tokens or more in earlier windows."""
    seen: set[int] = set()
    copies = 0
    for row in sequences(ids, length):
        runs = set(row.tolist())
        if runs and 2 * len(runs & seen) >= len(runs):
            copies += 1
        seen |= runs
    return copies / len(ids) if len(ids) else 0.0


def overlap(ids: Tensor, evaluated: Tensor, length: int = OVERLAP) -> float:
    """Share of the evaluation text's runs of tokens that occur in the calibration windows."""
    theirs = sequences(evaluated, length).ravel()
    if not theirs.size:
        return 0.0
    return float(np.isin(theirs, np.unique(sequences(ids, length))).mean())


def distance(calibration: Energies, evaluation: Energies) -> Distance:
    """How far the energies of channels differ between two texts.

    Of one input, the median over channels of ``|log₂(mean x² on one / mean x² on the other)|``: 1
    if half of the channels differ by a factor of 2 or more. A few massive channels, which are the
    same on every text, do not move the median, and quiet channels count as much as loud ones.
    """
    found: dict[str, NDArray[np.float64]] = {}
    for name, (energy, tokens) in calibration.items():
        other, others = evaluation.get(name, (energy, 0))
        if tokens and others:
            found[name] = np.abs(_log(energy, tokens) - _log(other, others))
    if not found:
        return Distance(float("nan"), "", float("nan"), float("nan"))
    each = {name: float(np.median(apart)) for name, apart in found.items()}
    worst = max(each, key=each.__getitem__)
    fourfold = float((found[worst] >= FOURFOLD).mean())
    return Distance(float(np.mean(list(each.values()))), worst, each[worst], fourfold)


def _log(energy: Tensor, tokens: int) -> NDArray[np.float64]:
    mean = energy.double().numpy() / tokens
    # A channel that is always 0 has no logarithm; far below all others it is as good as that.
    return np.log2(np.maximum(mean, 1e-12 * max(float(mean.mean()), 1e-300)))


def together(one: Energies, other: Energies) -> dict[str, tuple[Tensor, int]]:
    """The energies of two texts together."""
    found = dict(one)
    for name, (energy, tokens) in other.items():
        before, count = found.get(name, (energy.new_zeros(energy.shape), 0))
        found[name] = before + energy, count + tokens
    return found
