"""Themes are read strictly, and bundled ones can be read by a person."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.strip import Strip

from engine.errors import UsageError
from qtui.bundled import themes_folder
from qtui.user.themes import (
    DEFAULT_THEMES,
    Colors,
    ThemeError,
    ThemeFile,
    choose_theme,
    default_theme,
    depth,
    load_themes,
    read_theme,
    read_themes,
    user_folder,
)
from tests.qtui.colours import VISIONS, chroma, contrast, distance, in_256, lab

DARK = themes_folder() / "qtui-dark.toml"
TERMINAL = themes_folder() / "terminal.toml"
BUNDLED = {path.stem: read_theme(path) for path in sorted(themes_folder().glob("*.toml"))}
RGB = {name: theme for name, theme in BUNDLED.items() if not theme.ansi}
TEXT = (
    "foreground",
    "primary",
    "accent",
    "warning",
    "error",
    "success",
    "better",
    "held",
    "finding",
)
UNDER = ("background", "surface", "panel")
"""What text lies on, but for the row of the cursor."""


@pytest.fixture(params=sorted(RGB))
def theme(request: pytest.FixtureRequest) -> ThemeFile:
    return RGB[request.param]


def own(name: str, text: str) -> Path:
    """A theme of the user's own."""
    user_folder().mkdir(parents=True, exist_ok=True)
    path = user_folder() / name
    path.write_text(text, encoding="utf-8")
    return path


# --- bundled ones ---------------------------------------------------------------------------------


def test_a_bundled_theme_has_the_name_of_its_file_and_says_what_it_is() -> None:
    assert len(BUNDLED) >= 6
    assert {theme.name for theme in BUNDLED.values()} == set(BUNDLED)
    assert all(theme.about for theme in BUNDLED.values())
    assert {False, True} == {theme.dark for theme in RGB.values()}
    assert set(DEFAULT_THEMES.values()) <= set(BUNDLED)


def test_text_stands_out_from_all_it_lies_on(theme: ThemeFile) -> None:
    colors = theme.colors
    for key, under in itertools.product(TEXT, UNDER):
        assert contrast(getattr(colors, key), getattr(colors, under)) >= 4.5, (key, under)
    assert contrast(colors.foreground, colors.cursor) >= 7
    for under in (*UNDER, "cursor"):
        assert contrast(colors.dim, getattr(colors, under)) >= 4, under
    for key in ("held", "finding", "better", "primary"):
        assert contrast(getattr(colors, key), colors.cursor) >= 4, key


def test_dim_text_is_dimmer_than_text(theme: ThemeFile) -> None:
    colors = theme.colors
    on = [contrast(color, colors.background) for color in (colors.dim, colors.foreground)]
    assert on[0] < 0.75 * on[1]


def test_the_row_of_the_cursor_can_be_found(theme: ThemeFile) -> None:
    assert distance(theme.colors.cursor, theme.colors.background) >= 8


def test_heat_is_legible_and_its_steps_stand_apart(theme: ThemeFile) -> None:
    for step in theme.colors.heat:
        assert contrast(step, theme.colors.background) >= 3.8
        assert contrast(step, theme.colors.cursor) >= 3
    for one, other in itertools.pairwise(theme.colors.heat):
        assert distance(one, other) >= 15


def test_heat_goes_from_grey_to_vivid(theme: ThemeFile) -> None:
    """What is harmless is pale; one of the two worst is the most vivid of all."""
    vivid = [chroma(step) for step in theme.colors.heat]
    assert max(vivid[:2]) < min(vivid[3:])
    assert max(vivid[:2]) <= 35
    assert all(distance(theme.colors.heat[0], step) >= 40 for step in theme.colors.heat[2:])


def test_high_contrast_is_aaa() -> None:
    colors = BUNDLED["contrast"].colors
    for key, under in itertools.product((*TEXT, "dim"), (*UNDER, "cursor")):
        assert contrast(getattr(colors, key), getattr(colors, under)) >= 7, (key, under)
    assert all(contrast(step, colors.background) >= 7 for step in colors.heat)


