"""Commands: declared once, also from outside; answered to whoever asked."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from engine import protocol as p
from engine.client import InProcess, JobError, in_process, spawned
from engine.service import commands
from engine.service.engine import Engine
from engine.service.jobs import ChangeSpec, JobSpec
from engine.store.journal import FactStore, Journal
from engine.store.paths import facts_file, session_folder
from engine.store.upcasters import UPCASTERS
from tests import tiny
from tests.drive import ended, settings, until
from tests.service.plugin_job import COUNT, CountForEver, CountLayers


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("commands") / "tiny-llama")


@pytest.fixture
def client(source: Path, prose: Path) -> Iterator[InProcess]:
    found = in_process(str(source))
    list(found.run(p.Open(str(source), settings(prose), model=False)))
    yield found
    found.close()


def test_every_command_is_declared_or_the_engine_s_own() -> None:
    own = {p.Cancel, p.RunFirst, p.Stop, p.AskClients, p.Unknown}
    for kind in set(p.command_types().values()) - own:
        spec = commands._specs.get(kind) or commands.spec_of(made(kind))
        assert isinstance(spec, JobSpec | ChangeSpec)
        assert spec.command is kind


def made(kind: type[p.Command]) -> p.Command:
    """A command of this type, with something in every field."""
    fields = {"layers": (), "format": "int8", "layer": "a", "job": "1", "source": "demo"}
    fields |= {"out": "/out", "settings": {}, "name": "x", "number": 1}
    known = {name: fields[name] for name in kind.__struct_fields__ if name in fields}
    if kind in (p.Evaluate, p.Export):
        known["layers"] = {}
    return msgspec.convert(known, kind)


def test_to_take_any_command_imports_no_tensor_library() -> None:
    program = (
        "import sys; from engine.service import commands; commands.load()\n"
        "heavy = {'torch', 'transformers', 'numpy', 'scipy', 'safetensors', 'datasets'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (told.returncode, told.stderr) == (0, "")


def test_a_job_from_outside_runs_like_any_other(client: InProcess) -> None:
    events = list(client.run(CountLayers(("q_proj", "k_proj"))))
    started = next(event for event in events if isinstance(event, p.JobStarted))
    assert (started.kind, started.title) == ("count", "count q_proj k_proj")
    assert isinstance(started.command, CountLayers)
    last = events[-1]
    assert isinstance(last, p.JobEnded)
    expected = [n for n in client.session.layers.names if n.endswith(("q_proj", "k_proj"))]
    assert (last.status, last.measured) == ("done", len(expected))
    assert client.session.jobs[started.job].command == started.command


def test_a_job_goes_on_on_another_lane(client: InProcess) -> None:
    events = client.run(CountLayers())
    said = [event.message for event in events if isinstance(event, p.Notice)]
    assert said == ["begun on compute", "goes on on export"]


def test_a_job_from_outside_says_at_once_what_is_wrong(client: InProcess) -> None:
    with pytest.raises(JobError, match="a kind has a name") as refused:
        list(client.run(CountLayers(("",))))
    assert refused.value.exit_code == 2


def test_a_job_from_outside_travels_to_an_engine_process_and_back(
    source: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QTUI_PLUGINS", "tests.service.plugin_job")
    root, known = str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [root, known])))
    client = spawned(str(source))
    try:
        client.send(p.Open(str(source), settings(prose), model=False))
        client.send(CountLayers(("q_proj",), ask="mine"))
        events = until(client, ended("count"))
    finally:
        client.send(p.Stop())
        client.close()
    (started,) = [e for e in events if isinstance(e, p.JobStarted) and e.kind == "count"]
    assert started.command == CountLayers(("q_proj",), ask="mine")
    assert isinstance(events[-1], p.JobEnded)
    assert events[-1].status == "done"


def test_a_command_that_nobody_here_knows_is_refused_and_breaks_nothing(
    client: InProcess,
) -> None:
    class Elsewhere(p.Command, frozen=True):
        """Of a plugin that is not installed."""

        size: int = 1

    read = p.decode_frame(p.encode(Elsewhere(2, ask="mine")))
    assert read == p.Unknown("Elsewhere", ask="mine")
    with pytest.raises(JobError, match="no command Elsewhere: install its plugin"):
        list(client.run(p.Unknown("Elsewhere")))
    event = p.JobStarted(job="1", kind="x", title="x", command=Elsewhere(2))
    read_event = p.decode_event(p.encode(event))
    assert isinstance(read_event, p.JobStarted)
    assert read_event.command == p.Unknown("Elsewhere")


def test_two_commands_of_one_name_cannot_be() -> None:
    class Triage(p.Command, frozen=True):
        """Not ours."""

    with pytest.raises(ValueError, match="Triage"):
        p.register_command(Triage)
    with pytest.raises(ValueError, match="declared already"):
        commands.register(dataclasses.replace(COUNT, urgency=9))
    commands.register(COUNT)  # the same again changes nothing


# --- whom an answer goes to ----------------------------------------------------------------------


def test_a_refusal_goes_only_to_the_client_that_asked(tmp_path: Path) -> None:
    told: list[p.AnyEvent] = []
    one: list[p.Refused] = []
    other: list[p.Refused] = []
    facts = FactStore(facts_file())
    engine = Engine(
        Journal(session_folder("refusals"), facts), facts, lambda seq, event: told.append(event)
    )
    try:
        engine.handle(p.Undo(ask="1"), one.append)
        engine.handle(p.AskHistogram("a", ask="2"), other.append)
        engine.handle(p.SetFormat(("a", "b"), "int8", ask="3"), other.append)
    finally:
        engine.close()
    assert [(each.ask, each.command, each.layers) for each in one] == [("1", "Undo", ())]
    assert [(each.ask, each.layers) for each in other] == [("2", ("a",)), ("3", ("a", "b"))]
    assert not told
    assert not engine.session.notices


def test_what_is_under_way_is_not_begun_again(client: InProcess) -> None:
    layer = client.session.layers.names[1]
    # A change is measured where there is a model; here it says why it is not.
    with pytest.raises(JobError, match="without its model"):
        list(client.run(p.SetFormat((layer,), "int4-g32")))
    assert client.session.recipe() == {layer: "int4-g32"}
    assert list(client.run(p.SetFormat((layer,), "int4-g32"))) == []


def test_a_run_that_is_left_early_is_cancelled(client: InProcess) -> None:
    events = client.run(CountForEver())
    for event in events:
        if isinstance(event, p.Progress):
            break
    events.close()  # type: ignore[attr-defined]
    last = until(client, ended("for-ever"))[-1]
    assert isinstance(last, p.JobEnded)
    assert last.status == "cancelled"


# --- what an earlier version wrote ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "title", "formats", "expected"),
    [
        ("open", "open demo", (), p.Open("demo", p.Settings())),
        ("triage", "triage int8", ("int8",), p.Triage(("int8",))),
        ("sweep", "sweep int8", ("int8",), p.Sweep(("int8",))),
        (
            "sweep",
            "sweep int8 int4-g128 restore by block top:3",
            ("int8", "int4-g128"),
            p.Sweep(("int8", "int4-g128"), "restore", "top:3", "block"),
        ),
        ("evaluate", "evaluate", (), p.MeasureRecipe()),
    ],
)
def test_a_job_of_version_1_is_read_with_its_command(
    kind: str, title: str, formats: tuple[str, ...], expected: p.Command
) -> None:
    row = msgspec.msgpack.encode(
        {
            "type": "JobStarted",
            "job": "1",
            "kind": kind,
            "title": title,
            "total": 0,
            "formats": formats,
            "recipe": "",
            "ask": "mine",
        }
    )
    event = p.decode_event(UPCASTERS[1](row))
    assert isinstance(event, p.JobStarted)
    assert event.command == msgspec.structs.replace(expected, ask="mine")
    assert UPCASTERS[1](b"\x81\xa4type") == b"\x81\xa4type"
