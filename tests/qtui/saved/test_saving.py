"""What is saved: read back by other programs it is what the session knows, to the last bit."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from engine import protocol as p
from engine.errors import UsageError
from engine.recipes.changes import resolve
from engine.recipes.file import read_recipe
from engine.report.figures.registry import column_figures, csv_figures
from engine.session import Session, apply
from qtui.saved.completion import complete_path, judge_path
from qtui.saved.request import read_request
from qtui.saved.saving import save, save_asked
from qtui.saved.subjects import FORMS, subjects, suggested
from qtui.saved.svg import (
    CELL,
    MARGIN,
    PAPER,
    Run,
    folded,
    plain_lines,
    screen_lines,
    screen_svg,
    text_of,
    written,
)
from qtui.saved.view import SUBJECTS, View
from qtui.views.eventlog import Entry
from tests.qtui import replay as r
from tests.qtui.driving import driving
from tests.qtui.saving import BROKEN, EXPERTS, GUESSED, LAYER, lines_of_csv, session, view

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def svg_text(path: Path) -> str:
    """The characters of a drawing's lines, captions left out."""
    tree = ElementTree.parse(path)
    return "\n".join(
        "".join(each.itertext())
        for each in tree.iter(f"{SVG}text")
        if each.get("class") != "caption"
    )


# --- tables -----------------------------------------------------------------------------------


def test_csv_has_the_facts_of_the_session_to_the_last_bit() -> None:
    shown = view()
    saved = save("table", "rows.csv", shown)
    assert saved.path == Path("rows.csv").absolute()
    _, rows = lines_of_csv(saved.path)
    names = shown.session.layers.names
    assert [row["layer"] for row in rows] == [names[row] for row in shown.rows]
    for row, number in zip(rows, shown.rows, strict=True):
        fact = shown.session.sensitivity(number, r.EFFECTS)
        if fact is None or row["layer"] == BROKEN:
            continue
        assert row["source"] == "measured"
        assert float(row["kl_nats_per_token"]) == fact.kl
        assert float(row["kl_se_nats_per_token"]) == fact.kl_se
        assert float(row["dppl_low"]) == fact.dppl_low
        assert int(row["tokens"]) == fact.tokens
        weights = shown.session.layers.weights[number]
        assert weights is not None
        assert float(row["relative_error"]) == weights.errors[r.FORMAT].relative
        assert float(row["outlier_fraction"]) == weights.outliers.fraction
        assert row["shape"] == "x".join(map(str, shown.session.layers.shapes[number]))
        assert row["changed"] == ("true" if row["layer"] in shown.session.changed else "false")


def test_an_estimate_is_told_from_a_measurement() -> None:
    shown = view()
    _, rows = lines_of_csv(save("table", "rows.csv", shown).path)
    (row,) = (row for row in rows if row["layer"] == GUESSED)
    guess = shown.session.estimate(shown.session.index[GUESSED], r.EFFECTS)
    assert guess is not None
    assert row["source"] == "estimated"
    assert float(row["kl_nats_per_token"]) == guess.kl == 0.1 + 0.2
    assert float(row["estimated_kl_nats_per_token"]) == guess.kl
    assert float(row["dppl"]) == pytest.approx(26.17 * (math.exp(guess.dnll) - 1))
    high = 26.17 * (math.exp(guess.dnll + 1.96 * guess.dnll_se) - 1)
    assert float(row["dppl_high"]) == pytest.approx(high)
    assert row["top1_agreement"] == ""


def test_what_is_not_finite_is_empty_in_csv_and_null_in_json() -> None:
    _, rows = lines_of_csv(save("table", "rows.csv", view()).path)
    (row,) = (row for row in rows if row["layer"] == BROKEN)
    assert (row["kl_nats_per_token"], row["dppl"], row["dppl_low"]) == ("", "", "")
    assert float(row["dnll_nats_per_token"]) == -0.25
    document = json.loads(
        save("table", "rows.json", view()).path.read_text(), parse_constant=pytest.fail
    )
    (found,) = (row for row in document["rows"] if row["layer"] == BROKEN)
    assert found["kl_nats_per_token"] is None
    assert found["dppl_high"] is None