@pytest.mark.parametrize("vision", VISIONS)
def test_the_safe_theme_is_safe_for_colour_blindness(vision: str) -> None:
    """Roles that mean different things are 12 ΔE*ab apart, five times what can just be seen."""
    colors = BUNDLED["colour-safe"].colors
    roles = {key: getattr(colors, key) for key in ("warning", "error", "better", "held", "dim")}
    for (one, a), (other, b) in itertools.combinations(
        [*roles.items(), ("foreground", colors.foreground)], 2
    ):
        assert distance(a, b, vision) >= 12, (one, other)
    lightness = [lab(step, vision)[0] for step in colors.heat]
    for (one, a), (other, b) in itertools.pairwise(zip(lightness, colors.heat, strict=True)):
        assert other - one >= 5, "heat grows ever lighter"
        assert distance(a, b, vision) >= 12


def test_a_common_palette_is_not_safe_for_colour_blindness() -> None:
    """The test above can fail: red and green of equal lightness are one to many."""
    assert distance("#c8553d", "#8a8a2e") >= 40
    assert distance("#c8553d", "#8a8a2e", "deuteranopia") < 12


def test_in_256_colours_all_stays_legible(theme: ThemeFile) -> None:
    colors = theme.colors
    under = {key: in_256(getattr(colors, key)) for key in (*UNDER, "cursor")}
    for key in TEXT:
        assert contrast(in_256(getattr(colors, key)), under["background"]) >= 4, key
    for key, ground in under.items():
        assert contrast(in_256(colors.foreground), ground) >= 6, key
        assert contrast(in_256(colors.dim), ground) >= 3, key
    assert all(contrast(in_256(step), under["background"]) >= 3 for step in colors.heat)
    for one, other in itertools.pairwise(colors.heat):
        assert distance(in_256(one), in_256(other)) >= 10
    assert distance(under["cursor"], under["background"]) >= 8
    # Dark shades that are not nearly grey become navy, teal or olive there.
    assert all(chroma(under[key]) < 2 for key in UNDER)


# --- the terminal's own colours -------------------------------------------------------------------

_BLACK = Color.parse("black")


def _segment(text: str, style: str) -> Segment:
    return Segment(text, Style.parse(style))


def _rendered(strip: Strip) -> str:
    return strip.render(Console(color_system="truecolor", force_terminal=True))


@pytest.mark.parametrize(
    ("name", "key", "style", "sgr"),
    [
        ("terminal", "error", "{}", "1;31"),
        ("terminal", "finding", "{}", "33"),
        ("terminal", "heat-5", "{}", "1;91"),
        ("terminal", "dim", "{}", "2;39"),
        ("terminal", "dim", "bold {}", "1;39"),
        ("terminal", "cursor", "default on {}", "7;39;49"),
        ("terminal", "panel", "default on {}", "39;49"),
        ("terminal", "panel", "{} reverse", "2;7;39"),
        ("monochrome", "error", "{}", "1;39"),
        ("monochrome", "heat-1", "{}", "2;39"),
        ("monochrome", "warning", "bold {}", "1;39"),
    ],
)
def test_colours_of_the_terminal_go_out_by_number(
    name: str, key: str, style: str, sgr: str
) -> None:
    carriers = BUNDLED[name].carriers()
    style = style.format(carriers.shown(key).lower())
    strip = Strip([_segment("x", style)]).apply_filter(carriers.filter, _BLACK)
    assert _rendered(strip) == f"\x1b[{sgr}mx\x1b[0m"


def test_a_coloured_text_under_the_cursor_is_of_one_tone() -> None:
    """Red on the terminal's ink may not be legible; the sign and the number still say it."""
    carriers = BUNDLED["terminal"].carriers()
    style = f"{carriers.shown('heat-5')} on {carriers.shown('cursor')}".lower()
    strip = Strip([_segment("x", style)]).apply_filter(carriers.filter, _BLACK)
    assert _rendered(strip) == "\x1b[1;7;39;49mx\x1b[0m"


