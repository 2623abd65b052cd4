"""The command table: names where each command is declared, so that no library is imported here.

To add a command to qtui, declare its job beside its code and name it in `DECLARED`. A plugin calls
`register` instead.
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
    "engine.measure.weights.job:RANGES",
    "engine.measure.sweep.job:SWEEP",
    "engine.measure.sweep.job:MEASURE_UNITS",
    "engine.measure.sweep.job:SUM_WINDOWS",
    "engine.measure.diagnosing:DIAGNOSE",
    "engine.measure.fixes.job:TRY_FIXES",
    "engine.measure.fixes.job:KNOWN_FIXES",
    "engine.measure.errors.job:ERRORS",
    "engine.measure.errors.job:ERROR_MAP",
    "engine.measure.compare.job:COMPARE",
    "engine.measure.calibrating.job:CALIBRATE",
    "engine.measure.symptoms.job:SYMPTOMS",
    "engine.measure.evaluation.job:EVALUATE",
    "engine.measure.by_text.job:BY_TEXT",
    "engine.measure.evaluation.job:MEASURE_RECIPE",
    "engine.measure.evaluation.job:RECALL",
    "engine.export.job:EXPORT",
    "engine.export.importance_job:IMATRIX",
    "engine.recipes.commands:SET_FORMAT",
    "engine.recipes.commands:SET_RECIPE",
    "engine.planning.job:PLAN",
    "engine.recipes.commands:UNDO",
    "engine.recipes.commands:REDO",
    "engine.recipes.commands:TAKE_RECIPE",
    "engine.recipes.commands:NAME_RECIPE",
    "engine.recipes.commands:TUNE_FOR",
)
"""``module:NAME`` of every `JobSpec` and `ChangeSpec`; these modules import no tensor library."""

_specs: dict[type[p.Command], Spec] = {}
_lock = threading.RLock()


def register(spec: Spec) -> None:
    """Register a command from a plugin with the engine and the wire.

    Raises:
        ValueError: a command with this name exists.
    """
    p.register_command(spec.command)
    known = _specs.setdefault(spec.command, spec)
    if known is not spec:
        raise ValueError(f"the command {spec.command.__name__} is declared already: {known}")


def load() -> None:
    """Import every declaration, ours and those of plugins; once all are loaded it does nothing.

    Raises:
        EngineError: a plugin cannot be loaded, each time until it can be.
    """
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
        UsageError: the command is not declared.
    """
    load()
    spec = _specs.get(type(command))
    if spec is None:
        name = command.name if isinstance(command, p.Unknown) else type(command).__name__
        raise UsageError(f"this engine has no command {name}: install its plugin")
    return spec
