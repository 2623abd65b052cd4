"""The head of the screen: the model, its score, and the work."""

from __future__ import annotations

import math

import msgspec
import pytest

from engine import protocol as p
from engine.session import Session, predict, recipe_hash
from qtui.views.progress import PHASES
from qtui.views.text import PLAIN, UNICODE, Glyphs
from qtui.widgets.frame.scoreboard import Scoreboard
from tests.qtui import replay as r
from tests.qtui.panes import holding, staged, told, undone, whole

DOWN = "model.layers.0.mlp.down_proj"
GAUGES = p.Gauges(cpu=0.93, rss=1_200_000_000, memory_free=14_000_000_000)
GPU = p.Gauges(cpu=0.12, rss=1_200_000_000, memory_free=14_000_000_000, gpu_name="H200",
               gpu_used=12_000_000_000, gpu_total=141_000_000_000, gpu_load=0.88)  # fmt: skip


async def lines(
    session: Session, width: int, *, glyphs: Glyphs = UNICODE, frozen: bool = False
) -> list[str]:
    """The three lines."""
    shown = Scoreboard("demo", glyphs)
    shown.state = "ready"
    async with staged(shown, width, 3) as (app, pilot):
        shown.show(session)
        if frozen:
            shown.frozen = True
        await pilot.pause()
        text = app.screen_text().splitlines()
        assert all(len(line.rstrip()) <= width for line in text)
        assert glyphs.ascii <= "".join(text).isascii()
        return [line.strip() for line in text]


def measuring() -> Session:
    session = whole()
    told(session, r.changed(session, [DOWN], r.FORMAT))
    key = recipe_hash(session.recipe())
    told(
        session,
        p.JobStarted(
            job="4", kind="evaluate", command=p.Evaluate(), title="measure the recipe", total=16
        ),
    )
    told(session, p.RecipePartial(r.score(key, ppl=26.42, half=0.05, tokens=4096)))
    return session


@pytest.mark.parametrize("glyphs", [UNICODE, PLAIN])
@pytest.mark.parametrize("width", [60, 80, 100, 120, 160, 200])
async def test_size_and_name_stand_in_every_width(width: int, glyphs: Glyphs) -> None:
    session = measuring()
    told(session, GAUGES)
    model, score, work = await lines(session, width, glyphs=glyphs)
    assert model.startswith("demo")
    assert f"{session.bits_per_weight():.2f} bits" in model
    assert "MB" in model
    assert "1 changed" in model
    assert "26.42" in score
    assert "25%" in score
    assert "tok, window 256" in score
    assert work.startswith("measure the recipe")


async def test_what_is_loaded_is_told_where_there_is_room() -> None:
    session = whole()
    assert "23.0 MB loaded" in (await lines(session, 120))[0]
    narrow = (await lines(session, 80))[0]
    assert "loaded" not in narrow
    assert "37 layers" in narrow
    assert "changed" not in narrow


@pytest.mark.parametrize("width", [60, 80, 120])
async def test_a_streamed_model_says_so_and_what_a_reading_takes_in_every_width(width: int) -> None:
    session = measuring()
    assert session.model is not None
    streamed = msgspec.structs.replace(session.model.protocol, streamed=True)
    ready = msgspec.structs.replace(session.model, protocol=streamed, reading_s=42.0)
    session = told(whole(), ready)
    model = (await lines(session, width))[0]
    assert "streamed, 0:42 a reading" in model
    assert "loaded" not in model
    assert f"{session.bits_per_weight():.2f} bits" in model


