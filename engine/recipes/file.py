"""Recipe files: TOML that gives layers formats, by exact name or by ``re:`` pattern.

With ``recipe = "Q4_K_M"`` its lines override a built-in recipe.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import tomli

from engine.errors import UsageError
from engine.formats.catalogue import KEPT
from engine.patterns import PREFIX, Pattern, pattern_of
from engine.recipes.mixes import recipe_named
from engine.session import Session

SCHEMA = "qtui.recipe/1"
KEYS = {
    "schema": f'`"{SCHEMA}"`; required',
    "checkpoint": "the checkpoint that it was written for: another one is warned of, not refused",
    "default": "format of the layers of the body that no line names; kept as stored if missing",
    "recipe": 'a built-in recipe that the lines override, such as `"Q4_K_M"`',
    "layers": "a table: the exact name of a layer, or `re:` and a regular expression, each with a "
    "format",
}
"""Keys of a recipe file, with what each means."""
MOST_COMPARED = 5000
"""Names that a misspelt one is compared with, at most."""


class RecipeFile(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe file as written; the engine parses its formats."""

    path: Path
    checkpoint: str | None = None
    """The checkpoint it was written for; shown to the user, never enforced."""
    default: str = KEPT
    """Format of body layers that no line names."""
    recipe: str = ""
    """The built-in recipe that the lines override; empty for none."""
    lines: tuple[tuple[str, str], ...] = ()
    """Exact name or ``re:`` pattern with its format; the first match from the top wins."""

    def resolve(self, session: Session) -> dict[str, str]:
        """The layers that lines name, each with the format of its first matching line.

        The default applies to the rest of the body. A pattern must match from the beginning of a
        name.

        Raises:
            UsageError: a line that names or matches no layer of the session.
        """
        where = f"{self.path}: [layers]"
        patterns = [(line, pattern_of(line, where), held) for line, held in self.lines]
        unmatched = {line for line, _ in self.lines}
        recipe: dict[str, str] = {}
        layers = session.layers
        for name in layers.names:
            for line, pattern, format in patterns:
                if line == name if pattern is None else pattern.match(name):
                    unmatched.discard(line)
                    recipe.setdefault(name, format)
        for line, _ in self.lines:
            if line in unmatched:
                what = "matches no layer" if line.startswith(PREFIX) else "is not a layer"
                raise UsageError(
                    f"{self.path}: [layers] {line!r} {what} of {session.source}: "
                    f"{_instead(line, layers.names)}"
                    if layers.names
                    else f"{self.path}: [layers] {line!r} {what}: the checkpoint has none"
                )
        return recipe


def _instead(line: str, names: Sequence[str]) -> str:
    """What to write instead of a line that names no layer."""
    if line.startswith(PREFIX):
        inside = line.removeprefix(PREFIX)
        pattern = Pattern(inside)
        if any(pattern.search(name) for name in names):
            return f"a pattern begins where the name does: did you mean {f're:.*{inside}'!r}?"
    elif near := nearest(line, names):
        return f"did you mean {near!r}?"
    return f"its layers are called like {names[0]!r}"


def nearest(wanted: str, names: Sequence[str]) -> str | None:
    """The name that is most like one that does not exist; None if none is alike."""
    last = wanted.rpartition(".")[2]
    # Of many names only those with the same last part are compared: it takes time for each.
    alike = [name for name in names if name.rpartition(".")[2] == last] or names
    if wanted and (ends := [name for name in alike if name.endswith(f".{wanted}")]):
        return ends[0]
    step = max(1, len(alike) // MOST_COMPARED)
    return next(iter(difflib.get_close_matches(wanted, alike[::step], n=1, cutoff=0.7)), None)


def names_file(given: str) -> bool:
    """Whether a recipe option names a file: it has a path separator or a suffix.

    Anything else is the name of a built-in recipe, even if a file with this name exists.
    """
    path = Path(given)
    return path.name != given or bool(path.suffix)


def built_in(given: str) -> str:
    """The built-in recipe of a name.

    Raises:
        UsageError: there is none; the message has the nearest name, or how to write the path of
            a file with this name.
    """
    try:
        return recipe_named(given)
    except UsageError as error:
        if not Path(given).is_file():
            raise
        raise UsageError(f"{error}; the file of that name is ./{given}") from error


def read_recipe(path: Path) -> RecipeFile:
    """Read a recipe file.

    Raises:
        UsageError: naming the file and the key at fault.
    """
    try:
        table = tomli.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomli.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from error
    if "schema" not in table:
        raise UsageError(f'{path}: `schema` is missing: write schema = "{SCHEMA}"')
    if table["schema"] != SCHEMA:
        raise UsageError(f"{path}: `schema` is {table['schema']!r}, expected {SCHEMA!r}")
    unknown = sorted(set(table) - KEYS.keys())
    if unknown:
        near = difflib.get_close_matches(unknown[0], KEYS, n=1)
        hint = f"did you mean `{near[0]}`? " if near else ""
        known = ", ".join(f"`{key}`" for key in KEYS)
        raise UsageError(
            f"{path}: `{unknown[0]}` is not a key of {SCHEMA}: {hint}There are {known}; lines for "
            "layers stand under [layers]"
        )
    layers = table.get("layers", {})
    if not isinstance(layers, dict):
        raise UsageError(f"{path}: `layers` is not a table: write [layers]")
    return RecipeFile(
        path=path,
        checkpoint=_word(path, "`checkpoint`", table["checkpoint"])
        if "checkpoint" in table
        else None,
        default=_word(path, "`default`", table.get("default", KEPT)),
        recipe=_base(path, table["recipe"]) if "recipe" in table else "",
        lines=tuple(_line(path, name, held) for name, held in layers.items()),
    )


def _base(path: Path, found: Any) -> str:
    try:
        return recipe_named(_word(path, "`recipe`", found))
    except UsageError as error:
        raise UsageError(f"{path}: `recipe`: {error}") from error


def _line(path: Path, name: str, held: Any) -> tuple[str, str]:
    if isinstance(held, dict):
        raise UsageError(f'{path}: [layers] `{name}` is a table: put names with dots in quotes ""')
    pattern_of(name, f"{path}: [layers]")
    return name, _word(path, f"[layers] {name!r}", held)


def _word(path: Path, key: str, found: Any) -> str:
    if not isinstance(found, str) or not found.strip():
        raise UsageError(f"{path}: {key} is {found!r}, expected text in quotes")
    return found.strip()
