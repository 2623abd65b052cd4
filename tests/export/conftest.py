"""Exports are checked in the process of the test, but where the other process is what is tested."""

from __future__ import annotations

import pytest

ANOTHER_PROCESS = ("test_load_check", "test_export_job")


@pytest.fixture(autouse=True)
def check_of_this_module(request: pytest.FixtureRequest) -> None:
    if request.module.__name__.rpartition(".")[2] not in ANOTHER_PROCESS:
        request.getfixturevalue("checked_here")
