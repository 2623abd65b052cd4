"""Exports are checked in the process of the test, but where the other process is what is tested."""

from __future__ import annotations

import pytest

from engine.export import load_check

ANOTHER_PROCESS = ("test_load_check", "test_export_job")


@pytest.fixture(autouse=True)
def checked_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same check without the seconds that a process needs to import transformers."""
    if request.module.__name__.rpartition(".")[2] in ANOTHER_PROCESS:
        return

    def asked(question: object, go_on: object) -> str:
        if isinstance(question, load_check._Planned):
            return load_check.problem_of_plan(question)
        assert isinstance(question, load_check._Question)
        return load_check.problem_of(question)

    monkeypatch.setattr(load_check, "_asked", asked)
