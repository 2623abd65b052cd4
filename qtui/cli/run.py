"""Run a measuring command on a MODEL, with progress on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from engine import protocol as p
from qtui.cli import headless
from qtui.cli.exit import terminated_as_interrupted
from qtui.cli.options import located_model
from qtui.cli.progress import Meter


def run(
    model: str,
    settings: p.Settings,
    ask: headless.Ask,
    questions: Sequence[headless.Question] = (),
    of: type[headless.OfRecipe] = p.Evaluate,
    *,
    calibrates: bool = False,
) -> headless.Outcome:
    """`headless.measure` on a MODEL as it was given, with a progress bar; SIGTERM interrupts it."""
    with terminated_as_interrupted():
        source, meter = located_model(model), Meter(sys.stderr)
        return headless.measure(source, settings, ask, meter, questions, of, calibrates=calibrates)
