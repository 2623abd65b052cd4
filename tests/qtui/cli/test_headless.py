"""Runs with no screen: what is sent, what ends them, and what is said on the way."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterable, Iterator

import msgspec
import pytest

from engine import client
from engine import protocol as p
from engine.session import Session, apply
from qtui.cli.headless import RunError, measure
from qtui.cli.progress import Meter
from tests.qtui import replay as r
from tests.qtui.scripted import Scripted, install, whole


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that go by when told."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


def test_triage_opens_without_a_model(monkeypatch: pytest.MonkeyPatch, said: io.StringIO) -> None:
    engine = install(monkeypatch)
    outcome = measure("demo", r.SETTINGS, p.Triage(("int8",)), Meter(said))
    assert engine.sent == [
        p.Open("demo", r.SETTINGS, model=False, take_up=False),
        p.Triage(("int8",)),
    ]
    assert engine.closed
    assert outcome.job.resumed == 3
    assert all(outcome.session.layers.weights)


def test_a_sweep_ends_with_its_own_job(monkeypatch: pytest.MonkeyPatch, said: io.StringIO) -> None:
    def answer(command: p.AnyCommand, session: Session) -> Iterator[p.AnyEvent]:
        if isinstance(command, p.Sweep):
            # A recipe taken up from an earlier run is scored first.
            yield p.JobStarted(
                job="9", kind="evaluate", command=p.Evaluate(), title="evaluate", total=0
            )
            yield p.JobEnded(job="9", kind="evaluate", status="failed", message="theirs")
        yield from whole(command, session)

    install(monkeypatch, answer)
    outcome = measure("demo", r.SETTINGS, p.Sweep((r.FORMAT,)), Meter(said))
    assert outcome.job.kind == "sweep"
    assert outcome.formats == (r.FORMAT,)


def test_somebody_else_s_job_of_the_same_kind_is_not_ours(
    monkeypatch: pytest.MonkeyPatch, said: io.StringIO
) -> None:
    def answer(command: p.AnyCommand, session: Session) -> Iterator[p.AnyEvent]:
        if isinstance(command, p.Evaluate):
            theirs = r.score("theirs", ppl=99.0, half=0.05)
            yield p.JobStarted(
                job="9",
                kind="evaluate",
                command=p.Evaluate(ask="theirs"),
                title="evaluate",
                recipe="theirs",
            )
            yield p.Refused("Evaluate", "theirs cannot be", ask="theirs")
            yield p.Learned(("t",), (theirs,))
            yield p.JobEnded(job="9", kind="evaluate", status="done")
        yield from whole(command, session)

    install(monkeypatch, answer)
    outcome = measure("demo", r.SETTINGS, p.Evaluate(format="int4-g128"), Meter(said))
    assert outcome.score is not None
    assert outcome.score.ppl == 26.42


def test_formats_are_named_as_the_engine_names_them(
    monkeypatch: pytest.MonkeyPatch, said: io.StringIO
) -> None:
    install(monkeypatch)
    outcome = measure("demo", r.SETTINGS, p.Sweep(("int4-g128-asym",)), Meter(said))
    assert outcome.formats == (r.FORMAT,)


def test_a_recipe_is_asked_for_once_the_model_has_named_its_layers(
    monkeypatch: pytest.MonkeyPatch, said: io.StringIO
) -> None:
    engine = install(monkeypatch)
    seen: list[str] = []

    def ask(session: Session) -> p.Evaluate:
        assert session.jobs["1"].status == "done"
        seen.extend(session.layers.names)
        return p.Evaluate(layers={"lm_head": "int8"})

    outcome = measure("demo", r.SETTINGS, ask, Meter(said))
    assert seen == r.names()
    assert engine.sent[1] == p.Evaluate(layers={"lm_head": "int8"})
    assert outcome.score is not None
    assert outcome.score.ppl == 26.42


def test_what_an_earlier_run_left_does_not_count_as_open(
    monkeypatch: pytest.MonkeyPatch, said: io.StringIO
) -> None:
    engine = install(monkeypatch)
    for event in r.opening(["an.older.layer"]):
        apply(engine.session, event)

    def ask(session: Session) -> p.Evaluate:
        assert session.layers.names == r.names()
        return p.Evaluate(format="int8")

    measure("demo", r.SETTINGS, ask, Meter(said))


def test_a_failed_opening_ends_a_run_with_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, said: io.StringIO
) -> None:
    def answer(command: p.AnyCommand, session: Session) -> Iterator[p.AnyEvent]:
        if isinstance(command, p.Open):
            yield next(iter(r.opening()))
            yield p.JobStarted(
                job="1", kind="open", command=p.Open("demo", p.Settings()), title="open", total=0
            )
            yield p.JobEnded(
                job="1", kind="open", status="failed", message="no weights", exit_code=3
            )

    engine = install(monkeypatch, answer)
    with pytest.raises(RunError, match="no weights") as failure:
        measure("demo", r.SETTINGS, p.Triage(), Meter(said))
    assert failure.value.exit_code == 3
    assert engine.closed


@pytest.mark.parametrize(
    ("status", "code", "expected"), [("failed", 4, 4), ("failed", 0, 1), ("cancelled", 0, 130)]
)
def test_a_job_that_does_not_end_well_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
    said: io.StringIO,
    status: p.JobStatus,
    code: int,
    expected: int,
) -> None:
    def answer(command: p.AnyCommand, session: Session) -> Iterator[p.AnyEvent]:
        if isinstance(command, p.Sweep):
            yield p.JobStarted(job="3", kind="sweep", command=p.Sweep(), title="sweep", total=0)
            yield p.JobEnded(job="3", kind="sweep", status=status, exit_code=code)
        else:
            yield from whole(command, session)

    install(monkeypatch, answer)
    with pytest.raises(RunError) as failure:
        measure("demo", r.SETTINGS, p.Sweep(("int8",)), Meter(said))
    assert failure.value.exit_code == expected


def test_a_refused_command_is_an_error(monkeypatch: pytest.MonkeyPatch, said: io.StringIO) -> None:
    def answer(command: p.AnyCommand, session: Session) -> Iterator[p.AnyEvent]:
        if isinstance(command, p.Evaluate):
            yield p.Refused("SetFormat", "somebody else's")
            yield p.Refused("Evaluate", "int9 is no format", 2)
        else:
            yield from whole(command, session)

    install(monkeypatch, answer)
    with pytest.raises(RunError, match="int9") as failure:
        measure("demo", r.SETTINGS, lambda session: p.Evaluate(format="int9"), Meter(said))
    assert failure.value.exit_code == 2


def test_an_interrupted_run_cancels_its_job_and_leaves(
    monkeypatch: pytest.MonkeyPatch, said: io.StringIO
) -> None:
    def answer(command: p.AnyCommand, session: Session) -> Iterable[p.AnyEvent | BaseException]:
        if isinstance(command, p.Sweep):
            return [*list(r.swept(done=5)), KeyboardInterrupt()]
        return whole(command, session)

    engine = install(monkeypatch, answer)
    with pytest.raises(KeyboardInterrupt):
        measure("demo", r.SETTINGS, p.Sweep((r.FORMAT,)), Meter(said))
    assert engine.sent[-1] == p.Cancel("3")
    assert engine.closed


def running(settings: p.Settings = r.SETTINGS) -> Session:
    """The session of an engine that somebody else uses."""
    session = Session()
    for event in r.opening():
        apply(session, event)
    session.settings = settings
    return session


def attached_answer(command: p.AnyCommand, session: Session) -> Iterable[p.AnyEvent]:
    return [] if isinstance(command, p.Open) else whole(command, session)


def test_a_run_uses_the_engine_that_has_the_checkpoint(
    monkeypatch: pytest.MonkeyPatch, said: io.StringIO
) -> None:
    engine = install(monkeypatch, attached_answer, attached=running())
    outcome = measure("demo", r.SETTINGS, p.Sweep((r.FORMAT,)), Meter(said))
    assert outcome.session is engine.session


def test_a_run_whose_engine_is_stopped_goes_on_by_itself(
    monkeypatch: pytest.MonkeyPatch, said: io.StringIO
) -> None:
    """Also where another engine takes its place, and is stopped as well."""

    def stopped(command: p.AnyCommand, session: Session) -> Iterable[p.AnyEvent | BaseException]:
        if isinstance(command, p.Sweep):
            return [*list(r.swept(done=5)), client.EngineGoneError("the engine ended", ["log"])]
        return []

    theirs: list[Scripted] = []
    patience: list[float] = []
    own = Scripted(whole)

    def attached(source: str, command: str) -> Scripted:
        theirs.append(Scripted(stopped, running()))
        return theirs[-1]

    def in_process(source: str, **given: float) -> Scripted:
        patience.append(given["patience"])
        return own

    monkeypatch.setattr(client, "attached", attached)
    monkeypatch.setattr(client, "own_process", lambda source: None)
    monkeypatch.setattr(client, "in_process", in_process)
    outcome = measure("demo", r.SETTINGS, p.Sweep((r.FORMAT,)), Meter(said))
    assert outcome.session is own.session
    assert len(theirs) == 2
    assert all(each.closed for each in theirs)
    assert patience == [client.END_SECONDS]
    words = "the engine ended: going on without it; its results are saved"
    assert said.getvalue().splitlines().count(words) == 2


@pytest.mark.parametrize("attached", [True, False])
def test_seconds_of_loading_are_those_of_this_run(
    monkeypatch: pytest.MonkeyPatch, said: io.StringIO, attached: bool
) -> None:
    def answer(command: p.AnyCommand, session: Session) -> Iterable[p.AnyEvent]:
        for event in (attached_answer if attached else whole)(command, session):
            if isinstance(event, p.JobEnded) and event.kind == "sweep":
                event = msgspec.structs.replace(event, timings={"load_s": 9.0, "measure_s": 2.0})
            yield event

    install(monkeypatch, answer, attached=running() if attached else None)
    outcome = measure("demo", r.SETTINGS, p.Sweep((r.FORMAT,)), Meter(said))
    assert outcome.job.timings == {"load_s": 0.0 if attached else 9.0, "measure_s": 2.0}


def test_beside_an_engine_with_another_protocol_a_run_measures_by_itself(
    monkeypatch: pytest.MonkeyPatch, said: io.StringIO
) -> None:
    theirs = msgspec.structs.replace(r.SETTINGS, tokens=4096)
    used = install(monkeypatch, attached_answer, attached=running(theirs))
    own: list[Scripted] = []

    def in_process(source: str, **given: object) -> Scripted:
        own.append(Scripted(whole))
        return own[-1]

    monkeypatch.setattr(client, "in_process", in_process)
    fresh = msgspec.structs.replace(theirs, fresh=True)
    for settings, why in ((r.SETTINGS, "tokens 4096, not 16384"), (fresh, "--fresh")):
        outcome = measure("demo", settings, p.Sweep((r.FORMAT,)), Meter(said))
        assert outcome.session is own[-1].session
        assert own[-1].closed
        assert why in said.getvalue()
        assert "measuring beside it; results are shared" in said.getvalue()
    assert used.closed
    assert not used.sent


def test_an_engine_with_another_text_still_knows_the_weights(
    monkeypatch: pytest.MonkeyPatch, said: io.StringIO
) -> None:
    theirs = msgspec.structs.replace(r.SETTINGS, tokens=4096, text="/other.txt")
    install(monkeypatch, attached_answer, attached=running(theirs))
    measure("demo", r.SETTINGS, p.Triage((r.FORMAT,)), Meter(said))


def test_a_sweep_that_runs_already_is_followed_and_left_alone(
    monkeypatch: pytest.MonkeyPatch, said: io.StringIO
) -> None:
    session = running()
    started, *rest = r.swept()
    apply(session, started)

    def answer(command: p.AnyCommand, session: Session) -> Iterable[p.AnyEvent | BaseException]:
        if isinstance(command, p.Sweep):
            return [p.Refused("Sweep", "that sweep is running already"), *rest]
        return []

    install(monkeypatch, answer, attached=session)
    outcome = measure("demo", r.SETTINGS, p.Sweep((r.FORMAT,)), Meter(said))
    assert outcome.job.id == "3"
    assert "following it" in said.getvalue()


def test_warnings_and_fallbacks_are_said_and_many_are_counted(
    monkeypatch: pytest.MonkeyPatch, said: io.StringIO
) -> None:
    def answer(command: p.AnyCommand, session: Session) -> Iterator[p.AnyEvent]:
        if isinstance(command, p.Sweep):
            yield p.Notice("warning", "the network is \x1b[31mdown")
            for name in r.names():
                yield p.Fallback(layer=name, format="q4_k", why="rows of 100")
        yield from whole(command, session)

    install(monkeypatch, answer)
    outcome = measure("demo", r.SETTINGS, p.Sweep((r.FORMAT,)), Meter(said))
    text = said.getvalue()
    assert "warning: the network is \\x1b[31mdown\n" in text
    assert text.count("is kept, not q4_k: rows of 100") == 10
    assert f"fallbacks: {len(r.names())} in total" in text
    assert set(outcome.formats) == {"q4_k", r.FORMAT}


def test_progress_is_a_line_every_few_seconds_where_there_is_no_terminal() -> None:
    said, clock = io.StringIO(), Clock()
    meter = Meter(said, clock)
    for second in range(12):
        clock.seconds = 100.0 + second
        meter.show("sweep", second, 36, "0:12 left", "0 mlp.down_proj")
    assert said.getvalue().splitlines() == [
        "sweep  0/36  0:12 left  0 mlp.down_proj",
        "sweep  5/36  0:12 left  0 mlp.down_proj",
        "sweep  10/36  0:12 left  0 mlp.down_proj",
    ]


def test_progress_is_a_bar_on_a_terminal_and_gives_way_to_words() -> None:
    said, clock = Terminal(), Clock()
    meter = Meter(said, clock)
    meter.show("sweep", 18, 36)
    clock.seconds += 0.05
    meter.show("sweep", 19, 36)
    assert said.getvalue().count("\r") == 1
    assert "━" * 15 + "─" * 15 in said.getvalue()
    meter.say("a warning")
    assert said.getvalue().endswith("\r\x1b[Ka warning\n")
    meter.clear()
    assert said.getvalue().endswith("a warning\n")


def test_progress_is_ascii_where_the_terminal_has_no_more() -> None:
    class Old(Terminal):
        encoding = "ascii"  # type: ignore[assignment]

    said = Old()
    Meter(said, Clock()).show("sweep", 18, 36, "1:01 left", "façade")
    assert said.getvalue().isascii()
    assert "#" * 15 in said.getvalue()


def test_a_second_interrupt_ends_at_once_and_in_good_order() -> None:
    """The first lets a step of the computation end; the interpreter must not end within one."""
    program = """if True:
        import threading, time
        from qtui.cli.exit import closed_in_the_end
        class Engine:
            def close(self):
                threading.Thread(target=time.sleep, args=(60,), daemon=False).start()
                raise KeyboardInterrupt
        with closed_in_the_end(Engine()):
            print("computing")
    """
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30
    )
    assert (ended.returncode, ended.stdout) == (130, "computing\n")
    assert (
        ended.stderr
        == "qtui: interrupted while closing: ended at once; what was measured is saved\n"
    )
