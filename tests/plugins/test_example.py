"""A package from outside, in everything that qtui is: nothing in ``engine`` or ``qtui`` knows it.

One package (`tests.plugins.example`) adds a job with its command, a figure, a format family, an
export target and a screen. They are used on the command line, in the terminal interface, through
the library, in an engine in this process and in one of its own, in JSON, in CSV and in help. The
package's checkpoint layout is used in `tests.checkpoint.test_readers`.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors import safe_open

import engine
from engine import plugins
from engine import protocol as p
from engine.client import JobError, in_process, spawned
from engine.report import json as json_output
from engine.report.documents import triage_document
from engine.report.figures import Context
from engine.session import Session
from qtui.saved.saving import save
from qtui.screens.help import Help
from qtui.views.filter import parse_filter
from tests import tiny
from tests.drive import ended, settings, until
from tests.plugins.example.figure import SKEW
from tests.plugins.example.job import CountWeights, WeightCounts
from tests.plugins.example.screen import Kinds
from tests.qtui import replay as r
from tests.qtui.conftest import run as run  # the fixture
from tests.qtui.driving import driving
from tests.qtui.saving import lines_of_csv, view

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "tests.plugins.example:register"
FORMAT = "ternary-g32"
LAYER = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("example") / "tiny-llama")


@pytest.fixture(scope="module")
def counts(source: Path) -> dict[str, int]:
    """Weights by kind, as safetensors has the shapes."""
    found: Counter[str] = Counter()
    with safe_open(source / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118  the file is no mapping
            shape = file.get_slice(name).get_shape()
            if len(shape) == 2:
                found[name.removesuffix(".weight").rpartition(".")[2]] += math.prod(shape)
    return dict(found)


@pytest.fixture(scope="module")
def small(prose: Path) -> tuple[str, ...]:
    """Options of a quick measurement."""
    return ("--text", str(prose), "--tokens", "512", "--seq-len", "32", "--device", "cpu")


def environment(*more_path: str, **variables: str) -> dict[str, str]:
    """Of a process that finds this checkout, and what else is named."""
    path = [*more_path, str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), **variables}


def in_own_process(given: list[str], variables: dict[str, str]) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "qtui", *given],
        capture_output=True, text=True, check=False, timeout=200, env=variables,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


# --- the command line ----------------------------------------------------------------------------


def test_its_command_runs_in_a_process_that_the_environment_names_it_to() -> None:
    given = ["count", "demo", "--kinds", "q_proj,lm_head", "--json", "-"]
    found = json.loads(in_own_process(given, environment(QTUI_PLUGINS=PACKAGE)))
    config = json.loads((ROOT / "engine/demo/checkpoint/config.json").read_text("utf-8"))
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    assert found == {
        "schema": "example.count/1",
        "weights": {"q_proj": layers * hidden**2, "lm_head": config["vocab_size"] * hidden},
    }


def test_an_installed_package_is_found_by_its_entry_point(tmp_path: Path) -> None:
    installed = tmp_path / "example-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(f"[qtui.plugins]\nexample = {PACKAGE}\n")
    variables = environment(str(tmp_path))
    variables.pop(plugins.VARIABLE, None)
    assert "Count the weights of every kind of layer." in in_own_process(["--help"], variables)
    targets = " ".join(in_own_process(["export", "--help"], variables).split())
    assert "listing: a text file, which people read" in targets


@pytest.mark.usefixtures("example")
def test_its_command_is_in_help(run: Run) -> None:
    assert "Count the weights of every kind of layer." in run("--help")[1]
    own = run("count", "--help")[1]
    assert "kinds of layers; all if not given" in own
    assert "--memory-budget" in own  # and the options that commands share


@pytest.mark.usefixtures("example")
def test_its_command_prints_a_table_writes_json_and_says_what_is_wrong(
    run: Run, source: Path, counts: dict[str, int], tmp_path: Path
) -> None:
    path = tmp_path / "counts.json"
    code, out, err = run("count", str(source), "--json", str(path))
    assert code == 0, err
    assert {
        line.split()[0]: int(line.split()[1].replace(",", "")) for line in out.splitlines()
    } == (counts)
    assert json.loads(path.read_text("utf-8"))["weights"] == counts
    code, out, err = run("count", str(source), "--kinds", "q_proj,")
    assert (code, out) == (2, "")
    assert "a kind is empty" in err


@pytest.mark.usefixtures("example")
def test_triage_has_its_format_and_its_figure(run: Run, source: Path) -> None:
    code, out, err = run("triage", str(source), "--formats", "TERNARY-g32", "--json", "-")
    assert code == 0, err
    layers = json.loads(out)["layers"]
    assert len(layers) == 23
    for layer in layers:
        assert 0.3 < layer["errors"][FORMAT]["relative"] < 0.7
        assert 0 <= layer["figures"]["skew"] < 0.2
    code, out, err = run("triage", str(source), "--formats", FORMAT)
    assert code == 0, err
    assert FORMAT in out
    assert "did you mean 'ternary'" in run("triage", str(source), "--formats", "ternery")[2]


@pytest.mark.usefixtures("example")
def test_a_recipe_in_its_format_is_evaluated(
    run: Run, source: Path, small: tuple[str, ...]
) -> None:
    code, out, err = run("eval", str(source), "--format", FORMAT, *small, "--json", "-")
    assert code == 0, err
    recipe = json.loads(out)["recipe"]
    assert recipe["name"] == FORMAT
    assert recipe["kl"] > 0
    assert math.isfinite(recipe["kl"])
    assert recipe["bits_per_weight"] == pytest.approx(2 + 16 / 32)


@pytest.mark.usefixtures("example")
def test_a_recipe_is_exported_to_its_target(run: Run, source: Path, tmp_path: Path) -> None:
    given = ("export", str(source), "--to", "listing", "-o")
    code, out, err = run(*given, str(tmp_path / "out"), "--format", FORMAT, "--json", "-")
    assert code == 0, err
    written = json.loads(out)
    lines = (tmp_path / "out" / "layers.txt").read_text("utf-8").splitlines()
    assert dict(line.split() for line in lines) == written["recipe"]
    assert set(written["recipe"].values()) == {FORMAT}
    assert written["notes"] == ["only a listing"]
    code, out, err = run(*given, str(tmp_path / "refused"), "--format", "fp8-e4m3")
    assert code == 5
    assert "a listing has no word for floats" in err
    code, _, err = run("export", str(source), "--to", "listng", "-o", "x", "--format", FORMAT)
    assert code == 2
    assert "listing (a text file, which people read)" in err


# --- engines -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("example")
def test_its_job_runs_in_this_process(source: Path, prose: Path, counts: dict[str, int]) -> None:
    client = in_process(str(source))
    try:
        list(client.run(p.Open(str(source), settings(prose), model=False)))
        events = list(client.run(CountWeights()))
        _check_count(events, client.session, counts)
        with pytest.raises(JobError, match="a kind is empty"):
            list(client.run(CountWeights(("",))))
    finally:
        client.close()


@pytest.mark.usefixtures("example")
def test_its_job_runs_in_an_engine_process_that_its_command_attaches_to(
    run: Run, source: Path, prose: Path, counts: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(QTUI_PLUGINS=PACKAGE).items():
        monkeypatch.setenv(name, value)
    client = spawned(str(source))
    try:
        client.send(p.Open(str(source), settings(prose), model=False))
        until(client, ended("open"))
        client.send(CountWeights(ask="mine"))
        events = until(client, ended("count"))
        # Of progress a client that is behind gets the newest alone, after what the journal keeps.
        if not any(map(_is_last, events)):
            events += until(client, _is_last)
        _check_count(events, client.session, counts)
        small = ("--text", str(prose), "--tokens", "512", "--seq-len", "32")
        code, out, err = run("count", str(source), *small, "--json", "-")
        assert code == 0, err
        assert json.loads(out)["weights"] == counts
    finally:
        client.send(p.Stop())
        client.close()


def _is_last(event: p.AnyEvent) -> bool:
    return isinstance(event, p.Progress) and event.done == event.total - 1


def _check_count(events: list[p.AnyEvent], session: Session, counts: dict[str, int]) -> None:
    (started,) = [each for each in events if isinstance(each, p.JobStarted)]
    assert isinstance(started.command, CountWeights)
    (*_, progress) = [each for each in events if isinstance(each, p.Progress)]
    assert (progress.job, progress.subject) == (started.job, "lm_head")
    assert (progress.done, progress.total) == (22, len(session.layers.names))
    job = session.jobs[started.job]
    assert (job.status, job.measured) == ("done", len(counts))
    assert job.read(WeightCounts).weights == counts


# --- the library ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("example")
def test_the_library_sweeps_its_format(source: Path, prose: Path) -> None:
    with engine.open(str(source), text=str(prose), tokens=512, seq_len=32, device="cpu") as model:
        sweep = model.sweep([FORMAT], exact="top:1")
        rows = sweep.rows()
        assert {row["format"] for row in rows} == {FORMAT}
        assert len(rows) == len(model.layers)
        measured = [row["measured.kl"] for row in rows if "measured.kl" in row]
        assert measured
        assert all(math.isfinite(kl) and kl > 0 for kl in measured)
        assert FORMAT in str(sweep)


# --- the terminal interface ----------------------------------------------------------------------


@pytest.fixture
def triaged(example: None, source: Path, prose: Path) -> Iterator[list[p.AnyEvent]]:
    """Events of an engine that triaged a checkpoint in the format."""
    client = in_process(str(source))
    try:
        command = p.Open(str(source), settings(prose, sweep_formats=(FORMAT,)), model=False)
        events = list(client.run(command))
        events += client.run(p.Triage((FORMAT,)))
        yield events
    finally:
        client.close()


async def test_its_figure_and_its_format_are_in_the_table_the_filter_the_pane_and_help(
    triaged: list[p.AnyEvent], tmp_path: Path
) -> None:
    async with driving(*triaged, size=(200, 50)) as d:
        session = d.app.session
        read = SKEW.read.bind(Context(session))
        d.table.order_by("skew")
        await d.settled()
        values = [read(row) for row in d.table.rows]
        assert values == sorted(values, reverse=True)
        (headings,) = [line for line in d.screen().splitlines() if "▾skew" in line]
        assert "holds" in headings
        largest = SKEW.quantity.text(values[0])
        assert f"asymmetry {largest}" in d.screen()  # in the pane
        assert d.screen().count(largest) >= 2  # and in the column
        assert FORMAT in d.screen()

        bound = f"{100 * sorted(values)[len(values) // 2]:.6f}%"
        await d.pilot.press("slash", *f"skew>{bound}", "enter")
        await d.settled()
        kept = parse_filter(f"skew>{bound}").rows(Context(session))
        assert set(d.table.rows) == set(kept)
        assert 0 < len(kept) < len(values)
        await d.pilot.press("escape")

        await d.pilot.press("equals_sign", *"tern")
        await d.until(lambda: "ternary" in d.screen() and "2.25 bit" in d.screen())
        await d.pilot.press("tab", *"-g32", "enter")
        await d.until(lambda: d.sent(p.SetFormat))
        (sent,) = d.sent(p.SetFormat)
        assert isinstance(sent, p.SetFormat)
        assert sent.format == FORMAT

        await d.pilot.press("question_mark")
        await d.until(lambda: isinstance(d.app.screen, Help))
        help = "\n".join("".join(text for text, _ in line) for line in d.app.screen.lines)
        assert "skew>.5%" in help
        assert "mean over standard deviation" in help
        assert "Weights by kind" in help


def test_its_figure_is_in_json_and_in_csv(triaged: list[p.AnyEvent], tmp_path: Path) -> None:
    session = r.folded(*triaged)
    rows = range(len(session.layers.names))
    expected = [SKEW.read.bind(Context(session))(row) for row in rows]
    document = json.loads(json_output.encode(triage_document(session)))
    assert [layer["figures"]["skew"] for layer in document["layers"]] == expected
    shown = view(session, rows=tuple(rows), layer=LAYER, format=FORMAT)
    _, lines = lines_of_csv(save("table", str(tmp_path / "rows.csv"), shown).path)
    assert [float(line["skew"]) for line in lines] == expected
    assert all(0.3 < float(line["relative_error"]) < 0.7 for line in lines)


@pytest.mark.usefixtures("example")
async def test_its_screen_has_its_key_asks_for_its_job_and_draws_what_it_found() -> None:
    async with driving(*r.opening(), size=(120, 30)) as d:
        await d.pilot.press("K")
        await d.until(lambda: isinstance(d.app.screen, Kinds))
        await d.settled()
        assert "c counts the weights" in d.screen()
        assert "c count" in d.screen().splitlines()[-1]  # the key bar
        await d.pilot.press("c")
        await d.until(lambda: d.sent(CountWeights))
        command = CountWeights()
        await d.give(p.JobStarted(job="7", kind="count", title="count", command=command, total=2))
        await d.give(p.Progress(job="7", done=1, total=2, subject=LAYER))
        found = {"type": "x", "schema": "example.count/1", "weights": {"q_proj": 327_680}}
        await d.give(p.JobEnded(job="7", kind="count", status="done", measured=1, result=found))
        assert "q_proj                  327,680" in d.screen()
        await d.pilot.press("n")
        await d.settled()
        assert "count: started" in d.screen()
        assert "count: done, 1 measured" in d.screen()