def test_mixtures_of_colours_never_go_out() -> None:
    carriers = BUNDLED["terminal"].carriers()
    strip = Strip([_segment("x", "#336699 on #112233")]).apply_filter(carriers.filter, _BLACK)
    assert "38;" not in _rendered(strip)
    assert "48;" not in _rendered(strip)


def test_monochrome_has_no_hue() -> None:
    named = dict(BUNDLED["monochrome"].colors.named())
    assert {color.split()[0] for color in named.values()} == {"ansi_default"}


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "old", "new", "said"),
    [
        (DARK, 'dim = "#8893a3"', 'dim = "grey"', "`dim` is 'grey', expected a colour like"),
        (DARK, 'dim = "#8893a3"', "", "missing required field `dim`"),
        (DARK, 'dim = "#8893a3"', 'dim = "ansi_red"', "need `ansi = true`"),
        (DARK, 'dim = "#8893a3"', 'dim = "#8893a3"\nshade = "#000000"', "unknown field `shade`"),
        (DARK, 'held = "#7fb4ea"', 'hold = "#7fb4ea"', "did you mean `held`?"),
        (DARK, '"#6f8799", ', "", "`heat` has 4 colours, expected 5"),
        (DARK, '"#6f8799", ', '"#6f879", ', "`heat` at 1 is '#6f879'"),
        (DARK, "dark = true", 'dark = "yes"', "Expected `bool`, got `str` - at `$.dark`"),
        (DARK, 'name = "qtui-dark"', 'name = "a theme"', "`name` is 'a theme', expected letters"),
        (DARK, "[colors]", "[colors", "not valid TOML"),
        (TERMINAL, '"ansi_yellow"\nerror', '"ansi_orange"\nerror', "`warning` is 'ansi_orange'"),
        (TERMINAL, '"ansi_yellow"\nerror', '"ansi_red loud"\nerror', "any of bold, dim"),
        (TERMINAL, '"ansi_yellow"\nerror', '"#ff0000"\nerror', "since `ansi` is true"),
        (TERMINAL, 'd = "ansi_default"\ns', 'd = "ansi_blue"\ns', "`background` is 'ansi_blue'"),
    ],
)
def test_errors_name_file_and_key(
    tmp_path: Path, path: Path, old: str, new: str, said: str
) -> None:
    mine = tmp_path / "mine.toml"
    text = path.read_text()
    assert old in text
    mine.write_text(text.replace(old, new))
    with pytest.raises(ThemeError) as caught:
        read_theme(mine)
    assert str(mine) in str(caught.value)
    assert said in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ThemeError, match=r"none\.toml: cannot be read"):
        read_theme(tmp_path / "none.toml")


def test_every_colour_is_required() -> None:
    """A theme cannot leave a role to chance."""
    required = [key for key in Colors.__struct_fields__ if key not in Colors.__struct_defaults__]
    assert len(required) == len(Colors.__struct_fields__)


def test_a_users_theme_stands_over_the_bundled_one() -> None:
    own("mine.toml", DARK.read_text().replace("#8893a3", "#123456"))
    assert load_themes()["qtui-dark"].colors.dim == "#123456"


def test_a_broken_theme_of_the_users_stops_nothing_and_is_told() -> None:
    own("a.toml", "name = ")
    own("b.toml", DARK.read_text().replace("qtui-dark", "mine"))
    themes, problems = read_themes()
    assert {"mine", *BUNDLED} == set(themes)
    assert len(problems) == 1
    assert "a.toml: not valid TOML" in problems[0]
    with pytest.raises(ThemeError, match=r"a\.toml"):
        load_themes()


