"""Paths of the data bundled with the program."""

from __future__ import annotations

from pathlib import Path


def themes_folder() -> Path:
    """The bundled themes: inside the package when installed, beside it in a checkout."""
    inside = Path(__file__).with_name("themes")
    return inside if inside.is_dir() else Path(__file__).parents[1] / "themes"
