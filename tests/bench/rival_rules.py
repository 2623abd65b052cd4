"""How other tools turn scores of layers into a recipe: each rule as its source has it, no tensors.

Rules choose among the same options: for every unit the formats with their stored bits and what the
tool's own score says of them. They return the index of every unit's option, or None where the rule
finds nothing that fits. What a source does beyond choosing (heads with schemes of their own, costs
of active experts) is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

TRIES = 100
"""Iterations of Model Optimizer's bisection."""
TOLERANCE = 1e-3
"""Of mlx-lm's bisection, as a share of the range of sensitivities."""
EXPONENT = 0.69
"""ExLlamaV3 takes an improvement to this power."""


class Option(NamedTuple):
    """One format for a unit."""

    bits: int
    """Stored bits of the unit's layers."""
    score: float
    """What the tool expects of it: larger is worse."""


Options = Sequence[Sequence[Option]]
"""Of every unit, the smallest first; the last is to leave it as stored, with score 0."""


def bits_of(units: Options, chosen: Sequence[int]) -> int:
    """Stored bits of a choice."""
    return sum(options[at].bits for options, at in zip(units, chosen, strict=True))


def integer_programme(units: Options, limit: float) -> list[int] | None:
    """The least sum of scores within a limit.

    Model Optimizer 0.47, ``AutoQuantizeGradientSearcher.run_search_with_stats`` in
    ``modelopt/torch/quantization/algorithms.py``; also how HIGGS (Malinovskii et al. 2024,
    arXiv 2411.17525, section 5) and HAWQ-V3 (Yao et al. 2021, arXiv 2011.10680) choose.
    """
    flat = [(row, option) for row, options in enumerate(units) for option in options]
    score = np.array([option.score for _, option in flat])
    bits = np.array([option.bits for _, option in flat], dtype=float)
    one_each = np.zeros((len(units), len(flat)))
    for column, (row, _) in enumerate(flat):
        one_each[row, column] = 1
    found = milp(
        score / max(score.max(), 1e-300) * 1e6,
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(bits[None] / limit * 1e6, -np.inf, 1e6),
        ],
        options={"time_limit": 30.0, "mip_rel_gap": 1e-6},
    )
    if found.x is None:
        return None
    taken = iter(found.x > 0.5)
    return [[next(taken) for _ in options].index(True) for options in units]


def dynamic_programme(units: Options, limit: float) -> list[int] | None:
    """The least sum of scores within a limit, unit by unit over all sums of bits worth keeping.

    AutoRound 0.16, ``choose_bits_per_layer_with_path`` in ``auto_round/auto_scheme/delta_loss.py``:
    of states with the same bits the best, and of those none that a smaller one beats.
    """
    bits, score = np.zeros(1, dtype=np.int64), np.zeros(1)
    back: list[tuple[np.ndarray, np.ndarray]] = []
    for options in units:
        more = np.array([option.bits for option in options], dtype=np.int64)
        worse = np.array([option.score for option in options])
        sums, totals = (bits[:, None] + more).ravel(), (score[:, None] + worse).ravel()
        order = np.lexsort((totals, sums))
        order = order[sums[order] <= limit]
        if not len(order):
            return None
        least = np.minimum.accumulate(totals[order])
        kept = order[np.concatenate([[True], totals[order][1:] < least[:-1]])]
        bits, score = sums[kept], totals[kept]
        back.append((kept // len(options), kept % len(options)))
    at = int(np.argmin(score))
    chosen: list[int] = []
    for before, taken in reversed(back):
        chosen.append(int(taken[at]))
        at = int(before[at])
    return chosen[::-1]


def threshold_of_largest(units: Options, limit: float) -> list[int] | None:
    """Every unit's smallest option whose score is below one threshold, which is bisected.

    Model Optimizer 0.47, ``AutoQuantizeKLDivSearcher.run_search_with_stats``. It keeps the last try
    even where that does not fit; here the last that fits.
    """
    scores = [option.score for options in units for option in options]
    low, high = min(scores), max(scores)
    threshold = (low + high) / 2
    smallest = [0] * len(units)  # what the largest threshold of all chooses
    found = smallest if bits_of(units, smallest) <= limit else None
    for _ in range(TRIES):
        chosen = [
            next((at for at, option in enumerate(options) if option.score <= threshold), 0)
            for options in units
        ]
        if bits_of(units, chosen) <= limit:
            found, high = chosen, threshold
        else:
            low = threshold
        threshold = (low + high) / 2
    return found


def two_levels(
    sensitivity: Sequence[float], low: Sequence[int], high: Sequence[int], limit: float
) -> list[bool] | None:
    """Which units get the larger of two formats: those above one threshold, which is bisected.

    mlx-lm 0.32, ``estimate_threshold`` in ``mlx_lm/quant/dynamic_quant.py``, where the threshold
    between the last two tries is taken; here the last that fits, which is the same or smaller.

    Args:
        sensitivity: ``⟨gradient, W_low − W_high⟩`` of every unit, for each weight.
        low: stored bits of every unit in the smaller format.
        high: in the larger.
        limit: on the sum of bits.
    """

    def raised(threshold: float) -> list[bool]:
        return [each > threshold for each in sensitivity]

    def bits(threshold: float) -> int:
        above = raised(threshold)
        return sum(b if up else a for a, b, up in zip(low, high, above, strict=True))

    if bits(max(sensitivity)) > limit:
        return None
    least, most = min(sensitivity), max(sensitivity)
    tolerance = TOLERANCE * (most - least)
    while most - least > tolerance:
        middle = (most + least) / 2
        if bits(middle) > limit:
            least = middle
        else:
            most = middle
    last = (most + least) / 2
    return raised(last if bits(last) <= limit else most)


def greedy_per_bit(units: Options, limit: float) -> list[int] | None:
    """From the first options, the steps with the largest gain for each bit, while they fit.

    ExLlamaV3 1.6, ``optimize`` in ``exllamav3/conversion/optimize_model.py``: scores are KL of the
    model wholly in one format but for this unit, less that of the model wholly in it.

    Args:
        units: the first option of each is what the model begins with, score 0; better are below 0.
        limit: on the sum of bits.
    """

    def adjusted(score: float) -> float:
        return score if score > 0 else -((-score) ** EXPONENT)

    chosen = [0] * len(units)
    room = limit - bits_of(units, chosen)
    if room < 0:
        return None
    while True:
        best: tuple[int, int, int] | None = None
        best_gain = 0.0
        for row, options in enumerate(units):
            now = options[chosen[row]]
            for at in range(chosen[row] + 1, len(options)):
                change = adjusted(options[at].score) - adjusted(now.score)
                bits = options[at].bits - now.bits
                gain = 1e10 * change / (bits + 1)
                if gain < best_gain and room > bits:
                    best, best_gain = (row, at, bits), gain
        if best is None:
            return chosen
        row, at, bits = best
        chosen[row] = at
        room -= bits