def test_the_filter_the_order_and_the_columns_are_those_on_the_screen() -> None:
    few = view(rows=(5, 3), columns=("layer", "kl"), order="largest KL first", filter="block<1")
    heading, rows = lines_of_csv(save("table", "few.csv", few).path)
    names = few.session.layers.names
    assert [row["layer"] for row in rows] == [names[5], names[3]]
    assert "kl_nats_per_token" in rows[0]
    assert "outlier_fraction" not in rows[0]
    assert "dppl" not in rows[0]
    assert "sorted by: largest KL first" in heading
    assert "filter: block<1" in heading


def test_every_column_of_the_screen_can_be_saved() -> None:
    assert {each.id for each in column_figures()} <= {each.id for each in csv_figures()}


def test_pandas_reads_the_csv_past_its_heading() -> None:
    pandas = pytest.importorskip("pandas")
    found = session()
    name = "model.layers.0.odd, #1"
    row = found.index[LAYER]
    found.layers.names = [name if each == LAYER else each for each in found.layers.names]
    found.index[name] = row
    saved = save("table", "rows.csv", view(found, layer=name))
    frame = pandas.read_csv(saved.path, comment="#")
    assert name in set(frame["layer"])
    assert len(frame) == len(found.layers.names)
    fact = found.sensitivity(row, r.EFFECTS)
    assert fact is not None
    assert frame.set_index("layer").loc[name, "kl_nats_per_token"] == pytest.approx(fact.kl, 1e-14)


def test_json_has_its_command_its_protocol_and_its_versions() -> None:
    shown = view(filter="kl>0")
    saved = save("table", "rows.json", shown)
    document = json.loads(saved.path.read_text())
    assert document["schema"] == "qtui.saved-table/1"
    assert document["command"] == saved.command
    assert document["protocol"]["text"] == r.PROTOCOL.text
    assert document["protocol"]["tokens"] == 16384
    assert document["protocol"]["seq_len"] == 256
    assert document["versions"] == {"qtui": "0.1.0"}
    assert document["model"]["fingerprint"] == "f" * 16
    assert document["baseline"]["ppl"] == 26.17
    assert document["notes"] == {"filter": "kl>0"}
    assert len(document["rows"]) == len(shown.rows)
    assert document["rows"][0]["shape"] == [3072, 256]
    assert set(document["rows"][0]) <= set(document["columns"])


def test_the_command_measures_what_the_table_shows() -> None:
    saved = save("table", "rows.csv", view())
    assert saved.command == "qtui sweep demo --profile standard --seq-len 256 --formats int4-g128"
    heading, _ = lines_of_csv(saved.path)
    assert f"command: {saved.command}" in heading
    assert any(line.startswith("weights: qtui triage demo ") for line in heading)
    assert any("windows of 256" in line and "16384 tokens" in line for line in heading)


def test_before_a_sweep_the_table_is_of_weights() -> None:
    found = Session()
    for event in (*r.opening(), *r.triaged()):
        apply(found, event)
    saved = save("table", "rows.csv", view(found))
    assert saved.command.startswith("qtui triage demo ")
    _, rows = lines_of_csv(saved.path)
    assert "source" not in rows[0]
    assert "kl_nats_per_token" not in rows[0]
    assert float(rows[0]["kurtosis"]) == 0.4
    assert suggested("table", view(found)) == "demo-triage.csv"


def test_text_ends_with_the_command() -> None:
    saved = save("table", "rows.txt", view())
    lines = saved.path.read_text().splitlines()
    assert lines[-1] == saved.command
    assert lines[1].split()[:3] == ["layer", "kind", "block"]
    assert any(LAYER in line and "0.00522" in line for line in lines)


def test_a_table_as_a_drawing_has_its_text_and_its_command() -> None:
    saved = save("table", "rows.svg", view())
    assert LAYER in svg_text(saved.path)
    assert float(ElementTree.parse(saved.path).getroot().get("width", "inf")) < 2000
    tree = ElementTree.parse(saved.path)
    assert tree.findtext(f"{SVG}desc") == saved.command


