"""The screen as pictures: `pytest --snapshot-update` after a change that was meant."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from random import Random

import pytest
from textual.pilot import Pilot

from engine import protocol as p
from engine.session import recipe_hash
from qtui.app import Appearance, QtuiApp, StartScreen
from qtui.screens.start.screen import Start
from qtui.widgets.frame.status import Message
from qtui.widgets.table.layer_table import LayerTable
from tests.qtui import replay as r
from tests.qtui import starting
from tests.qtui.driving import Driver
from tests.qtui.screens import test_calibration as sets
from tests.qtui.screens import test_symptoms as prompts

DOWN = "model.layers.0.mlp.down_proj"
LAST_WORDS = "the engine was killed by signal 9", "INFO sweep", "MemoryError: 3.1 GB wanted"
NOON = 1_700_049_600.0
FUSED = "model.layers.0.mlp.experts.gate_up_proj"

Compare = Callable[..., bool]
Deed = Callable[[Driver], Awaitable[None]]


@pytest.fixture(autouse=True)
def _standing_still(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The terminal is the same everywhere, it is noon, and nothing changes by waiting."""
    for variable in ("NO_COLOR", "QTUI_THEME", "COLUMNS", "LINES", "TMUX", "STY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setattr(LayerTable, "HOLD", 0.0)
    monkeypatch.setattr(Message, "LINGER", 1e6)
    zone = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    yield
    os.environ.pop("TZ") if zone is None else os.environ.update(TZ=zone)
    time.tzset()


def picture(
    compare: Compare,
    size: tuple[int, int],
    *deeds: Deed,
    theme: str = "qtui-dark",
    ascii: bool = False,
    events: Iterable[p.AnyEvent] | None = None,
) -> bool:
    """Whether the workbench looks as before, once these were done in it one after the other.

    What the engine said before is a sweep that is two thirds done.
    """
    link = r.Replay()

    async def connect() -> r.Replay:
        return link

    app = QtuiApp("demo", r.SETTINGS, r.PROFILE, connect, appearance=Appearance(ascii, theme))
    app.screens.workbench.events._clock = lambda: NOON

    async def drive(pilot: Pilot[None]) -> None:
        driver = Driver(app, pilot, link)
        await driver.until(lambda: len(link.sent) >= 3)
        given = [*r.opening(), *r.triaged(), *r.swept(24)] if events is None else events
        await driver.give(*given)
        for deed in deeds:
            await deed(driver)
        await driver.until(driver.still)
        await pilot.pause()

    return compare(app, terminal_size=size, run_before=drive)


async def toggled(d: Driver) -> None:
    """The layer under the cursor holds another format, and the recipe is being measured."""
    await d.give(r.changed(d.app.session, [DOWN], r.FORMAT))
    key = recipe_hash(d.app.session.recipe())
    await d.give(p.RecipePartial(r.score(key, ppl=26.42, half=0.05, tokens=4096)))


async def plotted(d: Driver) -> None:
    """The histogram of the layer under the cursor has come."""
    row = d.app.session.index[d.table.current or ""]
    held = d.app.session.layers.holds[row]
    format = "" if held == d.app.session.kept(row) else held
    asked = p.AskHistogram(d.table.current or "", format=format)
    await d.until(lambda: asked in d.link.sent)
    await d.give(r.drawn(asked.layer) if format else r.histogram(asked.layer))


def pressed(*keys: str) -> Deed:
    """These keys are pressed."""

    async def press(d: Driver) -> None:
        await d.pilot.press(*keys)
        await d.settled()

    return press


async def at_work(d: Driver) -> None:
    """A toggle, its measurement, and the histogram."""
    await toggled(d)
    await plotted(d)


# --- sizes and themes ----------------------------------------------------------------------------


def test_narrow(snap_compare: Compare) -> None:
    assert picture(snap_compare, (80, 24), at_work)


def test_medium(snap_compare: Compare) -> None:
    assert picture(snap_compare, (120, 40), at_work)


def test_wide(snap_compare: Compare) -> None:
    assert picture(snap_compare, (160, 50), at_work)


def test_very_wide(snap_compare: Compare) -> None:
    assert picture(snap_compare, (200, 50), at_work)


def test_light(snap_compare: Compare) -> None:
    assert picture(snap_compare, (120, 40), at_work, theme="qtui-light")


def test_monochrome(snap_compare: Compare) -> None:
    assert picture(snap_compare, (80, 24), at_work, theme="monochrome")


def test_sixteen_colours(snap_compare: Compare) -> None:
    assert picture(snap_compare, (80, 24), at_work, theme="terminal")


def test_ascii(snap_compare: Compare) -> None:
    assert picture(snap_compare, (80, 24), at_work, ascii=True)


def test_too_small(snap_compare: Compare) -> None:
    assert picture(snap_compare, (50, 12), toggled)


# --- what is done in it --------------------------------------------------------------------------


def test_without_an_engine(snap_compare: Compare) -> None:
    async def dies(d: Driver) -> None:
        d.link.die(*LAST_WORDS)
        await d.until(lambda: d.bench.banner.has_class("-shown"))
        d.link._waiting = True  # nobody listens any more

    assert picture(snap_compare, (120, 40), at_work, dies)


def test_pane_alone(snap_compare: Compare) -> None:
    assert picture(snap_compare, (80, 24), at_work, pressed("tab"))


def test_filter_with_completions(snap_compare: Compare) -> None:
    assert picture(snap_compare, (120, 40), at_work, pressed("slash", *"kind:d"))


def test_format_that_cannot_be(snap_compare: Compare) -> None:
    assert picture(snap_compare, (80, 24), at_work, pressed("equals_sign", *"int4-g129x", "enter"))


def test_palette(snap_compare: Compare) -> None:
    assert picture(snap_compare, (120, 40), at_work, pressed("colon", "a"))


def test_help(snap_compare: Compare) -> None:
    assert picture(snap_compare, (80, 24), at_work, pressed("question_mark"))


def test_scope_of_a_block_and_marks(snap_compare: Compare) -> None:
    marks = pressed("j", "space", "j", "j", "space", "t")

    async def block(d: Driver) -> None:
        while d.table.scope != "block":
            await d.pilot.press("t")

    assert picture(snap_compare, (120, 40), at_work, marks, block, plotted)


def test_experts(snap_compare: Compare) -> None:
    rows = r.mixture()
    layers = list(rows.names)
    known = [p.Learned((f"s{row}",), (r.sensitivity(name, row),)) for row, name in
             enumerate(layers) if row % 3 != 1]  # fmt: skip

    async def opened(d: Driver) -> None:
        d.table.move_to(d.table.rows.index(layers.index(FUSED)))
        await d.pilot.press("enter")
        await d.until(lambda: p.AskExperts(FUSED) in d.link.sent)
        await d.give(r.experts(FUSED))
        await d.pilot.press("j", "j")
        await plotted(d)

    events = [*r.opening(rows), *r.triaged(layers), *known]
    assert picture(snap_compare, (120, 40), opened, events=events)


CONTROL = p.Control("lm_head", 0.0, 0.0, floor_dnll=1e-4, floor_kl=5e-4)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (160, 50)], ids=["narrow", "medium", "wide"])
def test_estimates_among_measurements(snap_compare: Compare, size: tuple[int, int]) -> None:
    """Every format is estimated; some layers are measured, a few of them below the floor."""
    known = [r.estimated(), *r.swept(20), r.agreement(20), r.agreement(12, "int3-g128")]
    events = [*r.opening(), *r.triaged(), p.Learned(("c",), (CONTROL,)), *known]
    assert picture(snap_compare, size, pressed("j", "j"), plotted, events=events)


