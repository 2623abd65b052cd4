"""Tabs of errors and drift: what they say, in Unicode and in ASCII, and what they request."""

from __future__ import annotations

import math

import msgspec
import pytest

from engine import protocol as p
from engine.session import Session, recipe_hash
from qtui.views.text import PLAIN, UNICODE, Glyphs
from qtui.widgets.line import Words, cells
from qtui.widgets.pane.drift_facts import drift_lines
from qtui.widgets.pane.output_facts import error_lines, wanted_map
from qtui.widgets.pane.tab import TabContext
from qtui.widgets.pane.weight_map import map_lines
from tests.qtui import replay as r
from tests.qtui.panes import told, whole

DOWN, HELD = "model.layers.0.mlp.down_proj", "int4-g128"
OUTPUT = p.OutputError(
    layer=DOWN, format=HELD, tokens=4096, relative=0.117, channels=256, over_10=191, over_50=2,
    counts=[0, 0, 0, 0, 0, 0, 65, 185, 4, 2, 0], worst=[121, 7], worst_errors=[0.818, math.inf],
)  # fmt: skip
MAP = p.ErrorMapReady(
    layer=DOWN, format=HELD, used=HELD, rows=256, groups=2, group_size=128, height=4, width=2,
    cells=[0.01, 0.04, 0.01, 0.01, 0.04, 0.04, 0.01, 0.04],
)  # fmt: skip


def quantised(*layers: str) -> Session:
    session = whole()
    return told(session, r.changed(session, list(layers or (DOWN,)), HELD))


def with_errors(fact: p.OutputError = OUTPUT, found: p.ErrorMapReady = MAP) -> Session:
    return told(told(quantised(), p.Learned(("a",), (fact,))), found)


def drift(session: Session, **figures: object) -> p.Drift:
    blocks = [
        p.BlockDrift(
            block=k, drift=0.1 * (k + 1), injected=0.1, propagated=0.1 * k, control=0.05 * k,
            attention=[0.001 * (k + 1), 0.002],
        )
        for k in range(2)
    ]  # fmt: skip
    fact = p.Drift(
        recipe=recipe_hash(session.changed), tokens=4096, embedding=0.0, blocks=blocks,
        attention_windows=2, attention_tokens=256,
    )  # fmt: skip
    return msgspec.structs.replace(fact, **figures)


def context(
    session: Session, width: int = 70, glyphs: Glyphs = UNICODE, expert: int | None = None
) -> TabContext:
    row = session.index[DOWN]
    return TabContext(session, row, expert, p.EffectKey("degrade", HELD), width, 40, glyphs)


def text(lines: list[Words]) -> str:
    return "\n".join("".join(piece for piece, _ in line) for line in lines)


def test_output_errors_are_counted_and_the_worst_channels_numbered() -> None:
    said = text(error_lines(context(with_errors())))
    assert "output error 11.7%  over 4,096 tokens" in said
    assert "256 channels, above 10% 191, above 50% 2" in said
    assert "121 81.8%, 7 from 0" in said
    bars = said.split("channels by their error\n")[1].split("\n\n")[0].splitlines()
    assert [line.split()[:3] for line in bars][:2] == [["5", "–", "10%"], ["10", "–", "20%"]]
    assert [line.split()[-1] for line in bars] == ["65", "185", "4", "2"]
    assert [line.count("█") for line in bars][1] == 40


def test_channels_of_experts_have_both_numbers_and_one_expert_its_own() -> None:
    fact = msgspec.structs.replace(OUTPUT, worst_experts=[3, 1], unseen_experts=1)
    session = with_errors(fact)
    whole = text(error_lines(context(session)))
    assert "(expert:channel)" in whole
    assert "3:121 81.8%, 1:7 from 0" in whole
    assert "1 expert got no token" in whole
    assert "3:121" not in text(error_lines(context(session, expert=1)))


def test_what_is_not_known_is_said() -> None:
    assert "as stored" in text(error_lines(context(whole())))
    assert "nothing drifts" in text(drift_lines(context(whole())))
    said = text(error_lines(context(quantised())))
    assert "not measured yet" in said
    assert "reading weights" in said
    assert "not measured yet for this recipe" in text(drift_lines(context(quantised())))
    fact = msgspec.structs.replace(OUTPUT, why=f"{DOWN} is never called")
    assert "is never called" in text(error_lines(context(with_errors(fact), 100)))


