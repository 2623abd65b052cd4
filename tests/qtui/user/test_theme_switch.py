"""A theme is changed while the interface runs: by a key, and by saving its file."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from rich.style import Style
from textual.widget import Widget

from engine import protocol as p
from qtui.app import Appearance, QtuiApp
from qtui.bundled import themes_folder
from qtui.screens.help import Overlay
from qtui.user.theme_watch import ThemeShelf, ThemeWatch
from qtui.user.themes import ThemeFile, read_theme, user_folder
from qtui.widgets.pane.histogram import Histogram
from tests.qtui import replay as r
from tests.qtui.driving import Driver

DARK = (themes_folder() / "qtui-dark.toml").read_text()
NAMES = sorted(path.stem for path in themes_folder().glob("*.toml"))
LAYER = "model.layers.0.mlp.down_proj"
SIXTEEN = {str(code + n) for code in (30, 40, 90, 100) for n in range(8)} | {"39", "49"}
"""SGR codes of the terminal's own colours."""
MARKS = {
    "table": ("8.38", "heat-5"),
    "header": ("layer", "dim"),
    "score": ("26.17", "accent"),
    "facts": ("37 layers", "dim"),
    "key": (" restore", "dim"),
    "warning": ("much is wrong", "warning"),
}
"""Words on the screen with the role of their colour."""


@asynccontextmanager
async def wearing(name: str = "qtui-dark") -> AsyncIterator[Driver]:
    """An app in a theme, swept, with a histogram, a warning, and an overlay not yet open."""
    link = r.Replay()

    async def connect() -> r.Replay:
        return link

    app = QtuiApp("demo", r.SETTINGS, r.PROFILE, connect, appearance=Appearance(theme=name))
    async with app.run_test(size=(160, 50)) as pilot:
        driver = Driver(app, pilot, link)
        await driver.until(lambda: len(link.sent) >= 3)
        await driver.give(*r.opening(), *r.triaged(), *r.swept())
        await driver.pilot.press("down")
        await driver.until(lambda: LAYER in {ask.layer for ask in driver.sent(p.AskHistogram)})
        await driver.give(r.histogram(LAYER), p.Notice("warning", "much is wrong"))
        yield driver


def shelf(driver: Driver) -> ThemeShelf:
    return driver.app.shelf


def styles(driver: Driver) -> list[tuple[str, Style]]:
    """Every piece of the screen as it would go out, with its style."""
    strips = driver.app.screen._compositor.render_strips()
    return [(s.text, s.style or Style()) for strip in strips for s in strip]


def style_of(driver: Driver, words: str) -> Style:
    return next(style for text, style in styles(driver) if words in text)


def shown_in(driver: Driver, theme: ThemeFile, kind: type[Widget]) -> set[str]:
    """Colours of text in a widget, as ``#rrggbb``."""
    region = driver.app.screen.query_one(kind).region
    strips = driver.app.screen._compositor.render_strips()
    cut = [strip.crop(region.x, region.right) for strip in strips[region.y : region.bottom]]
    return {
        style.color.triplet.hex
        for strip in cut
        for text, style, _ in strip
        if style is not None and style.color is not None and style.color.triplet and text.strip()
    }


def assert_wears(driver: Driver, theme: ThemeFile) -> None:
    named = dict(theme.colors.named())
    for part, (words, role) in MARKS.items():
        color = style_of(driver, words).color
        assert color is not None
        assert color.triplet is not None
        assert color.triplet.hex == named[role], part
    assert named["primary"] in shown_in(driver, theme, Histogram)
    under = {style.bgcolor.triplet.hex for _, style in styles(driver)
             if style.bgcolor is not None and style.bgcolor.triplet}  # fmt: skip
    assert {named["background"], named["cursor"], named["panel"]} <= under


