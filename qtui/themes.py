"""Themes: ``themes/*.toml`` and the user's own, read strictly."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import platformdirs
import tomli
from textual.theme import Theme

from engine.errors import UsageError
from qtui.bundled import themes_folder

DEFAULT_THEME = "qtui-dark"
HEAT_STEPS = 5


class ThemeError(UsageError):
    """A theme that cannot be read; the message names file and key."""


class Colors(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[colors]`` of a theme, each ``#rrggbb``; the dark theme's file says what they mean."""

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
        for key in self.__struct_fields__:
            found = getattr(self, key)
            for color in found if isinstance(found, tuple) else (found,):
                if not re.fullmatch(r"#[0-9a-fA-F]{6}", color):
                    raise ValueError(f"`{key}` is {color!r}, expected a colour like #1a2b3c")


class ThemeFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of ``themes/``."""

    name: str
    dark: bool
    colors: Colors

    def theme(self) -> Theme:
        """The file's colours as Textual takes them, with our own as CSS variables."""
        c = self.colors
        own = {"dim": c.dim, "cursor": c.cursor, "better": c.better, "held": c.held}
        own |= {"finding": c.finding, "ink": c.foreground}
        own |= {f"heat-{step}": color for step, color in enumerate(c.heat, 1)}
        return Theme(
            name=self.name,
            dark=self.dark,
            primary=c.primary,
            secondary=c.primary,
            accent=c.accent,
            warning=c.warning,
            error=c.error,
            success=c.success,
            foreground=c.foreground,
            background=c.background,
            surface=c.surface,
            panel=c.panel,
            variables=own,
        )


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
        raise ThemeError(f"{path}: {error}") from error


def load_themes() -> dict[str, ThemeFile]:
    """All themes by name; the user's stand over the bundled ones of the same name.

    Raises:
        ThemeError: naming the file and the key at fault.
    """
    files = sorted(themes_folder().glob("*.toml"))
    if user_folder().is_dir():
        files += sorted(user_folder().glob("*.toml"))
    read = [read_theme(path) for path in files]
    return {theme.name: theme for theme in read}
