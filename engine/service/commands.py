"""The table of commands: where each is declared, by name, so that no library is imported here.

To add a command of qtui's own, declare its job beside its code and name it in `DECLARED`. A plugin
calls `register` instead.
"""

from __future__ import annotations

import threading

from engine import protocol as p
from engine.errors import UsageError
from engine.plugins import load_plugins, resolve
from engine.service.jobs import ChangeSpec, JobSpec, Spec

DECLARED = (
    "engine.opening.job:OPEN",
    "engine.measure.weights.job:TRIAGE",
    "engine.measure.weights.job:HISTOGRAM",
    "engine.measure.weights.job:EXPERTS",
    "engine.measure.sweep.job:SWEEP",
    "engine.measure.evaluation.job:EVALUATE",
    "engine.measure.evaluation.job:MEASURE_RECIPE",
    "engine.export.job:EXPORT",
    "engine.recipes.commands:SET_FORMAT",
    "engine.recipes.commands:UNDO",
    "engine.recipes.commands:REDO",
)
"""``module:NAME`` of every `JobSpec` and `ChangeSpec`; the modules import no tensor library."""

_specs: dict[type[p.Command], Spec] = {}
_lock = threading.RLock()


def register(spec: Spec) -> None:
    """Let the engine carry out a command from outside, and the wire pass it on.

    Raises:
        ValueError: there is a command of this name already.
    """
    p.register_command(spec.command)
    known = _specs.setdefault(spec.command, spec)
    if known is not spec:
        raise ValueError(f"the command {spec.command.__name__} is declared already: {known}")


def load() -> None:
    """Import every declaration, ours and those of plugins; the first call alone does something."""
    with _lock:
        if p.Open not in _specs:
            for reference in DECLARED:
                spec = resolve(reference)
                assert isinstance(spec, JobSpec | ChangeSpec), reference
                _specs[spec.command] = spec
            load_plugins()


def spec_of(command: p.Command) -> Spec:
    """How a command is carried out.

    Raises:
        UsageError: nothing is declared for it.
    """
    load()
    spec = _specs.get(type(command))
    if spec is None:
        name = command.name if isinstance(command, p.Unknown) else type(command).__name__
        raise UsageError(f"this engine knows no command {name}: its plugin has to be installed")
    return spec
