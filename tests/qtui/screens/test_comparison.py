"""The comparison: finished checkpoints, what is wrong with each, the layers worth keeping."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from engine import protocol as p
from qtui.screens.comparison.screen import Comparison
from qtui.views.plans import Row, frontier_plot, line_of, rows_of
from qtui.views.text import UNICODE
from tests.qtui import replay as r
from tests.qtui.driving import Driver, driving

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"


def read(name: str, bits: float = 4.25) -> p.ArtefactOpened:
    return p.ArtefactOpened(
        version=p.COMPARISON_VERSION,
        fingerprint=name, name=name, path=f"/models/{name}", layout="gptq", bytes=5_200_000,
        bits_per_weight=bits, bits_all=bits,
    )  # fmt: skip


def layer(
    artefact: str, name: str, relative: float, rounding: p.Rounding = "nearest"
) -> p.ArtefactLayer:
    error = p.WeightError(relative, relative, relative, relative, 20.0)
    return p.ArtefactLayer(
        artefact=artefact, layer=name, holds="int4-g128", bits=4.28, error=error,
        rounding=rounding, displaced=0.0, steps=0.29 if rounding == "nearest" else 4.0,
        clipped=0.031,
    )  # fmt: skip


def score(artefact: str, kl: float) -> p.ArtefactScore:
    return p.ArtefactScore(
        artefact=artefact, nll=3.0, ppl=20.0 + kl, ppl_low=19.0, ppl_high=21.0, dnll=kl,
        dnll_se=0.001, kl=kl, kl_se=0.001, top1=0.9, tokens=4000,
    )  # fmt: skip


def learnt(*facts: p.AnyFact) -> p.Learned:
    return p.Learned(tuple(str(i) for i in range(len(facts))), facts)


async def shown(d: Driver) -> Comparison:
    await d.pilot.press("C")
    await d.settled()
    screen = d.app.screens.shown
    assert isinstance(screen, Comparison)
    return screen


async def two(d: Driver) -> Comparison:
    """Two finished checkpoints, the worse one read last."""
    screen = await shown(d)
    await d.give(
        read("good"), learnt(layer("good", Q, 0.1), layer("good", DOWN, 0.13), score("good", 0.03)),
        read("bad"),
        learnt(
            *(layer("bad", f"model.layers.0.self_attn.{kind}_proj", 0.1) for kind in "qkvo"),
            layer("bad", DOWN, 1.4, "other"), score("bad", 0.5),
            p.LayerRestored(
                artefact="bad", layer=DOWN, kl=0.46, kl_se=0.01, dnll=0.4, dnll_se=0.1, tokens=4000
            ),
        ),
    )  # fmt: skip
    await d.settled()
    return screen


async def test_the_best_comes_first_and_the_one_read_last_is_open() -> None:
    for size, ascii in (((80, 24), False), ((80, 24), True), ((160, 50), False)):
        async with driving(*r.opening(), *r.triaged(), size=size, ascii=ascii) as d:
            screen = await two(d)
            lines = [line.strip() for line in screen.list.text.splitlines() if line.strip()]
            at = {
                name: i
                for i, line in enumerate(lines)
                for name in ("good ", "bad ")
                if name in line
            }
            assert at["good "] < at["bad "]
            assert "30.0" in lines[at["good "]]
            assert "500" in lines[at["bad "]]
            assert any("errs by 140%" in line for line in lines)
            worst = next(line for line in lines if "int4-g128" in line)
            assert "0 mlp.down_proj" in worst, "what giving back wins most comes first"
            assert "460" in worst
            assert ("3.1%" in worst) == (size[0] > 110), "clipped, where there is room"
            assert max(len(line) for line in d.screen().splitlines()) <= size[0]


async def test_a_layer_is_shown_in_the_table_and_another_checkpoint_opened() -> None:
    async with driving(*r.opening(), *r.triaged()) as d:
        screen = await two(d)
        await d.pilot.press("home")
        while screen.item is not None and screen.item.artefact != "good":
            await d.pilot.press("up")
        await d.pilot.press("enter")
        await d.settled()
        assert [each.layer for each in screen.items if each.kind == "layer"] == [DOWN, Q]
        while screen.item is not None and screen.item.layer != Q:
            await d.pilot.press("down")
        await d.pilot.press("enter")
        await d.settled()
        assert d.app.screens.shown is not screen
        assert d.table.current == Q


async def test_naming_one_asks_the_engine_and_giving_back_more_layers_too(tmp_path: Path) -> None:
    async with driving(*r.opening(), *r.triaged()) as d:
        screen = await shown(d)
        assert "names one" in screen.list.text
        await d.pilot.press("a")
        await d.paste(str(tmp_path))
        await d.pilot.press("enter")
        await d.settled()
        assert d.sent(p.Compare) == [p.Compare((str(tmp_path),))]
        await two_more(d)
        await d.pilot.press("g")
        await d.settled()
        assert d.sent(p.Compare)[-1] == p.Compare(("/models/good",), restore=10)


async def two_more(d: Driver) -> None:
    await d.give(read("good"), learnt(layer("good", Q, 0.1), score("good", 0.03)))
    await d.settled()


def test_finished_checkpoints_are_marks_on_the_frontier() -> None:
    def point(size: int, kl: float) -> Row:
        return Row("", p.Point(bits_per_weight=4.0, bytes=size, kl=kl))

    rows = [point(1_000_000 + 100_000 * i, 0.1 / 2**i) for i in range(8)]
    drawn = frontier_plot(rows, None, 70, 12, UNICODE, [(1_200_000, 0.09)])
    text = ["".join(piece for piece, _ in line) for line in drawn]
    (at,) = [y for y, line in enumerate(text[:-1]) if "C" in line]
    assert at <= 1, "above the frontier"
    assert "C compared" in text[-1]
    rules = [
        row._replace(name=name)
        for row, name in zip(rows, ("uniform", "first-last", "greedy", "Q4_K_M"), strict=False)
    ]
    for width, height in ((200, 12), (70, 12), (40, 12), (70, 6)):
        drawn = frontier_plot([*rows, *rules], None, width, height, UNICODE, [(1_200_000, 0.09)])
        assert len(drawn) == height
        lines = ["".join(piece for piece, _ in line) for line in drawn]
        assert all(len(line) <= width for line in lines)
        said = ("C compared", "U uniform", "F first-last", "G greedy", "Q Q4_K_M")
        assert height < 12 or all(any(mark in line for line in lines) for mark in said), lines
    score = msgspec.structs.replace(r.score("x", ppl=2.0, half=0.1), kl=0.05, kl_se=0.02)
    measured = list(rows)
    measured[1] = Row("", msgspec.structs.replace(rows[1].point, score=score))
    assert "50.0 ±40.0" in "".join(w for w, _ in line_of(measured[1], 80, UNICODE, 2, here=False))
    bars = [
        sum(
            piece == "│"
            for line in frontier_plot(measured, None, 70, 24, UNICODE, factor=factor)
            for piece, _ in line[1:]
        )
        for factor in (math.nan, 2)
    ]
    assert bars[0] == 0
    assert bars[1] > 3, "from 10 to 90"
    bare = frontier_plot(rows, None, 70, 12, UNICODE)
    assert not any("C" in piece for line in bare[:-1] for piece, _ in line)


async def test_what_went_wrong_before_is_gone_once_a_comparison_works() -> None:
    async with driving(*r.opening(), *r.triaged()) as d:
        screen = await shown(d)
        command = p.Compare(("/nowhere",))
        for status, message in (("failed", "/nowhere: no such folder"), ("done", "")):
            await d.give(
                p.JobStarted(job=status, kind="compare", title="compare", command=command),
                p.JobEnded(job=status, kind="compare", status=status, message=message),
            )
            await d.settled()
            assert ("no such folder" in screen.message.text) == bool(message)


def test_a_point_of_the_frontier_that_is_the_plan_is_listed_once() -> None:
    points = [p.Point(bits_per_weight=4.0 + i, bytes=100 + i, kl=0.1 / 2**i) for i in range(3)]
    planned = p.Planned(
        budget=p.Budget(bits=5.0), recipe={}, point=points[1], kl_se=0.0, bound=0.0, units=[],
        frontier=points, baselines={},
    )  # fmt: skip
    assert [(row.name, row.point.bytes) for row in rows_of(planned)] == [
        ("", 102), ("plan for 5 bits per weight", 101), ("", 100),
    ]  # fmt: skip


def test_a_plan_without_any_damage_has_a_mark() -> None:
    """On a line of its own, since no logarithm has a place for it."""
    points = [p.Point(bits_per_weight=4.0, bytes=1000 + 100 * i, kl=0.1 / 2**i) for i in range(8)]
    rows = [Row("", point) for point in points]
    plan = Row("plan for 22 GiB", p.Point(bits_per_weight=16.0, bytes=4000, kl=0.0), plan=True)
    for rest, here in (([], None), ([plan], None), ([plan], plan)):
        drawn = frontier_plot([*rows, *rest], here, 70, 12, UNICODE)
        assert len(drawn) == 12
        text = ["".join(piece for piece, _ in line) for line in drawn]
        marked = [line for line in text[:-1] if UNICODE.frontier in line]
        assert [line.split()[0] for line in marked] == ["0│"] * len(rest)