def test_the_layer_under_the_cursor_has_every_figure_of_every_format() -> None:
    shown = view()
    _, rows = lines_of_csv(save("layer", "layer.csv", shown).path)
    found = {(row["figure"], row["format"]): row["value"] for row in rows}
    row = shown.session.index[LAYER]
    fact, weights = shown.session.sensitivity(row, r.EFFECTS), shown.session.layers.weights[row]
    assert fact is not None
    assert weights is not None
    assert float(found["kl_nats_per_token", r.FORMAT]) == fact.kl
    for format, error in weights.errors.items():
        assert float(found["sqnr_db", format]) == error.sqnr_db
    assert found["worst_column", ""] == "211"
    assert found["change_1", r.FORMAT] == "from bf16"
    assert found["shape", ""] == "256x768"


# --- plots and lists --------------------------------------------------------------------------


def histogram(**given: Any) -> View:
    found = session()
    ready = msgspec.structs.replace(r.histogram(LAYER), **given)
    apply(found, ready)
    return view(found)


def test_a_histogram_has_its_edges_its_counts_and_its_grid() -> None:
    grid = [-0.25, 0.0, 0.1 + 0.2]
    shown = histogram(format=r.FORMAT, grid=grid, step=0.25)
    ready = shown.session.histograms[LAYER]
    saved = save("histogram", "h.csv", shown)
    heading, rows = lines_of_csv(saved.path)
    assert [int(row["count"]) for row in rows] == ready.counts
    assert float(rows[0]["low"]) == ready.low
    assert float(rows[-1]["high"]) == ready.high
    assert all(a["high"] == b["low"] for a, b in pairwise(rows))
    assert f"grid: {r.FORMAT}: -0.25 0.0 0.30000000000000004" in heading
    words = shlex.split(saved.command)
    assert words[:3] == ["qtui", "triage", "demo"]
    assert words[words.index("--histogram") + 1] == LAYER
    assert words[words.index("--formats") + 1] == r.FORMAT
    assert words[-2:] == ["--json", "-"]
    document = json.loads(save("histogram", "h.json", shown).path.read_text())
    assert document["histogram"]["counts"] == ready.counts
    assert document["histogram"]["grid"] == grid


def test_a_histogram_is_drawn_with_a_bar_a_bin() -> None:
    shown = histogram(format=r.FORMAT, grid=[-0.25, 0.0, 0.25, 9.0], step=0.25)
    saved = save("histogram", "h.svg", shown)
    tree = ElementTree.parse(saved.path)
    bars = [each for each in tree.iter(f"{SVG}rect") if each.get("fill") == PAPER.accent]
    counts = shown.session.histograms[LAYER].counts
    assert len(bars) == sum(count > 0 for count in counts)
    tallest = max(bars, key=lambda bar: float(bar.get("height", 0)))
    assert bars.index(tallest) == [c for c in counts if c].index(max(counts))
    assert "+3σ" in svg_text(saved.path)
    assert LAYER in svg_text(saved.path)


@pytest.mark.parametrize("given", [
    {"counts": []}, {"counts": [0, 0]}, {"low": 0.0, "high": 0.0, "counts": [7]},
    {"mean": math.nan, "std": math.nan}, {"counts": [10**9]},
])  # fmt: skip
@pytest.mark.parametrize("form", FORMS["histogram"])
def test_strange_histograms_are_saved_too(given: dict[str, Any], form: str) -> None:
    saved = save("histogram", f"h{form}", histogram(**given))
    if form == ".svg":
        text = saved.path.read_text()
        ElementTree.fromstring(text)
        assert not re.search(r'="(nan|inf|-inf)', text)


def test_experts_are_saved_once_they_are_known() -> None:
    found = Session()
    for event in r.opening([EXPERTS, "lm_head"]):
        apply(found, event)
    found.layers.roles[0] = "experts"
    shown = view(found, layer=EXPERTS)
    with pytest.raises(UsageError, match="expand it first"):
        save("experts", "e.csv", shown)
    columns: dict[str, list[float]] = {"std": [0.1, 0.3], "max_abs": [1.0, 2.0]}
    apply(found, p.ExpertsReady(
        layer=EXPERTS, outliers=[0.0, math.nan], nonfinite=[0, 3],
        relative={r.FORMAT: [0.06, 0.07]}, **columns,
    ))  # fmt: skip
    saved = save("experts", "e.csv", shown)
    _, rows = lines_of_csv(saved.path)
    assert [row["expert"] for row in rows] == ["0", "1"]
    assert [float(row["std"]) for row in rows] == [0.1, 0.3]
    assert rows[1]["outlier_fraction"] == ""
    assert rows[1]["nonfinite"] == "3"
    assert float(rows[1][f"relative_error_{r.FORMAT}"]) == 0.07
    assert f"--experts {EXPERTS}" in saved.command