def test_two_files_of_one_name_are_told_and_the_first_stays() -> None:
    own("a.toml", DARK.read_text().replace("qtui-dark", "mine"))
    own("b.toml", DARK.read_text().replace("qtui-dark", "mine").replace("#8893a3", "#123456"))
    themes, problems = read_themes()
    assert themes["mine"].colors.dim == "#8893a3"
    assert len(problems) == 1
    assert all(part in problems[0] for part in ("a.toml", "b.toml", "'mine'"))


# --- choosing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({"TERM": "xterm", "COLORTERM": "truecolor"}, "qtui-dark"),
        ({"TERM": "xterm-256color"}, "qtui-dark"),
        ({"TERM": "tmux-256color"}, "qtui-dark"),
        ({"TERM": "xterm-kitty"}, "qtui-dark"),
        ({"TERM": "linux"}, "terminal"),
        ({"TERM": "xterm-16color"}, "terminal"),
        ({"TERM": "ansi"}, "terminal"),
        ({"TERM": "xterm"}, "terminal"),
        ({}, "terminal"),
        ({"TERM": "dumb", "COLORTERM": "truecolor"}, "monochrome"),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, "monochrome"),
        ({"TERM": "xterm-256color", "NO_COLOR": ""}, "monochrome"),
        ({"TERM": "linux", "TEXTUAL_COLOR_SYSTEM": "truecolor"}, "qtui-dark"),
    ],
)
def test_the_default_is_what_the_terminal_can_show(environ: dict[str, str], name: str) -> None:
    assert default_theme(environ) == name


@pytest.mark.parametrize("colorterm", [None, "truecolor", "24bit", "yes"])
@pytest.mark.parametrize(
    "term", ["linux", "xterm", "xterm-256color", "xterm-kitty", "screen", "tmux-256color", "foot"]
)
def test_the_depth_is_what_rich_sends(term: str, colorterm: str | None) -> None:
    environ = {"TERM": term, **({} if colorterm is None else {"COLORTERM": colorterm})}
    system = Console(force_terminal=True, _environ=environ).color_system
    assert depth(environ) == ("ansi" if system == "standard" else "full")


COLOURFUL = {"TERM": "xterm-256color"}


def test_what_is_given_goes_before_the_environment_and_what_is_remembered() -> None:
    environ = COLOURFUL | {"QTUI_THEME": "contrast"}
    assert choose_theme("ember", environ, {"full": "qtui-light"}, BUNDLED) == ("ember", "")
    assert choose_theme(None, environ, {"full": "qtui-light"}, BUNDLED) == ("contrast", "")
    assert choose_theme(None, COLOURFUL, {"full": "qtui-light"}, BUNDLED) == ("qtui-light", "")
    assert choose_theme(None, COLOURFUL, {}, BUNDLED) == ("qtui-dark", "")


def test_what_was_chosen_in_another_kind_of_terminal_is_not_remembered_here() -> None:
    last = {"full": "ember"}
    assert choose_theme(None, {"TERM": "linux"}, last, BUNDLED) == ("terminal", "")
    assert choose_theme(None, COLOURFUL | {"NO_COLOR": "1"}, last, BUNDLED) == ("monochrome", "")


def test_an_unknown_theme_given_is_a_wrong_request_that_lists_those_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        choose_theme("qtui-drak", COLOURFUL, {}, BUNDLED)
    assert "did you mean qtui-dark?" in str(caught.value)
    assert all(name in str(caught.value) for name in BUNDLED)


def test_an_unknown_theme_of_the_environment_or_of_last_time_is_told() -> None:
    name, problem = choose_theme(None, COLOURFUL | {"QTUI_THEME": "gone"}, {}, BUNDLED)
    assert name == "qtui-dark"
    assert "QTUI_THEME" in problem
    assert "'gone'" in problem
    name, problem = choose_theme(None, COLOURFUL, {"full": "gone"}, BUNDLED)
    assert name == "qtui-dark"
    assert "'gone'" in problem
