"""What commands print where, how they fail, and how they end."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from engine import protocol as p
from engine.session import Session
from tests.qtui import replay as r
from tests.qtui.scripted import Scripted, install, whole

QUICK = ("--profile", "quick")
EXPORT = ("export", "demo", "--format", "int4-g128", "--to", "checkpoint")
Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("given", "schema"),
    [
        (("triage", "demo"), "qtui.triage/1"),
        (("sweep", "demo"), "qtui.sweep/1"),
        (("eval", "demo", "--format", "int4-g128"), "qtui.eval/1"),
        ((*EXPORT, "-o", "out"), "qtui.export/1"),
    ],
)
def test_a_dash_prints_the_document_and_nothing_more(
    run: Run, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], schema: str
) -> None:
    install(monkeypatch)
    code, out, err = run(*given, "--json", "-")
    assert code == 0, err
    assert json.loads(out)["schema"] == schema
    assert "device: cpu" in err or schema in ("qtui.triage/1", "qtui.export/1")


def test_a_document_in_a_file_leaves_the_table_on_stdout(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch)
    path = tmp_path / "found.json"
    code, out, _ = run("sweep", "demo", "--json", str(path))
    assert code == 0
    assert json.loads(path.read_text())["schema"] == "qtui.sweep/1"
    assert "PPL 26.17 unchanged" in out
    assert out.count("int4-g128") >= len(r.names())


def test_an_evaluation_prints_the_recipe_beside_the_model(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    code, out, _ = run("eval", "demo", "--format", "int4-g128")
    assert code == 0
    assert "PPL 26.17 unchanged" in out
    assert "PPL     26.42  (95%: 26.37 … 26.47)" in out
    assert "4.25 per weight" in out


def test_a_recipe_file_reaches_the_engine_by_exact_names(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = install(monkeypatch)
    path = tmp_path / "mine.toml"
    path.write_text(
        'schema = "qtui.recipe/1"\ncheckpoint = "another"\n[layers]\n"lm_head" = "int8"\n'
    )
    code, _, err = run("eval", "demo", "--recipe", str(path))
    assert code == 0, err
    assert engine.sent[1] == p.Evaluate(layers={"lm_head": "int8"})
    assert "was written for another" in err


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        (("--recipe", "q4_k_m"), p.Evaluate(recipe="Q4_K_M")),
        (("--recipe", "first-last"), p.Evaluate(recipe="first-last")),
        (("--recipe", "First-Last", "--format", "int3"), p.Evaluate("int3", recipe="first-last")),
    ],
)
def test_a_built_in_recipe_reaches_the_engine_by_its_name(
    run: Run, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], asked: p.Evaluate
) -> None:
    engine = install(monkeypatch)
    code, _, err = run("eval", "demo", *given)
    assert code == 0, err
    assert engine.sent[1] == asked


def test_a_recipe_with_an_unknown_layer_exits_with_2(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch)
    path = tmp_path / "mine.toml"
    path.write_text('schema = "qtui.recipe/1"\n[layers]\n"model.head" = "int8"\n')
    code, out, err = run("eval", "demo", "--recipe", str(path))
    assert (code, out) == (2, "")
    assert "mine.toml" in err
    assert "'model.head'" in err


def test_an_export_asks_for_a_folder_as_seen_from_here_and_tells_what_it_wrote(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*EXPORT, "-o", "out", "--overwrite")
    assert code == 0, err
    assert engine.sent == [
        p.Open("demo", engine.sent[0].settings, model=False, take_up=False),  # type: ignore[union-attr]
        p.Export(out=str(tmp_path / "out"), format="int4-g128", overwrite=True),
    ]
    assert f"folder  {tmp_path / 'out'}\n" in out
    assert "2.6 MB, of 11.6 MB" in out
    assert "2 in int4-g128; 2 stored as codes" in out
    assert "4.25 per weight" in out
    assert "note: the head was \\x1b[2Jtied" in out
    assert f"fallback: {r.names()[3]} is kept, not {r.FORMAT}: rows of 100" in out
    assert "export  1.3 MB of 2.6 MB" in err
    assert "theirs" not in out


def test_a_recipe_file_is_exported_by_exact_names(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = install(monkeypatch)
    path = tmp_path / "mine.toml"
    path.write_text(
        'schema = "qtui.recipe/1"\ndefault = "int8"\n[layers]\n"re:lm_h.*" = "int4-g32"\n'
    )
    code, _, err = run(
        "export", "demo", "--recipe", str(path), "--to", "checkpoint", "-o", str(tmp_path / "o")
    )
    assert code == 0, err
    assert engine.sent[1] == p.Export(
        out=str(tmp_path / "o"), format="int8", layers={"lm_head": "int4-g32"}
    )


# --- how it ends ---------------------------------------------------------------------------------


def failing(code: int, message: str) -> Callable[[p.AnyCommand, Session], Iterator[p.AnyEvent]]:
    def answer(command: p.AnyCommand, session: Session) -> Iterator[p.AnyEvent]:
        if isinstance(command, p.Open):
            yield p.Opened("demo", r.SETTINGS, {})
            yield p.JobStarted(
                job="1", kind="open", command=p.Open("demo", p.Settings()), title="open", total=0
            )
            yield p.JobEnded(job="1", kind="open", status="failed", message=message, exit_code=code)

    return answer


@pytest.mark.parametrize("code", [1, 3, 4, 5])
def test_a_failure_is_one_sentence_and_the_engine_s_exit_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    install(monkeypatch, failing(code, "no \x1b[2J weights"))
    assert run("sweep", "demo") == (code, "", "qtui: no \\x1b[2J weights\n")


def interrupted(
    how: Callable[[], BaseException],
) -> Callable[[p.AnyCommand, Session], Iterable[p.AnyEvent | BaseException]]:
    def answer(command: p.AnyCommand, session: Session) -> Iterable[p.AnyEvent | BaseException]:
        if isinstance(command, p.Sweep):
            return [*r.swept(done=3), how()]
        return whole(command, session)

    return answer


def test_an_interrupted_run_says_that_what_it_measured_is_kept(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = install(monkeypatch, interrupted(KeyboardInterrupt))
    path = tmp_path / "never.json"
    code, out, err = run("sweep", "demo", "--json", str(path))
    assert (code, out) == (130, "")
    assert "results are saved" in err
    assert engine.closed
    assert not path.exists()


def test_an_interrupted_export_is_cancelled_and_says_what_becomes_of_the_folder(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def answer(command: p.AnyCommand, session: Session) -> Iterator[p.AnyEvent | BaseException]:
        if isinstance(command, p.Export):
            yield p.JobStarted(job="5", kind="export", command=p.Export(out="/out"), title="export")
            yield KeyboardInterrupt()
        else:
            yield from whole(command, session)

    engine = install(monkeypatch, answer)
    code, out, err = run(*EXPORT, "-o", str(tmp_path / "out"))
    assert (code, out) == (130, "")
    assert "the incomplete folder is deleted" in err
    assert "measured" not in err
    assert engine.sent[-1] == p.Cancel("5")


def test_sigterm_ends_a_run_as_an_interrupt_does(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminated(Scripted):
        def receive(self, timeout: float | None = None) -> p.AnyEvent | None:
            event = super().receive(timeout)
            if isinstance(event, p.Progress):
                os.kill(os.getpid(), signal.SIGTERM)
            return event

    from engine import client

    engine = Terminated(interrupted(lambda: AssertionError("the signal was not heard")))
    monkeypatch.setattr(client, "attached", lambda source, command: None)
    monkeypatch.setattr(client, "in_process", lambda source, **_: engine)
    before = signal.getsignal(signal.SIGTERM)
    assert run("sweep", "demo")[0] == 130
    assert engine.closed
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_reader_that_left_ends_a_command_quietly(tmp_path: Path) -> None:
    import subprocess

    program = (
        "import sys; from qtui import cli; from qtui.cli import installation as doctor\n"
        "doctor.report_text = lambda report: 'x' * 1_000_000\n"
        "cli.main(['doctor'])"
    )
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, "")
