"""Symptoms as text."""

from __future__ import annotations

import msgspec

from engine import protocol as p
from engine.report.documents import symptoms_document
from engine.report.tables import symptoms_text
from tests.qtui import replay as r
from tests.qtui.screens import test_symptoms as prompts


def table(texts: int) -> str:
    """What a run prints whose symptoms were traced to a layer on so many texts."""
    restored, *others = prompts.CURED.facts
    assert isinstance(restored, p.SymptomRestored)
    facts = (msgspec.structs.replace(restored, texts=texts), *others)
    found = p.Symptoms(recipe=prompts.RECIPE, prompts=("a", "b"), failing="k")
    session = r.folded(
        *r.opening(), prompts.begun(), prompts.FACTS, p.Learned(("0", "1"), facts),
        p.JobEnded(
            job="symptoms-1", kind="symptoms", status="done", result=msgspec.to_builtins(found)
        ),
    )  # fmt: skip
    return symptoms_text(symptoms_document(session, "int2-channel"))


def test_what_a_layer_wins_on_a_single_text_has_no_error() -> None:
    (one,) = [line for line in table(1).splitlines() if line.startswith(prompts.LAYER + "  ")]
    assert one.split() == [prompts.LAYER, "900.00", "-", "90.0%"]
    (two,) = [line for line in table(2).splitlines() if line.startswith(prompts.LAYER + "  ")]
    assert two.split() == [prompts.LAYER, "900.00", "100.00", "90.0%"]


def test_one_prompt_is_told_in_the_singular() -> None:
    lines = table(1).splitlines()
    assert "recipe int2-channel; 2 prompts, 64 new tokens, greedy" in lines
    assert "1 of 2 texts are the same; 1 shows a symptom that the reference's does not" in lines
