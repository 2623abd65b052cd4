"""Layouts of quantised weights on disk: one file a layout, each declared as `READER`.

A layout is told from the headers and from ``quantization_config``. Some are read as the weights
that they dequantise to; others are recognised only, so that a person is told what a file is rather
than shown codes as weights.
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
