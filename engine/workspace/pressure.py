"""What a model's jobs give up when memory runs out: caches first, then the size of micro-batches.

Caches change how long a measurement takes, never its value. A smaller micro-batch rounds
differently, so the reference is run again at the new size too: reference and candidate always have
the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_REQUESTED = re.compile(r"tried to allocate ([0-9.]+) ?([kKMGT]?i?[Bb]\w*)", re.IGNORECASE)


@dataclass
class Pressure:
    """How far jobs have given way."""

    halved: int = 0
    """How often the micro-batch was halved."""
    eased: int = 0
    """How often caches were dropped; their budget is halved each time."""
    empty: bool = False
    """Nothing is cached any more."""

    def batch_tokens(self, configured: int) -> int:
        """Tokens in a micro-batch; at least one window is run all the same."""
        return max(1, configured >> self.halved)

    def cached(self, budget: int) -> int:
        """Bytes for caches, of a budget."""
        return 0 if self.empty else budget >> self.eased

    def give_way(self, windows: int) -> str | None:
        """Take the next step.

        Args:
            windows: that a micro-batch may have now.

        Returns:
            What is given up, for a sentence; None if nothing is left.
        """
        if self.eased and windows > 1:
            self.halved += 1
            self.eased += 1
            return (
                f"micro-batches of at most {windows // 2} instead of {windows} windows from here "
                "on, for the reference too, and half the memory for caches"
            )
        if not self.eased:
            self.eased = 1
            return "cached states and weights are dropped, and half the memory caches them again"
        if not self.empty:
            self.empty = True
            return "nothing is cached any more"
        return None


def requested(said: str) -> str:
    """How much an allocation wanted, from what its allocator said; empty if it does not say."""
    found = _REQUESTED.search(said)
    return "" if found is None else f"{found[1]} {found[2]}"
