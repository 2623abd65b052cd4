"""Themes: ``themes/*.toml`` and the user's own, validated, and the choice of the first one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
import platformdirs
import tomli
from textual.theme import Theme

from engine.errors import UsageError
from qtui.bundled import themes_folder
from qtui.user.theme_colours import ANSI_COLOR, CARRIERS, Carriers

DEFAULT_THEME = "qtui-dark"
HEAT_STEPS = 5
Depth: TypeAlias = Literal["full", "ansi", "none"]
"""What a terminal can show: 256 colours or more, its own sixteen, or attributes alone."""
DEFAULT_THEMES: dict[Depth, str] = {
    "full": DEFAULT_THEME,
    "ansi": "terminal",
    "none": "monochrome",
}
"""What a person who chose nothing sees."""


class ThemeError(UsageError):
    """A theme that cannot be read; the message names file and key."""


class Colors(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[colors]`` of a theme; the files of the dark and the terminal theme explain them."""

    background: str
    surface: str
    panel: str
    foreground: str
    dim: str
    primary: str
    accent: str
    warning: str
    error: str
    success: str
    cursor: str
    better: str
    held: str
    finding: str
    heat: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.heat) != HEAT_STEPS:
            raise ValueError(f"`heat` has {len(self.heat)} colours, expected {HEAT_STEPS}")

    def named(self) -> Iterable[tuple[str, str]]:
        """Every key with its colour; those of the heat are ``heat-1`` to ``heat-5``."""
        for key in self.__struct_fields__:
            if key != "heat":
                yield key, getattr(self, key)
        yield from ((f"heat-{step}", color) for step, color in enumerate(self.heat, 1))


class ThemeFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of ``themes/``."""

    name: str
    dark: bool
    about: str = ""
    """A few words for the list of themes."""
    ansi: bool = False
    """Whether colours are the terminal's own, by name, with attributes."""
    colors: Colors

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", self.name):
            raise ValueError(
                f"`name` is {self.name!r}, expected letters, digits, - and _, at most 40 of them"
            )
        for key, color in self.colors.named():
            where = f"heat` at {key[-1]}" if key.startswith("heat-") else f"{key}`"
            if self.ansi and not ANSI_COLOR.fullmatch(color):
                raise ValueError(
                    f"`{where} is {color!r}, expected a name since `ansi` is true: ansi_red or "
                    "ansi_default, then any of bold, dim, underline, reverse"
                )
            if not self.ansi and not re.fullmatch(r"#[0-9a-fA-F]{6}", color):
                hint = " (names of the terminal's colours need `ansi = true`)"
                raise ValueError(
                    f"`{where} is {color!r}, expected a colour like #1a2b3c"
                    + (hint if color.startswith("ansi_") else "")
                )
        if self.ansi and self.colors.background != "ansi_default":
            raise ValueError(
                f"`background` is {self.colors.background!r}, expected ansi_default since `ansi` "
                "is true: the terminal's own"
            )

    def theme(self) -> Theme:
        """The file's colours as Textual takes them, with our own as CSS variables."""
        given = dict(self.colors.named())
        shown = self.carriers().shown if self.ansi else given.__getitem__
        c = {key: shown(key) for key in given}
        if self.ansi:
            # What lies under text stays the terminal's, unless the theme says otherwise.
            c["background"] = "ansi_default"
        # Set Textual's own names too: it would derive slightly different colours.
        own = c | {"ink": c["foreground"]}
        return Theme(
            name=self.name,
            dark=self.dark,
            ansi=self.ansi,
            primary=c["primary"],
            secondary=c["primary"],
            accent=c["accent"],
            warning=c["warning"],
            error=c["error"],
            success=c["success"],
            foreground=c["foreground"],
            background=c["background"],
            surface=c["surface"],
            panel=c["panel"],
            variables=own | _widgets(c),
        )

    def carriers(self) -> Carriers:
        """How the colours of an ANSI theme travel through the style sheets."""
        return CARRIERS(tuple(self.colors.named()))


def _widgets(c: Mapping[str, str]) -> dict[str, str]:
    """Colours of Textual's own widgets, said in ours."""
    scrollbar = {"scrollbar": "panel", "scrollbar-hover": "dim", "scrollbar-active": "dim"}
    scrollbar |= {f"scrollbar-background{on}": "background" for on in ("", "-hover", "-active")}
    named = scrollbar | {
        "scrollbar-corner-color": "background",
        "block-cursor-background": "cursor",
        "block-cursor-foreground": "foreground",
        "block-cursor-blurred-background": "cursor",
        "block-cursor-blurred-foreground": "foreground",
        "block-hover-background": "surface",
        "border": "primary",
        "border-blurred": "panel",
        "input-cursor-background": "foreground",
        "input-cursor-foreground": "background",
        "input-selection-background": "cursor",
        "input-selection-foreground": "foreground",
        "screen-selection-background": "cursor",
        "screen-selection-foreground": "foreground",
        "text-muted": "dim",
        "text-disabled": "dim",
        "foreground-muted": "dim",
        "foreground-disabled": "dim",
        "link-color": "primary",
        "ansi-background": "background",
        "ansi-foreground": "foreground",
    }
    return {variable: c[key] for variable, key in named.items()}


