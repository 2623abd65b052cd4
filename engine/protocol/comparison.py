"""What a comparison returns."""

from __future__ import annotations

import msgspec

COMPARISON_VERSION = 4
"""Version of reading finished checkpoints, and of what is told of them. A session forgets what an
earlier version said, and facts of it are not found."""


class Comparison(msgspec.Struct, frozen=True):
    """Finished checkpoints that were compared."""

    artefacts: tuple[str, ...]
    """Their fingerprints, in the order they were named."""