def own(text: str, name: str = "mine.toml") -> Path:
    """Save a theme of the user's own, as an editor does."""
    user_folder().mkdir(parents=True, exist_ok=True)
    path, draft = user_folder() / name, user_folder() / f".{name}~"
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
    return path


async def test_every_widget_follows_a_theme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    async with wearing() as driver:
        for name in ("qtui-dark", "qtui-light", "ember", "qtui-dark"):
            driver.app.theme = name
            theme = read_theme(themes_folder() / f"{name}.toml")
            await driver.until(
                lambda theme=theme: (
                    style_of(driver, "26.17").color.triplet.hex == theme.colors.accent
                )
            )
            await driver.settled()
            assert_wears(driver, theme)


async def test_an_open_overlay_follows_and_so_does_what_lies_under_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    async with wearing() as driver:
        await driver.pilot.press("question_mark")
        assert isinstance(driver.app.screen, Overlay)
        driver.app.theme = "qtui-light"
        light = read_theme(themes_folder() / "qtui-light.toml")
        await driver.until(
            lambda: style_of(driver, "Set int8").bgcolor.triplet.hex == light.colors.surface
        )
        assert style_of(driver, "Set int8").color.triplet.hex == light.colors.foreground
        await driver.pilot.press("escape")
        await driver.settled()
        assert_wears(driver, light)


async def test_a_key_goes_through_all_themes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    async with wearing() as driver:
        seen = []
        for _ in NAMES:
            seen.append(driver.app.theme)
            driver.app.theme = shelf(driver).next(driver.app.theme)
            await driver.settled()
        assert sorted(seen) == NAMES
        assert driver.app.theme == "qtui-dark"
        assert {name for name, about in shelf(driver).listed() if about} == set(NAMES)


# --- saving a file --------------------------------------------------------------------------------


async def test_a_saved_theme_is_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    async with wearing() as driver:
        own(DARK.replace("qtui-dark", "mine"))
        assert shelf(driver).poll(driver.app) == []
        driver.app.theme = "mine"
        await driver.settled()
        own(DARK.replace("qtui-dark", "mine").replace("#fb6156", "#ff00aa"))
        assert shelf(driver).poll(driver.app) == []
        await driver.until(lambda: style_of(driver, "8.38").color.triplet.hex == "#ff00aa")


async def test_a_spoilt_theme_is_told_once_and_its_colours_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    path = own(DARK.replace("qtui-dark", "mine").replace("#fb6156", "#ff00aa"))
    async with wearing("mine") as driver:
        own(DARK.replace("qtui-dark", "mine").replace("#fb6156", "pink"))
        told = [shelf(driver).poll(driver.app) for _ in range(3)]
        assert [len(problems) for problems in told] == [0, 1, 0]
        assert str(path) in told[1][0]
        assert "`heat` at 5 is 'pink'" in told[1][0]
        await driver.settled()
        assert style_of(driver, "8.38").color.triplet.hex == "#ff00aa"
        own(DARK.replace("qtui-dark", "mine").replace("#fb6156", "#00ffaa"))
        assert shelf(driver).poll(driver.app) == []
        await driver.until(lambda: style_of(driver, "8.38").color.triplet.hex == "#00ffaa")


async def test_a_theme_whose_file_is_deleted_stays_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = (themes_folder() / "terminal.toml").read_text().replace('"terminal"', '"mine"')
    path = own(text)
    async with wearing("mine") as driver:
        path.unlink()
        assert shelf(driver).poll(driver.app) == []
        driver.table.refresh()
        await driver.settled()
        assert style_of(driver, "8.38").color.number == 9
        assert shelf(driver).next("mine") in NAMES


async def test_asking_again_and_again_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    own(DARK.replace("qtui-dark", "mine"))
    async with wearing("mine") as driver:
        await driver.settled()
        styled = driver.app._css_update_count
        monkeypatch.setattr(driver.app.screen, "_compositor_refresh", lambda: None)
        for _ in range(5):
            assert shelf(driver).poll(driver.app) == []
        assert driver.app._css_update_count == styled
        assert not driver.app.screen._dirty_widgets


