"""What a comparison returns."""

from __future__ import annotations

import msgspec


class Comparison(msgspec.Struct, frozen=True):
    """Finished checkpoints that were compared."""

    artefacts: tuple[str, ...]
    """Their fingerprints, in the order they were named."""
