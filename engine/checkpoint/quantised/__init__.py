"""Layouts of quantised weights on disk: one file per layout, each declared as `READER`.

A layout is recognised from the headers and ``quantization_config``. Some are read and dequantised;
others are only recognised, so that the error says what the file is instead of showing codes as
weights.
"""

from __future__ import annotations

import importlib
import pkgutil

from engine.checkpoint.quantised.reader import register_reader


def _register() -> None:
    for found in pkgutil.iter_modules(__path__):
        if found.name != "reader":
            register_reader(importlib.import_module(f"{__name__}.{found.name}").READER)


_register()