def test_the_log_is_saved_with_commas_and_quotes_in_it() -> None:
    _, rows = lines_of_csv(save("log", "log.csv", view()).path)
    assert rows[0]["message"] == '768 is not, a "multiple" of #256'
    assert rows[0]["layer"] == LAYER
    assert rows[-1]["message"].startswith("device: cpu")


def test_the_saved_log_is_what_the_log_says_with_its_times() -> None:
    log = (
        Entry(None, "info", "of before"),
        Entry(1_700_000_000.9, "error", 'refused: "int44", no format', 3),
    )
    saved = save("log", "log.csv", view(log=log))
    _, rows = lines_of_csv(saved.path)
    assert list(rows[0]) == ["time", "level", "times", "layer", "format", "message"]
    fallback, before, refused = rows
    assert fallback["layer"] == LAYER
    assert (before["time"], before["message"]) == ("", "of before")
    moment = datetime.fromisoformat(refused["time"])
    assert moment == datetime.fromtimestamp(1_700_000_000, UTC)
    assert moment.tzinfo is not None
    assert (refused["level"], refused["times"]) == ("error", "3")
    assert refused["message"] == 'refused: "int44", no format'
    document = json.loads(save("log", "log.json", view(log=log)).path.read_text())
    assert "time" not in document["rows"][1]
    assert document["rows"][2]["times"] == 3
    assert "refused" in save("log", "log.txt", view(log=log)).path.read_text()


def test_a_log_of_an_engine_that_said_nothing_can_be_saved() -> None:
    shown = View(session=Session(), source="demo", log=(Entry(0.0, "info", "engine started"),))
    assert "engine started" in save("log", "log.csv", shown).path.read_text()


@pytest.mark.parametrize(
    ("layers", "said"),
    [(["lm_head"], "the recipe of 1 changed layer"),
     ([LAYER, "lm_head"], "the recipe of 2 changed layers")],
)  # fmt: skip
def test_what_was_saved_is_counted_in_words(layers: list[str], said: str) -> None:
    found = Session()
    for event in r.opening():
        apply(found, event)
    apply(found, r.changed(found, layers, "int8"))
    saved = save("recipe", "r.toml", view(found))
    assert saved.what == said
    verb = "is" if len(layers) == 1 else "are"
    assert f"{len(layers)} of 37 layers {verb} changed" in saved.path.read_text()
    assert save("table", "a.csv", view(found, rows=(1,))).what == "1 row"
    assert save("table", "a.csv", view(found, rows=(1, 2))).what == "2 rows"


@pytest.mark.parametrize(
    ("grid", "step", "said"),
    [([-0.25, 0.0, 0.25], 0.25, "int4-g128, 3 values, step .2500"),
     ([], 0.0012, "int4-g128, step .0012"), ([], math.nan, "int4-g128: no fixed levels")],
)  # fmt: skip
def test_a_drawn_histogram_says_what_grid_there_is(
    grid: list[float], step: float, said: str
) -> None:
    saved = save("histogram", "h.svg", histogram(format=r.FORMAT, grid=grid, step=step))
    assert said in svg_text(saved.path)


# --- recipes ----------------------------------------------------------------------------------


def test_a_recipe_reads_back_to_the_same_formats() -> None:
    shown = view()
    saved = save("recipe", "r.toml", shown)
    found = read_recipe(saved.path)
    assert found.resolve(shown.session) == shown.session.recipe() == {
        LAYER: r.FORMAT, "lm_head": "int8",
    }  # fmt: skip
    assert found.checkpoint == "demo"
    assert saved.command.endswith(f"--recipe {saved.path}")


