"""Typed keys of figures, instead of strings put together by hand."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

Direction: TypeAlias = Literal["degrade", "restore"]
By: TypeAlias = Literal["layer", "block", "kind", "group"]
"""What is changed at once: one layer, or all layers of a block, a kind or a fused group."""


class EffectKey(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Identifies a set of effects: degraded or restored, in which format, by which unit.

    Hashable. As a key of a dict it can be encoded as MessagePack, but not as JSON.
    """

    direction: Direction
    format: str
    """Canonical."""
    by: By = "layer"


CalibratedOn: TypeAlias = Literal["", "first half", "second half"]
"""Which windows of a calibration set were used: all of them, or one half."""


class CalibratedKey(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Identifies a method calibrated on a set, and the text that it was judged on."""

    method: str
    set: str
    seq_len: int
    samples: int
    text: str
    part: CalibratedOn = ""
