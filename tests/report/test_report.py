"""The report: its page is whole, quiet and safe; its charts stand where the figures say."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from engine import protocol as p
from engine.diagnosis.advice import adviser, category
from engine.report import schema as s
from engine.report.documents import report_document
from engine.report.json import encode
from engine.report.page.charts import SHADES, heat_map, shade, size_chart
from engine.report.page.page import report_page
from engine.report.page.scales import Axis, spanning
from engine.report.tables.report import facts, report_markdown, worst_rows
from engine.session import Session
from tests.qtui import replay as r
from tests.qtui.panes import holding, told, whole
from tests.qtui.screens import test_symptoms as prompts
from tests.report.asked import asked

VOID = {"meta", "link", "input", "br", "rect", "line", "circle", "polyline", "img"}
HOSTILE = "<script>alert(1)</script>\"'>&\x1b[31m`|]\u202e"


def hostile() -> Session:
    session = told(Session(), *r.opening([f"model.layers.0.{HOSTILE}", "lm_head"]))
    session.versions = {HOSTILE: HOSTILE}
    session.notices.append(p.Notice("warning", HOSTILE))
    session.settings = msgspec.structs.replace(session.settings, text=HOSTILE)
    return session


def document(session: Session, **given: object) -> s.ReportDocument:
    return report_document(session, "demo", "2026-01-02T03:04:05+00:00", **given)  # type: ignore[arg-type]


class Page(HTMLParser):
    """Checks that elements are closed, and keeps tags and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def full() -> Session:
    session = whole()
    holding(session, list(session.layers.names[:3]), "int4-g128", ppl=26.4)
    return told(session, r.histogram(session.layers.names[2]))


def test_the_page_is_well_formed_and_has_every_layer() -> None:
    session = full()
    given = document(session, histograms=list(session.histograms.values()))
    page = Page(report_page(given))
    for name in session.layers.names:
        assert name in page.text
    assert "PPL of the recipe 26.40" in page.text
    assert [tag for tag, _ in page.tags].count("figure") == 1


def test_the_page_requests_nothing_and_runs_nothing() -> None:
    for session in (full(), hostile()):
        page = Page(report_page(document(session, commands={HOSTILE: HOSTILE})))
        for tag, attributes in page.tags:
            assert tag not in ("script", "iframe", "object", "embed", "form", "base")
            assert not any(name.startswith("on") for name in attributes)
            for name in ("src", "href", "action", "xlink:href"):
                assert attributes.get(name, "data:,") == "data:,"
        assert "default-src 'none'" in next(
            a["content"] or "" for _, a in page.tags if a.get("http-equiv")
        )


def test_warnings_and_fallbacks_are_in_every_form() -> None:
    session = full()
    session.notices.append(p.Notice("warning", "the text is short"))
    fell_back = p.Fallback(layer="lm_head", format="q4_k", why="256 does not divide")
    told(session, fell_back)
    several = [name for name in session.layers.names if name.endswith("down_proj")]
    told(session, *(p.Fallback(layer=name, format="q4_k", why="rows of 100") for name in several))
    given = document(session)
    for text in (Page(report_page(given)).text, report_markdown(given)):
        assert text.count("rows of 100") == 1, "what is the same of several is said once"
        assert "Doubts" in text
        assert "the text is short" in text
        assert "256 does not divide" in text
    assert "Doubts" not in report_markdown(document(full()))


def test_every_layer_has_its_place_and_the_advice_that_the_table_shows() -> None:
    session = full()
    given = document(session)
    advised = adviser(session, given.format)
    for row, layer in enumerate(given.layers):
        assert layer.category == category(session, row)
        known = advised.advice(row)
        assert isinstance(layer.advice, s.AdvicePart) == (known is not None)
        if known is not None:
            assert layer.advice.format == (known.format or session.kept(row))
    advice = {each.advice.format for each in given.layers if isinstance(each.advice, s.AdvicePart)}
    assert advice
    markdown, page = report_markdown(given), Page(report_page(given)).text
    assert "| advice |" in markdown
    assert "first attention" in page
    assert all(format in page for format in advice)