@given(
    names=st.lists(
        st.text(min_size=1).filter(lambda name: "\ud800" not in name)
        | st.just("re:.*") | st.just('a."b\\'),
        min_size=1, max_size=5, unique=True,
    )
)  # fmt: skip
def test_a_recipe_reads_back_whatever_layers_are_called(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    names = [n.encode(errors="replace").decode() for n in names]
    names = list(dict.fromkeys(names))
    found = Session()
    for event in r.opening([*names, "model.layers.0.other"]):
        apply(found, event)
    apply(found, r.changed(found, names, "int4-g128"))
    path = tmp_path_factory.mktemp("recipe") / "r.toml"
    save("recipe", str(path), view(found))
    again = read_recipe(path)
    recipe, fallbacks = resolve(found, again.default, again.resolve(found))
    assert (recipe, fallbacks) == (dict.fromkeys(names, "int4-g128"), [])


def test_a_recipe_s_command_names_the_file_that_was_written() -> None:
    Path("r.toml").write_text("mine")
    saved = save("recipe", "r.toml", view())
    assert saved.path.name == "r-2.toml"
    assert saved.command.endswith("r-2.toml")
    assert saved.command in saved.path.read_text()


# --- the screen -------------------------------------------------------------------------------


async def test_a_drawing_of_the_screen_has_the_text_of_the_screen() -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept(), size=(100, 30)) as driver:
        lines = screen_lines(driver.app)
        shown = driver.screen()
    assert text_of(lines) == "\n".join(line.rstrip() for line in shown.split("\n"))
    saved = save("screen", "s.svg", view(screen=lines))
    wanted = [line.rstrip() for line in shown.split("\n") if line.strip()]
    drawn = [line.rstrip() for line in svg_text(saved.path).split("\n") if line.strip()]
    assert drawn == wanted
    text = saved.path.read_text()
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "\xa0" not in text
    written = save("screen", "s.txt", view(screen=lines)).path.read_text()
    assert written.splitlines()[-1] == saved.command
    assert wanted[0] in written


def test_colours_and_weights_of_the_letters_are_kept() -> None:
    line = (Run("a", foreground="#ff0000", bold=True), Run(" b", background="#00ff00"))
    text = screen_svg([line], title="t", command="qtui demo")
    assert 'fill="#ff0000" font-weight="bold"' in text
    assert 'fill="#00ff00"' in text


@given(st.text())
def test_any_text_makes_a_document_that_can_be_read(text: str) -> None:
    drawn = screen_svg(plain_lines(text), title=text, command=text or "x")
    tree = ElementTree.fromstring(drawn.encode())
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", drawn)
    assert tree.tag == f"{SVG}svg"


def test_markup_in_a_name_is_text() -> None:
    assert written("<script>&\x1b") == "&lt;script&gt;&amp;\ufffd"


@given(st.text(alphabet="ab 一\u0301█", max_size=30))
def test_every_word_stands_in_its_own_cells(text: str) -> None:
    tree = ElementTree.fromstring(screen_svg([(Run(text),)], title="", command="x"))
    spans = list(tree.iter(f"{SVG}tspan"))
    assert "".join(span.text or "" for span in spans) == text
    at = 0
    for span in spans:
        assert float(span.get("x", 0)) == pytest.approx(MARGIN + at * CELL, abs=0.01)
        cells = cell_len(span.text or "")
        assert float(span.get("textLength", 0)) == pytest.approx(cells * CELL, abs=0.01)
        assert "  " not in (span.text or "").strip()
        at += cells


def test_a_folded_command_is_the_same_command() -> None:
    line = "qtui sweep '/a b/it'\"'\"'s' --text 'x -- y' --tokens 4096 --formats int4-g128"
    assert len(folded(line, 30)) > 2
    assert shlex.split("\n".join(folded(line, 30)).replace("\\\n", " ")) == shlex.split(line)


# --- names and paths --------------------------------------------------------------------------


def test_nothing_is_replaced_unasked() -> None:
    first = save("table", "a.csv", view())
    Path("a.csv").write_text("mine")
    second, third = save("table", "a.csv", view()), save("table", "a.csv", view())
    assert [each.path.name for each in (first, second, third)] == ["a.csv", "a-2.csv", "a-3.csv"]
    assert Path("a.csv").read_text() == "mine"
    assert "a-2.csv" in second.says
    again = save_asked("table a.csv!", view())
    assert again.path.name == "a.csv"
    assert Path("a.csv").read_text() != "mine"
    assert not [each for each in os.listdir() if each.startswith(".")]


