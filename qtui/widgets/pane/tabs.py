"""Tabs of the side pane: what each shows of the layer under the cursor, declared once.

The line of titles and the choices of the palette are made from `TABS`. The first tab
is the layer at a glance, with its histogram; every other one has the whole pane for its lines.
"""

from __future__ import annotations

from qtui.views.text import Glyphs
from qtui.widgets.line import Words, cells
from qtui.widgets.pane.activation_facts import activation_lines
from qtui.widgets.pane.drift_facts import drift_lines
from qtui.widgets.pane.fix_facts import fix_lines, wanted_fixes
from qtui.widgets.pane.output_facts import error_lines, wanted_map
from qtui.widgets.pane.range_facts import range_lines, wanted_ranges
from qtui.widgets.pane.tab import Tab

LAYER = "layer"
"""The first tab: histogram, effects, errors, history."""

TABS: tuple[Tab, ...] = (
    Tab(LAYER, "Histogram, effects, errors", lambda context: []),
    Tab("activations", "Inputs and outputs over the calibration text", activation_lines),
    Tab("errors", "Errors of outputs and weights in the format held", error_lines, wanted_map),
    Tab("groups", "Group sizes and clipped ranges side by side", range_lines, wanted_ranges),
    Tab("fixes", "Other formats tried: errors, KL, kernels", fix_lines, wanted_fixes),
    Tab("drift", "Error of the recipe from block to block, and of attention", drift_lines),
)
"""All tabs, in their order. The pane itself draws the first."""


def tab(id: str) -> Tab:
    """The tab with this id.

    Raises:
        KeyError: if there is none.
    """
    for each in TABS:
        if each.id == id:
            return each
    raise KeyError(id)


def beside(id: str, step: int) -> str:
    """The tab so many places on, round and round."""
    at = [each.id for each in TABS].index(id)
    return TABS[(at + step) % len(TABS)].id


def title_line(id: str, width: int, glyphs: Glyphs) -> Words:
    """Titles of all tabs, the shown one marked; where they do not fit, it and its place."""
    words: Words = []
    for each in TABS:
        here = each.id == id
        said = f"[{each.id}]" if here and glyphs.ascii else f" {each.id} "
        words.append((said, "reverse" if here and not glyphs.ascii else "bold" if here else "$dim"))
    if cells(words) <= width:
        return words
    at = [each.id for each in TABS].index(id) + 1
    return [(id, "bold"), (f"  {at} of {len(TABS)} tabs", "$dim")]
