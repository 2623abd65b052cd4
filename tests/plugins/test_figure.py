"""A figure that is registered from outside appears everywhere that a figure of qtui's own does."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.report import json as json_output
from engine.report.documents import triage_document
from engine.report.figures import Context, CsvName, FilterWord, JsonPath, register_figure
from engine.report.figures.quantity import WORD
from engine.report.figures.registry import unregister_figure
from engine.session import Session, apply
from qtui.saved.saving import save
from qtui.views.filter import FilterError, parse_filter
from qtui.views.filter.completion import complete_filter
from tests.plugins.example.figure import SKEW, register, skew
from tests.qtui import replay as r
from tests.qtui.driving import driving
from tests.qtui.saving import lines_of_csv, view


def read() -> Session:
    session = Session()
    for event in (*r.opening(), *r.triaged()):
        apply(session, event)
    return session


def skews(session: Session) -> list[float]:
    return [
        value
        for known in session.layers.weights
        if known is not None and (value := skew(known, session)) is not None
    ]


@pytest.mark.usefixtures("example")
async def test_it_is_a_column_a_line_of_the_pane_and_explained_in_help() -> None:
    async with driving(*r.opening(), *r.triaged(), size=(200, 50)) as d:
        session = d.app.session
        values = skews(session)
        d.table.order_by("skew")
        await d.settled()
        assert "skew" in d.screen()
        assert [SKEW.read.bind(Context(session))(row) for row in d.table.rows] == sorted(
            values, reverse=True
        )
        assert "asymmetry" in d.table.order_words
        assert "asymmetry " + SKEW.quantity.text(max(values)) in d.screen()
        await d.pilot.press("question_mark")
        await d.settled()
        drawn = "\n".join(
            "".join(text for text, _ in words)
            for words in d.app.screen.lines  # type: ignore[attr-defined]
        )
        assert "skew>.5%" in drawn
        assert "mean over standard deviation" in drawn


@pytest.mark.usefixtures("example")
async def test_its_column_shows_where_there_is_room_and_never_pushes_one_of_qtui_out() -> None:
    async with driving(*r.opening(), *r.triaged(), size=(120, 40)) as d:
        narrow = [column.id for column, _ in d.table.layout_at(90).columns]
        wide = [column.id for column, _ in d.table.layout_at(220).columns]
    assert "skew" not in narrow
    assert wide[-1] == "skew"


@pytest.mark.usefixtures("example")
def test_it_is_a_word_of_the_filter_with_completion() -> None:
    session = read()
    middle = sorted(skews(session))[20]
    rows = parse_filter(f"skew>{100 * middle}%").rows(Context(session))
    assert len(rows) == sum(value > middle for value in skews(session))
    assert dict(complete_filter("sk", session)) == {"skew>": SKEW.help}
    assert "skew>.5%" in dict(complete_filter("skew>", session))


def test_its_word_is_none_once_it_is_gone() -> None:
    with pytest.raises(FilterError, match="no field 'skew'"):
        parse_filter("skew>1")


@pytest.mark.usefixtures("example")
def test_it_has_its_key_in_json_and_the_others_stay() -> None:
    session = read()
    document = json.loads(json_output.encode(triage_document(session)))
    found = [layer.pop("figures")["skew"] for layer in document["layers"]]
    assert found == skews(session)
    unregister_figure("skew")
    assert document == json.loads(json_output.encode(triage_document(session)))
    register()


@pytest.mark.usefixtures("example")
def test_it_has_its_column_in_csv(tmp_path: Path) -> None:
    session = read()
    saved = save("table", str(tmp_path / "rows.csv"), view(session))
    _, rows = lines_of_csv(saved.path)
    assert sorted(float(row["skew"]) for row in rows) == sorted(skews(session))


def test_what_cannot_be_registered_says_why() -> None:
    for change, why in (
        ({"id": "kl"}, "with this id"),
        ({"id": "Not a word"}, "lower-case"),
        ({"csv": CsvName("kurtosis")}, "CSV column 'kurtosis'"),
        ({"json": (JsonPath("triage", "kurtosis"),)}, "key 'kurtosis'"),
        ({"quantity": WORD, "filter": FilterWord("=x")}, "compares numbers"),
    ):
        with pytest.raises(ValueError, match=why):
            register_figure(dataclasses.replace(SKEW, **change))  # type: ignore[arg-type]


def test_a_plugin_named_in_the_environment_is_loaded_when_figures_are_looked_up() -> None:
    program = (
        "from engine.report.figures import figures\n"
        "from qtui.widgets.table.columns import table_columns\n"
        "assert figures()[-1].id == 'skew' and table_columns()[-1].id == 'skew'"
    )
    environment = os.environ | {"QTUI_PLUGINS": "tests.plugins.example.figure:register"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