def test_an_interval_that_is_not_known_is_not_said_to_be_zero() -> None:
    session = full()
    assert any("±" in row.kl_text for row in worst_rows(document(session)))
    given = msgspec.structs.replace(document(session), interval_factor=None)
    assert all("±" not in row.kl_text for row in worst_rows(given))
    assert all("±" not in value for name, value in facts(given) if name == "KL·10³")


def test_names_are_text_in_every_form() -> None:
    given = document(hostile(), commands={"again": HOSTILE})
    html, markdown = report_page(given), report_markdown(given)
    for text in (html, markdown):
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert "<script" not in html
    # Outside of what is quoted, every sign of Markdown or HTML has a backslash before it.
    plain = re.sub(r"^    .*$", "", markdown, flags=re.MULTILINE)
    plain = re.sub(r"`[^`\n]*`", "", re.sub(r"\\.", "", plain))
    assert "<" not in plain
    assert "`" not in plain


def test_finished_checkpoints_are_in_every_form() -> None:
    session = full()
    name = f"finished {HOSTILE}"
    told(
        session,
        p.ArtefactOpened(
            version=p.COMPARISON_VERSION,
            fingerprint="f", name=name, path="/f", layout="gptq", bytes=5_000_000,
            bits_per_weight=4.25, bits_all=4.5, unmatched=("lm_head",),
        ),
        p.Learned(
            ("k",),
            (
                p.ArtefactScore(
                    artefact="f", nll=3.0, ppl=20.0, ppl_low=19.0, ppl_high=21.0, dnll=0.1,
                    dnll_se=0.01, kl=0.0321, kl_se=0.001, top1=0.9, tokens=100,
                ),
            ),
        ),
    )  # fmt: skip
    found = document(session)
    assert [each.name for each in found.compared] == [name]
    page = Page(report_page(found))
    assert "32.1" in page.text
    assert "it lacks one layer of the original" in page.text
    assert any(given.get("class") == "finished" for tag, given in page.tags if tag == "g")
    text = report_markdown(found)
    assert "## Finished checkpoints" in text
    assert "32.1" in text
    assert "<script>" not in text


def test_tasks_texts_and_divergence_of_a_recipe_are_in_every_form() -> None:
    session = full()
    assert isinstance(document(session).asked, msgspec.UnsetType)
    told(session, *asked(HOSTILE, f"text {HOSTILE}", HOSTILE))
    made = document(session)
    assert isinstance(made.asked, list)
    first, second = made.asked
    assert (first.recipe, second.recipe) == ("int3-g128", "the session's recipe")
    assert (len(first.tasks), len(first.texts), len(second.tasks)) == (1, 1, 0)
    page, text_form = Page(report_page(made)), report_markdown(made).replace("\\", "")
    for form in (page.text, text_form):
        section = form.split("Prompts, tasks and texts of int3-g128")[1]
        for figure in ("Mean KLD", "0.067800", "67.80", "22.5", "1–15"):
            assert figure in section
        assert "lost" in section
        assert "By text" in section
    lines = report_markdown(made).splitlines()
    assert not any("<script>" in line for line in lines if not line.startswith("    "))
    assert not any(tag == "script" for tag, _ in page.tags)


def test_prompts_that_were_continued_are_in_every_form() -> None:
    restored, cure = prompts.CURED.facts
    channel = p.ContrastedChannel(
        layer=prompts.LAYER, channel=17, failing=6.25, healthy=0.01, difference=3.0, chance=0.004,
        share=0.8, share_healthy=0.1,
    )  # fmt: skip
    head = p.ContrastedHead(
        block=2, head=3, failing=1.5, healthy=0.02, difference=2.0, chance=0.006
    )
    contrast = p.SymptomContrast(
        recipe=prompts.RECIPE, prompts="k", failing=1, healthy=5, channels=(channel,), heads=(head,)
    )
    found = p.Symptoms(recipe=prompts.RECIPE, prompts=("a", "b"), failing="k")
    learnt = p.Learned(("0", "1", "2"), (restored, cure, contrast))
    session = told(
        full(), prompts.begun(), prompts.FACTS, learnt,
        p.JobEnded(
            job="symptoms-1", kind="symptoms", status="done", result=msgspec.to_builtins(found)
        ),
    )  # fmt: skip
    made = document(session)
    assert isinstance(made.asked, list)
    (of,) = made.asked
    assert isinstance(of.prompts, list)
    (one,) = of.prompts
    assert (one.prompts, one.same, one.alarms) == (2, 1, 1)
    assert [each.cause for each in one.causes] == ["layers", "channels", "attention-head"]
    page, text_form = Page(report_page(made)), report_markdown(made).replace("\\", "")
    for form in (page.text, text_form):
        section = " ".join(form.split("Prompts, tasks and texts of")[1].split())
        for said in (
            "2 prompts, 64 new tokens, greedy: 1 text the same, 1 with a symptom",
            f"{prompts.LAYER} given back: the symptom is gone",
            f"tried, cures it: keep {prompts.LAYER}",
            "1 prompt that fails, against 5 that do not",
            f"{prompts.LAYER} 17",
            "head 3 of block 2",
            "all is \\x1b[31mnot not not",
        ):
            assert said in section or said.replace("\\", "") in section, said


