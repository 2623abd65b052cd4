"""A package from outside: one small file for each thing that qtui can be extended by.

`CONTRIBUTING.md` shows these files; `tests/plugins/test_example.py` uses each everywhere that it
appears. ``pyproject.toml`` of such a package has::

    [project.entry-points."qtui.plugins"]
    example = "tests.plugins.example:register"
"""

from __future__ import annotations


def register() -> None:
    """Add everything; imports no tensor library, no Textual and no typer."""
    from qtui.cli.commands import register_command
    from qtui.screens.registry import register_screen
    from tests.plugins.example import family, figure, job, layout, target

    family.register()
    figure.register()
    job.register()
    layout.register()
    target.register()
    register_command("count", "tests.plugins.example.command:count")
    register_screen("tests.plugins.example.screen:SCREEN")
