"""The list of recipes tried: what it says, the way back, names, and what two have different."""

from __future__ import annotations

import msgspec

from engine import protocol as p
from engine.recipes.changes import change, named, take
from engine.report import wording
from engine.session import Session, apply, predict, predict_tried, recipe_hash
from qtui.screens.recipes.screen import Recipes
from tests.qtui import replay as r
from tests.qtui.driving import Driver, driving

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"


async def did(d: Driver, event: p.AnyEvent | None, kl: float = 0.0, size: int = 0) -> None:
    """The engine changes the recipe, and measures it."""
    assert event is not None
    await d.give(event)
    if kl:
        recipe = recipe_hash(d.app.session.recipe())
        started = p.JobStarted(
            job=recipe, kind="evaluate", title="m", command=p.MeasureRecipe(), recipe=recipe
        )
        found = msgspec.structs.replace(
            r.score(recipe, ppl=20.0 + kl, half=0.1), kl=kl, bytes=size, bits_all=4.5
        )
        ended = p.JobEnded(job=recipe, kind="evaluate", status="done")
        await d.give(started, p.Learned((recipe,), (found,)), ended)


async def tuned(d: Driver) -> Recipes:
    """Three recipes, and the list of them."""

    def now() -> Session:
        return d.app.session

    await did(d, change(now(), [Q, DOWN], "int4-g128"), 0.02, 900_000)
    await did(d, change(now(), [DOWN], "int8"), 0.004, 1_000_000)
    await did(d, change(now(), [DOWN], "int3-g128"), 0.05, 950_000)
    await d.pilot.press("R")
    await d.settled()
    screen = d.app.screens.shown
    assert isinstance(screen, Recipes)
    return screen


async def test_it_lists_what_was_measured_with_sizes_and_the_frontier() -> None:
    for size, ascii in (((80, 24), False), ((80, 24), True), ((160, 50), False)):
        async with driving(*r.opening(), *r.triaged(), *r.swept(37), size=size, ascii=ascii) as d:
            screen = await tuned(d)
            head, *lines = screen.list.text.splitlines()
            assert head.split()[:5] == ["recipe", "changed", "bits", "all", "size"]
            best = "^" if ascii else "◆"
            assert ["as stored" in line for line in lines] == [True, False, False, False]
            assert [best in line for line in lines] == [True, True, True, False]
            assert "1 int4-g128, 1 int8" in lines[2] if size[0] > 80 else "1 int4" in lines[2]
            assert lines[2].split()[-6:-1] == ["4.50", "1.0", "MB", "20.00", "4.00"]
            assert max(len(line) for line in d.screen().splitlines()) <= size[0]
            assert ascii <= screen.list.text.isascii()


async def test_enter_goes_back_to_a_recipe_and_the_list_follows() -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept(37)) as d:
        screen = await tuned(d)
        assert screen.line.number == 3
        await d.pilot.press("enter")
        assert "it is the current recipe" in d.screen()
        await d.pilot.press("up", "enter")
        assert d.link.sent[-1] == msgspec.structs.replace(p.TakeRecipe(2), ask=d.link.sent[-1].ask)
        await did(d, take(d.app.session, 2))
        assert d.app.session.recipe() == {Q: "int4-g128", DOWN: "int8"}
        assert screen.line.current
        assert len(screen.lines) == 4
        await d.pilot.press("R")
        await d.settled()
        assert d.app.screens.shown is d.bench


async def test_two_recipes_are_compared_layer_by_layer() -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept(37), size=(120, 40)) as d:
        screen = await tuned(d)
        await d.pilot.press("up")
        assert "1 layer differs: +50.0 kB, KL·10³ -46.0" in screen.apart.text
        assert "0 mlp.down_proj" in screen.apart.text
        assert "int3-g128 → int8" in screen.apart.text
        await d.pilot.press("space", "up")
        assert "int8 → int4-g128" in screen.apart.text
        await d.pilot.press("up")
        assert "2 layers differ" in screen.apart.text


async def test_a_recipe_gets_a_name() -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept(37), size=(160, 40)) as d:
        screen = await tuned(d)
        await d.pilot.press("e", *"mine", "enter")
        await d.settled()
        sent = d.link.sent[-1]
        assert isinstance(sent, p.NameRecipe)
        assert (sent.number, sent.name) == (3, "mine")
        await did(d, named(d.app.session, 3, "mine"))
        assert "mine: 1 int4-g128, 1 int3-g128" in screen.list.text
        await d.pilot.press("up", "e", *"mine", "enter")
        assert "another recipe is called mine" in d.screen()


async def test_a_short_list_leaves_its_room_to_the_differences() -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept(37), size=(120, 40)) as d:
        names = list(d.app.session.layers.names)
        for held, layers in (("int4-g128", names), ("int8", names[:1])):
            await did(d, change(d.app.session, layers, held), 0.02, 900_000)
        await d.pilot.press("R")
        await d.settled()
        await d.pilot.press("up", "space", "up")
        await d.settled()
        screen = d.app.screens.shown
        assert isinstance(screen, Recipes)
        assert screen.list.size.height == 1 + len(screen.lines)
        more = screen.apart.text.splitlines()[-1].split()
        room = screen.apart.size.height - 5
        assert screen.list.size.height + screen.apart.region.height == 40 - 2
        assert more == ["…", str(len(names) - room), "more", "below,", "]"]


async def test_two_named_recipes_are_side_by_side() -> None:
    """Names, sizes, and scores as predicted before they were measured and as measured."""
    for size in ((80, 24), (160, 50)):
        async with driving(*r.opening(), *r.triaged(), *r.swept(37), size=size) as d:
            promised = []
            for held, kl, name in (("int4-g128", 0.02, "small"), ("int8", 0.004, "safe")):
                await did(d, change(d.app.session, [DOWN], held), kl, 900_000)
                promised.append(predict(d.app.session))
                await did(d, named(d.app.session, d.app.session.at, name))
            await d.pilot.press("R")
            await d.settled()
            screen = d.app.screens.shown
            assert isinstance(screen, Recipes)
            await d.pilot.press("up", "space", "down")
            titles, a, b, apart = screen.apart.text.splitlines()[:4]
            assert titles.split() == ["bits", "all", "size", "PPL", "KL·10³", "predicted"]
            assert a.split()[:2] == ["A", "small:"]
            assert b.split()[:2] == ["B", "safe:"]
            for line, kl, guess in zip((a, b), ("20.0", "4.00"), promised, strict=True):
                assert guess is not None
                assert line.split()[-2:] == [kl, f"≈{wording.short(1000 * guess.kl)}"]
            assert apart.startswith("1 layer differs")
            assert "int4-g128 → int8" in screen.apart.text


def test_a_recipe_is_predicted_as_it_was_when_it_was_the_current_one() -> None:
    session = r.folded(*r.opening(), *r.triaged(), *r.swept(37))
    then = {}
    for layers, held in (([Q, DOWN], "int4-g128"), ([DOWN], "int8"), ([Q], "int3-g128")):
        event = change(session, layers, held)
        assert event is not None
        apply(session, event)
        then[session.at] = predict(session)
    assert {number: predict_tried(session, number) for number in then} == then