def test_a_broken_link_is_not_written_through() -> None:
    Path("a.csv").symlink_to("elsewhere.csv")
    assert save("table", "a.csv", view()).path.name == "a-2.csv"
    assert not Path("elsewhere.csv").exists()


def test_a_file_system_without_links_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert save("log", "log.txt", view()).path.read_text().endswith("--seq-len 256\n")
    assert save("log", "log.txt", view()).path.name == "log-2.txt"


def test_a_disk_that_is_full_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UsageError, match=r"a\.csv: cannot be written: No space left"):
        save("table", "a.csv", view())
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("subject", "path", "said"),
    [
        ("table", "a", "a: has no extension, the table is saved as .csv .json .svg .txt"),
        ("table", "a.xlsx", "ends in .xlsx, the table is saved as .csv"),
        ("table", "a.toml", "ends in .toml, the table is saved as .csv .json .svg .txt; "
         ".toml is for recipe"),
        ("recipe", "a.csv", "the recipe is saved as .toml"),
        ("screen", "a.csv", "the screen is saved as .svg .txt"),
        ("table", "nowhere/a.csv", "there is no folder"),
        ("table", "~nobody-of-this-name/a.csv", "cannot be a path"),
        ("table", "a\0b.csv", "cannot be a path"),
        ("table", "folder.csv/demo-sweep-int4-g128.csv", "is a folder: name a file"),
        ("table", "x" * 300 + ".csv", "too long"),
        ("screen", "a.svg", "there is nothing on the screen"),
        ("experts", "a.csv", "it has no experts"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_is_written(
    subject: Any, path: str, said: str
) -> None:
    Path("folder.csv/demo-sweep-int4-g128.csv/demo-sweep-int4-g128.csv").mkdir(parents=True)
    with pytest.raises(UsageError) as fault:
        save(subject, path, view())
    assert said in str(fault.value)
    assert os.listdir() == ["folder.csv"]
    assert judge_path(f"{subject} {path}", view()) == (False, str(fault.value))


def test_a_picture_has_an_end() -> None:
    many = view(rows=(3,) * 2001)
    with pytest.raises(UsageError, match=r"2,001 rows are too many .* filter them"):
        save("table", "a.svg", many)
    _, rows = lines_of_csv(save("table", "a.csv", many).path)
    assert len(rows) == 2001


def test_a_folder_takes_the_suggested_name_and_home_is_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "out").mkdir()
    assert save("table", "~/out", view()).path == tmp_path / "out" / "demo-sweep-int4-g128.csv"


def test_names_are_made_of_what_is_saved() -> None:
    shown = view()
    assert [name for _, name, _ in subjects(shown)] == [
        "demo-sweep-int4-g128.csv",
        "demo-layers.0.mlp.down_proj-histogram.csv",
        "demo-layers.0.mlp.down_proj-layer.csv",
        "demo-layers.0.mlp.down_proj-experts.csv",
        "demo-log.txt",
        "demo-screen.svg",
        "demo-recipe.toml",
        "demo-report.html",
    ]
    odd = suggested("layer", view(layer="../../etc/\x1b[2J pass wd" + "é" * 400))
    assert "/" not in odd
    assert odd.isprintable()
    assert len(odd.encode()) < 220


def test_every_subject_that_says_it_can_be_saved_can_in_every_form() -> None:
    shown = view(screen=plain_lines("a\nb"))
    can = [subject for subject, _, why_not in subjects(shown) if not why_not]
    assert set(can) == set(SUBJECTS) - {"experts"}
    for subject in can:
        for form in FORMS[subject]:
            saved = save(subject, f"{subject}{form}", shown)
            assert saved.command.split("--")[0].strip() in saved.path.read_text()


def test_nothing_is_there_before_the_checkpoint_is_read() -> None:
    empty = View(session=Session(), source="demo")
    assert all(why_not for _, _, why_not in subjects(empty))
    for subject in SUBJECTS:
        with pytest.raises(UsageError):
            save(subject, suggested(subject, empty), empty)


# --- the prompt -------------------------------------------------------------------------------


def test_what_is_typed_is_a_subject_and_a_path() -> None:
    shown = view()
    assert read_request("a b.csv", shown).path == "a b.csv"
    assert read_request("x.toml", shown).subject == "recipe"
    assert read_request("histogram x y.svg!", shown) == msgspec.structs.replace(
        read_request("histogram x y.svg", shown), replace=True
    )
    assert read_request("", shown).path == "demo-sweep-int4-g128.csv"
    assert read_request("log", shown).path == "demo-log.txt"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("tabel x.csv", "table"), ("Table x.csv", "table"), ("tables x.csv", "table"),
        ("hist x.svg", "histogram"), ("histgram  x.svg!", "histogram"), ("recipie x", "recipe"),
        ("  logs x.txt", "log"), ("expert e.csv", "experts"),
    ],
)  # fmt: skip
def test_a_misspelt_subject_is_no_part_of_a_file_s_name(typed: str, meant: str) -> None:
    first, rest = typed.split(maxsplit=1)
    with pytest.raises(UsageError, match=rf"^{first}: .* did you mean {meant}\?"):
        save_asked(typed, view())
    ok, says = judge_path(typed, view())
    assert not ok
    assert f"did you mean {meant}?" in says
    assert complete_path(typed, view())[0][0] == f"{meant} {rest}"
    assert os.listdir() == []


