"""From where on a figure is a finding, each with its source."""

from __future__ import annotations

import msgspec

OUTLIER_COLUMN = 10.0
"""From this many σ on, an input channel's largest weight is a finding: of 10⁵ normal weights the
largest is at 4.4σ, and of a model's clean layers at 6σ to 8σ."""


class Thresholds(msgspec.Struct, frozen=True, kw_only=True):
    """From where on a figure is a finding."""

    outlier_column: float = OUTLIER_COLUMN
    """Standard deviations of an input channel's largest weight; see `OUTLIER_COLUMN`."""
    fragile_outside: float = 0.25
    """KL of head or embedding alone over that of the whole body: llama.cpp's mixes keep the head
    two to four bits wider than the body."""
    fragile_layer: float = 0.2
    """Share of the body's damage that one layer causes."""
    above_typical: float = 5.0
    """Times the median of its kind, for a layer or an end block to count as fragile: layers of one
    kind differ by 2 to 3 in clean models."""
    concentrated: float = 0.5
    """Share of the damage that the worst five layers cause, where they are a tenth at most."""
    wins_back: float = 0.5
    """Share of a layer's KL that a fix must win back to be named."""
    channel_ratio: float = 20.0
    """An input channel's largest magnitude over the median channel's, for a finding: SmoothQuant
    shows outlier channels at 20 to 100 times the others; between blocks 6 is common."""
    recurring: float = 0.5
    """Share of the blocks in which the same outlier channel must occur to be called recurring."""
    massive: float = 100.0
    """A token's norm over the median, for a finding: massive activations (Sun et al. 2024) are
    hundreds to thousands of times the median."""
