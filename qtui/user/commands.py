"""The user's own shell commands: tables ``[commands.NAME]`` of ``keymap.toml``.

::

    [commands.copy]
    key = "f5"
    run = "scp {recipe} box:recipes/"

A placeholder becomes a variable in double quotes, never text that the shell parses: names in a
checkpoint are a stranger's, and may hold quotes, semicolons and the like.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

RUN = "run."
"""Before a command's name in its action's id."""
PLACEHOLDERS = {
    "layer": "the full name of the layer under the cursor",
    "recipe": "path of a recipe file with what every layer holds now",
    "session": "name of the session",
    "model": "what is open: demo, a folder or a hub id",
}
"""What a command may name, each in braces."""
_PLACEHOLDER = re.compile(r"\{([a-z]+)\}")
_NAME = re.compile(r"[A-Za-z0-9_-]+")
FIELDS = ("run", "key", "title")


class Command(NamedTuple):
    """A shell command with a key."""

    name: str
    run: str
    """As it was written, with its placeholders."""
    title: str

    @property
    def id(self) -> str:
        """Of its action."""
        return RUN + self.name

    @property
    def needs(self) -> frozenset[str]:
        """Placeholders in it."""
        return frozenset(_PLACEHOLDER.findall(self.run)) & PLACEHOLDERS.keys()

    @property
    def script(self) -> str:
        """What the shell is given: variables in place of the placeholders."""
        return _PLACEHOLDER.sub(
            lambda found: f'"${variable(found[1])}"' if found[1] in PLACEHOLDERS else found[0],
            self.run,
        )


def variable(placeholder: str) -> str:
    """The variable that holds a placeholder's value: ``QTUI_LAYER``."""
    return f"QTUI_{placeholder.upper()}"


def command_of(name: str, table: object) -> Command:
    """One command, checked.

    Raises:
        ValueError: it is not what a command is; the message says what was expected.
    """
    if not _NAME.fullmatch(name):
        raise ValueError("expected a name of letters, digits, - and _")
    if not isinstance(table, Mapping):
        raise ValueError(
            f'expected a table with key and run, as in run = "echo {{layer}}"; got {table!r}'
        )
    if unknown := [field for field in table if field not in FIELDS]:
        raise ValueError(f"`{unknown[0]}` is not known, expected {', '.join(FIELDS)}")
    run, title = table.get("run"), table.get("title", name)
    if not isinstance(run, str) or not run.strip():
        raise ValueError("`run` is missing, expected a shell command")
    if not isinstance(title, str):
        raise ValueError(f"`title` is {title!r}, expected text")
    for found in _PLACEHOLDER.finditer(run):
        if found[1] in PLACEHOLDERS and _quoted(run[: found.start()]):
            raise ValueError(f"{found[0]} is inside quotes: write it without, it is quoted already")
    return Command(name, run, title)


def _quoted(before: str) -> bool:
    """Whether a shell that has read this is inside quotes."""
    quote, skip = "", False
    for character in before:
        if skip:
            skip = False
        elif character == "\\" and quote != "'":
            skip = True
        elif quote:
            quote = "" if character == quote else quote
        elif character in "'\"`":
            quote = character
    return bool(quote)
