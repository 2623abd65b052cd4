"""The pane's tabs of fixes, and of group sizes and clipped ranges."""

from __future__ import annotations

import math

import pytest

from engine import protocol as p
from engine.diagnosis.group_effects import group_effects
from engine.session import Session
from qtui.views.text import PLAIN, UNICODE
from qtui.widgets.pane.activation_facts import activation_lines
from qtui.widgets.pane.fix_facts import fix_lines
from qtui.widgets.pane.range_facts import range_lines, wanted_ranges
from qtui.widgets.pane.tab import TabContext
from tests.qtui import replay as r
from tests.qtui.panes import told, whole

LAYER = "model.layers.0.mlp.down_proj"
BASE = "int4-g128"


def group(format: str, relative: float) -> p.GroupSize:
    return p.GroupSize(format=format, rmse=relative / 10, relative=relative, bits=800_000)


RANGES = p.LayerRanges(
    layer=LAYER,
    format=BASE,
    groups=(group("int4-g32", 0.05), group(BASE, 0.1), group("int4-channel", 0.2)),
    clips=(
        p.ClipRatio(ratio=1.0, clipping=0.0, rounding=0.1, total=0.1, clipped=0),
        p.ClipRatio(ratio=0.9, clipping=0.03, rounding=0.04, total=0.05, clipped=1234),
    ),
)


def measured(format: str, kl: float) -> p.Sensitivity:
    return p.Sensitivity(
        layer=LAYER, format=format, kl=kl, kl_se=kl / 20, dnll=kl, dnll_se=kl, dppl=0.0,
        dppl_low=0.0, dppl_high=0.0, tokens=100,
    )  # fmt: skip


def tried(format: str, output: float, refused: str = "") -> p.FormatTried:
    error = math.nan if refused else output
    return p.FormatTried(
        layer=LAYER, format=format, weight_error=error, output_error=error, tokens=9,
        refused=refused,
    )  # fmt: skip


def session_with(*facts: p.AnyFact) -> Session:
    return told(whole(), p.Learned(("",) * len(facts), facts))


def said(session: Session, lines: object, *, width: int = 60, ascii: bool = False) -> list[str]:
    context = TabContext(
        session=session,
        row=session.index[LAYER],
        expert=None,
        shown=p.EffectKey("degrade", BASE),
        width=width,
        height=40,
        glyphs=PLAIN if ascii else UNICODE,
    )
    assert callable(lines)
    found = ["".join(text for text, _ in line) for line in lines(context)]
    assert not ascii or all(line.isascii() for line in found)
    return found


@pytest.mark.parametrize("ascii", [False, True])
def test_group_sizes_and_ranges_stand_side_by_side(ascii: bool) -> None:
    session = session_with(measured(BASE, 2e-3), RANGES)
    rows = [line.split() for line in said(session, range_lines, ascii=ascii)]
    about = "~" if ascii else "≈"
    assert ["int4-g32", ".0050", "5.0%", "4.07", "100", "kB", f"{about}.50?"] in rows
    assert [BASE, ".0100", "10.0%", "4.07", "100", "kB", "2.00"] in rows
    assert ["int4-channel", ".0200", "20.0%", "4.07", "100", "kB", f"{about}8.00?"] in rows
    times = "x" if ascii else "×"
    assert [f"{times}1", ".00%", "10.0%", "10.0%", "0"] in rows
    assert [f"{times}.9", "3.0%", "4.0%", "5.0%", "1,234", "least"] in rows


def test_kl_of_a_group_size_goes_with_the_square_of_the_weight_error() -> None:
    session = session_with(measured(BASE, 2e-3), measured("int4-channel", 9e-3), RANGES)
    found = {each.group.format: each for each in group_effects(session, RANGES)}
    assert (found[BASE].kl, found[BASE].measured, found[BASE].filled) == (2e-3, True, False)
    assert found["int4-channel"].kl == 9e-3
    assert found["int4-g32"].kl == pytest.approx(2e-3 / 4)
    assert found["int4-g32"].filled


