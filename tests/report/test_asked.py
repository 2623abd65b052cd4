"""What was asked of recipes: prompts with their own causes, and names that are text."""

from __future__ import annotations

import msgspec

from engine import protocol as p
from engine.report.asked_parts import asked_parts
from engine.report.characters import printable
from engine.report.comparison_parts import divergence_part
from engine.report.tables.asked import asked_tables
from engine.report.tables.divergence import divergences
from engine.report.tables.layout import escaped
from tests.qtui.panes import told
from tests.qtui.screens import test_symptoms as prompts
from tests.report.asked import ended, table
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
