"""Texts of the start screen: its keys, and problems with the user's own files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qtui.views.text import Glyphs, fit, printable
from qtui.widgets.line import Words, cells

KEYS = (
    ("help", "help"), ("leave", "quit"), ("open", "open"), ("type", "a path or hub id"),
    ("profile.next", "profile"), ("next", "next field"), ("theme", "theme"),
    ("prompt.complete", "complete"), ("prompt.down", "choose"), ("prompt.cancel", "back to list"),
)  # fmt: skip
"""Ids of bindings and what is said of them, the one that is wanted most first."""
LAST = ("help", "leave")
"""Those shown at the right."""
LINE = (
    ("tab", "complete folders, checkpoints, the hub's cache, past sessions"),
    ("up down", "choose a completion; up in an empty line recalls earlier sources"),
    ("right", "accept the grey completion"),
    ("ctrl+u", "clear the line"),
    ("escape", "back to the list of sessions"),
)
"""Keys of the line and what they do."""


def key_line(
    bound: Mapping[str, tuple[str, str]], width: int, *, typing: bool, leaving: bool
) -> Words:
    """The keys that matter here, as they are bound now; as many as there is room for.

    Args:
        bound: keys and descriptions by the ids of bindings.
        width: cells there are.
        typing: the line has the focus, to which escape and enter mean something else.
        leaving: escape was pressed, and the next one quits.
    """
    keys = {id: key.split(" ")[0] for id, (key, _) in bound.items()}
    if typing:
        keys |= {"open": "enter", "leave": "ctrl+c"}
    else:
        keys["type"] = "type"
    shown: dict[str, Words] = {}
    for id, said in KEYS:
        key = keys.get(id, "")
        asks = id == "leave" and leaving
        words: Words = [(key, "bold $primary"), (f" {said}  ", "$dim")]
        if asks:
            words = [(f"{key} again to quit  ", "bold $warning")]
        if key and sum(map(cells, shown.values())) + cells(words) <= width:
            shown[id] = words
    order = [id for id in shown if id not in LAST] + [id for id in LAST if id in shown]
    return [part for id in order for part in shown[id]]


def help_lines(bound: Mapping[str, tuple[str, str]], problems: Sequence[str]) -> list[Words]:
    """The keys, what can be typed, and everything that is wrong with the user's own files."""
    lines: list[Words] = []
    if problems:
        lines.append([("Your own files", "bold $warning")])
        lines += [[(f"! {one_line(problem)}", "$warning")] for problem in problems]
        lines.append([])
    lines.append([("Keys", "bold")])
    for key, said in (*bound.values(), ("ctrl+c", "Quit immediately")):
        lines.append([(f"{key:>12}  ", "bold $primary"), (said, "")])
    lines += [[], [("In the input line: typing goes there", "bold")]]
    for key, said in LINE:
        lines.append([(f"{key:>12}  ", "bold $primary"), (said, "")])
    return lines


def problem_line(problems: Sequence[str], key: str, width: int, glyphs: Glyphs) -> Words:
    """The first thing that is wrong with the user's own files, and how to read the rest."""
    if not problems:
        return []
    first, more = one_line(problems[0]), len(problems) - 1
    whole = not more and len(f"! {first}") <= width
    tail = "" if whole else f"  {f'{more} more, ' if more else ''}{key} shows all"
    return [(fit(f"! {first}", width - len(tail), glyphs).rstrip() + tail, "$warning")]


def one_line(text: str) -> str:
    """A text of several lines in one that can be drawn."""
    return printable(" ".join(text.split()))