def test_doubtful_estimates(snap_compare: Compare) -> None:
    events = [*r.opening(), *r.triaged(), r.estimated()]
    assert picture(snap_compare, (120, 40), plotted, events=events)


@pytest.mark.parametrize("size", [(80, 24), (160, 50)], ids=["narrow", "wide"])
def test_what_keeping_a_layer_wins_back(snap_compare: Compare, size: tuple[int, int]) -> None:
    restored = [r.estimated([r.FORMAT], "restore"), *r.swept(9, direction="restore")]
    events = [*r.opening(), *r.triaged(), r.estimated(), *r.swept(), *restored]
    assert picture(snap_compare, size, pressed("s"), plotted, events=events)


@pytest.mark.parametrize(
    ("size", "ascii", "tab"),
    [((160, 50), False, "errors"), ((160, 50), False, "drift"), ((80, 24), True, "errors")],
    ids=["errors-wide", "drift-wide", "errors-narrow-ascii"],
)
def test_errors_inside_the_model(
    snap_compare: Compare, size: tuple[int, int], ascii: bool, tab: str
) -> None:
    layer = r.names()[6]
    random = Random(3)
    output = p.OutputError(
        layer=layer, format=r.FORMAT, tokens=4096, relative=0.117, channels=256, over_10=191,
        over_50=2, counts=[0, 0, 0, 0, 0, 3, 62, 171, 18, 2, 0],
        worst=[121, 212, 97, 157, 111, 225, 183],
        worst_errors=[0.618, 0.518, 0.315, 0.308, 0.207, 0.203, 0.193],
    )  # fmt: skip
    found = p.ErrorMapReady(
        layer=layer, format=r.FORMAT, used=r.FORMAT, rows=256, groups=24, group_size=32, height=64,
        width=24, cells=[(0.1 + 0.2 * (at % 24 == 9) + 0.08 * random.random()) ** 2
                         for at in range(64 * 24)],
    )  # fmt: skip
    blocks = [
        p.BlockDrift(
            block=k, drift=0.09 + 0.02 * k, injected=0.05 if k else 0.09,
            propagated=0.07 + 0.02 * k if k else 0.0, control=0.08 if k else 0.0,
            attention=[0.003 * k + 0.002 * head for head in range(8)],
        )
        for k in range(5)
    ]  # fmt: skip

    async def shown(d: Driver) -> None:
        d.table.move_to(d.table.rows.index(d.app.session.index[layer]))
        await d.give(r.changed(d.app.session, [layer], r.FORMAT))
        drift = p.Drift(
            recipe=recipe_hash(d.app.session.changed), tokens=4096, embedding=0.0, blocks=blocks,
            attention_windows=2, attention_tokens=256,
        )  # fmt: skip
        await d.give(p.Learned(("o", "d"), (output, drift)), found)
        if size[0] < 100:
            await d.pilot.press("tab")  # the pane alone
        d.bench.show_tab(tab)
        await d.settled()

    assert picture(snap_compare, size, shown, ascii=ascii)


