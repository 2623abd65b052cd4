"""``qtui report``: a past session as a page, without measuring."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import protocol as p
from engine.client import in_process
from engine.store.paths import session_name, state_path
from tests import tiny
from tests.drive import ended, settings, until

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def swept(tmp_path: Path, prose: Path) -> Path:
    source = tiny.build("llama", tmp_path / "tiny")
    client = in_process(str(source))
    try:
        client.send(p.Open(str(source), settings(prose)))
        client.send(p.Sweep(exact="none"))
        until(client, ended("sweep"))
    finally:
        client.close()
    return source


def test_a_session_is_reported_by_name_and_by_its_model(
    swept: Path, run: Run, tmp_path: Path
) -> None:
    page, document = tmp_path / "report.html", tmp_path / "report.json"
    code, out, err = run("report", str(swept), "-o", str(page))
    assert code == 0, err
    assert "<figure>" in page.read_text(), "histograms are read from the checkpoint"
    code, out, err = run("report", session_name(str(swept)), "-o", str(document))
    assert code == 0, err
    read = json.loads(document.read_text())
    assert read["schema"] == "qtui.report/1"
    assert all("int4-g32" in layer["effects"] for layer in read["layers"])
    code, out, err = run("report", str(swept))
    assert read["interval_factor"], "reading histograms leaves the session as it was"
    assert "SHA-256" in out
    assert out.startswith("# tiny")
    assert "qtui sweep" in out


def test_what_cannot_be_reported_is_said(run: Run, tmp_path: Path) -> None:
    code, _, err = run("report", "nowhere")
    assert code == 2
    assert "no session 'nowhere'" in err
    for name in ("n" * 300, "..", ""):
        code, _, err = run("report", name)
        assert code == 2
        assert "no session" in err
    assert not list((state_path() / "sessions").glob("*")), "asking leaves no folder behind"
    code, _, err = run("report", "nowhere", "-o", str(tmp_path / "a.pdf"))
    assert code == 2
    assert ".html, .md, .json" in err
    code, _, err = run("report", "nowhere", "-o", str(tmp_path / "none" / "a.md"))
    assert code == 2
    assert "does not exist" in err


def test_a_format_that_is_not_known_is_refused_with_those_that_are(swept: Path, run: Run) -> None:
    code, _, err = run("report", str(swept), "--format", "nf4")
    assert code == 2
    assert "int4-g32" in err
