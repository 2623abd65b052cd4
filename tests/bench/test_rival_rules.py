"""The rules of other tools, held against every choice there is."""

from __future__ import annotations

import random
from itertools import pairwise, product

import pytest

from tests.bench.rival_rules import (
    Option,
    bits_of,
    dynamic_programme,
    greedy_per_bit,
    integer_programme,
    threshold_of_largest,
    two_levels,
)

SEEDS = range(25)


def instance(seed: int) -> tuple[list[list[Option]], int]:
    """Up to 5 units of 2 to 4 options, larger ones better, and a limit between the extremes."""
    rng = random.Random(seed)
    units = []
    for _ in range(rng.randint(1, 5)):
        size = rng.randint(1, 40)
        bits = sorted(rng.sample(range(1, 17), rng.randint(2, 4)))
        scores = sorted((rng.random() for _ in bits), reverse=True)
        units.append([Option(size * b, s) for b, s in zip(bits, [*scores[:-1], 0.0], strict=True)])
    least = sum(options[0].bits for options in units)
    most = sum(options[-1].bits for options in units)
    return units, rng.randint(least, most)


def every(units: list[list[Option]], limit: float) -> list[tuple[int, ...]]:
    choices = product(*(range(len(options)) for options in units))
    return [chosen for chosen in choices if bits_of(units, chosen) <= limit]


def total(units: list[list[Option]], chosen: object) -> float:
    return sum(o[at].score for o, at in zip(units, chosen, strict=True))  # type: ignore[call-overload]


@pytest.mark.parametrize("seed", SEEDS)
def test_sums_are_the_least_there_are(seed: int) -> None:
    units, limit = instance(seed)
    best = min(total(units, chosen) for chosen in every(units, limit))
    for rule in (integer_programme, dynamic_programme):
        chosen = rule(units, limit)
        assert chosen is not None
        assert bits_of(units, chosen) <= limit
        assert total(units, chosen) == pytest.approx(best, rel=1e-5, abs=1e-9)
    assert dynamic_programme(units, bits_of(units, [0] * len(units)) - 1) is None
    assert integer_programme(units, bits_of(units, [0] * len(units)) - 1) is None


@pytest.mark.parametrize("seed", SEEDS)
def test_the_largest_score_is_the_least_there_is(seed: int) -> None:
    units, limit = instance(seed)
    chosen = threshold_of_largest(units, limit)
    thresholds = sorted({option.score for options in units for option in options})
    # A unit takes its smallest option below the threshold, so only thresholds are to be tried.
    at_each = [
        [next(at for at, o in enumerate(options) if o.score <= threshold) for options in units]
        for threshold in thresholds
    ]
    fitting = [each for each in at_each if bits_of(units, each) <= limit]
    assert chosen == fitting[0]
    assert threshold_of_largest(units, bits_of(units, [0] * len(units)) - 1) is None


@pytest.mark.parametrize("seed", SEEDS)
def test_two_levels_raise_the_most_sensitive_that_fit(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.randint(1, 7)
    sensitivity = [rng.uniform(-1, 3) for _ in range(count)]
    low = [rng.randint(1, 20) for _ in range(count)]
    high = [bits + rng.randint(1, 20) for bits in low]
    limit = rng.randint(sum(low), sum(high))
    raised = two_levels(sensitivity, low, high, limit)
    assert raised is not None
    order = sorted(range(count), key=lambda row: -sensitivity[row])
    prefixes = [{*order[:length]} for length in range(count + 1)]
    taken = {row for row, up in enumerate(raised) if up}
    assert taken in prefixes
    assert sum(high[r] if r in taken else low[r] for r in range(count)) <= limit
    more = {*order[: len(taken) + 1]}
    near = sorted(sensitivity)
    apart = min((b - a for a, b in pairwise(near)), default=1)
    # Among sensitivities that a thousandth of their range tells apart, one more does not fit.
    if 0 < len(taken) < count - 1 and apart > 2e-3 * (near[-1] - near[0]):
        assert sum(high[r] if r in more else low[r] for r in range(count)) > limit
    assert two_levels(sensitivity, low, high, sum(low) - 1) is None


def test_a_gain_for_each_bit_is_taken_first_and_steps_go_on_while_they_fit() -> None:
    # Gains to the power of .69: the second unit's small gain in few bits comes first.
    units = [
        [Option(100, 0.0), Option(200, -0.5), Option(300, -0.7)],
        [Option(10, 0.0), Option(20, -0.1)],
        [Option(50, 0.0), Option(60, 0.2)],
    ]
    assert greedy_per_bit(units, 172) == [0, 1, 0]
    # Room must be more than a step takes, as in the source.
    assert greedy_per_bit(units, 270) == [0, 1, 0]
    assert greedy_per_bit(units, 271) == [1, 1, 0]
    assert greedy_per_bit(units, 1000) == [2, 1, 0], "a worse option is never taken"
    assert greedy_per_bit(units, 159) is None


@pytest.mark.parametrize("seed", SEEDS)
def test_no_step_is_left_that_fits_and_gains(seed: int) -> None:
    units, limit = instance(seed)
    gains = [[Option(o.bits, o.score - options[0].score) for o in options] for options in units]
    chosen = greedy_per_bit(gains, limit)
    assert chosen is not None
    room = limit - bits_of(gains, chosen)
    assert room >= 0
    for options, at in zip(gains, chosen, strict=True):
        for further in options[at + 1 :]:
            assert not (
                further.score < options[at].score and further.bits - options[at].bits < room
            )
