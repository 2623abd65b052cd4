"""Commands beside what is saved: read by our own command line they give equal settings."""

from __future__ import annotations

import shlex
import subprocess
from typing import Annotated, Any

import msgspec
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from engine import protocol as p
from engine.profiles import load_profile
from engine.report.reproduce import command, commands, not_in_command, quoted
from engine.session import Job, Session
from qtui.cli.calibrate import calibrate
from qtui.cli.options import FormatsOption, Shared, shares_options, split_formats

app = typer.Typer(pretty_exceptions_enable=False)
heard: list[tuple[str, tuple[str, ...], p.Settings]] = []


@app.command()
@shares_options
def sweep(
    model: Annotated[str, typer.Argument()], formats: FormatsOption = None, *, shared: Shared
) -> None:
    heard.append((model, split_formats(formats), shared.resolve()[0]))


@app.command()
def other() -> None:
    """A second command, so that the first is called by its name."""


def parsed(line: str) -> tuple[str, tuple[str, ...], p.Settings]:
    """What our options make of a command line."""
    program, *words = shlex.split(line)
    assert program == "qtui"
    outcome = CliRunner().invoke(app, words, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return heard.pop()


WORDS = st.text(
    st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=20
).filter(lambda word: word.isprintable())
FORMATS = st.lists(
    st.sampled_from(["int4-g128", "int8", "nf4:dq", "int4-g128+gptq:damp=.02"]),
    min_size=1, max_size=3, unique=True,
).map(tuple)  # fmt: skip


@st.composite
def settings(draw: st.DrawFn) -> p.Settings:
    """Settings as a command line can make them."""
    name = draw(st.sampled_from(["quick", "standard", "thorough"]))
    given: dict[str, Any] = {
        "tokens": st.integers(2, 1 << 30),
        "seq_len": st.integers(2, 1 << 20),
        "stride": st.none() | st.integers(1, 1 << 20),
        "device": st.sampled_from(["auto", "cpu", "cuda", "cuda:3"]),
        "dtype": st.sampled_from(["fp32", "fp16", "bf16", None]),
        "memory_budget": st.none() | st.integers(1, 1 << 40),
        "seed": st.integers(0, 1 << 31),
        "fresh": st.booleans(),
        "trust_remote_code": st.booleans(),
        "follow_links": st.booleans(),
        "text": st.none()
        | WORDS.filter(lambda word: "/" not in word and word != "." and word[0] != "~"),
        "sweep_formats": FORMATS,
    }
    chosen = {key: draw(each) for key, each in given.items() if draw(st.booleans())}
    return msgspec.structs.replace(load_profile(name).settings(name), **chosen)


@given(settings=settings(), source=st.just("demo") | st.just("/models/a b") | WORDS)
def test_the_command_line_reads_it_back(settings: p.Settings, source: str) -> None:
    model, formats, found = parsed(command(settings, source, "sweep"))
    assert model == source
    if formats:
        found = msgspec.structs.replace(found, sweep_formats=formats)
    assert found == settings


def test_what_the_profile_says_is_left_out() -> None:
    plain = load_profile("quick").settings("quick")
    assert command(plain, "demo", "sweep") == "qtui sweep demo --profile quick"
    assert command(plain, "demo", "open") == "qtui demo --profile quick"
    assert command(plain, "meta/llama", "open") == "qtui meta/llama --profile quick"
    assert command(plain, "sweep", "open") == "qtui open sweep --profile quick"


def test_overlapping_windows_of_a_profile_can_be_taken_back(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "qtui").mkdir()
    (tmp_path / "qtui" / "profiles.toml").write_text("[close]\nstride = 64\nsigma = 5.0\n")
    plain = load_profile("close").settings("close")
    apart = msgspec.structs.replace(plain, stride=None)
    assert command(apart, "demo", "sweep") == "qtui sweep demo --profile close --stride 0"
    assert parsed(command(apart, "demo", "sweep"))[2] == apart
    assert not_in_command(apart) == ()
    (said,) = not_in_command(msgspec.structs.replace(plain, sigma=3.0))
    assert said == "sigma was 3.0, profile 'close' now has 5.0"


def test_a_profile_that_is_gone_is_said_in_full() -> None:
    gone = p.Settings(profile="mine", tokens=4096)
    line = command(gone, "demo", "sweep")
    assert "--profile mine --tokens 4096 --seq-len 2048 --stride 0" in line
    assert "--formats int4-g128" in line
    assert not_in_command(gone) == ("profile 'mine' no longer exists",)


def test_formats_that_are_said_are_not_said_twice() -> None:
    settings = p.Settings(sweep_formats=("int8",))
    line = command(settings, "demo", "sweep", ["--formats", "nf4"])
    assert line == "qtui sweep demo --profile standard --formats nf4"


@pytest.mark.parametrize(
    "asked",
    [
        p.Calibrate(sets=("code", "prose")),
        p.Calibrate(
            sets=("code", "/a b/x.txt"),
            method="int3-g128+awq",
            samples=(8, 16),
            seq_lens=(128, 256),
            texts=("/a b/held.txt", "/other.txt"),
            measure=False,
            halves=False,
        ),
    ],
)
def test_compared_calibration_sets_are_compared_again(
    asked: p.Calibrate, monkeypatch: pytest.MonkeyPatch
) -> None:
    again: list[tuple[str, p.Settings, p.AnyCommand]] = []

    def ran(*given: Any) -> None:
        again.append(given)
        raise typer.Exit

    monkeypatch.setattr("qtui.cli.calibrate.run", ran)
    cli = typer.Typer()
    cli.command()(calibrate)
    cli.command()(other)
    settings = load_profile("quick").settings("quick", calib_tokens=999, seed=3)
    session = Session(settings=settings, source="/a model")
    for number in ("1", "2"):  # asked for twice, said once
        session.jobs[number] = Job(number, "calibrate", "", command=asked)
    found = commands(session)
    assert list(found) == ["weights", "sensitivity", "calibration sets", "the workbench"]
    program, *words = shlex.split(found["calibration sets"])
    assert program == "qtui"
    CliRunner().invoke(cli, words, catch_exceptions=False)
    ((source, given, command),) = again
    assert (source, command) == ("/a model", asked)
    expected = {"text": asked.texts[0] if asked.texts else None}
    expected |= {"seq_len": max(asked.seq_lens)} if asked.seq_lens else {}
    assert given == msgspec.structs.replace(settings, **expected)


@pytest.mark.parametrize("word", ["a b", "it's", "\x1b[2J", "two\nlines", "x\\y\x07'z", "ä\x80"])
def test_a_word_is_one_printable_line_and_a_shell_reads_it_back(word: str) -> None:
    written = quoted(word)
    assert written.isprintable()
    out = subprocess.run(
        ["bash", "-c", f"printf %s {written}"], stdout=subprocess.PIPE, check=True
    ).stdout
    assert out.decode() == word