# --- reading --------------------------------------------------------------------------------------


def user_folder() -> Path:
    """Where the user's own themes are looked for."""
    return Path(platformdirs.user_config_dir("qtui")) / "themes"


def read_theme(path: Path) -> ThemeFile:
    """One theme.

    Raises:
        ThemeError: naming the file and the key at fault.
    """
    try:
        return msgspec.convert(tomli.loads(path.read_text(encoding="utf-8")), ThemeFile)
    except (tomli.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ThemeError(f"{path}: not valid TOML: {error}") from error
    except OSError as error:
        raise ThemeError(f"{path}: cannot be read: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise ThemeError(f"{path}: {_nearest(str(error))}") from error


def _nearest(message: str) -> str:
    """A message about an unknown key, with the known one it may have been meant for."""
    found = re.search(r"unknown field `([^`]*)`", message)
    known = [*ThemeFile.__struct_fields__, *Colors.__struct_fields__]
    near = difflib.get_close_matches(found[1], known, 1) if found else []
    return f"{message}: did you mean `{near[0]}`?" if near else message


def theme_files(folder: Path) -> list[Path]:
    """The themes of a folder, none where there is no folder or it may not be read."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".toml")
    except OSError:
        return []


def arrange(files: Iterable[tuple[Path, ThemeFile]]) -> tuple[dict[str, ThemeFile], list[str]]:
    """Themes by name out of files, bundled ones first, and what is wrong among them.

    A user's theme replaces the bundled one of its name. Of two of the user's own, the first by
    file name stays.
    """
    themes: dict[str, ThemeFile] = {}
    places: dict[str, Path] = {}
    problems = []
    for path, theme in files:
        before = places.get(theme.name)
        if before is not None and before.parent == path.parent:
            problems.append(
                f"{path}: `name` is {theme.name!r}, already used in {before}: choose another"
            )
            continue
        themes[theme.name], places[theme.name] = theme, path
    return themes, problems


def read_themes() -> tuple[dict[str, ThemeFile], list[str]]:
    """All themes by name that can be read, and a sentence for each that cannot.

    Raises:
        ThemeError: if a bundled theme is broken: nothing can be drawn with certainty then.
    """
    good = [(path, read_theme(path)) for path in theme_files(themes_folder())]
    problems = []
    for path in theme_files(user_folder()):
        try:
            good.append((path, read_theme(path)))
        except ThemeError as error:
            problems.append(str(error))
    themes, clashes = arrange(good)
    return themes, problems + clashes


def load_themes() -> dict[str, ThemeFile]:
    """All themes by name; the user's replace the bundled ones of the same name.

    Raises:
        ThemeError: naming the first file and the key at fault.
    """
    themes, problems = read_themes()
    if problems:
        raise ThemeError(problems[0])
    return themes


# --- choosing -------------------------------------------------------------------------------------


def depth(environ: Mapping[str, str]) -> Depth:
    """What a terminal can show, as Rich will have it: whatever it sends is made to fit that.

    A terminal of which nothing is said but its name gets sixteen colours, even if it knows more.
    """
    term = environ.get("TERM", "").strip().lower()
    if "NO_COLOR" in environ or term in ("dumb", "unknown"):
        return "none"
    if environ.get("TEXTUAL_COLOR_SYSTEM", "auto") in ("truecolor", "256"):
        return "full"
    if environ.get("TEXTUAL_COLOR_SYSTEM", "auto") == "standard":
        return "ansi"
    if environ.get("COLORTERM", "").strip().lower() in ("truecolor", "24bit"):
        return "full"
    return "full" if term.rpartition("-")[2] in ("256color", "kitty") else "ansi"


def default_theme(environ: Mapping[str, str]) -> str:
    """The theme for a terminal of whose owner nothing is known."""
    return DEFAULT_THEMES[depth(environ)]


def choose_theme(
    given: str | None,
    environ: Mapping[str, str],
    remembered: Mapping[Depth, str],
    known: Iterable[str],
) -> tuple[str, str]:
    """The theme to start with, and what is wrong with the requested one, or nothing.

    The command line comes first, then ``QTUI_THEME``, then the last choice in a terminal with as
    many colours, then the terminal's default.

    Raises:
        UsageError: if the given theme is none of those known.
    """
    names = sorted(known)
    default = default_theme(environ)
    default = default if default in names else DEFAULT_THEME
    if given is not None:
        if given not in names:
            raise UsageError(f"--theme: {_unknown(given, names)}")
        return given, ""
    wished, problem = environ.get("QTUI_THEME", ""), ""
    if wished in names:
        return wished, ""
    last = remembered.get(depth(environ), "")
    chosen = last if last in names else default
    if wished:
        problem = f"QTUI_THEME: {_unknown(wished, names)}; {chosen} is used"
    elif last and last not in names:
        problem = f"the last theme, {last!r}, is gone; {chosen} is used"
    return chosen, problem


def _unknown(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, 1)
    meant = f" (did you mean {near[0]}?)" if near else ""
    return f"no theme named {name!r}{meant}: there are {', '.join(names)}"