def test_calibration_sets_are_in_every_form() -> None:
    session = full()
    name, text = f"set {HOSTILE}", f"text {HOSTILE}"
    cut = {"set": name, "text": text, "seq_len": 256, "samples": 4}
    told(
        session,
        p.Learned(
            ("c", "s"),
            (
                p.CalibrationCheck(
                    **cut, tokens=1024, documents=3, channels=2048, repetition=0.0, duplicates=0.0,
                    overlap=0.0, distance=0.9, spread=0.2, worst="down", largest=2.0, fourfold=0.5,
                ),
                p.CalibrationScore(
                    **cut, method="int4-g128+gptq", nll=3.0, ppl=20.0, nll_reference=2.9, kl=0.0432,
                    kl_se=0.001, top1=0.9, tokens=100, kls=(0.043, 0.0434),
                ),
            ),
        ),
    )  # fmt: skip
    found = document(session)
    assert isinstance(found.calibration_sets, list)
    assert [each.name for each in found.calibration_sets[0].sets] == [name]
    page = Page(report_page(found))
    assert "43.20*" in page.text
    assert "layers are given other inputs than on" in page.text
    text = report_markdown(found)
    assert "Calibration sets for int4" in text
    assert "43.20" in text
    assert "<script>" not in text


def test_formats_tried_are_in_every_form_with_what_was_measured() -> None:
    session = full()
    layer, other = session.layers.names[:2]
    told(session, *(p.Learned(("",), (fact,)) for fact in tried_on(layer)))
    given = document(session, format="int4-g128")
    assert isinstance(given.fixes, list)
    (found,) = given.fixes
    assert found.name == layer
    by_format = {each.format: each for each in found.fixes}
    assert by_format["int4-g64"].kl_measured == 1e-4
    assert by_format["int4-g64"].verdict == "best: wins back 95%"
    for text in (Page(report_page(given)).text, report_markdown(given).replace("\\", "")):
        section = text.split("Other formats tried")[1].split("Recipe")[0]
        assert "best: wins back 95%" in section
        assert ".10" in section  # KL·10³
        assert other not in section
        assert "nf4" not in section  # neither measured nor the best
    assert "Other formats tried" not in report_markdown(document(full()))


def tried_on(layer: str) -> list[p.AnyFact]:
    """Three formats tried on a layer, and the KL of two of them."""
    errors: list[p.AnyFact] = [
        p.FormatTried(layer=layer, format=text, weight_error=0.1, output_error=0.1, tokens=9)
        for text in ("int4-g128", "int4-g64", "nf4-g64")
    ]
    kls = (("int4-g128", 2e-3), ("int4-g64", 1e-4))
    return errors + [
        p.Sensitivity(
            layer=layer, format=text, kl=kl, kl_se=kl / 20, dnll=kl, dnll_se=kl, dppl=0.0,
            dppl_low=0.0, dppl_high=0.0, tokens=100,
        )
        for text, kl in kls
    ]  # fmt: skip


def test_json_is_read_back_whole() -> None:
    given = document(full())
    assert msgspec.json.decode(encode(given), type=s.ReportDocument) == given
    assert given.recipe.changed == 3