def test_errors_of_another_recipe_are_not_shown() -> None:
    """A format with methods belongs to the whole recipe."""
    fact = msgspec.structs.replace(OUTPUT, recipe="another")
    assert "not measured yet" in text(error_lines(context(with_errors(fact))))


def test_the_map_is_asked_for_once_it_is_missing_or_of_another_format() -> None:
    session = quantised()
    row = session.index[DOWN]
    assert wanted_map(session, row) == p.AskErrorMap(DOWN, HELD)
    assert wanted_map(told(session, MAP), row) is None
    other = told(session, msgspec.structs.replace(MAP, format="int3-g128"))
    assert wanted_map(other, row) == p.AskErrorMap(DOWN, HELD)
    assert wanted_map(whole(), row) is None


def test_the_map_has_half_blocks_where_halves_differ_and_a_line_a_row_in_ascii() -> None:
    lines = map_lines(MAP, 60, UNICODE)
    assert text(lines[:1]) == "weight error of 256 rows by groups of 128"
    assert "10.0%" in text(lines[1:2])
    assert "20.0%" in text(lines[1:2])
    shown = ["".join(piece for piece, _ in line[1:]) for line in lines[2:]]
    # low high / low low, then high high / low high
    assert shown == [" " * 24 + "▀" * 24, "▀" * 24 + "█" * 24]
    ascii = map_lines(MAP, 60, PLAIN)[2:]
    pieces = [[(piece[0], len(piece)) for piece, _ in line[1:]] for line in ascii]
    low, high = (".", 24), ("#", 24)
    assert pieces == [[low, high], [(".", 48)], [("#", 48)], [low, high]]
    assert text(map_lines(MAP, 60, PLAIN)).isascii()


def test_a_map_that_does_not_fit_is_joined_by_mean_squares() -> None:
    wide = msgspec.structs.replace(MAP, height=1, width=4, groups=4, cells=[0.01, 0.04, 0.09, 0.16])
    lines = map_lines(wide, 10, UNICODE)  # room for two columns
    scale = text(lines[1:2])
    assert f"{100 * math.sqrt(0.025):.1f}%" in scale
    assert f"{100 * math.sqrt(0.125):.1f}%" in scale
    none = msgspec.structs.replace(MAP, cells=[], height=0, width=0, why="it is as stored")
    assert "as stored" in text(map_lines(none, 60, UNICODE))


def test_drift_has_a_line_for_every_block_and_the_heads_that_diverge() -> None:
    session = quantised()
    session = told(session, p.Learned(("a",), (drift(session),)))
    said = text(drift_lines(context(session)))
    rows = [line.split() for line in said.splitlines()]
    assert ["block", "drift", "injected", "propagated", "control"] in rows
    assert ["▌", "0", "10.0%", "10.0%", ".00%", ".00%"] in [row[:6] for row in rows]
    assert ["1", "20.0%", "10.0%", "10.0%", "5.0%"] in [row[:5] for row in rows]
    assert "1.1 2.00, 1.0 2.00, 0.1 2.00, 0.0 1.00" in said
    assert "heads of block 0: 1.00, 2.00" in said


def test_drift_of_a_recipe_that_changes_the_head_alone_is_one_line() -> None:
    session = quantised()
    fact = drift(session, blocks=[p.BlockDrift(block=block, drift=0.0) for block in (0, 1)])
    (line,) = drift_lines(context(told(session, p.Learned(("a",), (fact,))), 80))
    assert text([line]) == "nothing drifts: the recipe changes the output of no block"


def test_drift_of_a_model_without_blocks_or_attention_says_why() -> None:
    session = quantised()
    blocks = [p.BlockDrift(block=0, drift=0.1)]
    fact = drift(session, blocks=blocks, no_attention="it returns none", not_split="it shares")
    said = text(drift_lines(context(told(session, p.Learned(("a",), (fact,))))))
    assert "attention was not compared: it returns none" in said
    assert "it shares" in said
    assert "nan" not in said


@pytest.mark.parametrize("width", [20, 34, 60, 120])
def test_lines_fit_and_ascii_stays_ascii(width: int) -> None:
    session = with_errors()
    session = told(session, p.Learned(("b",), (drift(session),)))
    for glyphs in (UNICODE, PLAIN):
        for lines in (error_lines, drift_lines):
            drawn = lines(context(session, width, glyphs))
            if width >= 34:
                assert max(map(cells, drawn)) <= max(width, 60)
            if glyphs.ascii:
                assert text(drawn).isascii()
