"""Where a recipe will run, and so which formats its layers may take.

An export target holds some formats; without one it is the serving kernels that decide, since a
format that none of them takes runs slowly or not at all. The rules of targets are in
`engine.export.serving`, which knows them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from engine.formats.grammar import Format, parse_format
from engine.formats.kernels import KERNELS, kernels_for
from engine.session import Session

WhyNot = Callable[[str, int], str | None]
"""Why the layer on a row cannot take a format, which is canonical; None if it can."""


@dataclass(frozen=True)
class Serving:
    """Which formats layers may take where a recipe will run."""

    to: str = ""
    """Name of the export target; empty for none."""
    why_not: WhyNot = lambda _format, _row: None
    alike: Callable[[Format | None, int], str | None] = lambda _format, _row: None
    """Rows with the same key must take one format (None: as stored) for the target; None if any."""

    def takes(self, format: str, row: int) -> bool:
        """Whether the layer on a row can take a format; as stored, empty or ``kept``, it can."""
        return not format or format == "kept" or self.why_not(format, row) is None


def by_kernels(session: Session) -> Serving:
    """What some serving kernel takes; everything if the settings allow ``unserved`` formats."""
    if session.settings.unserved:
        return Serving()
    shapes = session.layers.shapes
    return Serving(why_not=lambda format, row: why_unserved(format, tuple(shapes[row])))


def why_unserved(format: str, shape: tuple[int, ...]) -> str | None:
    """Why a weight would not run fast in a format; None if a kernel takes it."""
    return None if serving_kernels(format, shape) else "no serving kernel takes it"


def runs_on(session: Session, kernel: str, format: str, row: int) -> bool:
    """Whether a kernel takes the layer on a row in a canonical format.

    Kernels multiply, and an embedding is looked up: llama.cpp alone does that in its formats.
    """
    layers = session.layers
    if layers.roles[row] == "embedding" and kernel != "llama.cpp":
        return False
    return kernel in serving_kernels(format, layers.shapes[row])


def kernels_of(session: Session, recipe: Mapping[str, str]) -> tuple[tuple[str, ...], int]:
    """The fewest kernels that take all layers of a recipe that any takes, and how many none takes.

    Args:
        session: whose layers they are.
        recipe: canonical formats by layer; others are as stored.
    """
    names = [kernel.name for kernel in KERNELS]
    taking: dict[tuple[str, tuple[int, ...], bool], frozenset[str]] = {}
    unserved = 0
    for layer, held in recipe.items():
        row = session.index[layer]
        key = held, session.layers.shapes[row], session.layers.roles[row] == "embedding"
        if key not in taking:
            taking[key] = frozenset(name for name in names if runs_on(session, name, held, row))
        unserved += not taking[key]
    chosen: list[str] = []
    while left := [each for each in taking.values() if each and each.isdisjoint(chosen)]:
        chosen.append(max(names, key=lambda name: sum(name in each for each in left)))
    return tuple(chosen), unserved


@lru_cache(maxsize=4096)
def serving_kernels(format: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Names of the kernels that take a weight in a canonical format."""
    return kernels_for(parse_format(format), shape)