def test_a_name_that_begins_like_a_subject_goes_in_quotes_or_after_one() -> None:
    saved = save_asked('"tabel of May.csv"', view())
    assert saved.path.name == "tabel of May.csv"
    assert save_asked('"tabel of May.csv"!', view()).path.name == "tabel of May.csv"
    assert save_asked("table tabel of May.csv", view()).path.name == "tabel of May-2.csv"
    assert save_asked("layer 'tabel of June.csv", view()).path.name == "tabel of June.csv"
    assert save_asked('"tabel a.toml"', view()).what.startswith("the recipe")
    offers = [text for text, _, _ in complete_path("tab", view())]
    assert '"tabel of May.csv"' in offers
    assert all(judge_path(text, view())[0] for text in offers)
    Path("tabel things").mkdir()
    Path("tabel things/a.csv").write_text("")
    assert '"tabel things/' in [text for text, _, _ in complete_path('"tabel t', view())]
    inside = [text for text, _, _ in complete_path('"tabel things/', view())]
    assert inside == ['"tabel things/a.csv"']
    assert read_request(inside[0], view()).path == "tabel things/a.csv"


def test_completions_begin_with_what_can_be_saved() -> None:
    found = complete_path("", view())
    assert found[0] == ("table demo-sweep-int4-g128.csv", ".csv .json .svg .txt", False)
    dim = {text.split()[0] for text, _, dim in found if dim}
    assert dim == {"experts", "screen"}
    assert [text.split()[0] for text, _, _ in complete_path("re", view())][:1] == ["recipe"]


def test_completions_go_on_with_folders_files_and_endings() -> None:
    Path("figures").mkdir()
    Path("few.csv").write_text("")
    Path("few.bin").write_text("")
    found = {text for text, _, _ in complete_path("layer f", view())}
    assert {"layer figures/", "layer few.csv", "layer f.csv", "layer f.svg"} <= found
    assert "layer few.bin" not in found
    assert [text for text, _, _ in complete_path("a.js", view())] == ["a.json"]
    assert complete_path("nowhere/", view()) == []


def test_the_verdict_says_what_will_happen() -> None:
    ok, says = judge_path("a.csv", view())
    assert (ok, says) == (True, f"table to {Path('a.csv').absolute()}")
    Path("a.csv").write_text("mine")
    ok, says = judge_path("a.csv", view())
    assert ok
    assert "a-2.csv" in says
    assert "add ! to replace it" in says
    assert judge_path("a.csv!", view()) == (
        True, f"table replaces {Path('a.csv').absolute()} (4 B)"
    )  # fmt: skip


@given(st.text(max_size=30))
def test_whatever_is_typed_is_judged_and_completed(text: str) -> None:
    shown = view()
    judge_path(text, shown)
    complete_path(text, shown)
