"""Every trait of a hostile or broken checkpoint, each made into a small folder by its builder.

`TRAITS` is the table: what a section's file registers with `trait`. A trait is refused with a
sentence that has certain words, or it is harmless: then the command runs, and prints nothing raw.
"""

from __future__ import annotations

import importlib
import pkgutil

from tests.faults.traits.trait import TRAITS, Trait

__all__ = ["TRAITS", "Trait"]

for _found in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_found.name}")
