"""The event log: what is written down of what happened, and its pane."""

from __future__ import annotations

import re

import msgspec
import pytest

from engine import protocol as p
from engine.session import Session, apply, recipe_hash
from qtui.views.eventlog import MOST, EventLog
from qtui.views.text import PLAIN, UNICODE
from qtui.widgets.frame.log_pane import LogPane
from tests.qtui import replay as r
from tests.qtui.panes import staged, told, undone, whole

DOWN = "model.layers.0.mlp.down_proj"


class Clock:
    """A wall clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def heard(log: EventLog, session: Session, *events: p.AnyEvent) -> list[str]:
    """What the log says of events that are folded as they come."""
    before = len(log.entries)
    for event in events:
        log.add(event, session)
        apply(session, event)
    return [entry.text for entry in log.entries[before:]]


def test_a_run_is_told_from_opening_to_its_sweep_without_a_line_a_layer() -> None:
    clock = Clock()
    log, session = EventLog(clock=clock), Session()
    assert heard(log, session, *r.opening()) == [
        "opened demo, profile standard",
        "open: started",
        "checkpoint demo: LlamaForCausalLM, 5.8M parameters, 11.6 MB, bfloat16",
        "model on cpu in float32, 5 blocks, 23.0 MB; text: python 3.11 standard library, held out, "
        "16k tokens, window 256",
        "open: done, in 0:00",
        "device: cpu, because no GPU was found; float32, because it is a CPU",
        "baseline: PPL 26.17 ± .31",
    ]
    *sweep, end = r.swept()
    assert heard(log, session, *sweep) == ["sweep int4-g128: started"]
    clock.now += 32
    assert heard(log, session, end) == [
        "sweep int4-g128: done, 37 new, in 0:32, largest: lm_head KL·10³ 8.38"
    ]


def test_a_job_that_waits_for_another_is_queued_until_it_runs() -> None:
    log, session = EventLog(), Session()
    heard(log, session, *r.opening())
    first = p.JobStarted(job="7", kind="sweep", title="sweep", command=p.Sweep(), urgency=3)
    waits = p.JobStarted(job="8", kind="fixes", title="fixes", command=p.TryFixes(), urgency=3)
    urgent = p.JobStarted(job="9", kind="errors", title="errors", command=p.MeasureErrors())
    assert heard(log, session, first, waits, urgent) == [
        "sweep: started", "fixes: queued", "errors: started",
    ]  # fmt: skip
    ends = [p.JobEnded(job=job, kind="x", status="cancelled") for job in ("9", "7")]
    heard(log, session, *ends)
    step = p.Progress(job="8", phase="quantising", done=0, total=3)
    assert heard(log, session, step, step) == ["fixes: started"]


def test_changes_of_the_recipe_are_told_in_words() -> None:
    log, session = EventLog(), whole()
    one = r.changed(session, [DOWN], r.FORMAT)
    assert heard(log, session, one) == ["0 mlp.down_proj: bf16 → int4-g128"]
    names = session.layers.names[1:4]
    assert heard(log, session, r.changed(session, names, "int8")) == ["3 layers (bf16) → int8"]
    back = undone(session)
    assert heard(log, session, back) == ["undone, 3 layers (int8) → bf16"]
    mixed = msgspec.structs.replace(r.changed(session, [DOWN, names[0]], "int8"), how="redo")
    assert heard(log, session, mixed) == ["redone, 2 layers (int4-g128, bf16) → int8"]


def test_a_recipe_s_score_is_told_and_not_while_it_narrows() -> None:
    log, session = EventLog(), whole()
    told(session, r.changed(session, [DOWN], r.FORMAT))
    key = recipe_hash(session.recipe())
    partial = p.RecipePartial(r.score(key, ppl=26.9, half=0.6, tokens=4096))
    score = r.score(key, ppl=26.42, half=0.05)
    known = p.Learned(("k",), (score,), fresh=False)
    assert heard(log, session, partial, p.Learned(("k",), (score,)), known) == [
        "recipe: PPL 26.42 ± .05, KL·10³ 10.0, 4.25 bits per weight",
        "recipe: PPL 26.42 ± .05, KL·10³ 10.0, 4.25 bits per weight, saved earlier",
    ]


def test_whole_bodies_are_hashed_once_a_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tens of thousands of rows that takes a while: not at every score that comes in."""
    from qtui.views import eventlog

    log, session, hashed = EventLog(), whole(), []
    monkeypatch.setattr(
        eventlog, "recipe_hash", lambda layers: hashed.append(layers) or recipe_hash(layers)
    )
    foreign = r.score(recipe_hash({DOWN: "int8"}), ppl=26.42, half=0.05)
    for _ in range(5):
        heard(log, session, p.Learned(("k",), (foreign,)))
    assert sum(len(layers) > 30 for layers in hashed) == 1
    session.layers = msgspec.structs.replace(session.layers)
    heard(log, session, p.Learned(("k",), (foreign,)))
    assert sum(len(layers) > 30 for layers in hashed) == 2