@pytest.mark.parametrize(
    ("size", "ascii"),
    [((80, 24), False), ((80, 24), True), ((160, 50), False)],
    ids=["narrow", "ascii", "wide"],
)
def test_calibration_sets(snap_compare: Compare, size: tuple[int, int], ascii: bool) -> None:
    async def compared(d: Driver) -> None:
        await sets.with_sets(d)
        await d.pilot.press("right", "down")
        await d.settled()

    assert picture(snap_compare, size, compared, ascii=ascii)


@pytest.mark.parametrize(
    ("size", "ascii"),
    [((80, 24), False), ((80, 24), True), ((160, 50), False)],
    ids=["narrow", "ascii", "wide"],
)
def test_symptoms(snap_compare: Compare, size: tuple[int, int], ascii: bool) -> None:
    async def continued(d: Driver) -> None:
        await prompts.shown(d)
        await d.give(prompts.begun(), prompts.FACTS, prompts.CURED)
        await d.give(p.JobEnded(job="symptoms-1", kind="symptoms", status="done"))
        await d.pilot.press("j")
        await d.settled()

    assert picture(snap_compare, size, continued, ascii=ascii)


# --- the start screen ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=["narrow", "medium"])
def test_start(snap_compare: Compare, size: tuple[int, int]) -> None:
    past = [
        starting.session("llama-3.1-8b", parameters=8_000_000_000, running=True),
        starting.session(
            "demo", "demo", when=starting.NOW - 26 * 3600, changed=0, ppl_recipe=math.nan
        ),
        starting.session("a-moe-with-a-long-name-8x7b-v0.1", when=starting.NOW - 9 * 86400),
        starting.session("broken", problem="the journal is of a newer qtui", when=starting.NOW - 1),
    ]
    start = Start(
        lambda: past, starting.fine, starting.PROFILES, "standard", clock=lambda: starting.NOW
    )
    choice = StartScreen(lambda glyphs: start, lambda name: (r.SETTINGS, r.PROFILE))
    app = QtuiApp(
        None, r.SETTINGS, r.PROFILE, appearance=Appearance(theme="qtui-dark"), choice=choice
    )

    async def drive(pilot: Pilot[None]) -> None:
        hand = starting.Hand(app, pilot)
        await hand.until(lambda: "4 sessions" in start.head.text)
        await hand.press("down", "down")
        await hand.until(lambda: "demo" in start._inspections.known)
        await pilot.pause()

    assert snap_compare(app, terminal_size=size, run_before=drive)
