"""The wheel, installed where nothing else is: it has its data with it and its commands run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import msgspec
import pytest
from packaging.requirements import Requirement

from qtui.cli.installation import Report

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """A command's stdout; its stderr is in the failure. It finds no other copy of our packages."""
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ended = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False,
        env={**inherited, **environment},
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
    assert "engine/report/page/templates/page.html" in names
    for theme in (ROOT / "themes").glob("*.toml"):
        assert f"qtui/themes/{theme.name}" in names
    for file in (ROOT / "engine" / "demo" / "checkpoint").glob("*"):
        assert f"engine/demo/checkpoint/{file.name}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "themes/")) for name in names)


def pip_install(python: Path, *arguments: str | Path, cwd: Path) -> None:
    """Install into another environment: to give that one a pip of its own takes longer."""
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "-q", "--no-compile", *arguments, cwd=cwd)


def install(python: Path, wheel: Path, cwd: Path) -> None:
    """As a user does: pip fetches whatever the wheel says it needs."""
    pip_install(python, "-c", ROOT / "constraints.txt", wheel, cwd=cwd)


def link(python: Path, wheel: Path, cwd: Path) -> None:
    """As pip does, but for what the wheel says it needs, which is linked from where tests run.

    Nothing else is: what is used but not said to be needed is missed here too.
    """
    pip_install(python, "--no-deps", wheel, cwd=cwd)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=cwd)
    folder = Path(site.strip())
    for needed in closure(next(iter(metadata.distributions(name="qtui", path=[str(folder)])))):
        for top in {file.parts[0] for file in needed.files or () if file.parts[0] != ".."}:
            if not (folder / top).exists():
                (folder / top).symlink_to(str(needed.locate_file(top)))


def closure(first: metadata.Distribution) -> list[metadata.Distribution]:
    """What a distribution needs, and what that needs, in the versions they ask for."""
    found: dict[tuple[str, str], metadata.Distribution] = {}
    left = [(first, "")]
    while left:
        by, extra = left.pop()
        for requirement in map(Requirement, by.requires or ()):
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            needed = metadata.distribution(requirement.name)
            assert requirement.specifier.contains(needed.version, prereleases=True), requirement
            for wanted in ("", *requirement.extras):
                if (needed.name, wanted) not in found:
                    found[needed.name, wanted] = needed
                    left.append((needed, wanted))
    return list(found.values())


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fill", [link, pytest.param(install, marks=pytest.mark.soak)])
def test_the_wheel_runs_in_an_environment_of_its_own(
    fill: Callable[[Path, Path, Path], None], wheel: Path, tmp_path: Path
) -> None:
    venv.create(tmp_path / "env")
    fill(tmp_path / "env" / "bin" / "python", wheel, tmp_path)
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