def test_the_map_has_the_largest_of_each_kind_and_block() -> None:
    session = full()
    given = document(session)
    drawn = heat_map(given)
    assert drawn is not None
    key = p.EffectKey("degrade", given.format)
    for cell in drawn.cells:
        name, _, said = cell.title.partition(": KL·10³ ")
        row = session.index[name]
        known = session.sensitivity(row, key)
        assert said.startswith("≈") == (known is None)
        column = round((cell.x - drawn.left) / drawn.cell)
        block = session.layers.blocks[row]
        # Head and embedding stand in a column of their own, before the blocks.
        assert column == (0 if block < 0 else sorted(set(session.layers.blocks)).index(block))
    places = [(cell.x, cell.y) for cell in drawn.cells]
    assert len(set(places)) == len(places)


def test_shades_grow_with_the_value() -> None:
    values = [0.0, 1e-9, 1e-3, 1e-2, 0.1, 0.5, 1.0]
    shades = [shade(value, 1.0) for value in values]
    assert shades == sorted(shades)
    assert (shades[0], shades[-1]) == (1, SHADES)


def test_points_lie_where_their_size_and_kl_are() -> None:
    session = full()
    holding(session, list(session.layers.names[:6]), "int4-g128", ppl=27.0)
    given = document(session)
    drawn = size_chart(given)
    assert drawn is not None
    measured = [each for each in given.tried if isinstance(each.measured, s.ScoredPart)]
    kl = {each.name: each.measured.kl for each in measured if each.measured}  # type: ignore[union-attr]
    marks = {mark.title.partition(":")[0]: mark for mark in drawn.marks}
    assert set(marks) == {name for name, value in kl.items() if value}
    by_size = sorted(measured, key=lambda each: each.bytes)
    across = [marks[each.name].x for each in by_size]
    assert across == sorted(across)
    for name, mark in marks.items():
        assert mark.low >= mark.y >= mark.high, name
    assert [mark.kind for mark in drawn.marks].count("current") == 1


@pytest.mark.parametrize("log", [False, True])
def test_an_axis_is_monotone_and_its_ticks_are_round(log: bool) -> None:
    for values in ([1.0, 2.0], [3e-5, 4e3], [7.0], [0.5, 0.500001], [1e9, 2e9]):
        axis = spanning(values, 60.0, 900.0, log=log)
        assert all(60 <= axis.at(value) <= 900 for value in values)
        assert axis.at(values[0]) <= axis.at(values[-1])
        ticks = axis.ticks()
        assert len(ticks) <= 9
        for tick in ticks:
            assert axis.low <= tick <= axis.high
            if tick == 0:
                continue
            mantissa = tick / 10.0 ** math.floor(math.log10(abs(tick)) + 1e-9)
            assert math.isclose(mantissa * 10, round(mantissa * 10), rel_tol=1e-6) or not log
    # A point halfway lies halfway.
    assert Axis(1.0, 100.0, 0.0, 10.0, log=True).at(10.0) == 5.0
    assert Axis(0.0, 10.0, 0.0, 10.0).at(5.0) == 5.0


def test_a_session_that_only_read_headers_has_a_report() -> None:
    session = told(Session(), *r.opening(["a.q_proj", "lm_head"]))
    given = document(session)
    page = Page(report_page(given))
    assert "No verdict" in page.text
    assert heat_map(given) is None
    assert size_chart(given) is None
    assert "No verdict" in report_markdown(given)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_shows_it_without_a_word(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    session = hostile()
    path.write_text(report_page(document(session)), encoding="utf-8")
    ran = subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-quic", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
            "--dump-dom", path.as_uri(),
        ],
        capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    assert b"CONSOLE" not in ran.stderr
    assert b"<script" not in ran.stdout


def test_a_run_on_the_files_alone_leaves_the_protocol_of_what_was_measured() -> None:
    session = full()
    before = document(session)
    told(session, p.Opened(session.source, session.settings, session.versions))
    assert session.model is None
    after = document(session)
    assert after.protocol == before.protocol
    assert after.interval_factor == before.interval_factor
    assert after.verdict == before.verdict
    read = session.checkpoint
    assert read is not None
    told(session, msgspec.structs.replace(read, fingerprint="another"))
    assert session.measured_with is None, "the effects are gone, too"