async def test_the_prediction_stands_beside_what_is_being_measured_until_it_is_done() -> None:
    session = measuring()
    predicted = predict(session)
    assert predicted is not None
    said = f"PPL 26.17 → ≈{predicted.ppl:.2f} → 26.42 ± .05 25%"
    assert said in (await lines(session, 80))[1]
    assert "PPL 26.17 → 26.42 ± .05 25%" in (await lines(session, 60))[1]
    key = recipe_hash(session.recipe())
    told(session, p.Learned(("k",), (r.score(key, ppl=26.42, half=0.05),)))
    score = (await lines(session, 100))[1]
    assert "PPL 26.17 → 26.42 ± .05  KL" in score
    assert f"predicted ≈{predicted.ppl:.2f}" in score, "it stays beside what was measured"


async def test_a_prediction_that_leaves_layers_out_says_so_or_is_left_out() -> None:
    session = whole()
    told(session, r.changed(session, [DOWN], r.FORMAT), r.changed(session, ["lm_head"], "nf4"))
    predicted = predict(session)
    assert predicted is not None
    assert (predicted.missing, predicted.filled, predicted.changed) == (1, 0, 2)
    said = f"PPL 26.17 → ≈{predicted.ppl:.2f} without 1 unknown"
    assert said in (await lines(session, 80))[1]
    key = recipe_hash(session.recipe())
    told(session, p.RecipePartial(r.score(key, ppl=26.42, half=0.05, tokens=4096)))
    for width in (60, 80, 100, 120, 160, 200):
        score = (await lines(session, width))[1]
        assert ("≈" in score) == ("without 1 unknown → 26.42 ± .05 25%" in score)
    assert f"{said} → 26.42 ± .05 25%" in (await lines(session, 120))[1]


@pytest.mark.parametrize("status", ["cancelled", "failed"])
async def test_a_score_that_gets_no_further_says_why(status: p.JobStatus) -> None:
    session = whole()
    told(session, r.changed(session, [DOWN], r.FORMAT))
    key = recipe_hash(session.recipe())
    started = p.JobStarted(
        job="4", kind="evaluate", command=p.Evaluate(), title="measure", total=16, recipe=key
    )
    told(session, started, p.RecipePartial(r.score(key, ppl=26.42, half=0.05, tokens=6062)))
    assert "37%," not in (await lines(session, 80))[1]
    told(session, p.JobEnded(job="4", kind="evaluate", status=status))
    for width in (60, 80, 120):
        assert f"26.42 ± .05 37%, {status}" in (await lines(session, width))[1]
    # Measured anew: the next job of the same recipe goes on.
    told(session, msgspec.structs.replace(started, job="5"))
    assert status not in (await lines(session, 80))[1]


@pytest.mark.parametrize("glyphs", [UNICODE, PLAIN])
async def test_the_layer_of_a_sweep_is_told_by_its_short_name(glyphs: Glyphs) -> None:
    session = told(Session(), *r.opening(), *r.swept(5))
    progress = p.Progress(
        job="3",
        done=5,
        total=37,
        seconds_left=9.0,
        phase="measuring",
        subject=DOWN,
        format=r.FORMAT,
    )
    told(session, progress, GAUGES)
    for width in (100, 120, 160):
        work = (await lines(session, width, glyphs=glyphs))[2]
        assert "model.l" not in work
        assert "0 mlp.down_proj" in work
    assert f"0 mlp.down_proj {r.FORMAT}" in work
    told(session, msgspec.structs.replace(progress, subject="lm_head", format=""))
    assert "  lm_head" in (await lines(session, 120, glyphs=glyphs))[2]
    told(
        session,
        msgspec.structs.replace(
            progress, subject="", format="", phase="", detail="int4-g128 in all body layers"
        ),
    )
    assert "int4-g128 in all body layers" in (await lines(session, 160, glyphs=glyphs))[2]


