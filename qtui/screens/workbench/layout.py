"""The layout of the workbench, by the size of the terminal."""

from __future__ import annotations

from textual.geometry import Size
from textual.screen import Screen

from qtui.widgets.line import Words

LEAST = (60, 18)
"""The smallest terminal, columns and lines: below it only a message is shown."""
WIDE, TALL, ROOMY = 140, 34, 40
"""Columns from which the pane is beside the table; lines from which there is a log, and from which
the pane below the table has its histogram too."""

CSS = """
Workbench { background: $background; }
#main { height: 1fr; border-top: solid $panel; border-bottom: solid $panel; }
#detail { width: 1fr; }
#log { display: none; }
#too-small { display: none; height: 1fr; padding: 1 2; }

Workbench.-narrow #main { layout: vertical; }
Workbench.-narrow #detail { border-top: solid $panel; height: 4; }
Workbench.-roomy #detail { height: 12; }
Workbench.-roomy.-tabbed #detail { height: 18; }
Workbench.-narrow.-pane #table { display: none; }
Workbench.-narrow.-pane #detail { border-top: none; height: 1fr; }
Workbench.-wide #table { width: 5fr; }
Workbench.-wide #detail { width: 3fr; min-width: 55; max-width: 72; border-left: solid $panel; }
Workbench.-folded #detail { display: none; }
Workbench.-tall #log { display: block; border-top: none; }
Workbench.-no-log #log { display: none; }

Workbench.-tiny > * { display: none; }
Workbench.-tiny #too-small { display: block; }

Workbench.-ascii #main { border-top: ascii $panel; border-bottom: ascii $panel; }
Workbench.-ascii #detail { border-top: ascii $panel; }
Workbench.-ascii.-wide #detail { border-top: none; border-left: ascii $panel; }
"""


def apply_layout(screen: Screen[None], size: Size) -> list[Words]:
    """Choose the layout for a size.

    Returns:
        The message shown if the terminal is too small, else nothing.
    """
    width, height = size
    tiny = width < LEAST[0] or height < LEAST[1]
    screen.set_class(tiny, "-tiny")
    screen.set_class(width < WIDE, "-narrow")
    screen.set_class(width >= WIDE, "-wide")
    screen.set_class(height >= TALL and width >= 100, "-tall")
    screen.set_class(height >= ROOMY and 100 <= width < WIDE, "-roomy")
    if not tiny:
        return []
    wanted = f"qtui needs {LEAST[0]} columns and {LEAST[1]} lines."
    return [[(wanted, "bold")], [(f"This terminal has {width} and {height}.", "$dim")]]
