"""The user's keys: ``keymap.toml``, checked against the known actions.

::

    [keys]
    sweep = "f5"
    undo = ["u", "ctrl+u"]
    order = []            # no key at all

The user's own commands are in the same file: see `qtui.user.commands`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import platformdirs
import tomli
from textual.keys import REPLACED_KEYS, Keys, key_to_character

from engine.errors import UsageError
from qtui.textual_internals import character_to_key
from qtui.user.commands import PLACEHOLDERS, Command, command_of

UNBOUND = "<unbound>"
"""A key that no keyboard has: Textual leaves an action its own keys where it is given none. Its
``<ignore>`` will not do, for that one is pressed by sequences that a terminal sends unasked."""
ALWAYS = {"interrupt": "ctrl+c"}
"""Actions with a key that cannot be unbound, so that the user can always leave."""
WAYS_OUT = ("help", "quit")
"""Of these, one at least has a key."""
NAMES = frozenset(
    key.value for key in Keys if key.value.isidentifier() and key.value not in ("newline", "return")
)
"""Keys with a name and no character: ``pageup``, ``f5``."""
MODIFIERS = ("alt", "ctrl", "hyper", "meta", "shift", "super")
SAME = {
    "ctrl+i": "tab",
    "ctrl+m": "enter",
    "ctrl+h": "backspace",
    "ctrl+left_square_bracket": "escape",
}
"""Keys that a terminal cannot tell from others."""
SHORT = {
    "esc": "escape", "pgup": "pageup", "pgdn": "pagedown", "page_up": "pageup", "del": "delete",
    "page_down": "pagedown", "ins": "insert", "return": "enter", "spacebar": "space",
    "ctrl+[": "escape",
}  # fmt: skip


class KeymapError(UsageError):
    """A keymap that cannot be used; the message names the file and the action."""


def keymap_path() -> Path:
    """Where a person's own keys are looked for."""
    return Path(platformdirs.user_config_dir("qtui")) / "keymap.toml"


def key_name(written: str) -> str:
    """A key as Textual names it: ``?`` is ``question_mark``, ``shift+g`` is ``G``.

    Raises:
        ValueError: if no keyboard has such a key, or no terminal tells it from another.
    """
    if len(written) == 1:
        if not written.isprintable():
            raise ValueError(f"{written!r} is not a key")
        return "space" if written == " " else character_to_key(written)
    *modifiers, last = written.split("+")
    if last == "" and modifiers and modifiers[-1] == "":
        modifiers, last = modifiers[:-1], "+"  # ctrl++
    unknown = [each for each in modifiers if each not in MODIFIERS]
    if not last or unknown or len(set(modifiers)) < len(modifiers):
        raise ValueError(_no_such_key(written))
    if last not in NAMES and (len(last) > 1 or not last.isprintable() or last == " "):
        # Names of characters, as Textual has them: full_stop.
        character = _character(last)
        if character is None or character_to_key(character) != last:
            raise ValueError(_no_such_key(written))
    name = last if last in NAMES else character_to_key(last) if len(last) == 1 else last
    if modifiers == ["shift"] and len(last) == 1:
        if not last.isalpha():
            raise ValueError(f"{written!r}: write the character that shift+{last} types")
        return last.upper()
    if modifiers and len(last) == 1 and last.isupper():
        raise ValueError(f"{written!r} is not a key: write {written.lower()!r}")
    name = "+".join([*sorted(modifiers), name])
    if name in SAME:
        raise ValueError(f"{written!r} is the same key as {SAME[name]!r} in a terminal")
    return name


def _character(name: str) -> str | None:
    """The character of ``full_stop`` or ``slash``, None for what names none."""
    return key_to_character(REPLACED_KEYS.get(name, name)) if "+" not in name else None


