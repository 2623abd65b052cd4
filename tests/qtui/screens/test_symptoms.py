"""The prompts: both texts side by side, what differs, what is wrong, and what cures it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from engine import protocol as p
from engine.session import Session, Traced, apply, recipe_hash
from qtui.screens.symptoms.screen import Symptoms
from qtui.views.symptoms import Prompts, column, contrast_lines
from qtui.views.text import PLAIN, UNICODE
from qtui.widgets.prompt.prompt import Prompt
from tests.qtui import replay as r
from tests.qtui.driving import Driver, driving

LAYER = "model.layers.0.self_attn.q_proj"
RECIPE = recipe_hash({LAYER: "int2-channel"})
HOW = p.Sampling()


def said(text: str, *tokens: int) -> p.Continuation:
    return p.Continuation(text=text, tokens=tokens or tuple(range(30)), ended=False, surprise=1.0)


def continued(id: str, reference: str, changed: p.Continuation, first: int) -> p.Continued:
    return p.Continued(
        prompt=id, recipe=RECIPE, id=id, text=f"prompt {id}", sampling=HOW, prompt_tokens=2,
        reference=said(reference), changed=changed, first=first, pieces=(" one", " two"), kl=0.25,
        reference_top=(p.Choice(" one", 0.7), p.Choice("\x1b[31m", 0.1)) if first >= 0 else (),
        changed_top=(p.Choice(" two", 0.6),) if first >= 0 else (),
    )  # fmt: skip


def learnt(*facts: p.AnyFact) -> p.Learned:
    return p.Learned(tuple(str(i) for i in range(len(facts))), facts)


FACTS = learnt(
    continued("a", "a text that is\nthe same", said("a text that is\nthe same"), -1),
    continued("b", "all is well here", said("all is \x1b[31mnot not not", *([4, 5] * 15)), 3),
)
CURED = learnt(
    p.SymptomRestored(
        recipe=RECIPE, prompts="k", unit=LAYER, layers=(LAYER,), by="layer", kl=0.9, kl_se=0.1,
        whole=1.0, texts=1,
    ),
    p.SymptomCure(recipe=RECIPE, prompts="k", layers=(LAYER,), failing=1, left=0),
)  # fmt: skip


def begun(ask: str = "") -> p.JobStarted:
    command = p.FindSymptoms(prompts=("prompt a", "prompt b"), sampling=HOW, ask=ask)
    return p.JobStarted(
        job="symptoms-1", kind="symptoms", title="symptoms", command=command, urgency=3, total=0,
        recipe=RECIPE,
    )  # fmt: skip


async def shown(d: Driver) -> Symptoms:
    changed = p.RecipeChanged(
        how="set", layers=[LAYER], before=["bf16"], after=["int2-channel"], bits=[9000]
    )
    await d.give(changed)
    await d.pilot.press("P")
    await d.settled()
    screen = d.app.screens.shown
    assert isinstance(screen, Symptoms)
    return screen


async def test_both_texts_are_side_by_side_with_a_mark_where_they_differ() -> None:
    for size, ascii in (((80, 24), False), ((80, 24), True), ((160, 50), False)):
        async with driving(*r.opening(), *r.triaged(), size=size, ascii=ascii) as d:
            screen = await shown(d)
            await d.give(begun(), FACTS)
            await d.pilot.press("j")
            await d.settled()
            text = screen.list.text
            lines = text.splitlines()
            assert all(len(line) <= size[0] - 2 for line in lines)
            assert "greedy, 64 tokens: 2 prompts, 1 with a symptom of the recipe alone" in text
            assert "of the recipe (of the reference): loop 1 (0)" in text
            assert "a symptom of the recipe alone" in d.screen()
            mark = "!" if ascii else "▲"
            (row,) = [line for line in lines if "b: prompt b" in line]
            assert f"{mark} loop" in row
            assert "prompt a" in text
            assert "same" in next(line for line in lines if "a: prompt a" in line)
            (both,) = [line for line in lines if "well" in line]
            assert f"all is {mark}well here" in both
            assert f"all is {mark}\\x1b[31mnot" in both
            assert "token 3" in text
            assert "' one' 70%" in text
            assert "\x1b" not in d.screen()


async def test_texts_are_there_while_they_are_written() -> None:
    async with driving(*r.opening(), *r.triaged()) as d:
        screen = await shown(d)
        await d.give(
            begun(),
            p.Continuing(job="symptoms-1", ids=("a",), reference=("\n\nso fa",), changed=("so",)),
        )
        await d.until(lambda: "so fa" in screen.list.text)
        assert "being written" in screen.list.text


async def test_keys_ask_for_prompts_and_for_the_layers_that_cure_it(tmp_path: Path) -> None:
    async with driving(*r.opening(), *r.triaged()) as d:
        screen = await shown(d)
        assert "types one" in screen.list.text
        await d.pilot.press("a")
        await d.paste("Once upon")
        await d.pilot.press("enter")
        await d.settled()
        assert d.sent(p.FindSymptoms) == [p.FindSymptoms(prompts=("Once upon",))]
        file = tmp_path / "p.txt"
        file.write_text("one\n")
        await d.pilot.press("o")
        await d.paste(str(file))
        await d.pilot.press("enter")
        await d.settled()
        assert d.sent(p.FindSymptoms)[-1] == p.FindSymptoms(file=str(file))
        await d.pilot.press("g")
        await d.settled()
        assert len(d.sent(p.FindSymptoms)) == 2  # no symptom yet
        await d.give(begun(), FACTS)
        await d.give(p.JobEnded(job="symptoms-1", kind="symptoms", status="done"))
        await d.pilot.press("g")
        await d.settled()
        asked = d.sent(p.FindSymptoms)[-1]
        assert asked == p.FindSymptoms(prompts=("prompt a", "prompt b"), why=True)


async def test_what_was_typed_is_there_again_after_leaving_and_after_a_refusal() -> None:
    async with driving(*r.opening(), *r.triaged()) as d:
        screen = await shown(d)
        await d.pilot.press("a")
        await d.paste("Once upon")
        await d.pilot.press("escape")
        await d.until(lambda: not screen.query(Prompt))
        await d.pilot.press("a")
        await d.until(lambda: [each.value for each in screen.query(Prompt)] == ["Once upon"])
        await d.pilot.press("enter")
        await d.until(lambda: len(d.sent(p.FindSymptoms)) == 1)
        (asked,) = d.sent(p.FindSymptoms)
        await d.until(lambda: not screen.query(Prompt))
        await d.give(p.Refused(command="FindSymptoms", message="too long", ask=asked.ask))
        await d.until(lambda: [each.value for each in screen.query(Prompt)] == ["Once upon"])


async def test_all_that_was_typed_is_continued_again_in_its_order_and_the_mode_is_told() -> None:
    async with driving(*r.opening(), *r.triaged()) as d:
        screen = await shown(d)
        facts = tuple(reversed(FACTS.facts))  # in the order of batches
        found = p.Symptoms(recipe=RECIPE, prompts=("a", "b"))
        await d.give(
            begun(), learnt(*facts),
            p.JobEnded(
                job="symptoms-1", kind="symptoms", status="done",
                result=msgspec.to_builtins(found),
            ),
        )  # fmt: skip
        await d.until(lambda: "greedy, 64 tokens: 2 prompts" in screen.list.text)
        lines = [line for line in screen.list.text.splitlines() if ": prompt " in line]
        assert [line.split(":")[0][-1] for line in lines] == ["a", "b"]
        await d.pilot.press("a")
        await d.paste("more")
        await d.pilot.press("enter")
        await d.until(lambda: len(d.sent(p.FindSymptoms)) == 1)
        assert d.sent(p.FindSymptoms)[-1].prompts == ("prompt a", "prompt b", "more")
        await d.pilot.press("t")
        await d.until(lambda: len(d.sent(p.FindSymptoms)) == 2)
        assert d.sent(p.FindSymptoms)[-1].sampling.temperature == 0.8
        assert d.sent(p.FindSymptoms)[-1].prompts == ("prompt a", "prompt b")


async def test_the_cause_and_its_cure_are_told_and_lead_to_the_layer() -> None:
    async with driving(*r.opening(), *r.triaged()) as d:
        screen = await shown(d)
        await d.give(begun(), FACTS, CURED)
        await d.settled()
        text = " ".join(screen.list.text.split())
        assert f"{LAYER} given back: the symptom is gone from the prompt that was tried" in text
        assert f"cures it: keep {LAYER}" in text
        await d.pilot.press("enter")
        await d.settled()
        assert d.app.screens.shown is not screen


def test_what_differs_inside_the_model_is_told_in_lines() -> None:
    channel = p.ContrastedChannel(
        layer="\x1b[31mb", channel=17, failing=6.25, healthy=0.01, difference=3.0, chance=0.2
    )
    head = p.ContrastedHead(block=2, head=3, failing=1.5, healthy=0.02, difference=2.0, chance=0.2)
    contrast = p.SymptomContrast(
        recipe=RECIPE, prompts="k", failing=2, healthy=5, channels=(channel,), heads=(head,)
    )
    prompts = Prompts()
    assert contrast_lines(prompts, 60, UNICODE) == []
    prompts.traced = Traced("k", contrast=contrast)
    lines = ["".join(text for text, _ in line) for line in contrast_lines(prompts, 60, UNICODE)]
    assert all(len(line) <= 60 for line in lines)
    said = " ".join(" ".join(lines).split())
    assert said == (
        "of 2 that fail (of 5 others): |x| \\x1b[31mb 17: 6.2 (0.01); "
        "KL of head 3 of block 2: 1.5 (0.02)"
    )
    prompts.traced = Traced("k", contrast=msgspec.structs.replace(contrast, healthy=0))
    (line,) = contrast_lines(prompts, 60, UNICODE)
    assert "nothing to compare with" in line[0][0]


def test_a_column_breaks_lines_and_keeps_to_its_width() -> None:
    lines, at = column("one two\nthree\tfour", "one two\nthird", 6, UNICODE)
    texts = ["".join(piece for piece, _ in line) for line in lines]
    assert texts == ["one ", "two", "th▲ree", "\\tfour"]
    assert at == 2
    lines, at = column("猫猫猫猫", "猫猫猫猫", 5, PLAIN)
    assert ["".join(piece for piece, _ in line) for line in lines] == ["猫猫", "猫猫"]
    assert at == 1
    for text, width, broken in (
        ("    one two", 6, ["    on", "e two"]),  # indentation is kept with what it indents
        ("one two", 3, ["one", "two"]),
        ("one  two three", 8, ["one  two", "three"]),
        ("one two three", 9, ["one two ", "three"]),
        ("", 4, [""]),
    ):
        lines, _ = column(text, text, width, UNICODE)
        assert ["".join(piece for piece, _ in line) for line in lines] == broken
        assert "".join(broken).replace(" ", "") == text.replace(" ", "")


def test_causes_of_prompts_continued_otherwise_are_not_shown() -> None:
    session = Session()
    sampled = msgspec.structs.replace(HOW, temperature=1.0)
    found = p.Symptoms(recipe=RECIPE, prompts=("a", "b"), failing="k")
    again = p.FindSymptoms(prompts=("prompt a", "prompt b"), sampling=sampled)
    prompts = Prompts()
    for event in (
        begun(), FACTS, CURED,
        p.JobEnded(
            job="symptoms-1", kind="symptoms", status="done", result=msgspec.to_builtins(found)
        ),
    ):  # fmt: skip
        apply(session, event)
    prompts.take(session)
    assert prompts.traced is not None
    apply(session, msgspec.structs.replace(begun(), job="symptoms-2", command=again))
    prompts.take(session)
    assert prompts.traced is None
