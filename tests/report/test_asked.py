"""What was asked of recipes: prompts with their own causes, and names that are text."""

from __future__ import annotations

import msgspec

from engine import protocol as p
from engine.recipes.changes import change
from engine.report.asked_parts import asked_parts
from engine.report.characters import printable
from engine.report.comparison_parts import divergence_part
from engine.report.tables.asked import asked_tables
from engine.report.tables.divergence import divergences
from engine.report.tables.layout import escaped
from engine.session import apply, recipe_hash
from tests.qtui.panes import told
from tests.qtui.screens import test_symptoms as prompts
from tests.report.asked import ended, on_text, table
from tests.report.test_report import HOSTILE, full


def test_causes_stand_with_the_prompts_that_were_traced() -> None:
    session = told(full(), prompts.FACTS, prompts.CURED)
    sampled = msgspec.structs.replace(prompts.HOW, temperature=1.0)
    for at, (how, failing) in enumerate(((prompts.HOW, "k"), (sampled, "other"))):
        command = p.FindSymptoms(prompts=("a", "b"), sampling=how, format="int2-channel")
        found = p.Symptoms(recipe=prompts.RECIPE, prompts=("a", "b"), failing=failing)
        told(session, *ended(at, command, found))
    (of,) = asked_parts(session)
    assert isinstance(of.prompts, list)
    one, other = of.prompts
    assert [each.cause for each in one.causes] == ["layers"]
    assert one.restored
    assert not other.causes
    assert not other.restored


def test_why_nothing_differs_inside_is_said_where_there_is_no_table() -> None:
    contrast = p.SymptomContrast(
        recipe=prompts.RECIPE, prompts="k", failing=1, healthy=0, why="not block by block"
    )
    found = p.Symptoms(recipe=prompts.RECIPE, prompts=("a", "b"), failing="k")
    command = p.FindSymptoms(prompts=("a", "b"), format="int2-channel")
    session = told(
        full(), prompts.FACTS, prompts.CURED, p.Learned(("c",), (contrast,)),
        *ended(0, command, found),
    )  # fmt: skip
    tables = [table for part in asked_parts(session) for table in asked_tables(part)]
    assert any("not block by block" in table.below for table in tables)


def test_columns_of_llama_cpp_s_figures_are_text() -> None:
    made = divergences({HOSTILE: divergence_part(table())}, as_markdown=True)
    assert escaped(printable(HOSTILE)) in made.splitlines()[0]


def test_recipes_without_a_name_are_told_apart() -> None:
    """By what their layers hold; where that is the same too, by their hash."""
    session = full()
    first, second = session.layers.names[:2]
    hashes = []
    for at, held in enumerate(({first: "int3-g128"}, {second: "int8"}, {first: "int8"})):
        kept = [name for name in session.recipe() if name not in held]
        for names, format in ((kept, "kept"), (list(held), held[next(iter(held))])):
            event = change(session, names, format)
            if event is not None:
                apply(session, event)
        hashes.append(recipe_hash(session.recipe()))
        found = p.MeasuredTexts(hashes[-1], (on_text("t"),))
        told(session, *ended(at, p.MeasureTexts(), found))
    assert [part.recipe for part in asked_parts(session)] == [
        "the session's recipe, 1 int3-g128",
        f"the session's recipe, 1 int8, recipe {hashes[1][:8]}",
        f"the session's recipe, 1 int8, recipe {hashes[2][:8]}",
    ]
