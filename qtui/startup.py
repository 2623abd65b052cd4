"""Start the interface: read themes, keys and what is remembered, then run the app."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

from textual.screen import Screen

from engine import protocol as p
from engine.profiles import Profile, load_profiles
from qtui.app import Appearance, StartScreen, run
from qtui.screens.registry import known_keys
from qtui.user.keymap import Keymap, KeymapError, keymap_path, read_keymap
from qtui.user.remembered import recall
from qtui.user.theme_watch import ThemeShelf
from qtui.user.themes import choose_theme
from qtui.views.text import Glyphs


def interface(
    source: str | None,
    resolve: Callable[[str], tuple[p.Settings, Profile]],
    profile_name: str,
    *,
    ascii: bool,
    theme: str | None,
    mouse: bool = True,
    asked: bool = True,
    started: subprocess.Popen[bytes] | None = None,
    read_only: bool = False,
) -> int:
    """Run the interface on ``source``, or on what is chosen on its start screen.

    Problems with the user's own files (themes, keys, what is remembered) are shown on the screen; a
    problem with an option of the command line is an error.

    Args:
        source: what to open; None starts with the start screen.
        resolve: settings and profile for the name of a profile.
        profile_name: the profile that was asked for.
        ascii: draw with ASCII characters only.
        theme: the theme that was asked for; None takes one that suits the terminal.
        mouse: whether the mouse is used.
        asked: whether an option says how to measure; if not, a session keeps its settings.
        started: the engine that was started ahead.
        read_only: whether this terminal only looks, at an engine that runs.

    Returns:
        The exit code.

    Raises:
        EngineError: an option has a value that is not possible.
    """
    settings, profile = resolve(profile_name)
    remembered, problem = recall()
    problems = [problem] if problem else []
    shelf = ThemeShelf()
    problems += shelf.problems
    chosen, problem = choose_theme(theme, os.environ, remembered.themes, shelf.names)
    problems += [problem] if problem else []
    keymap = Keymap()
    try:
        keymap = read_keymap(keymap_path(), *known_keys(profile.keys).values())
    except KeymapError as error:
        problems.append(f"{error}; the default keys are used")

    def start(glyphs: Glyphs) -> Screen[None]:
        # Imported only where there is no model: the first frame of a model does not wait for them.
        from engine.opening.hub import hub_cache
        from engine.opening.inspection import inspect_source
        from engine.store.past_sessions import past_sessions, remove_session
        from qtui.screens.start.screen import Start

        return Start(
            past_sessions,
            inspect_source,
            load_profiles(),
            profile_name,
            hub_ids=hub_cache,
            remove=remove_session,
            glyphs=glyphs,
            problems=tuple(problems),
        )

    appearance = Appearance(
        ascii, chosen, remembered, keymap.keys, mouse, tuple(problems), keymap.commands
    )
    return run(
        source, settings, profile, appearance=appearance, shelf=shelf,
        choice=StartScreen(start, resolve), started=started, asked=asked, read_only=read_only,
    )  # fmt: skip
