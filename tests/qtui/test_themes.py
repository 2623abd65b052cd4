"""Themes are read strictly, and bundled ones can be read by a person."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtui.bundled import themes_folder
from qtui.themes import ThemeError, load_themes, read_theme

DARK = themes_folder() / "qtui-dark.toml"


def luminance(color: str) -> float:
    """Relative luminance of ``#rrggbb`` (WCAG 2.1)."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_bundled_themes_load() -> None:
    assert {"qtui-dark", "qtui-light"} <= set(load_themes())


@pytest.mark.parametrize("name", ["qtui-dark", "qtui-light"])
@pytest.mark.parametrize("key", ["foreground", "dim", "primary", "error", "held", "finding"])
def test_text_stands_out_from_its_background(name: str, key: str) -> None:
    colors = load_themes()[name].colors
    light, dark = sorted((luminance(getattr(colors, key)), luminance(colors.background)))[::-1]
    assert (light + 0.05) / (dark + 0.05) >= 4.5


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('dim = "#7d8695"', 'dim = "grey"', "`dim` is 'grey'"),
        ('dim = "#7d8695"', "", "missing required field `dim`"),
        ('dim = "#7d8695"', 'dim = "#7d8695"\nshade = "#000000"', "unknown field `shade`"),
        ('"#5b7386", ', "", "`heat` has 4 colours, expected 5"),
        ("dark = true", 'dark = "yes"', "Expected `bool`, got `str` - at `$.dark`"),
        ("[colors]", "[colors", "not valid TOML"),
    ],
)
def test_errors_name_file_and_key(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    text = DARK.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ThemeError) as caught:
        read_theme(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ThemeError, match=r"none\.toml: cannot be read"):
        read_theme(tmp_path / "none.toml")


def test_a_users_theme_stands_over_the_bundled_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "qtui" / "themes"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text(DARK.read_text().replace("#7d8695", "#123456"))
    assert load_themes()["qtui-dark"].colors.dim == "#123456"
