"""The plan: a budget is typed, the frontier is drawn, a recipe is taken."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest

from engine import protocol as p
from engine.errors import UsageError
from engine.planning.known import plan_known
from engine.recipes.changes import whole
from engine.session import Session
from qtui.screens.plan.screen import Plan
from qtui.views.budgets import parse_budget
from qtui.views.plans import NAMED, changes
from qtui.views.text import UNICODE
from qtui.widgets.prompt.prompt import Prompt
from tests.plan.test_proposal import FORMATS, LAYERS, known
from tests.qtui import replay as r
from tests.qtui.driving import Driver, driving

SIZES = [((80, 24), False), ((80, 24), True), ((160, 50), False)]


def events() -> list[p.AnyEvent]:
    """A session of a few layers, all of whose effects are known."""
    session = known()
    facts = [
        fact
        for column in (*session.effects.measured.values(), *session.effects.estimated.values())
        for fact in column
        if fact is not None
    ]
    return [*r.opening(r.listed(LAYERS)), p.Learned(("",) * len(facts), tuple(facts))]


async def answered(d: Driver, number: int = 1) -> p.Planned:
    """The engine plans what was asked last."""
    asked = d.link.sent[-1]
    assert isinstance(asked, p.Plan)
    command = msgspec.structs.replace(asked, formats=FORMATS)
    found = plan_known(known(), command, "bfloat16").result
    assert isinstance(found, p.Planned)
    job = f"plan-{number}"
    await d.give(
        p.JobStarted(job=job, kind="plan", title=f"plan {command.budget}", command=command),
        p.JobEnded(job=job, kind="plan", status="done", result=msgspec.to_builtins(found)),
    )
    await d.settled()
    return found


def screen(d: Driver) -> Plan:
    shown = d.app.screens.shown
    assert isinstance(shown, Plan)
    return shown


@pytest.mark.parametrize(("size", "ascii"), SIZES)
async def test_a_budget_is_planned_drawn_and_taken(size: tuple[int, int], ascii: bool) -> None:
    async with driving(*events(), size=size, ascii=ascii) as d:
        await d.pilot.press("p")
        await d.settled()
        await d.pilot.press(*["backspace"] * 3, "5", "enter")
        await d.settled()
        assert d.link.sent[-1] == p.Plan(budget=p.Budget(bits=5.0), forwards=0)
        found = await answered(d)
        text = d.screen()
        assert "plan for 5 bits per weight" in text
        assert f"changes {len(found.recipe)} layers" in text
        for rule in ("uniform", "first-last", "greedy"):
            assert rule in {row.name for row in screen(d).rows}
        assert max(len(line) for line in text.splitlines()) <= size[0]
        assert not ascii or text.isascii()
        await d.pilot.press("enter")
        await d.settled()
        assert d.link.sent[-1] == p.SetRecipe(found.recipe)
        changed = whole(d.app.session, found.recipe)
        assert changed is not None
        await d.give(changed)
        await d.settled()
        assert "the current recipe is this one" in d.screen()


async def test_a_point_of_the_frontier_is_planned_and_then_taken() -> None:
    async with driving(*events(), size=(120, 40)) as d:
        await d.pilot.press("p")
        await d.settled()
        await d.pilot.press("enter")
        await answered(d)
        await d.pilot.press(*["up"] * 3)
        row = screen(d).row
        assert row is not None
        assert not row.plan
        await d.pilot.press("enter")
        await d.settled()
        asked = d.link.sent[-1]
        assert isinstance(asked, p.Plan)
        assert asked.budget == p.Budget(bits=row.point.bits_per_weight)
        found = await answered(d, 2)
        assert found.point.kl <= row.point.kl * (1 + 1e-9)
        assert d.link.sent[-1] == p.SetRecipe(found.recipe)
        await d.pilot.press("m")
        await d.settled()
        assert d.link.sent[-1] == p.Plan(budget=asked.budget, formats=FORMATS, forwards=20)


async def test_a_budget_typed_in_the_palette_is_planned_and_shown() -> None:
    async with driving(*events(), size=(120, 40)) as d:
        for number, (typed, budget) in enumerate(
            [("mix 5", p.Budget(bits=5.0)), ("plan 1GiB", p.Budget(gib=1.0))], 1
        ):
            await d.pilot.press("colon", *("space" if c == " " else c for c in typed), "enter")
            await d.settled()
            asked = d.link.sent[-1]
            assert isinstance(asked, p.Plan)
            assert (asked.budget, asked.forwards) == (budget, 0)
            shown = screen(d)
            assert not shown.query(Prompt), "nothing is asked for"
            await answered(d, number)
            assert f"plan for {budget}" in d.screen()


async def test_what_cannot_be_planned_is_said() -> None:
    async with driving(*r.opening(r.listed(LAYERS))) as d:
        await d.pilot.press("p")
        await d.settled()
        assert "effects come with the sweep" in d.screen()
        await d.pilot.press("b")
        await d.settled()
        assert "no effect is known yet" in d.screen()


@pytest.mark.parametrize(
    ("typed", "budget"),
    [
        ("4.5", p.Budget(bits=4.5)),
        ("4.5 bits", p.Budget(bits=4.5)),
        ("22GiB", p.Budget(gib=22.0)),
        ("512 MiB", p.Budget(gib=0.5)),
        ("kl .01", p.Budget(kl=0.01)),
        ("KL=.01", p.Budget(kl=0.01)),
        (
            "22 GiB context=32k batch=4 cache=8",
            p.Budget(gib=22.0, context=32768, batch=4, cache_bits=8),
        ),
    ],
)
def test_budgets_are_read_as_people_write_them(typed: str, budget: p.Budget) -> None:
    assert parse_budget(typed) == budget


def test_a_size_has_the_cache_that_the_recipe_is_tuned_for() -> None:
    settings = p.Settings(context=8192, batch=2, cache_bits=8)
    session = Session(settings=settings)
    budget = parse_budget("22GiB batch=3", session.cache)
    assert budget == p.Budget(gib=22.0, context=8192, batch=3, cache_bits=8)
    assert parse_budget("4.5", session.cache) == p.Budget(bits=4.5)
    session.tuned_for = p.TunedFor("gguf", 0, 1)  # said to be none, whatever the profile says
    assert parse_budget("22GiB", session.cache) == p.Budget(gib=22.0, cache_bits=8)


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "much",
        "4 5",
        "kl",
        "4.5 context=3",
        "0",
        "-1",
        "22GiB cache=3",
        "22GiB heads=2",
        "nan",
        "inf",
        "1_0",
        "1e999",
        "22GiB batch=0",
    ],
)
def test_what_is_no_budget_says_what_is(typed: str) -> None:
    with pytest.raises(UsageError, match=r"budget|bits|twice|GiB"):
        parse_budget(typed)


@pytest.mark.parametrize("width", [80, 160])
def test_changes_name_every_layer_or_kind_within_the_width(width: int) -> None:
    session = r.folded(*events())
    recipe = dict.fromkeys(session.layers.names, "int4-g128") | {LAYERS[0]: "int8"}
    lines = changes(session, recipe, width, UNICODE)
    text = ["".join(words for words, _ in line) for line in lines]
    assert max(map(len, text)) <= width
    whole = " ".join(" ".join(text).split())
    kinds = Counter(session.layers.kinds[1:])
    for kind, many in kinds.items():
        assert f"{many} {kind}" in whole or len(session.layers.names) - 1 <= NAMED
