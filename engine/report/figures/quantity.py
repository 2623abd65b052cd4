"""Kinds of value a figure can have; they determine its text, alignment and unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.report import wording


@dataclass(frozen=True)
class Quantity:
    """A kind of value."""

    id: str
    unit: str
    """The unit in the documentation; empty for none."""
    text: Callable[[Any], str]
    """A value in a few characters."""
    number: bool = True
    """Whether it can be compared with a number, and is aligned right."""
    share: bool = False
    """Whether ``5%`` means .05."""
    counted: bool = False
    """Whether ``1M`` means 1,000,000."""
    thousandths: bool = False
    """Whether the screen shows it multiplied by a thousand."""


WORD = Quantity("word", "", str, number=False)
YES_NO = Quantity("yes or no", "", lambda value: "yes" if value else "no", number=False)
SHAPE = Quantity("shape", "[out, in]", lambda sizes: "x".join(map(str, sizes)), number=False)
COUNT = Quantity("count", "", wording.count, counted=True)
SHARE = Quantity("share", "0 to 1", wording.percent, share=True)
NUMBER = Quantity("number", "", wording.short)
NATS = Quantity(
    "nats", "nats per token", lambda value: wording.short(1000 * value), thousandths=True
)
PERPLEXITY = Quantity("perplexity", "", wording.short)
BITS = Quantity("bits", "bits per weight", wording.short)
SIZE = Quantity("size", "bits", wording.count)
BYTES = Quantity("bytes", "bytes", wording.size, counted=True)
RATE = Quantity(
    "rate", "nats per token per MB", lambda value: wording.short(1000 * value), thousandths=True
)
DECIBEL = Quantity("decibel", "dB", lambda value: f"{wording.short(value, small=1)} dB")
WEIGHT = Quantity("weight", "as the weights", wording.significant)
"""A value of a weight, or a difference of two."""
DEVIATIONS = Quantity("deviations", "standard deviations", wording.short)
ACTIVATION = Quantity("activation", "as the activations", wording.significant)
NUMBERS = Quantity("numbers", "", lambda values: " ".join(map(str, values)), number=False)
