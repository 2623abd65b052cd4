"""The steps of the check, in order of worth, each with its limit in seconds."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.gpu.rows import Recorder


@dataclass(frozen=True)
class Options:
    """How the check was asked for."""

    device: str = "cuda"
    tiny: bool = False
    """Models and counts so small that a processor is through in a minute."""
    folder: Path = Path()
    """Of this run: checkpoints of one step are used by the next."""
    out: Path = Path()
    """Where files are left that outlive the run."""


class Step(NamedTuple):
    """A module of this package with a function ``run``."""

    name: str
    seconds: int
    """Limit on a GPU; with ``--tiny`` every step has the same."""
    about: str

    def run(self, options: Options, figures: Recorder) -> None:
        """Run it in this process."""
        run: Callable[[Options, Recorder], None]
        run = importlib.import_module(f"tests.gpu.{self.name}").run
        run(options, figures)


STEPS = (
    Step("versions", 60, "device and libraries"),
    Step("formats", 60, "every format on the device against the processor"),
    Step("resuming", 75, "resumed forwards, control and floor, against plain forwards"),
    Step("figures", 150, "sweeps, estimates, recipes and methods against the processor"),
    Step("tiers", 40, "states in pinned memory and on disk"),
    Step("racing", 40, "two streams at once"),
    Step("out_of_memory", 75, "memory that runs out, on every path"),
    Step("speed", 240, "times and memory of a model of 8 billion parameters"),
    Step("mixture", 60, "times and memory of a mixture of experts"),
    Step("screens", 110, "the interface in a pseudo-terminal"),
)
TINY_SECONDS = 300
