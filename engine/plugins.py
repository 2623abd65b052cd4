"""Packages that add to qtui from outside: they are imported once, when something is looked up.

A package names itself in its own ``pyproject.toml``::

    [project.entry-points."qtui.plugins"]
    mine = "my_package.qtui"

The module is imported, or if the entry point is a function it is called; either registers what it
adds (`engine.formats.family.register_family`, `engine.export.target.register_target`,
`qtui.cli.commands.register_command`, `qtui.screens.registry.register_screen`, …). The
client and the engine each do so in their own process, so a plugin must import no tensor library at
that moment: the registrations name what is imported later. Modules in the environment variable
``QTUI_PLUGINS``, separated by commas, are loaded too, which needs no installed package.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from threading import RLock

from engine.errors import EngineError

GROUP = "qtui.plugins"
VARIABLE = "QTUI_PLUGINS"

_loaded: set[str] = set()
"""The plugins that were loaded, or are being loaded, by ``module`` or ``module:function``."""
_looked = False
_LOCK = RLock()
"""Held while plugins load: a plugin may look something up meanwhile, another thread waits."""


def load_plugins() -> None:
    """Load what is installed and what the environment names; once they are loaded it does nothing.

    Raises:
        EngineError: a plugin cannot be imported, or fails as it registers.
    """
    global _looked
    with _LOCK:
        if _looked:
            return
        _looked = True
        installed = _installed()
        named = [name.strip() for name in os.environ.get(VARIABLE, "").split(",")]
        try:
            for value in (*installed, *filter(None, named)):
                load_plugin(value)
        except EngineError:
            _looked = False  # said again at the next look, rather than left out in silence
            raise


def _installed() -> list[str]:
    """The entry points of installed packages.

    ``importlib.metadata`` takes 20 ms to import, before the first frame: it is imported only where
    a package has entry points of the group.
    """
    section = f"[{GROUP}]".encode()
    files = (
        path for each in sys.path for path in Path(each or ".").glob("*-info/entry_points.txt")
    )
    if not any(section in path.read_bytes() for path in files):
        return []
    from importlib.metadata import entry_points

    return [entry.value for entry in entry_points(group=GROUP)]


def load_plugin(value: str) -> None:
    """Load one plugin, ``module`` or ``module:function``, unless it was loaded before.

    Raises:
        EngineError: it cannot be imported, or fails as it registers.
    """
    if value in _loaded:
        return
    from importlib.metadata import EntryPoint

    _loaded.add(value)
    try:
        found = EntryPoint(value, value, GROUP).load()
        if callable(found):
            found()
    except Exception as error:
        # Whatever the code of others raises, the plugin is named.
        _loaded.discard(value)
        raise EngineError(
            f"the plugin {value!r} cannot be loaded ({type(error).__name__}: {error}); "
            f"uninstall it, or take it out of {VARIABLE}"
        ) from error


def resolve(reference: str) -> object:
    """What ``module:NAME`` stands for, importing the module.

    Raises:
        ImportError: there is no such module.
        AttributeError: it has no such name.
    """
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
