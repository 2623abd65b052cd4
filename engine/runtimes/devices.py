"""Which GPU a number means; the standard library alone."""

from __future__ import annotations

import os


def visible(number: int) -> str:
    """What ``CUDA_VISIBLE_DEVICES`` calls a GPU, of those that it names already.

    Raises:
        ValueError: it names fewer.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not given:
        return str(number)
    names = given.split(",")
    if number >= len(names):
        raise ValueError(f"there is no cuda:{number}: CUDA_VISIBLE_DEVICES is {given}")
    return names[number]
