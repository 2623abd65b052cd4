"""The block for a bug report, also where half of it is missing."""

from __future__ import annotations

from importlib import metadata, util
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.errors import ProfileError
from engine.report import json as json_output
from qtui.cli import installation as doctor
from qtui.user import themes


def test_the_report_finds_what_is_bundled() -> None:
    report = doctor.examine()
    assert report.profiles[:3] == ["quick", "standard", "thorough"]
    assert "qtui-dark" in report.themes
    assert report.versions["torch"] == metadata.version("torch")
    places = {place.name: place for place in report.places}
    assert places["bundled profiles"].found
    assert places["bundled themes"].found
    assert places["sockets"].found
    assert report.problems == []
    assert msgspec.json.decode(json_output.encode(report), type=doctor.Report) == report


def test_what_is_missing_is_said_and_breaks_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    find = util.find_spec

    def find_spec(name: str, *given: Any) -> Any:
        return None if name in ("psutil", "pynvml") else find(name, *given)

    monkeypatch.setattr(doctor.metadata, "version", absent)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", find_spec)
    for module in (doctor, themes):
        monkeypatch.setattr(module, "themes_folder", lambda: tmp_path / "no-themes")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    for variable in ("TERM", "COLORTERM", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    report = doctor.examine()
    text = doctor.report_text(report)
    assert report.versions["torch"] is None
    assert "torch is missing" in report.problems
    assert "TERM=missing" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["compiler", "missing"] in lines
    assert ["themes", "missing"] in lines
    assert ["gpu", "missing"] in lines


def test_a_profile_that_cannot_be_read_is_a_problem_not_a_failure(tmp_path: Path) -> None:
    own = tmp_path / "config" / "qtui"
    own.mkdir(parents=True)
    (own / "profiles.toml").write_text("[quick]\ntokens = 'many'\n")
    report = doctor.examine()
    assert report.profiles == []
    assert any("profiles.toml" in problem for problem in report.problems)


def test_a_folder_that_cannot_be_made_is_a_problem_not_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file" / "below"))
    assert any("state folder" in problem for problem in doctor.examine().problems)


def test_the_terminal_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm\x1b[2J")
    monkeypatch.setenv("TMUX", "/tmp/tmux")
    monkeypatch.setenv("SSH_CONNECTION", "here there")
    monkeypatch.setenv("NO_COLOR", "1")
    text = doctor.report_text(doctor.examine())
    assert "\x1b" not in text
    for word in ("tmux", "over ssh", "NO_COLOR set"):
        assert word in text


def test_a_profile_is_shown_value_by_value_with_its_files(tmp_path: Path) -> None:
    own = tmp_path / "config" / "qtui" / "profiles.toml"
    own.parent.mkdir(parents=True)
    own.write_text('[mine]\nfps = 4\n[mine.keys]\n4 = "int4-channel"\n')
    report = doctor.examine("mine")
    assert isinstance(report.profile, doctor.ChosenProfile)
    values = {each.key: each for each in report.profile.values}
    assert (values["fps"].value, values["fps"].path, values["fps"].own) == (4, str(own), True)
    assert (values["keys.4"].value, values["keys.4"].profile) == ("int4-channel", "mine")
    assert (values["tokens"].own, values["tokens"].profile) == (False, "standard")
    assert values["formats"].value == ["int3-g128", "int4-g128", "int8"]
    lines = [line.split(maxsplit=1) for line in doctor.report_text(report).splitlines()]
    assert ["profile", "mine"] in lines
    assert ["fps", f"4  ({own} [mine])"] in lines
    assert ["tokens", "16384  (bundled [standard])"] in lines
    assert ["formats", "int3-g128, int4-g128, int8  (bundled [standard])"] in lines
    assert msgspec.json.decode(json_output.encode(report), type=doctor.Report) == report


def test_without_a_profile_the_report_has_no_such_key() -> None:
    assert b'"profile"' not in json_output.encode(doctor.examine())


def test_an_unknown_profile_is_an_error_and_a_broken_file_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="no profile named 'qick'"):
        doctor.examine("qick")
    own = tmp_path / "config" / "qtui" / "profiles.toml"
    own.parent.mkdir(parents=True)
    own.write_text("[mine]\nfps = 'many'\n")
    report = doctor.examine("mine")
    assert report.profile is msgspec.UNSET
    assert any(str(own) in each and "[mine] `fps`" in each for each in report.problems)