def _no_such_key(written: str) -> str:
    near = SHORT.get(written.lower()) or next(
        iter(difflib.get_close_matches(written.lower(), sorted(NAMES), 1)), ""
    )
    if not near and "," in written.strip(","):
        parts = ", ".join(f'"{part.strip()}"' for part in written.split(","))
        return f"{written!r} is not a key: for several, write a list: [{parts}]"
    hint = f": did you mean {near!r}?" if near else ", expected e.g. s, S, ?, f5, pageup or ctrl+x"
    return f"{written!r} is not a key{hint}"


# --- reading --------------------------------------------------------------------------------------


class Keymap(NamedTuple):
    """What a person's keymap says."""

    keys: Mapping[str, str] = {}
    """Ids of actions, and of the commands, with their keys as Textual names them, separated by
    commas; `UNBOUND` for no key. For ``App.set_keymap``."""
    commands: tuple[Command, ...] = ()
    """The person's own commands."""


def read_keymap(path: Path, *screens: Mapping[str, str]) -> Keymap:
    """The keys of actions that a person gave other ones, and the person's own commands.

    Args:
        path: the file; one that is not there changes nothing.
        screens: of each screen, ids of all its actions with the keys they have by default,
            separated by commas. Actions of different screens may share a key. The first is the one
            with the commands.

    Raises:
        KeymapError: naming the file and the action at fault.
    """
    try:
        written = tomli.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Keymap()
    except (tomli.TOMLDecodeError, UnicodeDecodeError) as error:
        raise KeymapError(f"{path}: not valid TOML: {error}") from error
    except OSError as error:
        raise KeymapError(f"{path}: cannot be read: {error.strerror}") from error
    for name in written:
        if name not in ("keys", "commands"):
            expected = "expected the tables [keys] and [commands.NAME]"
            raise KeymapError(f"{path}: `{name}` is not known, {expected}")
    given = _given(path, _table(path, written, "keys"), _all(screens))
    own = _commands(path, _table(path, written, "commands"))
    given |= {command.id: keys for command, keys in own}
    for at, screen in enumerate(screens):
        there = {**screen, **{command.id: "" for command, _ in own if at == 0}}
        here = {action: keys for action, keys in given.items() if action in there}
        _check_clashes(path, here, there)
        _check_ways_out(path, here, there)
    keys = {action: ",".join(keys) or UNBOUND for action, keys in given.items()}
    return Keymap(keys, tuple(command for command, _ in own))


def _table(path: Path, written: Mapping[str, object], name: str) -> Mapping[str, object]:
    table = written.get(name, {})
    if not isinstance(table, dict):
        raise KeymapError(f"{path}: `{name}` is not a table: write [{name}]")
    return table


def _given(
    path: Path, table: Mapping[str, object], actions: Mapping[str, str]
) -> dict[str, list[str]]:
    """The keys of every action that was given some."""
    given: dict[str, list[str]] = {}
    for action, keys in _flat(table):
        if action not in actions:
            near = difflib.get_close_matches(action, list(actions), 1)
            meant = (
                f": did you mean `{near[0]}`?" if near else f", expected one of {_list(actions)}"
            )
            raise KeymapError(f"{path}: [keys] `{action}` is not an action{meant}")
        given[action] = _keys(f"{path}: [keys] `{action}`", action, keys)
    return given


def _commands(path: Path, table: Mapping[str, object]) -> list[tuple[Command, list[str]]]:
    """The person's own commands with their keys."""
    found = []
    for name, written in table.items():
        where = f"{path}: [commands.{name}]"
        try:
            command = command_of(name, written)
        except ValueError as error:
            raise KeymapError(f"{where}: {error}") from error
        keys = written.get("key", []) if isinstance(written, Mapping) else []
        found.append((command, _keys(f"{where} `key`", command.id, keys)))
    return found