def test_the_largest_of_a_restore_sweep_is_what_it_wins_back() -> None:
    log, session = EventLog(), whole()
    *sweep, end = r.swept(direction="restore")
    for event in sweep:
        apply(session, event)
    assert "largest: lm_head KL·10³ 10.9" in heard(log, session, end)[-1]


def test_a_baseline_has_no_interval_before_the_model_is_known() -> None:
    """Student's factor comes with the model: facts of the store may come before it."""
    log, session = EventLog(), Session()
    learned = p.Learned(("b",), (r.BASELINE,), fresh=False)
    assert heard(log, session, learned) == ["baseline: PPL 26.17, saved earlier"]


def test_a_score_says_whose_it_is() -> None:
    log, session = EventLog(), whole()
    told(session, r.changed(session, [DOWN], r.FORMAT))
    body = {name: r.FORMAT for name in session.layers.names if ".layers." in name}

    def said(recipe: dict[str, str]) -> str:
        score = r.score(recipe_hash(recipe), ppl=26.42, half=0.05)
        heard(log, session, p.Learned(("k",), (score,)))
        return log.entries[-1].text.partition(": PPL 26.42 ± .05")[0]

    assert said({DOWN: r.FORMAT}) == "recipe"
    assert said(body) == "int4-g128 in all body layers"
    assert said(body | {"lm_head": r.FORMAT}) == "another recipe"
    assert said({DOWN: "int8"}) == "another recipe"
    # What the body holds is the session's own recipe once it is that.
    told(session, r.changed(session, list(body), r.FORMAT))
    assert said(body) == "recipe"


def test_layers_that_cannot_hold_a_format_are_not_in_its_recipe_of_the_whole_body() -> None:
    log, session = EventLog(), told(Session(), *r.opening())
    session.settings = msgspec.structs.replace(session.settings, sweep_formats=("no such", "q4_k"))
    row = session.index[DOWN]
    session.layers.shapes[row] = (256, 100)
    body = {n: "q4_k" for n in session.layers.names if ".layers." in n and n != DOWN}
    score = p.Learned(("k",), (r.score(recipe_hash(body), ppl=26.42, half=0.05),))
    assert heard(log, session, score)[0].startswith("q4_k in all body layers: PPL")


def test_what_failed_or_was_refused_is_an_error() -> None:
    log, session = EventLog(), whole()
    heard(
        log,
        session,
        p.JobStarted(job="9", kind="evaluate", command=p.Evaluate(), title="measure the recipe"),
        p.JobEnded(job="9", kind="evaluate", status="failed", message="out of memory: 3 GB wanted"),
        p.Refused("SetFormat", "int44 is no format"),
        p.Refused("AskHistogram", "no such layer"),
        p.Refused("AskExperts", "no such layer"),
    )
    assert [(entry.level, entry.text) for entry in log.entries] == [
        ("error", "measure the recipe: failed: out of memory: 3 GB wanted"),
        ("error", "refused: int44 is no format"),
    ]


