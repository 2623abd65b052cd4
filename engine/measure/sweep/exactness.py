"""``--exact``: how much a sweep measures once every layer is estimated."""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import UsageError

DIAGNOSED = "top:5"
"""What a diagnosis measures of the format that it judges."""


@dataclass(frozen=True)
class Exactness:
    """All layers, none, or as many as it takes to identify the worst."""

    top: int | None
    """How many of the worst to identify; 0 measures nothing, None every layer on all windows."""

    def __str__(self) -> str:
        if self.top is None:
            return "all"
        return f"top:{self.top}" if self.top else "none"


def parse_exactness(text: str) -> Exactness:
    """Read ``all``, ``none`` or ``top:K``.

    Raises:
        UsageError: it is none of these.
    """
    if text == "all":
        return Exactness(None)
    if text == "none":
        return Exactness(0)
    name, _, number = text.partition(":")
    if name == "top" and number.isascii() and number.isdigit() and int(number):
        return Exactness(int(number))
    raise UsageError(
        f"{text!r} does not say which layers to measure: use all, none or top:K, such as top:10"
    )
