"""An export target while a recipe is tuned: it marks what it cannot hold, and takes the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from engine import protocol as p
from engine.errors import UsageError
from engine.report import wording
from engine.report.figures import Context
from engine.report.figures.registry import figure
from engine.session import Session
from qtui.saved.exporting import complete_export, export_command, judge_export, read_export
from qtui.saved.layers import layers
from qtui.saved.view import View
from qtui.views.budgets import parse_context
from qtui.views.export_marks import ExportMarks
from tests.diagnosis.test_findings import F, clean
from tests.qtui import replay as r
from tests.qtui.driving import Driver, driving
from tests.qtui.saving import session
from tests.qtui.views.test_scope import grouped

DOWN = "model.layers.0.mlp.down_proj"
GATE = "model.layers.0.mlp.gate_proj"


def marks(found: Session, target: str) -> ExportMarks:
    made = ExportMarks()
    made.choose(target)
    made.update(found)
    return made


def test_every_kind_of_mark_is_counted() -> None:
    found = session()  # lm_head in int8, one down_proj in int4
    assert marks(found, "torchao").summary() == "for torchao: holds all"
    assert marks(found, "llama-quantize").summary() == "for llama-quantize: cannot hold 2 layers"
    assert marks(found, "").summary() == ""
    assert marks(found, "llama-quantize").refuses
    assert not marks(found, "torchao").refuses


def test_marks_are_worked_out_again_only_when_the_recipe_changes() -> None:
    found = session()
    made = marks(found, "torchao")
    assert not made.update(found)
    made.choose("hqq")
    assert made.update(found)
    assert made.by_layer[DOWN].kind == "refused"
    assert not made.update(found)


def test_a_refusal_names_the_nearest_format() -> None:
    found = session()
    made = marks(found, "torchao")
    said = made.refusal(found, [DOWN], "nf4")
    assert said == "torchao has no stable config for nf4-g64 (nearest: int4-g32-sym)"
    assert made.refusal(found, [DOWN], "int8") == ""
    assert made.refusal(found, [DOWN], "kept") == ""
    both = made.refusal(found, [DOWN, "model.embed_tokens"], "int8")
    assert both.startswith("torchao: 1 of 2 layers: ") or both.startswith("1 of 2 layers: ")


def test_what_is_typed_to_export_is_judged(tmp_path: Path) -> None:
    found = session()
    path = tmp_path / "a recipe.json"
    text = f"export torchao {path}"
    assert judge_export(text, "", found) == (True, f"the recipe for torchao to {path}")
    asked = read_export(f"export '{path}'!", "torchao")
    assert (asked.target.name, asked.path, asked.replace) == ("torchao", path, True)
    sent = export_command(asked, found)
    assert (sent.to, sent.out, sent.overwrite) == ("torchao", str(path), True)
    assert sent.layers == dict(found.changed)
    path.write_text("")
    assert judge_export(text, "", found)[1].endswith("exists: add ! to replace it")
    assert judge_export("export", "", found) == (False, "name a target and a path")
    assert "'x.json' is no target" in judge_export("export x.json", "", found)[1]
    ok, why = judge_export(f"export hqq {tmp_path}/{'n' * 300}/x", "", found)
    assert not ok
    assert "there is no folder" in why
    ok, why = judge_export(f"export hqq {tmp_path}/x", "", found)
    assert not ok
    assert why.startswith("hqq cannot hold 2 layers: 0 mlp.down_proj: ")
    assert judge_export(text, "", Session())[1].startswith("no layer is changed")
    offered = [text for text, _, _ in complete_export("export q", "", "demo")]
    assert offered == ["export quark demo-quark.json"]
    assert complete_export("export ", "mlx", "demo")[0][0] == "export mlx demo-mlx.json"


async def _choose(d: Driver, name: str) -> None:
    await d.pilot.press("W", *name, "enter")
    await d.pilot.pause()
    await d.settled()


async def test_the_table_the_pane_and_the_prompt_mark_what_a_target_cannot_hold() -> None:
    async with driving(*r.opening(grouped()), *r.triaged(), *r.swept(), size=(150, 45)) as d:
        await _choose(d, "torchao")
        assert "for torchao: holds all; w export writes it" in d.screen()
        await d.give(r.changed(d.app.session, [DOWN], "nf4-g64"))
        assert "for torchao: cannot hold 1 layer" in d.screen()
        assert "✗nf4-g64" in d.screen()
        d.bench.go_to(DOWN)
        await d.pilot.pause()
        await d.settled()
        assert "torchao has no stable config for nf4-g64" in " ".join(d.screen().split())
        await d.give(r.changed(d.app.session, [DOWN, GATE], "int8"))
        assert "2 layers in mixed groups" in d.screen()
        assert "≠int8" in d.screen()
        await d.pilot.press("equals_sign", *"nf4")
        await d.until(lambda: "✗ torchao" in d.screen())
        assert "nearest: int4-g32-sym" in d.screen()
        await d.pilot.press("escape")
        await _choose(d, "none")
        assert "torchao" not in d.screen().splitlines()[5]
        assert "≠" not in d.screen()


@pytest.mark.parametrize("target", ["llama-quantize", ""])
def test_a_saved_table_advises_as_the_table_does(target: str) -> None:
    found = clean()
    where, rows = marks(found, target).serving(found), tuple(range(len(found.layers.names)))
    view = View(session=found, source="demo", format=F, rows=rows, serving=where)
    table = layers(view)
    shown = figure("advice").read.bind(Context(found, p.EffectKey("degrade", F), (), where))
    advised = [row[table.columns.index("advised_format")] for row in table.rows]
    assert advised == [shown(row) for row in rows]
    # What llama.cpp reads is no integer format in groups of 128.
    assert (F in advised) == (not target)
    assert table.notes.get("tuned for", "").startswith(target)


async def test_what_is_saved_is_advised_for_the_chosen_target() -> None:
    async with driving(*r.opening(), *r.triaged(), size=(150, 45)) as d:
        await _choose(d, "torchao")
        serving = d.bench.handler.prompts.view().serving
        assert serving is not None
        assert serving.to == "torchao"


@pytest.mark.parametrize("typed", ["export torchao {}", "export {}"])
async def test_save_exports_the_recipe(tmp_path: Path, typed: str) -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept(), size=(150, 45)) as d:
        await _choose(d, "torchao")
        await d.give(r.changed(d.app.session, [DOWN], "int8"))
        path = tmp_path / "mine.json"
        await d.pilot.press("w")
        await d.paste(typed.format(path))
        await d.pilot.press("enter")
        await d.until(lambda: d.sent(p.Export))
        (sent,) = d.sent(p.Export)
        assert isinstance(sent, p.Export)
        assert (sent.out, sent.to, sent.layers) == (str(path), "torchao", {DOWN: "int8"})


async def test_how_a_written_file_is_used_is_in_the_log() -> None:
    async with driving(*r.opening(), *r.triaged(), size=(150, 45)) as d:
        await d.give(
            p.Exported(
                job="9", folder="/there/mine.json", bytes=1, recipe={DOWN: "int8"},
                quantised=[DOWN], bits_per_weight=4.0, to="torchao",
                notes=["use it as: quantize_(model, …)"],
            )
        )  # fmt: skip
        assert [entry.text for entry in d.bench.events.entries][-2:] == [
            "exported to /there/mine.json", "use it as: quantize_(model, …)",
        ]  # fmt: skip


async def test_the_chosen_target_is_part_of_the_session() -> None:
    """Asked of the engine, and there again after a restart and in other terminals."""
    async with driving(*r.opening(), *r.triaged(), size=(150, 45)) as d:
        await _choose(d, "torchao")
        (sent,) = d.sent(p.TuneFor)
        assert isinstance(sent, p.TuneFor)
        assert (sent.target, sent.context, sent.batch) == ("torchao", 0, 1)
        await d.give(p.TunedFor("hqq", 4096, 2))  # another terminal
        assert "for hqq" in d.screen()
        await _choose(d, "none")
        kept = d.sent(p.TuneFor)[-1]
        assert isinstance(kept, p.TuneFor)
        assert (kept.target, kept.context, kept.batch) == ("", 4096, 2)
    async with driving(*r.opening(), p.TunedFor("torchao"), size=(150, 45)) as d:
        assert "for torchao: holds all" in d.screen()
        await d.give(p.TunedFor("of a plugin that is not here"))
        assert "for torchao" in d.screen()


def opening_with_cache() -> list[p.AnyEvent]:
    """8 blocks that cache 1,000 numbers a token, and two more for at most 64 tokens."""
    cache = [p.CacheBlocks(8, 1000), p.CacheBlocks(2, 1000, window=64)]
    return [
        replace(event, cache=cache) if isinstance(event, p.CheckpointRead) else event
        for event in r.opening()
    ]


@pytest.mark.parametrize("width", [60, 80, 160])
async def test_the_size_is_shown_with_the_cache_of_a_context(width: int) -> None:
    async with driving(*opening_with_cache(), *r.triaged(), size=(width, 45)) as d:
        before = d.screen().splitlines()[0]
        weights = d.app.session.size().bytes
        await d.pilot.press("colon", *"memory with the", "enter")
        await d.settled()
        await d.pilot.press(*"32k 4", "enter")
        await d.settled()
        sent = d.sent(p.TuneFor)[-1]
        assert isinstance(sent, p.TuneFor)
        assert (sent.context, sent.batch) == (32768, 4)
        await d.give(p.TunedFor("", 32768, 4))
        line = d.screen().splitlines()[0]
        tokens = 4 * (8 * 1000 * 32768 + 2 * 1000 * 64)
        sizes = [wording.size(weights + tokens * bits // 8) for bits in (16, 8, 4)]
        some = " ".join(sizes[: 1 if width < 80 else 3])
        assert f"  {wording.size(weights)}  32k×4: {some}" in line
        assert max(map(len, d.screen().splitlines())) <= width
        await d.give(p.TunedFor())
        assert d.screen().splitlines()[0] == before


async def test_a_context_that_cannot_be_counted_is_said_while_it_is_typed() -> None:
    async with driving(*r.opening(), *r.triaged(), size=(120, 45)) as d:
        await d.pilot.press("colon", *"memory with the", "enter")
        await d.settled()
        await d.pilot.press(*"32k")
        await d.until(lambda: "does not say how large keys and values are" in d.screen())
        await d.pilot.press("enter")
        assert not d.sent(p.TuneFor)


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("32k", (32768, 1)), ("32k 4", (32768, 4)), ("8192 batch=2", (8192, 2)), ("", (0, 1)),
        ("0", (0, 1)), ("context=1m", (1024**2, 1)), ("32k×8", (32768, 8)),
    ],
)  # fmt: skip
def test_contexts_are_read_as_people_write_them(typed: str, found: tuple[int, int]) -> None:
    assert parse_context(typed) == found


@pytest.mark.parametrize("typed", ["much", "32k 4 2", "4.5", "-1"])
def test_what_is_no_context_says_what_is(typed: str) -> None:
    with pytest.raises(UsageError, match="32k"):
        parse_context(typed)