def test_ranges_are_asked_for_once_and_for_the_format_held() -> None:
    session = session_with(RANGES)
    row = session.index[LAYER]
    swept = session.settings.sweep_formats[0]
    wanted = wanted_ranges(session, row)
    assert (wanted is None) == (swept == BASE)
    session.layers.holds[row] = "int3-g64+gptq"
    assert wanted_ranges(session, row) == p.AskRanges(LAYER, "int3-g64")
    assert said(session, range_lines) == ["reading weights…"]
    session.layers.holds[row] = "nf4-g64"
    assert wanted_ranges(session, row) == wanted


@pytest.mark.parametrize("ascii", [False, True])
def test_fixes_are_listed_with_the_best_above(ascii: bool) -> None:
    session = session_with(
        measured(BASE, 2e-3),
        measured("int4-g64", 8e-4),
        tried(BASE, 0.1),
        tried("int4-g64", 0.07),
        tried("int4-g128+clip", 0.09),
        tried("int4-g128+awq", 0.0, "nothing absorbs the scale"),
    )
    found = said(session, fix_lines, ascii=ascii)
    text = "\n".join(found)
    assert f"instead of {BASE}: not all were tried" in text
    assert "best int4-g64" in text
    assert "wins back 60%, runs on: Marlin, Machete, ExLlamaV2" in text
    assert "not int4-g128+awq: nothing absorbs the scale" in text
    rows = [line.split() for line in found]
    best, held = ("^", "*") if ascii else ("◆", "●")
    assert [best, "int4-g64", ".80", "7.0%", "4.31", "60%"] in rows
    assert rows[[row[1:2] for row in rows].index([session.kept(session.index[LAYER])])][0] == held
    about = "~" if ascii else "≈"
    (clip,) = (row for row in rows if row and row[0] == "int4-g128+clip")
    assert clip[1].startswith(about)
    assert clip[1].endswith("?")
    wide = "\n".join(said(session, fix_lines, width=130, ascii=ascii))
    assert "best: wins back 60% (marlin, machete, exllamav2)" in wide


def test_what_was_not_tried_says_how() -> None:
    assert "nothing was tried" in " ".join(said(whole(), fix_lines))


def test_nothing_is_said_of_the_best_before_any_effect_is_known() -> None:
    facts = tried(BASE, 0.1), tried("int4-g64", 0.07)
    unswept = told(Session(), *r.opening(), *r.triaged(), p.Learned(("", ""), facts))
    text = " ".join(said(unswept, fix_lines))
    assert "7.0%" in text
    assert "wins" not in text
    assert "best" not in text


@pytest.mark.parametrize(("layers", "tries"), [((LAYER,), True), ((), True), (("lm_head",), False)])
def test_only_a_layer_of_the_running_job_is_being_tried(
    layers: tuple[str, ...], tries: bool
) -> None:
    job = p.JobStarted(job="j1", kind="fixes", title="fixes", command=p.TryFixes(layers))
    text = " ".join(said(told(whole(), job), fix_lines))
    assert ("trying" in text) == tries
    assert ("nothing was tried" in text) != tries


def test_a_tab_says_which_key_measures_and_when_it_is_measuring() -> None:
    session = whole()
    row = session.index[LAYER]
    shown = p.EffectKey("degrade", BASE)
    key = {"activations": "A"}.__getitem__
    context = TabContext(session, row, None, shown, 80, 40, UNICODE, key)
    assert session.model is not None
    (line,) = activation_lines(context)
    assert "A measures every layer" in line[0][0]
    command = p.Triage(activations=True)
    told(session, p.JobStarted(job="9", kind="triage", title="triage", command=command))
    (line,) = activation_lines(context)
    assert line[0][0].startswith("measuring all layers")