def test_a_wave_of_fallbacks_is_one_line_with_their_count() -> None:
    clock = Clock()
    log, session = EventLog(clock=clock), whole()

    def fall(layer: int, format: str = "q4_k", why: str = "rows of 128 do not divide") -> None:
        heard(log, session, p.Fallback(layer=session.layers.names[layer], format=format, why=why))

    fall(3)
    name = session.layers.names[3]
    assert [e.text for e in log.entries] == [f"{name} cannot use q4_k: rows of 128 do not divide"]
    for layer in range(4, 24):
        fall(layer)
        clock.now += 0.3
    fall(24, why="there is no absorber")
    assert [(e.level, e.text) for e in log.entries] == [
        ("warning",
         "22 layers cannot use q4_k: rows of 128 do not divide, 1 for other reasons"),
    ]  # fmt: skip
    fall(3, format="mxfp4")
    assert len(log.entries) == 2
    clock.now += 60
    fall(4, format="mxfp4")
    assert len(log.entries) == 3, "another minute, another wave"


def test_the_same_twice_is_one_line_with_its_count() -> None:
    log = EventLog()
    for _ in range(3):
        log.say("warning", "ctrl+c again\n to quit")
    assert [(e.text, e.times) for e in log.entries] == [("ctrl+c again to quit", 3)]
    assert "".join(piece for piece, _ in log.lines(UNICODE)[0]).endswith("ctrl+c again to quit  ×3")


def test_what_a_session_was_told_before_is_marked_and_told_once() -> None:
    log, session = EventLog(), whole()
    told(session, p.Notice("error", "no such text"))
    for layer in session.layers.names[:5]:
        told(session, p.Fallback(layer=layer, format="q4_k", why="too short"))
    log.say("info", "engine started")
    log.add_earlier(session)
    log.add_earlier(session)
    lines = ["".join(piece for piece, _ in line) for line in log.lines(UNICODE)]
    assert re.fullmatch(r"\d\d:\d\d:\d\d   engine started", lines[0])
    assert lines[1] == "before   ! 5 layers cannot use q4_k: too short"
    assert lines[-1] == "before   x no such text"
    assert len(lines) == 4


def test_the_log_is_bounded_and_forgets_the_oldest() -> None:
    log = EventLog()
    for number in range(MOST + 50):
        log.say("info", f"notice {number}")
    assert len(log.entries) == MOST
    assert log.entries[0].text == "notice 50"
    assert len(log.lines(UNICODE)) == MOST


def test_ten_thousand_events_that_are_not_logged_leave_nothing_behind() -> None:
    log, session = EventLog(), whole()
    version = log.version
    fact = r.sensitivity(DOWN, 7)
    for done in range(10_000):
        log.add(p.Progress(job="3", done=done, total=10_000), session)
        log.add(p.Learned(("s",), (fact,)), session)
        log.add(p.Gauges(cpu=0.5, rss=1, memory_free=1), session)
    assert (log.version, log.entries, log._began) == (version, [], {})


def test_the_level_is_told_by_a_sign_and_foreign_text_steers_nothing() -> None:
    log = EventLog(PLAIN)
    for level in ("info", "warning", "error"):
        log.say(level, f"bad \x1b[2J {level}")  # type: ignore[arg-type]
    lines = ["".join(piece for piece, _ in line) for line in log.lines(PLAIN)]
    assert [line[9] for line in lines] == [" ", "!", "x"]
    assert all("\\x1b[2J" in line and line.isascii() for line in lines)


@pytest.mark.parametrize("width", [60, 200])
async def test_the_pane_has_the_newest_at_its_foot(width: int) -> None:
    log = EventLog()
    for number in range(20):
        log.say("info", f"notice {number} " + "word " * 30)
    shown = LogPane(log)
    async with staged(shown, width, 6) as (app, pilot):
        await pilot.pause()
        lines = app.screen_text().splitlines()
        assert "notice 14" in lines[0]
        assert "notice 19" in lines[5]
        assert (lines[5].rstrip()[-1] == "…") == (width == 60)
        log.say("error", "no room")
        shown.show()
        await pilot.pause()
        lines = app.screen_text().splitlines()
        assert lines[5].rstrip().endswith("x no room")


async def test_the_pane_is_drawn_again_only_after_something_happened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[int] = []
    render = LogPane.render
    monkeypatch.setattr(LogPane, "render", lambda self: drawn.append(1) or render(self))
    log = EventLog()
    shown = LogPane(log)
    async with staged(shown, 80, 5) as (_, pilot):
        await pilot.pause()
        drawn.clear()
        for _ in range(5):
            shown.show()
            await pilot.pause()
        assert not drawn
        log.say("info", "news")
        shown.show()
        await pilot.pause()
        assert drawn
