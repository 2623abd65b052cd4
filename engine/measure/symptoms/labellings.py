"""Many things measured on two groups of texts: which differ more than any labelling would have it.

Of many things some differ by chance. What is compared is the largest difference among all of them
under other labellings of the texts (the maxT test of Westfall and Young 1993), so that the chance
of a single false one is bounded, whatever depends on what. A labelling is one of all, or of
`LABELLINGS` that were drawn.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

LABELLINGS = 2000
"""Labellings that are looked at, at most: chances above 0.05% are told apart."""


class Labellings:
    """Ways to call as many of the texts failing as do fail; the first is the true one.

    Args:
        failing: of each text, whether it fails; one of each kind at least.
    """

    def __init__(self, failing: list[bool]) -> None:
        of, some = len(failing), sum(failing)
        assert 0 < some < of, "one group is empty"
        true = tuple(at for at, each in enumerate(failing) if each)
        if math.comb(of, some) <= LABELLINGS:
            others = [each for each in itertools.combinations(range(of), some) if each != true]
        else:
            generator = torch.Generator().manual_seed(0)
            drawn = (torch.randperm(of, generator=generator)[:some] for _ in range(LABELLINGS - 1))
            others = [tuple(each.tolist()) for each in drawn]
        self._weights = torch.full((1 + len(others), of), -1 / (of - some), dtype=torch.float64)
        for row, chosen in enumerate([true, *others]):
            self._weights[row, list(chosen)] = 1 / some
        self.largest = torch.full((1 + len(others),), -math.inf, dtype=torch.float64)
        """Of each labelling, the largest difference of all things so far."""

    def differences(self, values: Tensor, floor: float) -> Tensor:
        """By how much things are larger where texts fail: mean logarithm there minus elsewhere.

        Args:
            values: not negative, ``[texts, things]``.
            floor: added to all of them: what is much smaller does not count.

        Returns:
            ``[things]``, on the processor; −inf of a thing that is not finite on some text.
        """
        logs = (values.double().cpu() + max(floor, torch.finfo(torch.float32).tiny)).log()
        differences = self._weights @ logs
        differences[:, ~logs.isfinite().all(0)] = -math.inf
        self.largest = torch.maximum(self.largest, differences.max(-1).values)
        return differences[0]

    def chance(self, difference: float) -> float:
        """Share of labellings with a thing that differs as much, among all that were compared."""
        rounding = 1e-9 * max(1.0, abs(difference))
        return float((self.largest >= difference - rounding).double().mean())