def _all(screens: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Actions of every screen with their keys."""
    return {action: keys for screen in screens for action, keys in screen.items()}


def _flat(table: Mapping[str, object], before: str = "") -> Iterable[tuple[str, object]]:
    """Entries of a table; ``hold.4 = "f4"`` is a table in a table to TOML, one id to us."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value


def _keys(where: str, action: str, written: object) -> list[str]:
    keys = [written] if isinstance(written, str) else written
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise KeymapError(f'{where} is {written!r}, expected a key like "s", or a list of keys')
    found: list[str] = []
    for key in keys:
        if not key and len(keys) == 1:
            continue
        try:
            name = key_name(key)
        except ValueError as error:
            raise KeymapError(f"{where}: {error}") from error
        if name in found:
            raise KeymapError(f"{where} has {key!r} twice")
        found.append(name)
    for fixed, key in ALWAYS.items():
        if action == fixed and key not in found:
            raise KeymapError(f"{where} must keep {key!r}: that key must always work")
        if action != fixed and key in found:
            raise KeymapError(f"{where}: {key!r} always quits, expected another key")
    return found


def _defaults(keys: str) -> list[str]:
    # A comma is written out in a binding's keys, so each part is one key.
    return [
        character_to_key(key) if len(key) == 1 else key
        for key in (part.strip() for part in keys.split(","))
        if key
    ]


def _check_clashes(path: Path, given: Mapping[str, list[str]], actions: Mapping[str, str]) -> None:
    owner: dict[str, str] = {}
    for action, default in actions.items():
        if action not in given:
            owner.update(dict.fromkeys(_defaults(default), action))
    for action, keys in given.items():
        for key in keys:
            other = owner.get(key)
            if other is None:
                owner[key] = action
                continue
            where = f"{path}: [keys] `{action}` and `{other}` both have {key!r}"
            if other in given:
                raise KeymapError(f"{where}, expected another key for one of them")
            raise KeymapError(
                f"{where}, which `{other}` has by default: give `{other}` another key as well, "
                f"or none with {_toml_key(other)} = []"
            )


def _check_ways_out(path: Path, given: Mapping[str, list[str]], actions: Mapping[str, str]) -> None:
    known = [action for action in WAYS_OUT if action in actions]
    if known and not any(given.get(action, _defaults(actions[action])) for action in known):
        names = " and ".join(f"`{action}`" for action in known)
        raise KeymapError(f"{path}: [keys] {names} have no key, expected one for one of them")


# --- writing --------------------------------------------------------------------------------------


def keymap_template(*screens: Mapping[str, str]) -> str:
    """A keymap with every action of these screens and its keys, all of it commented out."""
    actions = _all(screens)
    lines = [
        "# Your keys, for ~/.config/qtui/keymap.toml: uncomment a line and change it.",
        '# A key is a character ("s", "S", "?"), a name ("f5", "pageup", "space"), or either with',
        "# ctrl+, alt+ or shift+ before it. [] means no key.",
        "#",
        "# A shell command of your own, with a key. In it, without quotes around them:",
        *(f"#   {f'{{{name}}}':<10} {meaning}" for name, meaning in PLACEHOLDERS.items()),
        "# [commands.copy]",
        '# key = "f5"',
        '# run = "scp {recipe} box:recipes/"',
        '# title = "Copy the recipe to the box"',
        "",
        "[keys]",
    ]
    width = max((len(_toml_key(action)) for action in actions), default=0)
    for action, keys in actions.items():
        shown = [_toml_string(_typed(key)) for key in _defaults(keys)]
        value = shown[0] if len(shown) == 1 else f"[{', '.join(shown)}]"
        lines.append(f"# {_toml_key(action):{width}} = {value}")
    return "\n".join(lines) + "\n"


def _typed(key: str) -> str:
    """A key as one types it: the character if it has one that is seen."""
    character = None if key in NAMES else _character(key)
    return key if character is None else character


def _toml_key(action: str) -> str:
    bare = action.isascii() and action.replace("_", "").replace("-", "").isalnum()
    return action if bare else _toml_string(action)


def _toml_string(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _list(actions: Mapping[str, str]) -> str:
    return ", ".join(actions)
