"""Command lines: what they refuse, what they print where, and what they exit with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from engine import protocol as p
from engine.errors import CheckpointError, EngineError, InfeasibleError, UsageError
from engine.profiles import Profile, load_profile
from qtui import startup as opening
from qtui.app import Appearance, StartScreen
from qtui.cli import interface
from qtui.cli.options import size_in_bytes
from qtui.screens.start.screen import Start
from qtui.views.text import UNICODE
from tests.qtui.scripted import Scripted, install

QUICK = ("--profile", "quick")


class Started(str):
    """An engine that was started ahead, told by its model."""

    ended = False

    def terminate(self) -> None:
        Started.ended = True


class Shown(NamedTuple):
    """What the terminal interface was asked to show."""

    source: str | None
    settings: p.Settings
    profile: Profile
    appearance: Appearance
    choice: StartScreen


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Shown]:
    """What was shown, on a terminal that only seems to be one."""
    found: list[Shown] = []

    def show(
        source: str | None,
        settings: p.Settings,
        profile: Profile,
        *,
        appearance: Appearance,
        shelf: object,
        choice: StartScreen,
        started: object,
        asked: bool,
        read_only: bool,
    ) -> int:
        assert not read_only
        assert started == (None if source is None else f"engine of {source}")
        found.append(Shown(source, settings, profile, appearance, choice))
        return 0

    monkeypatch.setattr(opening, "run", show)
    monkeypatch.setattr(interface, "has_terminal", lambda: True)
    monkeypatch.setattr(
        interface, "start_ahead", lambda source, nice, idle: Started(f"engine of {source}")
    )
    return found


Run = Callable[..., tuple[int, str, str]]


# --- the first argument --------------------------------------------------------------------------


def test_a_first_argument_that_is_no_command_is_a_model(run: Run, shown: list[Shown]) -> None:
    assert run("org/model", "--tokens", "512")[0] == 0
    assert shown[0].source == "org/model"
    assert shown[0].settings.tokens == 512
    assert not shown[0].appearance.ascii


def test_options_may_stand_before_the_model(run: Run, shown: list[Shown]) -> None:
    assert run("--ascii", "-P", "quick", "org/model")[0] == 0
    assert shown[0].source == "org/model"
    assert shown[0].settings.profile == "quick"
    assert shown[0].appearance.ascii


def test_a_folder_named_like_a_command_can_be_opened(
    run: Run,
    shown: list[Shown],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "triage").mkdir()
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run("./triage")[0] == 0
    assert run("demo")[0] == 0
    assert run("./demo")[0] == 0
    assert [each.source for each in shown] == [
        str(tmp_path / "triage"), "demo", str(tmp_path / "demo"),
    ]  # fmt: skip


def test_the_exit_code_is_that_of_the_interface(
    run: Run, shown: list[Shown], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "run", lambda *given, **named: 3)
    assert run("demo")[0] == 3


def test_without_a_terminal_the_interface_names_the_commands_to_use(run: Run) -> None:
    code, out, err = run("org/model")
    assert code == 2
    assert out == ""
    assert "`qtui sweep org/model`" in err


def test_without_a_model_and_a_terminal_there_is_a_sentence_and_the_commands(run: Run) -> None:
    code, out, err = run()
    assert code == 2
    assert out == ""
    assert "`qtui triage MODEL`" in err


def test_without_a_model_a_start_screen_is_shown_that_keeps_what_was_given(
    run: Run, shown: list[Shown]
) -> None:
    assert run("-P", "quick", "--tokens", "512")[0] == 0
    assert shown[0].source is None
    assert isinstance(shown[0].choice.screen(UNICODE), Start)
    settings, profile = shown[0].choice.resolve("thorough")
    assert (settings.profile, settings.tokens) == ("thorough", 512)
    assert profile == load_profile("thorough")


def test_repaints_and_theme_are_chosen_on_the_command_line(run: Run, shown: list[Shown]) -> None:
    assert run("demo", "--fps", "4", "--theme", "contrast")[0] == 0
    assert shown[0].profile.fps == 4
    assert shown[0].appearance.theme == "contrast"
    code, _, err = run("demo", "--theme", "contrats")
    assert code == 2
    assert "did you mean contrast" in err
    assert Started.ended
    code, _, err = run("demo", "--fps", "0")
    assert code == 2
    assert "--fps" in err


def test_what_is_wrong_with_own_files_is_said_on_the_screen_and_stops_nothing(
    run: Run, shown: list[Shown], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "qtui"
    (folder / "themes").mkdir(parents=True)
    (folder / "themes" / "mine.toml").write_text("name = 3")
    (folder / "keymap.toml").write_text('[keys]\nswep = "X"')
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert run("demo")[0] == 0
    problems = "\n".join(shown[0].appearance.problems)
    assert str(folder / "themes" / "mine.toml") in problems
    assert "did you mean `sweep`" in problems
    (folder / "keymap.toml").write_text('[keys]\nsweep = "X"')
    assert run("demo")[0] == 0
    assert shown[1].appearance.keymap["sweep"] == "X"


def test_help_and_version_exit_with_nothing_on_stderr(run: Run) -> None:
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert "sweep" in out
    assert "open " not in out
    for error in (EngineError, UsageError, CheckpointError, InfeasibleError):
        assert f" {error.exit_code} " in out.partition("Exit codes:")[2]
    code, out, err = run("--version")
    assert (code, err) == (0, "")
    assert out.startswith("qtui ")


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        ("export", "demo", "--format", "int8", "--to", "onnx", "-o", "out"),
    ],
)
def test_what_is_planned_is_refused_and_said_so(run: Run, given: tuple[str, ...]) -> None:
    code, out, err = run(*given)
    assert code == 2
    assert out == ""
    assert "is not available yet" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("sweep",), "MODEL"),
        (("sweep", "demo", "--bogus"), "--bogus"),
        (("sweep", "demo", "--tokens", "many"), "--tokens"),
        (("sweep", "demo", "--tokens", "1"), "--tokens"),
        (("sweep", "demo", "--dtype", "fp8"), "--dtype"),
        (("sweep", "demo", "--device", "tpu"), "--device"),
        (("sweep", "demo", "--memory-budget", "lots"), "--memory-budget"),
        (("sweep", "demo", "--profile", "hasty"), "hasty"),
        (("sweep", "demo", "--formats", "int4,,int8"), "--formats"),
        (("sweep", "demo", "--exact", "al"), "did you mean all?"),
        (("sweep", "demo", "--exact", "top"), "as in top:10"),
        (("sweep", "demo", "--exact", "top:0"), "as in top:10"),
        (("sweep", "demo", "--exact", "top:-3"), "as in top:10"),
        (("sweep", "demo", "--exact", "all:3"), "expected all, top:K, none"),
        (("sweep", "demo", "--direction", "restored"), "did you mean restore?"),
        (("sweep", "demo", "--by", "blocks"), "did you mean block?"),
        (("sweep", "demo", "--draws", "0"), "expected 1 to 64"),
        (("sweep", "demo", "--json", "/no/such/folder/x.json"), "/no/such/folder"),
        (("sweep", "demo", "--json", "/"), "--json"),
        (("eval", "demo"), "--recipe"),
        (("eval", "demo", "--format", "int8", "--recipe", "x.toml"), "--recipe"),
        (("eval", "demo", "--recipe", "gone.toml"), "gone.toml"),
        (("eval", "demo", "--recipe", "./Q4_K_M"), "Q4_K_M: cannot be read"),
        (("eval", "demo", "--recipe", "Q4_KM"), "did you mean Q4_K_M"),
        (("eval", "demo", "--recipe", "Q4_K_M", "--format", "int8"), "--recipe first-last"),
        (("export",), "MODEL"),
        (("export", "demo", "--to", "checkpoint", "-o", "out"), "--recipe"),
        (("export", "demo", "--format", "int8", "-o", "out"), "checkpoint ("),
        (
            ("export", "demo", "--format", "int8", "--to", "vllm", "-o", "out"),
            "checkpoint (",
        ),
        (("export", "demo", "--format", "int8", "--to", "checkpoint"), "-o PATH"),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_names_what_is_wrong(
    run: Run, given: tuple[str, ...], named: str
) -> None:
    code, out, err = run(*given)
    assert code == 2
    assert out == ""
    assert named in err


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("8GiB", 8 << 30),
        ("8gib", 8 << 30),
        ("1.5 GB", 1_500_000_000),
        ("512M", 512_000_000),
        ("4096", 4096),
        ("4096B", 4096),
    ],
)
def test_sizes(given: str, expected: int) -> None:
    assert size_in_bytes(given) == expected


@pytest.mark.parametrize("given", ["", "GiB", "8iB", "-1GB", "0", "8 GiBs"])
def test_what_is_no_size(given: str) -> None:
    with pytest.raises(UsageError, match="--memory-budget"):
        size_in_bytes(given)


# --- options become settings ---------------------------------------------------------------------


def opened(engine: Scripted) -> p.Settings:
    command = engine.sent[0]
    assert isinstance(command, p.Open)
    return command.settings


def test_every_option_reaches_the_engine(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = install(monkeypatch)
    text = tmp_path / "text.txt"
    text.write_text("words")
    monkeypatch.chdir(tmp_path)
    code, _, err = run(
        "sweep", "demo", "-P", "quick", "--text", "text.txt", "--tokens", "2048", "--seq-len",
        "128", "--stride", "32", "--device", "cuda:1", "--dtype", "bf16", "--memory-budget",
        "2GiB", "--seed", "7", "--fresh", "--trust-remote-code", "--formats", "int4, int8,int4",
        "--exact", "TOP:05", "--direction", "restore", "--by", "block", "--draws", "4",
    )  # fmt: skip
    assert code == 0, err
    settings = opened(engine)
    assert settings.profile == "quick"
    assert settings.text == str(text)
    assert (settings.tokens, settings.seq_len, settings.stride) == (2048, 128, 32)
    assert (settings.device, settings.dtype) == ("cuda:1", "bf16")
    assert settings.memory_budget == 2 << 30
    assert settings.seed == 7
    assert settings.fresh
    assert settings.trust_remote_code
    assert settings.draws == 4
    assert settings.estimate_formats, "the profile's: estimates made with all of them serve"
    asked = p.Sweep(("int4", "int8"), direction="restore", exact="top:5", by="block", only=True)
    assert engine.sent[1] == asked


def test_a_stride_of_0_is_windows_side_by_side(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = tmp_path / "config" / "qtui"
    own.mkdir(parents=True)
    (own / "profiles.toml").write_text("[mine]\nstride = 64\n")
    engine = install(monkeypatch)
    run("triage", "demo", "-P", "mine")
    assert opened(engine).stride == 64
    engine = install(monkeypatch)
    run("triage", "demo", "-P", "mine", "--stride", "0")
    assert opened(engine).stride is None


def test_formats_that_are_not_given_are_the_profile_s(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = install(monkeypatch)
    run("triage", "demo", *QUICK)
    assert engine.sent[1] == p.Triage(("int4-g128", "int8"))
