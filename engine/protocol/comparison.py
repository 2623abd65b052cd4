"""What comparisons return."""

from __future__ import annotations

import msgspec

COMPARISON_VERSION = 5
"""Version of reading finished checkpoints, and of what is told of them. A session forgets what an
earlier version said, and facts of it are not found."""


class Comparison(msgspec.Struct, frozen=True):
    """Finished checkpoints that were compared."""

    artefacts: tuple[str, ...]
    """Their fingerprints, in the order they were named."""


class CalibrationSets(msgspec.Struct, frozen=True):
    """Calibration sets that were compared."""

    method: str
    """Canonical."""
    sets: tuple[str, ...]
    """By name, in the order they were asked for; ``eval`` as one for each text."""
    texts: tuple[str, ...]
    """That they were judged on, by name."""
    samples: tuple[int, ...]
    seq_lens: tuple[int, ...]
    protocols: tuple[tuple[str, str, int], ...] = ()
    """Of each text: its name, the hash of its text, and the tokens that were evaluated."""
