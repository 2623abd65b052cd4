"""The themes of a running interface: switched by a key, reloaded when a file is saved."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from textual.app import App
from textual.filter import LineFilter, Monochrome, NoColor

from qtui.bundled import themes_folder
from qtui.user.themes import ThemeError, ThemeFile, arrange, read_theme, theme_files, user_folder

Stamp: TypeAlias = tuple[int, int, int]
"""Of a file: when it was written, its size, its inode."""
NO_COLOR = NoColor()


class ThemeWatch:
    """Reads themes, and rereads saved files. Polled once a second, it costs one `scandir`."""

    def __init__(self, folder: Path | None = None) -> None:
        """
        Args:
            folder: the user's themes; None for where they are looked for.

        Raises:
            ThemeError: if a bundled theme is broken.
        """
        self.folder = folder or user_folder()
        self._bundled = [(path, read_theme(path)) for path in theme_files(themes_folder())]
        self._stamps: dict[Path, Stamp] = {}
        self._good: dict[Path, ThemeFile] = {}
        """The last state of each of the user's files that could be read."""
        self._bad: dict[Path, str] = {}
        self._doubtful: set[Path] = set()
        """Files that could not be read once: perhaps an editor was still writing them."""
        self.themes: dict[str, ThemeFile] = {}
        self.problems: list[str] = []
        self._reload(patient=False)
        self._arrange()

    def changed(self) -> tuple[list[ThemeFile], list[str]]:
        """Themes that changed, and what is wrong with files saved since.

        The colours of a file that was spoilt stay what they were until it can be read again.
        """
        if not self._reload(patient=True):
            return [], []
        before, known = self.themes, self.problems
        self._arrange()
        fresh = [theme for name, theme in self.themes.items() if before.get(name) != theme]
        return fresh, [problem for problem in self.problems if problem not in known]

    def _arrange(self) -> None:
        files = [*self._bundled, *sorted(self._good.items(), key=lambda item: item[0])]
        self.themes, clashes = arrange(files)
        self.problems = [*self._bad.values(), *clashes]

    def _reload(self, patient: bool) -> bool:
        """Read changed files; true if any theme changed."""
        stamps = self._scan()
        stale = {path for path, stamp in stamps.items() if self._stamps.get(path) != stamp}
        gone = self._stamps.keys() - stamps.keys()
        again = self._doubtful - stale - gone
        self._stamps = stamps
        self._doubtful.clear()
        for path in gone:
            self._good.pop(path, None)
            self._bad.pop(path, None)
        for path in sorted(stale | again):
            try:
                self._good[path] = read_theme(path)
                self._bad.pop(path, None)
            except ThemeError as error:
                if patient and path in stale:
                    self._doubtful.add(path)
                else:
                    self._bad[path] = str(error)
        return bool(stale or gone or again)

    def _scan(self) -> dict[Path, Stamp]:
        stamps = {}
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    if entry.name.endswith(".toml"):
                        stamps[self.folder / entry.name] = _stamp(entry)
        except FileNotFoundError:
            return {}
        except OSError:
            # A folder that cannot be read just now says nothing about its files.
            return self._stamps
        return stamps


def _stamp(entry: os.DirEntry[str]) -> Stamp:
    try:
        found = entry.stat()
    except OSError:
        return 0, 0, 0  # reading it will say why
    return found.st_mtime_ns, found.st_size, found.st_ino


class ThemeShelf:
    """The themes of an app: puts them on it, goes from one to the next, follows saved files."""

    def __init__(self, watch: ThemeWatch | None = None) -> None:
        self.watch = watch or ThemeWatch()
        self._registered: dict[str, ThemeFile] = {}
        """Themes stay with the app when their file is deleted."""

    @property
    def problems(self) -> list[str]:
        """What is wrong with the user's files, a sentence each."""
        return self.watch.problems

    @property
    def names(self) -> list[str]:
        """The themes in the order a key goes through them: bundled ones, then the user's."""
        return list(self.watch.themes)

    def listed(self) -> list[tuple[str, str]]:
        """Names with a few words about each."""
        return [
            (name, theme.about or ("dark" if theme.dark else "light"))
            for name, theme in self.watch.themes.items()
        ]

    def next(self, name: str) -> str:
        """The theme after this one, the first after the last."""
        names = self.names
        return names[(names.index(name) + 1) % len(names)] if name in names else names[0]

    def register(self, app: App[Any]) -> None:
        """Make all of them known to an app."""
        for theme in self.watch.themes.values():
            self._register(app, theme)

    def poll(self, app: App[Any]) -> list[str]:
        """Reload saved themes; return their problems, a sentence each."""
        fresh, problems = self.watch.changed()
        for theme in fresh:
            self._register(app, theme)
            if app.theme == theme.name:
                # The name is unchanged, so watchers must be called explicitly.
                app.mutate_reactive(App.theme)
        return problems

    def _register(self, app: App[Any], theme: ThemeFile) -> None:
        self._registered[theme.name] = theme
        app.register_theme(theme.theme())

    def filters(self, app: App[Any], given: Sequence[LineFilter]) -> Sequence[LineFilter]:
        """The app's line filters with ours: what an app's ``get_line_filters`` is to return."""
        theme = self._registered.get(app.theme)
        if theme is None or not theme.ansi:
            return given
        ours: list[LineFilter] = [theme.carriers().filter]
        # Textual chose its own before it knew the theme: shades of grey, where none are wanted.
        ours += [f for f in given if not isinstance(f, Monochrome | NoColor)]
        return [*ours, NO_COLOR] if app.no_color else ours