@pytest.mark.parametrize("phase", ["control", "activations", "reference"])
async def test_a_phase_is_said_once(phase: p.Phase) -> None:
    session = told(Session(), *r.opening(), *r.swept(5))
    told(session, p.Progress(job="3", done=1, total=4, phase=phase, subject=""))
    for width in (60, 80, 120, 200):
        assert (await lines(session, width))[2].count(PHASES[phase]) <= 1, width
    assert (await lines(session, 120))[2].count(PHASES[phase]) == 1


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (p.Stage("loading weights", 8_706_944, 25_465_600, in_bytes=True), "8.7 of 25.5 MB"),
        (p.Stage("loading weights", 0, 141_000_000_000, in_bytes=True), "0 of 141 GB"),
        (p.Stage("loading weights", 3, 12), "3/12"),
        (p.Stage("cutting windows", 8_000, 20_000), "8000/20000"),
    ],
)
async def test_what_is_loaded_is_told_in_bytes(stage: p.Stage, said: str) -> None:
    opened = p.JobStarted(job="1", kind="open", command=p.Open("demo", p.Settings()), title="open")
    session = told(Session(), opened, stage)
    work = (await lines(session, 80))[2]
    assert work.startswith(stage.name)
    assert work.endswith(said)


async def test_a_wide_screen_has_the_kl_s_interval_and_the_agreement() -> None:
    session = whole()
    holding(session, [DOWN], r.FORMAT, ppl=26.42)
    assert "KL·10³ 10.0 ± 1.96  top-1 97.0%" in (await lines(session, 120))[1]
    assert "top-1" not in (await lines(session, 100))[1]


async def test_an_estimate_is_enough_for_a_prediction() -> None:
    session = told(Session(), *r.opening())
    estimate = p.Estimate(
        layer=DOWN, format="int8", kl=0.002, kl_se=0.0001, dnll=0.01, dnll_se=0.001, tokens=4096
    )
    told(session, p.Learned(("e",), (estimate,)), r.changed(session, [DOWN], "int8"))
    assert f"→ ≈{26.17 * math.exp(0.01):.2f}" in (await lines(session, 80))[1]


@pytest.mark.parametrize(
    ("gauges", "width", "said"),
    [
        (GAUGES, 80, "cpu 93%  1.2 GB"),
        (GAUGES, 120, "cpu 93%  1.2 GB used, 14.0 GB free"),
        (GPU, 80, "gpu 88%  12.0 GB of 141 GB"),
        (GPU, 160, "gpu 88%  12.0 GB of 141 GB  cpu 12%  1.2 GB used, 14.0 GB free"),
        (GAUGES, 60, "cpu 93%  1.2 GB"),
    ],
)
async def test_load_and_memory_are_shown_while_a_job_runs(
    gauges: p.Gauges, width: int, said: str
) -> None:
    session = measuring()
    told(session, gauges)
    assert (await lines(session, width))[2].endswith(said)
    told(session, p.JobEnded(job="4", kind="evaluate", status="done"))
    assert "%" not in (await lines(session, width))[2]


async def test_an_idle_engine_s_gauges_repaint_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    render = Scoreboard.render
    monkeypatch.setattr(Scoreboard, "render", lambda self: drawn.append(1) or render(self))
    shown, session = Scoreboard("demo"), whole()
    async with staged(shown, 120, 3) as (_, pilot):
        shown.show(session)
        await pilot.pause()
        drawn.clear()
        for cpu in (0.1, 0.5, 0.9):
            told(session, p.Gauges(cpu=cpu, rss=10**9, memory_free=10**9))
            shown.show(session, frozenset({"gauges"}))
            await pilot.pause()
        assert not drawn


async def test_a_frozen_display_says_so_with_a_job_and_without() -> None:
    for session in (whole(), measuring()):
        assert (await lines(session, 80, frozen=True))[2].startswith("display frozen, z resumes")
        assert "frozen" not in (await lines(session, 80))[2]


async def test_the_number_of_changed_layers_follows_undo() -> None:
    session = whole()
    holding(session, [DOWN, "lm_head"], "int8")
    assert "● 2 changed" in (await lines(session, 120))[0]
    told(session, undone(session))
    assert "changed" not in (await lines(session, 120))[0]
