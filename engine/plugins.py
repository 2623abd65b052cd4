"""Plugins: packages that extend qtui, imported once, before the first lookup.

A package names itself in its own ``pyproject.toml``::

    [project.entry-points."qtui.plugins"]
    mine = "my_package.qtui"

The module is imported; if the entry point is a function, it is called. Either way it registers what
it adds (`engine.formats.family.register_family`, `engine.export.target.register_target`,
`qtui.cli.commands.register_command`, `qtui.screens.registry.register_screen`, …). The client and
the engine each load plugins in their own process. A plugin must not import a tensor library while
it loads: registrations refer by name to what is imported later. Modules listed in the environment
variable ``QTUI_PLUGINS``, separated by commas, are loaded too; they need not be installed.
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
"""Plugins that are loaded or being loaded, as ``module`` or ``module:function``."""
_looked = False
_LOCK = RLock()
"""Held while plugins load: a plugin may look something up meanwhile; other threads wait."""


def load_plugins() -> None:
    """Load the installed plugins and those the environment names; later calls do nothing.

    Raises:
        EngineError: a plugin cannot be imported, or fails while it registers.
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
            _looked = False  # report it again at the next lookup instead of silently leaving it out
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
    """Load one plugin, ``module`` or ``module:function``, unless it is loaded already.

    Raises:
        EngineError: it cannot be imported, or fails while it registers.
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
        # A plugin's code may raise anything: the error names the plugin.
        _loaded.discard(value)
        raise EngineError(
            f"the plugin {value!r} cannot be loaded ({type(error).__name__}: {error}); "
            f"uninstall it, or remove it from {VARIABLE}"
        ) from error


def resolve(reference: str) -> object:
    """The object that ``module:NAME`` refers to, importing the module.

    Raises:
        ImportError: the module does not exist.
        AttributeError: the module has no such name.
    """
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
