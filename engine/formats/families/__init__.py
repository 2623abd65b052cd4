"""The format families of qtui: each file here declares one, as `FAMILY`."""

from __future__ import annotations

import importlib
import pkgutil

from engine.formats.family import register_family


def _register() -> None:
    names = [found.name for found in pkgutil.iter_modules(__path__)]
    declared = [importlib.import_module(f"{__name__}.{name}").FAMILY for name in names]
    for family in sorted(declared, key=lambda family: family.place):
        register_family(family)


_register()