def test_nothing_saved_is_nothing_changed() -> None:
    watch = ThemeWatch()
    assert watch.changed() == ([], [])
    own(DARK)
    assert [theme.name for theme in watch.changed()[0]] == []  # the same as the bundled one
    own(DARK.replace("#fb6156", "#ff00aa"))
    assert [theme.name for theme in watch.changed()[0]] == ["qtui-dark"]
    assert watch.changed() == ([], [])


def test_a_bundled_theme_comes_back_when_the_users_own_is_deleted() -> None:
    path = own(DARK.replace("#fb6156", "#ff00aa"))
    watch = ThemeWatch()
    path.unlink()
    assert [theme.colors.heat[4] for theme in watch.changed()[0]] == ["#fb6156"]


def test_a_folder_that_appears_is_seen() -> None:
    watch = ThemeWatch()
    assert not user_folder().exists()
    own(DARK.replace("qtui-dark", "mine"))
    assert [theme.name for theme in watch.changed()[0]] == ["mine"]


def test_a_half_written_file_is_given_time() -> None:
    watch = ThemeWatch()
    own(DARK[:200])
    assert watch.changed() == ([], [])
    own(DARK.replace("qtui-dark", "mine"))
    fresh, problems = watch.changed()
    assert ([theme.name for theme in fresh], problems) == (["mine"], [])
    assert watch.changed() == ([], [])


def test_a_link_to_nowhere_is_told() -> None:
    user_folder().mkdir(parents=True)
    (user_folder() / "mine.toml").symlink_to(user_folder() / "none")
    assert "mine.toml: cannot be read" in ThemeWatch().problems[0]


def test_a_file_saved_within_one_tick_of_the_clock_is_seen() -> None:
    path = own(DARK.replace("qtui-dark", "mine"))
    watch = ThemeWatch()
    before = path.stat()
    own(DARK.replace("qtui-dark", "mine").replace("#fb6156", "#ff00aa"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [theme.name for theme in watch.changed()[0]] == ["mine"]


# --- what goes out --------------------------------------------------------------------------------


def sent(driver: Driver) -> str:
    """The screen as it is written to a terminal."""
    strips = driver.app.screen._compositor.render_strips()
    return "\n".join(strip.render(driver.app.console) for strip in strips)


@pytest.mark.parametrize("key", ["", "question_mark"])
async def test_the_terminals_own_colours_are_all_that_goes_out(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLORTERM", "truecolor")
    async with wearing("terminal") as driver:
        if key:
            await driver.pilot.press(key)
        await driver.settled()
        out = sent(driver)
        codes = {code for found in re.findall(r"\x1b\[([\d;]*)m", out) for code in found.split(";")}
        assert codes <= {"0", "1", "2", "4", "7", *SIXTEEN}
        assert codes >= {"33", "36", "91"} if not key else codes >= {"36"}


@pytest.mark.parametrize("name", ["monochrome", "terminal"])
async def test_without_colour_no_colour_goes_out(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLORTERM", "truecolor")
    async with wearing(name) as driver:
        await driver.settled()
        for _, style in styles(driver):
            for color in (style.color, style.bgcolor):
                assert color is None or color.is_default
        assert style_of(driver, "37 layers").dim
        assert style_of(driver, "26.17").bold
        assert any(style.reverse for text, style in styles(driver) if "down_proj" in text)


async def test_back_from_the_terminals_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    async with wearing("terminal") as driver:
        driver.app.theme = "qtui-dark"
        dark = read_theme(themes_folder() / "qtui-dark.toml")
        await driver.until(
            lambda: (
                style_of(driver, "26.17").color.triplet is not None
                and style_of(driver, "26.17").color.triplet.hex == dark.colors.accent
            )
        )
        await driver.settled()
        assert_wears(driver, dark)
