"""The wheel, installed where nothing else is: it has its data with it and its commands run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import msgspec
import pytest

from qtui.cli.installation import Report

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """A command's stdout; its stderr is in the failure."""
    ended = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert ended.returncode == 0, f"{command}: {ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    run(
        sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation",
        "-w", folder, ROOT, cwd=folder,
    )  # fmt: skip
    (found,) = folder.glob("qtui-*.whl")
    return found


def test_the_wheel_has_its_data_with_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"engine/profiles.toml", "engine/protocol/__init__.py", "qtui/cli/__init__.py"} <= names
    for theme in (ROOT / "themes").glob("*.toml"):
        assert f"qtui/themes/{theme.name}" in names
    for file in (ROOT / "engine" / "demo" / "checkpoint").glob("*"):
        assert f"engine/demo/checkpoint/{file.name}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "themes/")) for name in names)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_wheel_runs_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    run(
        python, "-m", "pip", "install", "-q", "--no-compile", "-c", ROOT / "constraints.txt",
        wheel, cwd=tmp_path,
    )  # fmt: skip
    qtui = tmp_path / "env" / "bin" / "qtui"
    assert "triage" in run(qtui, "--help", cwd=tmp_path)
    report = msgspec.json.decode(run(qtui, "doctor", "--json", "-", cwd=tmp_path), type=Report)
    assert report.problems == []
    assert "standard" in report.profiles
    assert report.themes
    inside = str(tmp_path / "env")
    places = {place.name: place for place in report.places}
    for name in ("bundled profiles", "bundled themes"):
        assert places[name].found
        assert places[name].path.startswith(inside)
    found = json.loads(run(qtui, "triage", "demo", "-P", "quick", "--json", "-", cwd=tmp_path))
    assert found["model"]["name"] == "demo"
    assert all("errors" in layer for layer in found["layers"])
