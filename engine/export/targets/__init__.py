"""The export targets of qtui: each file here declares one, as `TARGET`."""

from __future__ import annotations

import importlib
import pkgutil

from engine.export.target import register_target


def _register() -> None:
    for found in pkgutil.iter_modules(__path__):
        register_target(importlib.import_module(f"{__name__}.{found.name}").TARGET)


_register()
