"""The export targets of qtui: each file here declares one, as `TARGET`."""

from __future__ import annotations

import importlib
import pkgutil

from engine.export.target import register_target


def _register() -> None:
    found = [
        importlib.import_module(f"{__name__}.{module.name}").TARGET
        for module in pkgutil.iter_modules(__path__)
    ]
    for target in sorted(found, key=lambda target: target.words is not None):
        register_target(target)  # checkpoints before recipes for other tools


_register()
